"""The chunk executor: a robot loop that never waits for its policy.

    executor = ChunkExecutor(ThreadInference(infer), ExecutorConfig(control_hz=80, horizon=16), limits, rest, delta)
    while executor.stopped is None:
        robot.send(executor.step(observe()))  # once a control period; inference runs beside it

Time is counted in control steps: one `step` is one. A chunk that is asked for at step n has its first action for step
n; when the answer comes d steps later, its first d actions are past, and the old chunk's were executed for them. With
no answer at all the robot comes to rest, by `ExecutorConfig.on_miss`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from wam.serving.background import Answer, Inference, Request
from wam.serving.ensembling import average
from wam.serving.limits import Gate, Limits

STRATEGIES = ("naive", "async", "frozen_prefix", "guided")
ON_MISS = ("repeat", "hold", "slow_down")
FALLBACK = -1
"""`ChunkExecutor.source` of an action that is no chunk's."""


@dataclasses.dataclass(frozen=True)
class ExecutorConfig:
    control_hz: float
    horizon: int
    """K: actions of a chunk."""
    execute: int = 8
    """Actions of a chunk that are executed, at least, before the next chunk is asked for."""
    strategy: str = "frozen_prefix"
    """`naive`: execute, stop, ask and wait, only to compare with; `async`: the answer takes over as it comes;
    `frozen_prefix` and `guided`: likewise, and the request tells what is executed meanwhile, so that the answer can
    continue it (`wam.diffusion.inpainting`)."""
    on_miss: str = "hold"
    """Where no action is left and no answer there: `hold` (no increments, the last of what is absolute; the plan waits
    with the robot), `slow_down` (likewise, and what is left is stretched to the expected answer before), `repeat` (the
    last action as it was: increments and the plan's time go on)."""
    steps_per_token: int = 1
    """A frozen prefix is rounded up to whole action tokens of so many steps; where the plan has fewer left, down. So
    `execute` is best a multiple of it."""
    longest_prefix: int | None = None
    """In steps, what the policy was trained for; None: all but the last token of a chunk."""
    ensemble: float | None = None
    """Decay of temporal ensembling over the chunks that cover a step (`ensembling.average`); None: the newest only."""
    quantile: float = 0.9
    """Of the recent latencies: how long the next answer is expected to take."""
    window: int = 20
    """How many latencies are recent."""
    latency: float = 0.0
    """Seconds, expected until the first one is measured."""

    def __post_init__(self):
        for name, allowed in (("strategy", STRATEGIES), ("on_miss", ON_MISS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"executor.{name} is {getattr(self, name)!r}; choose from {', '.join(allowed)}")
        if not 1 <= self.execute <= self.horizon:
            raise ValueError(f"executor.execute is {self.execute}; a chunk holds {self.horizon} actions")
        if self.horizon % self.steps_per_token:
            raise ValueError(f"executor.steps_per_token {self.steps_per_token} does not divide horizon {self.horizon}")
        if not self.control_hz > 0 or not 0 <= self.quantile <= 1 or self.window < 1:
            raise ValueError("executor: control_hz and window must be positive, quantile within [0, 1]")


class _Chunk(NamedTuple):
    number: int
    start: float  # plan time of its first action, a whole number
    actions: np.ndarray  # [K, A]


class _Asked(NamedTuple):
    step: int  # control step
    time: float  # plan time
    left: float  # actions that were left of the plan
    frozen: int


class ChunkExecutor:
    """Executes chunks, within limits, while the next one is computed. To be called from one thread.

    Attributes:
      gate: limits and the latched stop; `stopped` is its reason.
      source: number of the chunk that the last action came from, or `FALLBACK`.
    """

    def __init__(self, inference: Inference, config: ExecutorConfig, limits: Limits,
                 rest: Sequence[float] | np.ndarray, delta: Sequence[bool] | np.ndarray):  # fmt: skip
        """`rest` [A]: what the robot does before the first action; `delta` [A]: which dimensions are increments."""
        self.inference, self.config = inference, config
        self.gate = Gate(limits, rest, delta)
        self.source = FALLBACK
        self._chunks: list[_Chunk] = []
        self._asked: _Asked | None = None
        self._latencies: collections.deque[float] = collections.deque(maxlen=config.window)
        self._step = 0
        # Plan time: control steps, but that it runs slower where the plan is stretched, and rests where the robot does.
        self._time = 0.0
        self._counts = dict.fromkeys(("requests", "answers", "waited", "missed", "slowed", "late"), 0)

    # ------------------------------------------------------------------ for callers

    @property
    def stopped(self) -> str | None:
        """Why nothing moves any more, until `clear`."""
        return self.gate.stopped

    def due(self) -> bool:
        """Whether this step will ask for a chunk; the observation of any other step is not looked at."""
        self._take()
        if self.stopped is not None or self.inference.busy:
            return False
        return not self._chunks or self._time - self._chunks[-1].start >= self.config.execute

    def step(self, observation: Any) -> np.ndarray:
        """f32 [A]: the action for this control step. Never waits. After a stop, the action that moves nothing."""
        self.observe(observation)
        return self.act()

    def observe(self, observation: Any) -> None:
        """The first half of a step: takes an answer that is there, and asks for the next chunk when it is time."""
        if not self.due():
            return
        planned, frozen = self._ahead()
        left = 0.0 if self.config.strategy == "naive" or not self._chunks else self._left
        self._asked = _Asked(self._step, self._time, left, frozen)
        self._counts["requests"] += 1
        self.inference.submit(Request(observation, planned, frozen))

    def act(self) -> np.ndarray:
        """The second half of a step."""
        self._take()  # an answer may have come at once
        rate = self._rate()
        action = None if self.stopped is not None else self._planned(self._time, rate)
        if self.stopped is None:
            self._count(rate)
        self.source = FALLBACK if action is None else self._chunks[-1].number
        if action is None and self._chunks and self.config.on_miss == "repeat":
            action = self.gate.last
        elif action is None:
            action, rate = self.gate.still(), 0.0
        self._step += 1
        self._time += rate
        return self.gate.send(action)

    def stop(self, reason: str) -> None:
        """Stops as if a limit had: an emergency button, a lost camera."""
        self.gate.stop(reason)

    def clear(self) -> None:
        """Goes on after a stop, with a fresh chunk: what was planned or asked for before it is dropped."""
        self.gate.clear()
        self._chunks, self._asked, self._time = [], None, float(round(self._time))

    def close(self) -> None:
        self.inference.close()

    def report(self) -> dict[str, Any]:
        """Counters since the start, and recent latencies in seconds.

        `waited`: steps before the first chunk; `missed`: steps at which the plan, at its own speed, was at its end and
        the answer not there; `slowed`: steps of a stretched plan; `late`: answers that came after more steps than were
        frozen for them; `clipped`, `rate_limited`: actions changed by the limits, per dimension.
        """
        seconds = list(self._latencies)
        p50, p95 = (float(np.quantile(seconds, q)) if seconds else None for q in (0.5, 0.95))
        return {
            "steps": self._step,
            **self._counts,
            "clipped": self.gate.clipped.tolist(),
            "rate_limited": self.gate.slowed.tolist(),
            "latency": {"p50": p50, "p95": p95, "max": max(seconds, default=None)},
            "stopped": self.stopped,
        }

    # ---------------------------------------------------------------------- answers

    def _take(self) -> None:
        answer = self.inference.take()
        if answer is None or self._asked is None:  # None: asked for before a stop
            return
        asked, self._asked = self._asked, None
        self._counts["answers"] += 1
        actions = self._valid(answer)
        if actions is None:
            return
        self._latencies.append(answer.seconds)
        # The first chunk begins now: until here the robot stood still. So it does in the naive strategy.
        fresh = not self._chunks or self.config.strategy == "naive"
        start = self._time if fresh else asked.time
        done = round(self._time - start)
        if self.config.strategy in ("frozen_prefix", "guided") and done > asked.frozen:
            self._counts["late"] += 1
        # Whole again where a stretched plan has left it in between.
        self._time = start + done
        chunk = _Chunk(self._counts["answers"], start, actions)
        kept = [] if self.config.ensemble is None else self._chunks
        self._chunks = [*(c for c in kept if self._time < c.start + self.config.horizon), chunk]

    def _valid(self, answer: Answer) -> np.ndarray | None:
        """The answer's actions, or None after a stop that says what is wrong with them."""
        if answer.error is not None:
            self.stop(f"inference failed: {type(answer.error).__name__}: {answer.error}")
            return None
        actions, expected = np.asarray(answer.actions, np.float32), (self.config.horizon, len(self.gate.last))
        if actions.shape != expected:
            self.stop(f"inference answered {list(actions.shape)} actions, expected {list(expected)}")
        elif not np.isfinite(actions).all():
            self.stop("inference answered actions that are not finite")
        return actions if self.stopped is None else None

    # ------------------------------------------------------------------------- plan

    @property
    def _end(self) -> float:
        """Plan time at which the newest chunk ends; in the naive strategy, at which its execution does."""
        if not self._chunks:
            return self._time
        held = self.config.execute if self.config.strategy == "naive" else self.config.horizon
        return self._chunks[-1].start + held

    @property
    def _left(self) -> float:
        return max(0.0, self._end - self._time)

    @property
    def _expected(self) -> int:
        """Control steps that an answer is expected to take."""
        cfg, seconds = self.config, list(self._latencies)
        latency = float(np.quantile(seconds, cfg.quantile, method="higher")) if seconds else cfg.latency
        return math.ceil(latency * cfg.control_hz - 1e-6)

    def _rate(self) -> float:
        """How much of the plan this step executes: 1, or less where what is left is stretched to the answer."""
        if self.config.on_miss != "slow_down" or self._asked is None or not self._chunks:
            return 1.0
        wait = max(1, self._asked.step + self._expected - self._step)
        return min(1.0, self._left / wait)

    def _count(self, rate: float) -> None:
        if not self._chunks:
            self._counts["waited"] += 1
        elif self._asked is not None:
            self._counts["missed"] += self._step - self._asked.step >= self._asked.left
        self._counts["slowed"] += rate < 1

    def _planned(self, time: float, rate: float = 1.0) -> np.ndarray | None:
        """[A] for plan time [time, time + rate), of the newest chunk or of all that cover it; None: past the end."""
        if time >= self._end:
            return None
        if self.config.ensemble is None:
            return self._part(self._chunks[-1], time, rate)
        there = [c for c in self._chunks if time < c.start + self.config.horizon]
        return average(np.stack([self._part(c, time, rate) for c in there]), self.config.ensemble)

    def _part(self, chunk: _Chunk, time: float, rate: float) -> np.ndarray:
        """What a chunk does within [time, time + rate): the sum of increments, and where absolute dimensions get to."""
        begin, K = time - chunk.start, self.config.horizon
        if rate == 1 and begin.is_integer():
            return chunk.actions[int(begin)]
        grid, end = np.arange(K + 1), begin + rate
        total = np.concatenate([np.zeros_like(chunk.actions[:1]), np.cumsum(chunk.actions, 0)])
        columns = range(chunk.actions.shape[1])
        moved = [np.interp(end, grid, total[:, i]) - np.interp(begin, grid, total[:, i]) for i in columns]
        reached = [np.interp(end - 1, grid[:-1], chunk.actions[:, i]) for i in columns]
        return np.where(self.gate.delta, moved, reached).astype(np.float32)

    def _ahead(self) -> tuple[np.ndarray, int]:
        """(what is planned from now on [n, A], how many of these steps an answer will find executed)."""
        cfg, gate = self.config, self.gate
        steps = [self._planned(self._time + i) for i in range(math.ceil(self._left))]
        planned = [action for action in steps if action is not None]
        if not self._chunks or cfg.strategy in ("naive", "async"):
            return np.array(planned, np.float32).reshape(-1, len(gate.last)), 0
        token = cfg.steps_per_token if cfg.strategy == "frozen_prefix" else 1
        longest = cfg.horizon - token if cfg.longest_prefix is None else cfg.longest_prefix
        frozen = min(math.ceil(self._expected / token) * token, longest)
        if cfg.on_miss != "repeat":  # then the plan waits
            frozen = min(frozen, len(planned) // token * token)
        last = gate.last
        for i in range(frozen):
            if i == len(planned):
                planned.append(last)
            planned[i] = last = gate.limits.apply(planned[i], last)  # as it will be sent
        return np.array(planned, np.float32).reshape(-1, len(last)), frozen
