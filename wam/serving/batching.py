"""Requests of many sessions, answered by few calls of the policy.

What arrives while the policy computes, or within a few milliseconds, shares the next call. A call has one of a few
static sizes, all compiled before the server is healthy, and its rows are independent: noise is keyed by session and
chunk, so an answer does not depend on its neighbours.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from wam.diffusion.sampler import Program
from wam.policy import Chunk, Policy
from wam.serving.metrics import Metrics
from wam.serving.requests import Request


class Answer(NamedTuple):
    chunk: Chunk
    memory: Any
    wait_seconds: float
    """before its call began"""
    policy_seconds: float
    """of its call"""
    rows: int
    """requests that shared the call"""


@dataclasses.dataclass(eq=False)
class Job:
    """A request on its way through the batcher."""

    request: Request
    ids: np.ndarray
    memory: Any = None
    arrived: float = dataclasses.field(default_factory=time.monotonic)
    future: asyncio.Future[Answer] | None = None

    @property
    def kind(self) -> tuple[str, bool]:
        """Jobs of one kind share compiled calls."""
        return self.request.mode, self.request.prefix is not None


def infer(policy: Policy, jobs: Sequence[Job], size: int, program: Program | None = None) -> list[tuple[Chunk, Any]]:
    """One call of the policy for jobs of one kind, padded to `size` rows: (chunk, memory) of each.

    `program`: how their mode is sampled; None: as the policy does by default.
    """
    requests = [job.request for job in jobs]
    first = requests[0]
    chunks, memories = policy.infer_many(
        [request.observation for request in requests],
        np.stack([job.ids for job in jobs]),
        [job.memory for job in jobs],
        mode=first.mode,
        program=program,
        actions=None if first.actions is None else [request.actions for request in requests],
        videos=None if first.video is None else [request.video for request in requests],
        prefixes=None if first.prefix is None else [request.prefix for request in requests],
        batch_size=size,
    )
    return list(zip(chunks, memories, strict=True))


def examples(policy: Policy, mode: str, prefix: bool) -> list[Request]:
    """Valid requests without content: a session's first and, where chunks see earlier ones, its second."""
    observation, config = policy.example_observation(), policy.engine.config
    dim = policy.embodiment(observation["embodiment"]).spec.action_dim

    def clips(frames: int) -> dict[str, np.ndarray]:
        return {camera: np.repeat(image[None], frames, axis=0) for camera, image in observation["images"].items()}

    first = Request(
        observation,
        mode,
        prefix=np.zeros((config.steps_per_token, dim), np.float32) if prefix else None,
        actions=np.zeros((config.action_horizon, dim), np.float32) if mode == "forward" else None,
        video=clips(config.video_frames - 1) if mode == "inverse" else None,
    )
    if policy.sessions is None:
        return [first]
    later = observation | {"images": clips(policy.sessions.frames)}
    return [first, dataclasses.replace(first, observation=later)]


def sizes(most: int) -> tuple[int, ...]:
    """Powers of two below `most`, and `most`."""
    return (*(1 << i for i in range((most - 1).bit_length())), most)


class Batcher:
    """The queue and the one thread in which the policy computes.

    Args:
        policy: loaded.
        kinds: what will be asked for, (mode, with a prefix).
        program: how its mode is sampled.
        most: rows of the largest call.
        window: seconds that the first request of a call waits for others.
        everyone: sessions that are open; once all of them wait, waiting longer brings nobody.
        thread: where the policy runs.
    """

    def __init__(self, policy: Policy, kinds: Sequence[tuple[str, bool]], program: Program | None, most: int,
                 window: float, everyone: Callable[[], int], thread: ThreadPoolExecutor, metrics: Metrics):  # fmt: skip
        self.program = program
        self.policy, self.kinds, self.window, self.everyone = policy, tuple(kinds), window, everyone
        self.sizes, self.thread, self.metrics = sizes(most), thread, metrics
        self._waiting: list[Job] = []
        self._arrival = asyncio.Event()
        self.stopped = False
        """ends the warming up after the call under way"""

    def warm_up(self, said: Callable[[str], None]) -> None:
        """Compiles every kind of request at every size, by answering. Blocks; ValueError: the policy refused a mode."""
        for mode, prefix in self.kinds:
            start = time.monotonic()
            for size in self.sizes:
                memory = None
                for chunk, request in enumerate(examples(self.policy, mode, prefix)):
                    if self.stopped:
                        return
                    job = Job(request, np.array([0, 0, chunk], np.uint32), memory)
                    ((_, memory),) = self._infer([job], size)
            said(f"warmed up {mode}{' with a prefix' if prefix else ''} at {len(self.sizes)} batch sizes up to "
                 f"{self.sizes[-1]} in {time.monotonic() - start:.1f} s")  # fmt: skip

    async def answer(self, job: Job) -> Answer:
        """Waits for the answer. ValueError: the policy refused the request; RuntimeError: it failed.

        Cancelled while it waits, the request is never computed.
        """
        job.future = asyncio.get_running_loop().create_future()
        self._waiting.append(job)
        self._arrival.set()
        return await job.future

    async def run(self) -> None:
        """Serves until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._gather()
            jobs = self._take()
            if not jobs:
                continue
            size = next(s for s in self.sizes if s >= len(jobs))
            start = time.monotonic()
            answers = await loop.run_in_executor(self.thread, self._answers, jobs, size)
            seconds = time.monotonic() - start
            self.metrics.call(jobs[0].request.mode, len(jobs), size, seconds)
            for job, answer in zip(jobs, answers, strict=True):
                assert job.future is not None
                if job.future.done():  # its client has gone
                    continue
                if isinstance(answer, Exception):
                    job.future.set_exception(answer)
                else:
                    chunk, memory = answer
                    job.future.set_result(Answer(chunk, memory, start - job.arrived, seconds, len(jobs)))

    async def _gather(self) -> None:
        """Returns when a call should begin: all sessions wait, or a call's rows, or the window is over."""
        while not self._waiting:
            self._arrival.clear()
            await self._arrival.wait()
        end = self._waiting[0].arrived + self.window
        while len(self._waiting) < min(self.sizes[-1], self.everyone()) and (left := end - time.monotonic()) > 0:
            self._arrival.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrival.wait()
            except TimeoutError:
                return

    def _take(self) -> list[Job]:
        """The oldest request and those of its kind, oldest first; who has gone is dropped."""
        self._waiting = [job for job in self._waiting if job.future is None or not job.future.done()]
        kinds = [job.kind for job in self._waiting]
        taken = [job for job, kind in zip(self._waiting, kinds, strict=True) if kind == kinds[0]][: self.sizes[-1]]
        self._waiting = [job for job in self._waiting if job not in taken]
        return taken

    def _infer(self, jobs: list[Job], size: int) -> list[tuple[Chunk, Any]]:
        sampled = self.program is not None and self.program.mode == jobs[0].request.mode
        return infer(self.policy, jobs, size, self.program if sampled else None)

    def _answers(self, jobs: list[Job], size: int) -> list[Any]:
        """(chunk, memory) or an exception of each job. A refusal concerns one of them: who, the single calls show."""
        try:
            return self._infer(jobs, size)
        except Exception as error:
            if len(jobs) == 1 or not isinstance(error, ValueError):
                return [error] * len(jobs)
        return [self._answers([job], self.sizes[0])[0] for job in jobs]
