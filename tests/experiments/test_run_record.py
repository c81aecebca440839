"""The record of a run: what may change when it goes on, and the history of its weights."""

import json

import pytest
from ml_collections import ConfigDict

from experiments.run_record import settle_config, settle_weights, shares_asked, write_record


def config(seed=0, **weights):
    return ConfigDict({"data": {"weights": weights, "views": ("front",)}, "train": {"seed": seed}})


@pytest.fixture
def begun(tmp_path):
    write_record(tmp_path, settle_config(config(a=0.5, b=0.5), tmp_path))
    return tmp_path


def test_values_of_weights_may_change(begun):
    record = settle_config(config(a=0.9, b=0.1), begun)
    assert record["asked"]["data"]["weights"] == record["config"]["data"]["weights"] == {"a": 0.9, "b": 0.1}
    assert json.loads((begun / "config.json").read_text())["asked"]["data"]["weights"] == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (config(a=0.5), r"\(config.data.weights.b: 'a weight' -> absent\)"),
        (config(a=0.5, b=0.5, c=0.1), r"\(config.data.weights.c: absent -> 'a weight'\)"),
        (config(a=0.9, b=0.5, seed=2), r"\(config.train.seed: 0 -> 2\); use a new --workdir"),
    ],
)
def test_all_else_is_refused_with_the_difference(begun, wanted, said):
    with pytest.raises(ValueError, match=said):
        settle_config(wanted, begun)


def test_history_holds_what_was_trained_with():
    record, a, b, c = {}, {"x": 1.0, "y": 1.0}, {"x": 3.0, "y": 1.0}, {"x": 1.0, "y": 9.0}
    assert settle_weights(record, a, 0) and not settle_weights(record, a, 10)
    assert settle_weights(record, b, 10)
    assert not settle_weights(record, b, 10), "killed before the next checkpoint, the same once more"
    assert settle_weights(record, c, 10), "steps from 10 on are taken again, with others"
    assert record["weights"] == [{"step": 0, "weights": a}, {"step": 10, "weights": c}]
    assert shares_asked(record["weights"], 40) == pytest.approx({"x": 0.2, "y": 0.8})
    assert settle_weights(record, a, 10)
    assert record["weights"] == [{"step": 0, "weights": a}]
