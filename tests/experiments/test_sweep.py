"""Sweeps: the combinators and their forms on the command line and in files."""

import pytest

from experiments.launch import sweep


def test_combinators_of_sweeps():
    a, b = sweep.axis("a", [1, 2]), sweep.axis("b", [3, 4])
    assert sweep.product(a, b) == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    assert sweep.zipped(a, b) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert sweep.chain(a, b) == [{"a": 1}, {"a": 2}, {"b": 3}, {"b": 4}]
    with pytest.raises(ValueError, match="equally long, these have 2, 1 points"):
        sweep.zipped(a, sweep.axis("b", [1]))
    with pytest.raises(ValueError, match="two parts of the sweep set 'a'"):
        sweep.product(a, a)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1", [{"a.b": "1"}]),
        ("config.a=1,2", [{"a": "1"}, {"a": "2"}]),
        ("a=(1,2),(3,4)", [{"a": "(1,2)"}, {"a": "(3,4)"}]),
        ("a='x, y',z", [{"a": "x, y"}, {"a": "z"}]),
        ("a=1e-3,1e+3", [{"a": "1e-3"}, {"a": "1e+3"}]),
        ("a=1,2 & b=3,4", [{"a": "1", "b": "3"}, {"a": "2", "b": "4"}]),
        ("a=1 * b=2,3 & c=4,5 + d=6", [{"a": "1", "b": "2", "c": "4"}, {"a": "1", "b": "3", "c": "5"}, {"d": "6"}]),
    ],
)
def test_sweeps_on_the_command_line(text, expected):
    assert sweep.parse(text) == expected


@pytest.mark.parametrize("text", ["", "a", "a=", "a=1,,2", "a=(1", "a='1", "a b=1", "a=1 * "])
def test_bad_sweeps_are_refused(text):
    with pytest.raises(ValueError, match="sweep"):
        sweep.parse(text)


def test_sweeps_from_a_file(tmp_path):
    file = tmp_path / "seeds.py"
    file.write_text(
        "from experiments.launch.sweep import axis\ndef get_sweep():\n    return axis('train.seed', range(3))\n"
    )
    assert sweep.parse(str(file)) == [{"train.seed": i} for i in range(3)]
    file.write_text("def get_sweep():\n    return 3\n")
    with pytest.raises(ValueError, match="must return a list of dicts"):
        sweep.parse(str(file))
    with pytest.raises(FileNotFoundError, match="there is no sweep file"):
        sweep.parse(str(tmp_path / "none.py"))
