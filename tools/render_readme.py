"""Fills the result tables of Markdown files from committed JSON: a number in a README is never typed.

A table stands between `<!-- results:NAME -->` and `<!-- /results -->` and is made from `NAME.json`, found in
`experiments/results/`, `tools/bench/results/` or `tools/prove/results/`. The file holds either
`{"columns": [...], "rows": [[...]], "note": "..."}` or `{"rows": [{column: value}], "note": "..."}` (columns in order
of appearance; also a bare list of such rows). A cell may be text, a number, true or false, an interval
`{"mean", "low", "high"}`, a spread `{"median", "min", "max"}` or `{"median", "p10", "p90"}`, or a count
`{"successes", "episodes", "ci95"}`.

    python tools/render_readme.py            # rewrite README.md
    python tools/render_readme.py --check    # exit 1 if it would change
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("experiments/results", "tools/bench/results", "tools/prove/results")
TABLE = re.compile(r"(<!-- results:(?P<name>[\w.-]+) -->\n)(?P<body>.*?)(<!-- /results -->)", re.DOTALL)
MARKER = re.compile(r"<!-- (?:results:\S+|/results) -->")
NOT_MEASURED = "*Not measured yet.*\n"


def format_cell(value: Any) -> str:
    """One table cell: three significant digits, `mean [low, high]`, `median (min to max)`, `57/60 [0.86, 0.98]`."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        if {"mean", "low", "high"} <= value.keys():
            return "{} [{}, {}]".format(*(format_cell(value[key]) for key in ("mean", "low", "high")))
        for spread in (("median", "min", "max"), ("median", "p10", "p90")):
            if set(spread) <= value.keys():
                return "{} ({} to {})".format(*(format_cell(value[key]) for key in spread))
        if {"successes", "episodes", "ci95"} <= value.keys():
            return "{successes}/{episodes} [{0:.2f}, {1:.2f}]".format(*value["ci95"], **value)
        raise ValueError(
            "a cell must hold mean, low, high or median, min, max or median, p10, p90 or successes, episodes, ci95; "
            f"got the keys {sorted(value)}"
        )
    return str(value).replace("|", "\\|").replace("\n", " ")


def render_table(data: Any) -> str:
    """The Markdown of one results file, ending in a newline. Raises ValueError naming what is wrong with `data`."""
    if isinstance(data, list):
        data = {"rows": data}
    rows = data.get("rows")
    if not rows:
        raise ValueError("it has no rows")
    columns = data.get("columns")
    if columns is None:
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("it has no columns, so every row must be an object")
        columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[row.get(column) for column in columns] if isinstance(row, dict) else row for row in rows]
    for row in cells:
        if len(row) != len(columns):
            raise ValueError(f"row {row} has {len(row)} cells for {len(columns)} columns")
    lines = [columns, ["---"] * len(columns), *cells]
    table = "".join("| " + " | ".join(format_cell(cell) for cell in line) + " |\n" for line in lines)
    note = data.get("note")
    return table + (f"\n{note}\n" if note else "")


def render(text: str, root: pathlib.Path = ROOT) -> str:
    """`text` with every marked table made anew. Raises ValueError for a bad results file or an unpaired marker."""
    if len(MARKER.findall(text)) != 2 * len(TABLE.findall(text)):
        raise ValueError("every `<!-- results:NAME -->` line needs its `<!-- /results -->`")

    def replace(match: re.Match) -> str:
        paths = [root / folder / f"{match['name']}.json" for folder in FOLDERS]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            return match[1] + NOT_MEASURED + match[4]
        try:
            return match[1] + render_table(json.loads(path.read_text())) + match[4]
        except ValueError as error:
            raise ValueError(f"{path.relative_to(root)}: {error}") from error

    return TABLE.sub(replace, text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill the result tables of Markdown files from committed JSON.")
    parser.add_argument("files", nargs="*", type=pathlib.Path, default=[ROOT / "README.md"])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if a table is out of date")
    args = parser.parse_args()
    stale = []
    for path in args.files:
        old = path.read_text()
        try:
            new = render(old)
        except ValueError as error:
            sys.exit(f"{path}: {error}")
        if new != old:
            stale.append(str(path))
            if not args.check:
                path.write_text(new)
    if args.check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run tools/render_readme.py")


if __name__ == "__main__":
    main()
