"""Renders every results file into README.md: below its marker nothing is typed, a test compares.

python -m tools.bench.render            # rewrite README.md
python -m tools.bench.render --check    # exit 1 if it would change
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench.harness import FIELDS, RESULTS
from tools.render_readme import render_table

README = Path(__file__).resolve().parent / "README.md"
MARKER = "<!-- Everything below is rendered from results/ by `python -m tools.bench.render`. -->\n"
COLUMNS = ("case", "unit", "ours", "peer", "theirs", "ratio")
ROW_FIELDS = {*COLUMNS, "note"}


def section(result: dict[str, Any]) -> str:
    """Heading, provenance, table and numbered notes of one results file; ValueError when it breaks the format."""
    if set(result) != set(FIELDS):
        raise ValueError(f"its fields are {sorted(result)}, not {sorted(FIELDS)}")
    if unknown := sorted({field for row in result["rows"] for field in row} - ROW_FIELDS):
        raise ValueError(f"rows have the unknown fields {unknown}")
    notes = list(dict.fromkeys(row["note"] for row in result["rows"] if row.get("note")))
    columns = [*COLUMNS, *(["note"] if notes else [])]
    numbered = [row | {"note": f"({notes.index(row['note']) + 1})" if row.get("note") else None}
                for row in result["rows"]]  # fmt: skip
    table = render_table({"columns": columns, "rows": numbered})
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if name != "processor")
    return (
        f"## {result['name']}, {result['chip']}\n\n"
        f"{result['versions'].get('processor', result['chip'])}, {result['cores']} cores; {versions}; "
        f"revision {result['git']}, {result['date']}: `{result['command']}`\n\n"
        f"{table}\n" + "".join(f"{i}. {note}\n" for i, note in enumerate(notes, 1))
    )


def render(text: str, folder: Path = RESULTS) -> str:
    """`text` with all below the marker made anew from the files in `folder`, by name; ValueError names a bad file."""
    if MARKER not in text:
        raise ValueError(f"it lacks the line {MARKER.strip()}")
    sections = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text())
            if f"{result.get('name')}-{result.get('chip')}" != path.stem:
                raise ValueError(f"it holds {result.get('name')} of {result.get('chip')}")
            sections.append(section(result))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path.name}: {error}") from error
    return (
        text[: text.index(MARKER)] + MARKER + "".join(f"\n{part}" for part in sections or ["Nothing measured yet.\n"])
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if README.md is out of date")
    arguments = parser.parse_args(argv)
    old = README.read_text()
    try:
        new = render(old)
    except ValueError as error:
        sys.exit(f"{README}: {error}")
    if new != old and arguments.check:
        sys.exit(f"out of date: {README}; run python -m tools.bench.render")
    README.write_text(new)


if __name__ == "__main__":
    main()
