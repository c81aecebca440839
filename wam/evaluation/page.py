"""One HTML page in one file: elements that escape their text, tables, and the style sheet. No external resource."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Text that is markup already; every other string is escaped where it enters an element."""


def join(parts: Iterable[str]) -> Html:
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def tag(name: str, /, *children: str, **attributes: str) -> Html:
    """An element; `class_` is written class, and a void element has no children."""
    written = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    if name in ("img", "meta", "br"):
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def note(text: str) -> Html:
    return tag("p", text, class_="note")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, strong: Sequence[int] = ()) -> Html:
    """Names in the first column, figures in the others; the rows whose index is in `strong` stand out."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = []
    for index, (name, *cells) in enumerate(rows):
        line = [tag("th", name, scope="row"), *(tag("td", cell) for cell in cells)]
        body.append(tag("tr", *line, class_="strong") if index in strong else tag("tr", *line))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")


def figure(uri: str, caption: str, *, alt: str, labels: Sequence[str] = (), width: float | None = None) -> Html:
    """An embedded picture, at most `width` pixels wide. `labels` stand above it, over equal shares of its width."""
    above = tag("div", *(tag("span", label) for label in labels), class_="labels")
    limit = {"style": f"max-width: {width:.0f}px"} if width else {}
    image = tag("img", src=uri, alt=alt, **limit)
    return tag("figure", *([above] if labels else []), image, tag("figcaption", caption))


def section(title: str, *children: str) -> Html:
    anchor = "-".join(title.lower().split())
    return tag("section", tag("h2", title), *children, id=anchor)


def page(title: str, lead: str, sections: Sequence[tuple[str, Html]]) -> str:
    """The whole document; `sections` are (title, content below the heading)."""
    links = [tag("a", name, href="#" + "-".join(name.lower().split())) for name, _ in sections]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(STYLE)),
    ]
    body = [tag("header", tag("h1", title), lead, tag("nav", *links)), *(section(*parts) for parts in sections)]
    return "<!DOCTYPE html>\n" + tag("html", tag("head", *head), tag("body", tag("main", *body)), lang="en") + "\n"


STYLE = """
:root { --ink: #1c2430; --soft: #5b6672; --rule: #d8dde3; --wash: #f5f7f9; --accent: #0072b2; color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 48px 40px 96px; }
h1 { margin: 0; font-size: 34px; line-height: 1.2; letter-spacing: -0.015em; }
h2 { margin: 64px 0 14px; padding-top: 14px; border-top: 2px solid var(--ink); font-size: 22px;
  letter-spacing: -0.01em; }
h3 { margin: 34px 0 8px; font-size: 16.5px; }
p { max-width: 74ch; margin: 8px 0 14px; }
.byline { margin: 8px 0 0; color: var(--soft); font-size: 14px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 18px; font-size: 14px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.verdicts { margin: 0; padding: 0; list-style: none; }
.verdicts li { margin: 0 0 8px; padding: 10px 16px; background: var(--wash); border-left: 3px solid var(--accent); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 14px; margin: 22px 0 0; }
.tile { padding: 14px 16px; border: 1px solid var(--rule); border-radius: 6px; }
.tile b { display: block; font-size: 27px; line-height: 1.25; letter-spacing: -0.02em; }
.tile span { display: block; color: var(--soft); font-size: 13px; line-height: 1.4; }
.tile .name { color: var(--ink); font-weight: 600; }
.scroll { overflow-x: auto; }
table { margin: 10px 0 20px; border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums; }
thead th { border-bottom: 1.5px solid var(--ink); font-weight: 600; vertical-align: bottom; }
th, td { padding: 5px 22px 5px 0; text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
th:first-child { text-align: left; }
tbody th { font-weight: 400; }
tbody tr { border-bottom: 1px solid var(--rule); }
tr.strong th, tr.strong td { font-weight: 650; }
td small { color: var(--soft); font-weight: 400; }
figure { margin: 16px 0 26px; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: 7px; color: var(--soft); font-size: 13.5px; line-height: 1.45; max-width: 100ch; }
.labels { display: flex; margin-bottom: 3px; font-size: 12.5px; color: var(--soft); }
.labels span { flex: 1 1 0; text-align: center; }
.grid { display: grid; gap: 4px 24px; }
.grid figure { margin: 8px 0 12px; }
.two { grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); }
.three { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.five { grid-template-columns: repeat(auto-fill, minmax(min(45%, 170px), 1fr)); }
.note { color: var(--soft); font-size: 14.5px; }
details { margin: 12px 0; }
summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; padding: 14px 16px; background: var(--wash); border-radius: 6px; font-size: 12.5px;
  line-height: 1.5; }
code { font: 0.9em ui-monospace, SFMono-Regular, Menlo, "Liberation Mono", monospace; overflow-wrap: anywhere; }
@media (max-width: 640px) { main { padding: 24px 16px 60px; } h1 { font-size: 27px; } }
@media print { nav { display: none; } figure, table { break-inside: avoid; } }
"""
