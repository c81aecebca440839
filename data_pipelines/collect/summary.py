"""What a collection holds, task by task: read from its stores."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Mapping

from data_pipelines.store import ClipStore


def store_rows(root: pathlib.Path, split: str, source: str, seconds: Mapping[tuple, float]) -> list[dict]:
    """One row a task, from the store itself; the seconds are those of this run's processes, None if it made nothing."""
    store = ClipStore(root / split / source)
    index, rows = store.index, {}
    for i, meta in enumerate(index.meta):
        task = meta["task"]
        if task not in rows:
            counts = dict.fromkeys(("episodes", "successes", "steps", "imitate_steps", "images"), 0)
            size = sum(s["bytes"] for name, s in store.manifest["shards"].items() if name.rsplit("-", 1)[0] == task)
            rows[task] = {"split": split, "source": source, "task": task, **counts, "bytes": size}
            rows[task]["process_seconds"] = seconds.get((split, source, task))
        row, (first, last) = rows[task], index.anchors[i]
        owned = None if index.is_last[i] else index.frame_step[i][last]  # steps before the next clip begins
        row["imitate_steps"] += int(index.imitate[i][:owned].sum())
        row["images"] += int(last - first) * len(store.manifest["cameras"])
        if index.start[i] == 0:
            row["episodes"] += 1
            row["successes"] += int(meta["success_step"] >= 0)
            row["steps"] += int(index.episode_steps[i])
    return list(rows.values())


def table(result: dict) -> str:
    """One line for every task of every store."""
    numbers = ("episodes", "solved", "steps", "imitate", "images")
    lines = [f"{'store':18s} {'task':26s} " + " ".join(f"{name:>8s}" for name in (*numbers, "MB"))]
    totals: collections.Counter = collections.Counter()
    for row in result["rows"]:
        totals.update({key: row[key] for key in ("episodes", "successes", "steps", "imitate_steps", "images", "bytes")})
        lines.append(_line(f"{row['split']}/{row['source']}", row["task"], row))
    lines.append(_line("all", "", totals))
    lines.append(
        f"{result['shards']['made']} shards made, {result['shards']['found']} found, {result['seconds']:.0f} s"
    )
    return "\n".join(lines)


def _line(store: str, task: str, row: dict) -> str:
    counts = " ".join(f"{row[key]:8d}" for key in ("episodes", "successes", "steps", "imitate_steps", "images"))
    return f"{store:18s} {task:26s} {counts} {row['bytes'] / 1e6:8.1f}"
