"""In what two descriptions of a run differ, field by field and in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_SHOWN = 3
_MISSING = object()


def differences(before: Any, now: Any) -> str:
    """`data.batch_size: 32 -> 64; ...` of two JSON values: the first three fields that differ; empty if none does."""
    found = list(_walk(before, now, ""))
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def first_difference(before: Any, now: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """(field, before, now) of the first field, by name, in which two JSON values differ; lists are compared whole."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted(set(before) | set(now)):
            if found := first_difference(before.get(key), now.get(key), f"{path}.{key}".lstrip(".")):
                return found
        return None
    return None if before == now else (path, before, now)


def _walk(before: Any, now: Any, path: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            yield from _walk(before.get(key, _MISSING), now.get(key, _MISSING), f"{path}.{key}" if path else str(key))
    elif _is_list(before) and _is_list(now) and len(before) == len(now):
        for i, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from _walk(one, other, f"{path}[{i}]")
    elif before != now:
        yield f"{path}: {_shown(before)} -> {_shown(now)}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _shown(value: Any) -> str:
    """A value in a few words; of a hash its beginning."""
    if value is _MISSING:
        return "absent"
    if isinstance(value, Mapping) or (_is_list(value) and len(value) > 8):
        return f"{len(value)} entries"
    text = repr(value)
    if len(text) <= 48:
        return text
    return f"{value[:8]}..." if isinstance(value, str) and " " not in value else f"{text[:45]}..."
