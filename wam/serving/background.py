"""Where a robot's inference runs while the robot moves: in a thread, or in simulated time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np


class Request(NamedTuple):
    """What a chunk is asked for with."""

    observation: Any
    planned: np.ndarray
    """f32 [n, A] in the robot's units: what would be executed from this observation on if no answer came"""
    frozen: int
    """how many of these will be executed whatever the answer is, because it comes after them"""


class Answer(NamedTuple):
    actions: np.ndarray | None
    """[K, A], the first one for the moment of the observation; None if there was an error"""
    error: Exception | None
    seconds: float
    """from request to answer"""


class Inference(Protocol):
    """One request at a time; no method waits for the policy."""

    @property
    def busy(self) -> bool:
        """Whether a request's answer has not been taken yet."""

    def submit(self, request: Request) -> None: ...

    def take(self) -> Answer | None:
        """The answer, once, as soon as it is there."""

    def close(self) -> None: ...


class ThreadInference:
    """`infer(request) -> actions [K, A]` in a thread of its own. An exception is an answer; the thread lives on."""

    def __init__(self, infer: Callable[[Request], np.ndarray], clock: Callable[[], float] = time.monotonic):
        self._infer, self._clock = infer, clock
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._busy

    def submit(self, request: Request) -> None:
        self._busy = True
        self._requests.put(request)

    def take(self) -> Answer | None:
        try:
            answer = self._answers.get_nowait()
        except queue.Empty:
            return None
        self._busy = False
        return answer

    def close(self) -> None:
        """Ends the thread after the request it is at, which is not waited for."""
        self._requests.put(None)

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            start = self._clock()
            try:
                actions, error = np.asarray(self._infer(request)), None
            except Exception as raised:
                actions, error = None, raised
            self._answers.put(Answer(actions, error, self._clock() - start))


class SimulatedClock:
    """Seconds that pass when told to, in whole control steps."""

    def __init__(self, control_hz: float):
        self.control_hz, self.steps = control_hz, 0

    def __call__(self) -> float:
        return self.steps / self.control_hz

    def advance(self) -> None:
        self.steps += 1


class SimulatedInference:
    """An inference whose answer is made at once and comes `latency()` seconds of `clock` after its request.

    Without `infer` the answer is made elsewhere: `pending` is then the request that waits for `deliver`.
    """

    def __init__(self, clock: Callable[[], float], latency: Callable[[], float],
                 infer: Callable[[Request], np.ndarray] | None = None):  # fmt: skip
        self._clock, self._latency, self._infer = clock, latency, infer
        self._answer: Answer | None = None
        self._due = 0.0
        self.pending: Request | None = None

    @property
    def busy(self) -> bool:
        return self.pending is not None or self._answer is not None

    def submit(self, request: Request) -> None:
        self.pending = request
        if self._infer is None:
            return
        try:
            self.deliver(self._infer(request))
        except Exception as error:
            self.deliver(error)

    def deliver(self, answer: np.ndarray | Exception) -> None:
        """The answer to `pending`."""
        seconds = self._latency()
        if isinstance(answer, Exception):
            self._answer = Answer(None, answer, seconds)
        else:
            self._answer = Answer(np.asarray(answer), None, seconds)
        self._due, self.pending = self._clock() + seconds, None

    def take(self) -> Answer | None:
        # Sums of fractions of a second: what is due at a control step must not miss it by a rounding.
        if self._answer is None or self._clock() < self._due - 1e-9:
            return None
        answer, self._answer = self._answer, None
        return answer

    def close(self) -> None:
        pass
