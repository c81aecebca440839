"""Closed-loop evaluation: simulators in worker processes, one batched policy, noise keyed by (task, layout, chunk).

An episode depends on its task, its layout and the seed alone: neither on the number of workers nor on which episodes
happen to share a batch.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import zlib
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from wam.diffusion.sampler import Program
from wam.evaluation.baselines import success_rate
from wam.policy import Policy
from wam.session import Memory

Play = Callable[..., Any]
"""What a slot does: `play_chunks`, or another generator of its face; picklable."""

Answer = Callable[..., tuple[list[Any], list[Any]]]
"""(observations, ids, memories, batch_size=) -> (chunks, memories): `Policy.infer_many` in some mode, or another."""

MakeEnv = Callable[[str, Sequence[str]], Any]
"""(task, cameras) -> environment with reset, step, render, instruction, spec and close; picklable."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """One finished episode; the recording is there only when asked for."""

    task: str
    layout: int
    success: bool
    steps: int
    recording: dict[str, Any] | None = None
    evaluations: float | None = None
    """Mean calls of the network a chunk."""


@dataclasses.dataclass(frozen=True)
class Settings:
    max_steps: int = 250
    execute_steps: int = 16
    """Control steps executed of each chunk before the policy is asked again."""
    workers: int = 2
    seed: int = 0
    first: int = 0
    """Number of the first layout, which keys the noise: a block of a longer list plays as it would in the whole."""
    record_stride: int = 4
    """Control steps between the frames of a recording."""
    frame_steps: tuple[int, ...] = ()
    """Control steps after an observation at which the frames of the next one are taken; none: one frame, when asked."""


def task_id(task: str) -> int:
    return zlib.crc32(task.encode())


# ---------------------------------------------------------------- worker side


def _play(env: Any, actions: np.ndarray, limit: int, record: dict[str, Any] | None, stride: int,
          frame_steps: Sequence[int] = (), frames: list | None = None) -> tuple[bool, int]:  # fmt: skip
    """Executes up to `limit` actions, stopping at success: (success, steps taken). `frames` receives pictures."""
    for step, action in enumerate(actions[:limit]):
        if record is not None and step and step % stride == 0:
            _film(env, record)
        _, success = env.step(action)
        if record is not None:
            record["executed"].append(np.asarray(action, np.float32))
        if frames is not None and step + 1 in frame_steps:
            frames.append(env.render())
        if success:
            return True, step + 1
    return False, min(limit, len(actions))


def _film(env: Any, record: dict[str, Any]) -> dict[str, np.ndarray]:
    images = env.render()
    record["frames"].append(images[record["camera"]])
    record["frame_step"].append(len(record["executed"]))
    return images


def _worker(pipe: Connection, make_env: MakeEnv, cameras: tuple[str, ...], layouts: dict[str, np.ndarray],
            settings: Settings, recorded: dict[str, int], play: Play) -> None:  # fmt: skip
    """Runs one slot a task; each answers observations until its layouts are done."""
    try:
        slots = {
            task: play(make_env(task, cameras), task, layouts[task], settings, recorded, cameras) for task in layouts
        }
        asks = {task: next(slot) for task, slot in slots.items()}
        while asks:
            pipe.send(("asks", asks))
            answers = pipe.recv()
            asks = {}
            for task, answer in answers.items():
                try:
                    asks[task] = slots[task].send(answer)
                except StopIteration as end:
                    pipe.send(("done", task, end.value))
        pipe.send(("end",))
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))


def play_chunks(env: Any, task: str, layouts: np.ndarray, settings: Settings, recorded: dict[str, int],
                cameras: tuple[str, ...]):  # fmt: skip
    """Generator: yields (layout, chunk, observation), receives actions; returns the episodes."""
    episodes = []
    for index, layout in enumerate(layouts):
        steps, chunk, success = 0, 0, False
        env.reset(layout)
        seen: list[dict[str, np.ndarray]] = []
        record: dict[str, Any] | None = None
        if recorded.get(task) == index:
            record = {"frames": [], "frame_step": [], "executed": [], "chunk_step": [], "camera": cameras[0]}
        while not success and steps < settings.max_steps:
            if record is not None:
                record["chunk_step"].append(steps)
            if record is not None:
                _film(env, record)
            seen = seen or [env.render()]
            images = {camera: np.stack([frame[camera] for frame in seen]) for camera in seen[-1]}
            observation = {
                "images": images,
                "state": env.state,
                "instruction": env.instruction,
                "embodiment": env.spec.name,
                "time": steps / env.spec.control_hz,
            }
            actions = yield index, chunk, observation
            limit = min(settings.execute_steps, settings.max_steps - steps)
            seen = []
            success, taken = _play(env, actions, limit, record, settings.record_stride, settings.frame_steps, seen)
            steps, chunk = steps + taken, chunk + 1
        if record is not None:
            _film(env, record)
            record["instruction"] = env.instruction
        episodes.append(Episode(task, index, success, steps, record))
    env.close()
    return episodes


# ---------------------------------------------------------------- parent side


def run_policy(policy: Policy, make_env: MakeEnv, layouts: Mapping[str, np.ndarray], program: Program, mode: str,
               settings: Settings, *, instructions: Mapping[str, str] | None = None,
               recorded: Mapping[str, int] | None = None, progress: str = "", play: Play = play_chunks,
               answer: Answer | None = None) -> list[Episode]:  # fmt: skip
    """Evaluates `policy` on every layout of every task: `layouts` is task -> [n, layout_dim].

    `instructions` (task -> instruction) replaces the tasks' own; `recorded` (task -> index of a layout) says what to
    film; `play` and `answer` take the place of executing whole chunks and of asking the policy for them. Raises
    RuntimeError when a simulator fails.
    """
    answer = answer or functools.partial(policy.infer_many, mode=mode, program=program)
    settings = _with_frames(policy, settings)
    tasks = list(layouts)
    workers = max(1, min(settings.workers, len(tasks)))
    groups = [tasks[i::workers] for i in range(workers)]
    # One static batch size for all, so that a row's answer is the same whoever shares its batch. Rows that reuse
    # outputs decide on it together, so then each is asked alone.
    size = 1 if program.reuse else max(len(group) for group in groups)
    film = dict(recorded or {})
    start = [
        (
            make_env,
            policy.cameras,
            {t: layouts[t] for t in group},
            settings,
            {t: film[t] for t in group if t in film},
            play,
        )
        for group in groups
    ]
    episodes: list[Episode] = []
    predictions: dict[tuple[str, int], list[Any]] = {}
    evaluations: dict[tuple[str, int], list[int]] = {}
    memories: dict[str, Memory] = {}  # task -> of the layout that is being played
    total = sum(len(v) for v in layouts.values())
    with _Workers(start) as pipes, tqdm(total=total, desc=progress, unit="episode", disable=not progress) as bar:
        while pipes:
            for pipe in cast("list[Connection]", wait(pipes)):  # it gives back what it was given
                message = _receive(pipe)
                if message[0] == "end":
                    pipes.remove(pipe)
                elif message[0] == "done":
                    episodes += message[2]
                elif message[0] == "asks":
                    asks = message[1]
                    observations, ids = [], []
                    for task, (layout, chunk, observation) in asks.items():
                        if instructions and task in instructions:
                            observation = {**observation, "instruction": instructions[task]}
                        observations.append(observation)
                        ids.append([task_id(task), settings.first + layout + (settings.seed << 16), chunk])
                        if chunk == 0:
                            bar.n = sum(1 for _ in episodes) + sum(v[0] for v in asks.values())
                            bar.refresh()
                    known = [memories[task] if chunk else None for task, (_, chunk, _) in asks.items()]
                    chunks, after = [], []
                    for at in (slice(i, i + size) for i in range(0, len(asks), size)):
                        answers = answer(observations[at], np.array(ids[at], np.uint32), known[at], batch_size=size)
                        chunks += answers[0]
                        after += answers[1]
                    memories |= zip(asks, after, strict=True)
                    for (task, (layout, _, _)), chunk in zip(asks.items(), chunks, strict=True):
                        evaluations.setdefault((task, layout), []).append(chunk.evaluations)
                        if film.get(task) == layout:
                            predictions.setdefault((task, layout), []).append(chunk)
                    pipe.send({task: chunk.actions for task, chunk in zip(asks, chunks, strict=True)})
        bar.n = total
    for episode in episodes:
        if episode.recording is not None:
            made = predictions[episode.task, episode.layout]
            episode.recording["predicted"] = np.stack([c.actions for c in made])
            if made[0].video is not None:
                episode.recording["imagined"] = np.stack([c.video[policy.imagined[0]] for c in made])
                episode.recording["imagined_seconds"] = made[0].video_seconds
    counted = [dataclasses.replace(e, evaluations=float(np.mean(evaluations[e.task, e.layout]))) for e in episodes]
    return sorted(counted, key=lambda e: (tasks.index(e.task), e.layout))


def _with_frames(policy: Policy, settings: Settings) -> Settings:
    """ValueError if a session of the policy cannot be asked again after `execute_steps`."""
    if policy.sessions is None:
        return settings
    name = policy.embodiments[0]
    robot, due = policy.embodiment(name), policy.chunk_steps(name)
    if settings.execute_steps != due:
        raise ValueError(
            f"execute_steps is {settings.execute_steps}: chunks of this checkpoint see earlier ones, which last {due} "
            f"steps; set it to {due}"
        )
    steps = np.round(policy.observations.frame_seconds(name)[1:] * robot.spec.control_hz).astype(int)
    return dataclasses.replace(settings, frame_steps=tuple(steps.tolist()))


class _Workers:
    """Worker processes with one pipe each; ends them on the way out."""

    def __init__(self, arguments: list[tuple]):
        self.arguments = arguments

    def __enter__(self) -> list[Connection]:
        context = multiprocessing.get_context("spawn")
        self.processes, pipes = [], []
        for arguments in self.arguments:
            ours, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(theirs, *arguments), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            pipes.append(ours)
        return pipes

    def __exit__(self, kind, *_) -> None:
        for process in self.processes:
            if kind is not None:
                process.terminate()
            process.join()


def _receive(pipe: Connection) -> tuple:
    try:
        message = pipe.recv()
    except EOFError:
        raise RuntimeError("a simulator process ended without an answer (out of memory?)") from None
    if message[0] == "error":
        raise RuntimeError(f"a simulator failed: {message[1]}")
    return message


def _open_loop_task(arguments: tuple) -> list[Episode]:
    make_env, task, layouts, sequences, max_steps = arguments
    env = make_env(task, ())
    episodes = []
    for index, (layout, actions) in enumerate(zip(layouts, sequences, strict=True)):
        env.reset(layout)
        success, steps = _play(env, actions, max_steps, None, 1)
        episodes.append(Episode(task, index, success, steps))
    env.close()
    return episodes


def run_open_loop(make_env: MakeEnv, layouts: Mapping[str, np.ndarray], actions: Mapping[str, np.ndarray],
                  settings: Settings) -> list[Episode]:  # fmt: skip
    """Plays fixed actions, task -> [n, max_steps, A], without a camera: the baselines that do not look."""
    jobs = [(make_env, task, layouts[task], actions[task], settings.max_steps) for task in layouts]
    with multiprocessing.get_context("spawn").Pool(min(settings.workers, len(jobs))) as pool:
        return [episode for episodes in pool.map(_open_loop_task, jobs, chunksize=1) for episode in episodes]


def _expert_task(arguments: tuple) -> list[np.ndarray]:
    make_env, task, layouts, max_steps = arguments
    env = make_env(task, ())
    demonstrations = []
    for layout in layouts:
        env.reset(layout)
        actions, success = [], False
        while not success and len(actions) < max_steps:
            actions.append(env.expert_action())
            _, success = env.step(actions[-1])
        if success:
            demonstrations.append(np.stack(actions))
    env.close()
    return demonstrations


def expert_demonstrations(make_env: MakeEnv, layouts: Mapping[str, np.ndarray],
                          settings: Settings) -> dict[str, list[np.ndarray]]:  # fmt: skip
    """Action sequences of the scripted expert's successful, undisturbed episodes, per task, without a camera."""
    jobs = [(make_env, task, layouts[task], settings.max_steps) for task in layouts]
    with multiprocessing.get_context("spawn").Pool(min(settings.workers, len(jobs))) as pool:
        return dict(zip(layouts, pool.map(_expert_task, jobs, chunksize=1), strict=True))


def summarize(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Success with Wilson 95 % intervals, overall and under `tasks`; of a policy, `evaluations` (calls a chunk).

    Tasks have their `outcomes` too: 0 or 1 a layout.
    """

    def rate(chosen: Sequence[Episode]) -> dict[str, Any]:
        return success_rate(sum(e.success for e in chosen), len(chosen))

    tasks = list(dict.fromkeys(e.task for e in episodes))
    counts = [e.evaluations for e in episodes if e.evaluations is not None]
    calls = {"evaluations": round(float(np.mean(counts)), 3)} if counts else {}
    rows = {}
    for task in tasks:
        own = sorted((e for e in episodes if e.task == task), key=lambda e: e.layout)
        rows[task] = {**rate(own), "outcomes": [int(e.success) for e in own]}
    return {**rate(episodes), **calls, "tasks": rows}
