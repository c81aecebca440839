"""A request: one observation and what is asked of the policy with it, read from one message."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import numpy as np

from wam.serving.observations import Observer, array_of, flatten
from wam.serving.wire import Limits, unpack

OPTIONS = ("mode", "return_video", "reset", "session", "prefix", "actions", "video")
MAKES_ACTIONS = ("policy", "joint", "inverse")
MAKES_VIDEO = ("joint", "forward", "video")


@dataclasses.dataclass(frozen=True)
class Request:
    observation: dict[str, Any]
    mode: str
    return_video: bool = False
    reset: bool = False
    """this observation begins a new session: no history, chunk 0"""
    session: int | None = None
    """names the noise of the session that begins; sessions of the same name and observations get the same answers"""
    prefix: np.ndarray | None = None
    """f32 [n, action dim]: actions already committed, which come back unchanged at the front of the chunk"""
    actions: np.ndarray | None = None
    """f32 [K, action dim]: of the forward mode"""
    video: dict[str, np.ndarray] | None = None
    """camera of the checkpoint -> uint8 [n, h, w, 3], the frames after the observation: of the inverse mode"""


class RequestReader:
    """From bytes to a `Request`, for one policy and the modes it is served in."""

    def __init__(self, observer: Observer, modes: tuple[str, ...], prefixes: bool = True,
                 filmed: tuple[str, ...] = MAKES_VIDEO, limits: Limits | None = None):  # fmt: skip
        """`filmed`: modes whose video comes out clean. ValueError: an observation key that is an option's, too."""
        self.observer, self.modes, self.prefixes, self.limits = observer, modes, prefixes, limits
        self.filmed = tuple(mode for mode in modes if mode in filmed)
        options = {*OPTIONS} - {"video"} | {f"video/{camera}" for camera in observer.cameras}
        self.known = {*options, *observer.keys}
        if taken := sorted(options & set(observer.keys)):
            raise ValueError(f"mapping: the key {taken[0]!r} is an option of requests")

    def __call__(self, message: bytes | str, seconds: float) -> Request:
        """`seconds`: since the session began.

        Raises:
            ValueError: one sentence that names the key and what was expected.
        """
        if isinstance(message, str):
            raise ValueError("expected a binary message (msgpack), got text")
        sent = flatten(unpack(message, self.limits))
        if unknown := [key for key in sent if key not in self.known]:
            raise ValueError(self._unknown(unknown[0]))
        mode = sent.get("mode", self.modes[0])
        if mode not in self.modes:
            raise ValueError(f"'mode': this server answers {', '.join(self.modes)}, got {str(mode)[:40]!r}")
        return_video, reset = (_flag(sent, key) for key in ("return_video", "reset"))
        if mode not in MAKES_ACTIONS and not return_video:
            raise ValueError(f"mode {mode!r} answers with video alone: ask for it with return_video")
        if mode not in self.filmed and return_video:
            others = f"; {', '.join(self.filmed)} does" if self.filmed else ""
            raise ValueError(f"mode {mode!r} imagines no video to return{others}")
        if "prefix" in sent and not self.prefixes:
            raise ValueError("'prefix': this server was not started for requests with committed actions")
        if "prefix" in sent and mode not in MAKES_ACTIONS:
            raise ValueError(f"mode {mode!r} takes no 'prefix'")
        observation = self.observer(sent, seconds)
        session = sent.get("session")
        if session is not None and not (type(session) is int and 0 <= session < 1 << 64):
            raise ValueError(f"'session': expected an integer from 0 to 2^64 - 1, got {str(session)[:40]!r}")
        clips = {key.removeprefix("video/"): sent[key] for key in sent if key.startswith("video/")}
        for key, needs, given in (("actions", "forward", "actions" in sent), ("video", "inverse", bool(clips))):
            if (mode == needs) != given:
                raise ValueError(f"mode {mode!r} {'takes no' if given else 'needs'} {key!r}")
        horizon = self.observer.policy.engine.config.action_horizon
        actions = self._chunk(sent, "actions", observation, horizon, horizon)
        prefix = self._chunk(sent, "prefix", observation, 1, horizon)
        return Request(observation, mode, return_video, reset, session, prefix, actions, clips or None)

    def _chunk(self, sent: dict, key: str, observation: dict, least: int, most: int) -> np.ndarray | None:
        if key not in sent:
            return None
        dim = self.observer.policy.embodiment(observation["embodiment"]).spec.action_dim
        array = array_of(sent[key], key)
        if array.ndim != 2 or not least <= array.shape[0] <= most or array.shape[1] != dim:
            rows = str(most) if least == most else f"{least} to {most}"
            raise ValueError(f"{key!r}: expected finite [{rows}, {dim}], got {list(array.shape)}")
        return array

    def _unknown(self, key: str) -> str:
        near = difflib.get_close_matches(key[:200], self.known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(self.known))}"
        return f"unknown key {key[:80]!r}; {hint}"


def _flag(sent: dict, key: str) -> bool:
    value = sent.get(key, False)
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{key!r}: expected true or false, got {type(value).__name__}")
    return bool(value)
