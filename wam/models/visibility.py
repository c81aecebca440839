"""Which stream of which chunk may see which: the table, and what it means for one query block.

Streams: `history` (clean video; chunk 0 is the first frame alone), `state`, `video` (noisy future), `action` (noisy),
`draw` (further noise draws of the action chunk that share the context), `value` (a query that nobody sees). Chunks of
history count from 0, of all others from 1. Nobody sees the future, nor further back than the model's window of clean
chunks. The context (history, state) never sees a noisy token: its keys and values can be computed once and reused for
every denoising step.
"""

from __future__ import annotations

from typing import NamedTuple


class Visible(NamedTuple):
    stream: str
    chunks: str
    """`same`, `past` (strictly earlier history) or `upto` (earlier and same)."""
    gate: str | None = None
    """Per-sample bit that switches this block on; gated blocks come last."""


TABLE: dict[str, tuple[Visible, ...]] = {
    "history": (Visible("history", "upto"),),
    "state": (Visible("state", "same"),),
    "video": (
        Visible("history", "past"),
        Visible("state", "same"),
        Visible("video", "same"),
        Visible("action", "same", gate="video_sees_action"),
    ),
    "action": (
        Visible("history", "past"),
        Visible("state", "same"),
        Visible("action", "same"),
        Visible("video", "same", gate="action_sees_video"),
    ),
    "draw": (Visible("history", "past"), Visible("state", "same"), Visible("draw", "same")),
    "value": (
        Visible("history", "past"),
        Visible("value", "same"),
        Visible("video", "same", gate="value_sees_video"),
        Visible("state", "same", gate="value_sees_action"),
        Visible("action", "same", gate="value_sees_action"),
    ),
}
