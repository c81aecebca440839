"""Shards of latents by Ray Data: an actor a device, each of which loads the tokenizer once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.latent_writer import Encode, Job, open_windows, write_shard


class ShardWriter:
    """What an actor holds: the encoder, and the stores it has opened."""

    def __init__(self, jobs: Sequence[Job], load: Callable[[], Encode]):
        self._jobs, self._encode = jobs, load()
        self._windows: dict[str, Any] = {}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Numbers of jobs under `item` -> how many windows each has written."""
        return {"item": np.array([self._write(self._jobs[i]) for i in batch["item"]])}

    def _write(self, job: Job) -> int:
        if job.store not in self._windows:
            self._windows[job.store] = open_windows(job)
        return write_shard(job, self._windows[job.store], self._encode)


def run_jobs(jobs: Sequence[Job], load: Callable[[], Encode], *, actors: int = 0) -> Iterator[int]:
    """Runs the jobs on the Ray cluster, or on a local one where none is up; yields the windows of each as it ends.

    Args:
      jobs: shards to write.
      load: picklable; makes an actor's encoder.
      actors: 0: one an accelerator of the cluster, or a single one on CPUs.

    Raises:
      ImportError: Ray is not installed.
      ValueError: a job failed, with its reason.
    """
    try:
        import ray
    except ImportError:
        raise ImportError("--engine=ray needs Ray: pip install 'ray[data]', or take --engine=local") from None
    if not jobs:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    ray.data.DataContext.get_current().enable_progress_bars = False
    counts = ray.data.from_items(list(range(len(jobs))), override_num_blocks=len(jobs)).map_batches(
        ShardWriter, fn_constructor_args=(list(jobs), load), batch_size=1, concurrency=actors or max(1, gpus),
        num_gpus=1 if gpus else 0,
    )  # fmt: skip
    try:
        for row in counts.iter_rows():
            yield int(row["item"])
    except ray.exceptions.RayError as error:
        raise ValueError(f"a shard of latents failed: {str(error).strip().splitlines()[-1]}") from error
