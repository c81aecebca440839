"""A pure function over many jobs: on this machine's processes, on Apache Beam, or on Ray Data.

A job is anything picklable, a result anything that JSON holds. What a job writes, it writes by itself, where every
worker reaches it; engines may run a job again after a failure, but never twice at the same time (switch a runner's
speculative execution off). Results come in any order.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import pathlib
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

ENGINES = ("local", "beam", "ray")

Function = Callable[[Any], Any]


class EngineError(RuntimeError):
    """The engine failed, not a job."""


def run(
    function: Function,
    jobs: Sequence[Any],
    engine: str = "local",
    *,
    processes: int = 1,
    scratch=None,
    options: str = "",
) -> Iterator[Any]:
    """`function(job)` of every job, as they finish.

    Args:
        function: importable by name on every worker.
        jobs: what to run it on.
        engine: "local", "beam" or "ray".
        processes: of the local pool (1: in this process), or actors of Ray.
        scratch: a directory that Beam's workers share, for their results; a temporary one of this machine by default.
        options: of the engine. Beam: a command line, such as "--runner=DirectRunner". Ray: JSON with `address` for
            `ray.init`, and `num_cpus` and `num_gpus` of an actor.

    Raises:
        EngineError: unknown, not installed, or it broke. What a job raises, comes through as it is or, from Beam and
            Ray, within their own errors.
    """
    if engine not in ENGINES:
        raise EngineError(f"unknown engine {engine!r}: choose from {', '.join(ENGINES)}")
    if not jobs:
        return iter(())
    if engine == "beam":
        return _beam(function, jobs, scratch, options)
    if engine == "ray":
        return _ray(function, jobs, processes, options)
    if options:
        raise EngineError(f"the local engine takes no options, got {options!r}")
    return map(function, jobs) if processes == 1 else _pool(function, jobs, processes)


def _pool(function: Function, jobs: Sequence[Any], processes: int) -> Iterator[Any]:
    # Spawned, not forked: decoders and readers own threads, which a fork would leave half alive.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context)
    try:
        for future in concurrent.futures.as_completed([pool.submit(function, job) for job in jobs]):
            yield future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise EngineError("a worker process died (out of memory?): run the same command again to continue") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _beam(function: Function, jobs: Sequence[Any], scratch, options: str) -> Iterator[Any]:
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise EngineError(
            "Apache Beam is not installed: install apache-beam in an environment of its own, since its version bounds "
            "exclude ours, or use --engine=local"
        ) from None
    # Results leave a pipeline through files on every runner alike.
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".results-") as directory:
        with beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
            made = pipeline | beam.Create(list(jobs)) | beam.Reshuffle() | beam.Map(function)
            _ = made | beam.Map(json.dumps) | beam.io.WriteToText(f"{directory}/results")
        for path in sorted(pathlib.Path(directory).iterdir()):
            for line in path.read_text().splitlines():
                yield json.loads(line)


def _ray(function: Function, jobs: Sequence[Any], processes: int, options: str) -> Iterator[Any]:
    try:
        import ray
    except ImportError:
        raise EngineError("Ray is not installed: install the extra `ray`, or use --engine=local") from None
    try:
        chosen: Mapping[str, Any] = json.loads(options or "{}")
    except ValueError as error:
        raise EngineError(f"the options of Ray must be JSON: {error}") from None
    resources = {name: value for name, value in chosen.items() if name.startswith("num_")}
    if not ray.is_initialized():
        ray.init(**{name: value for name, value in chosen.items() if name not in resources}, log_to_driver=False)

    class Worker:
        """An actor, so that what the function keeps from job to job (a model, an open dataset) is made once."""

        def __call__(self, row: dict) -> dict:
            return {"result": json.dumps(function(jobs[int(row["id"])]))}

    made = ray.data.range(len(jobs), override_num_blocks=len(jobs)).map(Worker, concurrency=processes, **resources)
    for row in made.iter_rows():
        yield json.loads(row["result"])
