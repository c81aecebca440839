import json

import pytest

from tools.render_readme import NOT_MEASURED, format_cell, render, render_table

PAGE = """before
<!-- results:demo -->
old
<!-- /results -->
between
<!-- results:none -->
<!-- /results -->
after
"""


def write(root, data, folder="experiments/results"):
    (root / folder).mkdir(parents=True)
    (root / folder / "demo.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (0.81666, "0.817"),
        (12345.6, "12,346"),
        (12345, "12,345"),
        (True, "yes"),
        (None, ""),
        ("a|b", "a\\|b"),
        ({"mean": 0.5, "low": 0.25, "high": 0.75}, "0.5 [0.25, 0.75]"),
        ({"median": 2.0, "min": 1.0, "max": 3.0, "n": 5}, "2 (1 to 3)"),
        ({"successes": 57, "episodes": 60, "ci95": [0.8630, 0.9832]}, "57/60 [0.86, 0.98]"),
    ],
)
def test_cells(value, cell):
    assert format_cell(value) == cell


def test_columns_come_from_the_file_or_from_the_rows():
    expected = "| task | success |\n| --- | --- |\n| reach | 0.9 |\n\ntwo seeds\n"
    assert render_table({"columns": ["task", "success"], "rows": [["reach", 0.9]], "note": "two seeds"}) == expected
    assert render_table({"rows": [{"task": "reach", "success": 0.9}], "note": "two seeds"}) == expected


@pytest.mark.parametrize("folder", ["experiments/results", "tools/bench/results"])
def test_page_is_filled_and_stays_filled(tmp_path, folder):
    write(tmp_path, [{"task": "reach"}], folder)
    page = render(PAGE, tmp_path)
    table = "| task |\n| --- |\n| reach |\n"
    assert page == PAGE.replace("old\n", table).replace("none -->\n", f"none -->\n{NOT_MEASURED}")
    assert render(page, tmp_path) == page


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"rows": []}, "no rows"),
        ({"columns": ["a"], "rows": [[1, 2]]}, "2 cells for 1 columns"),
        ({"rows": [[1]]}, "every row must be an object"),
        ([{"a": {"mean": 1}}], "a cell must hold"),
    ],
)
def test_bad_results_are_named(tmp_path, data, said):
    write(tmp_path, data)
    with pytest.raises(ValueError, match=rf"experiments/results/demo.json: .*{said}"):
        render(PAGE, tmp_path)


def test_an_open_marker_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="needs its"):
        render("<!-- results:demo -->\ntable\n", tmp_path)
