"""The training stream: per source shuffle -> repeat -> stride by replica, then mix -> read -> transform -> batch.

Each source is strided before mixing (slicing a mix would alias with its periodic pattern) and after its global
shuffle, so what has been consumed is a prefix of every source's order whatever the number of replicas.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import grain
import numpy as np

from data_pipelines.transforms import ToSample
from data_pipelines.windows import Windows
from wam.batch import Batch, check_batch


def stack(samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
    """Samples to a batch: every field gets a leading B."""
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


class Mixture:
    """An endless, deterministic stream of batches over weighted sources, for one data replica.

    Args:
        sources: name -> windows, the same mapping that `to_sample` was made for.
        weights: name -> share of the samples; sources without a weight are left out. Shares are kept to 1 % of the
            smallest one (they are rounded to whole hundredths of it).
        to_sample: raw window to sample.
        batch_size: GLOBAL batch; this replica yields batch_size / replicas samples.
        seed: of all shuffles; every source and every epoch gets its own permutation.
        replica, replicas: which stride of every source this process reads.
        threads: batches made at the same time; no influence on the result.
        prefetch: finished batches that wait in memory; no influence on the result.

    Raises:
        ValueError: no source, an unknown name, a weight that is not positive, a source without windows, or a batch
            that does not divide by the replicas.
    """

    def __init__(
        self,
        sources: Mapping[str, Windows],
        weights: Mapping[str, float],
        to_sample: ToSample,
        *,
        batch_size: int,
        seed: int,
        replica: int = 0,
        replicas: int = 1,
        threads: int = 2,
        prefetch: int = 2,
    ):
        if not weights:
            raise ValueError("the mixture is empty: give a weight to one source at least")
        if unknown := sorted(set(weights) - set(sources)):
            raise ValueError(f"unknown sources {unknown} in the mixture; there are {sorted(sources)}")
        if bad := {name: weight for name, weight in weights.items() if not 0 < weight < float("inf")}:
            raise ValueError(f"weights must be positive, got {bad}: leave a source out to switch it off")
        if empty := [name for name in weights if not len(sources[name])]:
            raise ValueError(f"sources {empty} have no usable window: their episodes are too short for this config")
        if batch_size < 1 or batch_size % replicas or not 0 <= replica < replicas:
            raise ValueError(f"batch of {batch_size} cannot be split for replica {replica} of {replicas}")
        self.local_batch_size = batch_size // replicas
        names = [name for name in sources if name in weights]
        windows, position = list(sources.values()), list(sources)
        for name in names:
            sample = to_sample(sources[name][0], position.index(name))
            check_batch(sample, to_sample.spec, None)

        parts = []
        for name in names:
            source = position.index(name)
            source_seed = int(np.random.SeedSequence([seed, source]).generate_state(1)[0])
            order = grain.MapDataset.range(len(sources[name])).shuffle(seed=source_seed).repeat()
            parts.append(order[replica::replicas].map(lambda window, source=source: (source, window)))
        self.order = grain.MapDataset.mix(parts, [weights[name] for name in names])
        """MapDataset of (source, window): the stream of samples before anything is read"""
        self.dataset = self.order.map(lambda item: to_sample(windows[item[0]][item[1]], item[0])).batch(
            self.local_batch_size, drop_remainder=True, batch_fn=stack
        )
        self._options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        facts = {
            "sources": {name: {"index": position.index(name)} | sources[name].facts for name in names},
            "weights": {name: float(weights[name]) for name in names},
            "transform": to_sample.facts,
            "batch_size": batch_size,
            "seed": seed,
            "replicas": replicas,
            "grain": grain.__version__,  # its shuffle decides the order
        }
        self.pipeline_hash = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def iterator(self, *, place: Callable[[Batch], Any] = lambda batch: batch, ahead: int = 2) -> TrainIterator:
        """Starts reading. `place` runs in the background thread, e.g. to put the batch on devices."""
        return TrainIterator(self, place, ahead)

    def state_after(self, batches: int) -> dict:
        """State of an iterator from which `batches` batches were consumed.

        This is how another number of replicas continues a run (its pipeline hash differs): consumed samples are a
        prefix of each source, up to the rounding of a source's share within a batch.
        """
        return {"pipeline_hash": self.pipeline_hash, "grain": {"next_index": batches}}


class TrainIterator(Iterator[Any]):
    """Batches of a `Mixture`, made ahead by a background thread, with the state of the last one CONSUMED.

    `wait_seconds` is the time callers spent waiting for data. Close it, or use it as a context manager: an open
    iterator holds threads. Errors of the pipeline are raised by `next`.
    """

    def __init__(self, mixture: Mixture, place: Callable[[Batch], Any], ahead: int):
        self._mixture, self._place, self._ahead = mixture, place, ahead
        self.wait_seconds = 0.0
        self._thread: threading.Thread | None = None
        self._start(mixture.state_after(0))

    def _start(self, state: dict) -> None:
        self._state = state
        self._source = iter(self._mixture.dataset.to_iter_dataset(self._mixture._options))
        self._source.set_state(state["grain"])
        self._stop = threading.Event()
        self._queue: queue.Queue = queue.Queue(maxsize=self._ahead)
        self._thread = threading.Thread(
            target=_fill, args=(self._source, self._place, self._queue, self._stop), name="prefetch", daemon=True
        )
        self._thread.start()

    def __next__(self) -> Any:
        if self._thread is None:
            raise ValueError("the iterator is closed")
        start = time.monotonic()
        batch, state, error = self._queue.get()
        self.wait_seconds += time.monotonic() - start
        if error is not None:
            self.close()
            raise error
        self._state = {"pipeline_hash": self._mixture.pipeline_hash, "grain": state}
        return batch

    def state(self) -> dict:
        """JSON-able; with it, `set_state` makes the batch after the last consumed one the next."""
        return self._state

    def set_state(self, state: dict) -> None:
        """Continues from a state of the same pipeline; ValueError for any other."""
        if state["pipeline_hash"] != self._mixture.pipeline_hash:
            raise ValueError(
                f"the data state belongs to another pipeline ({state['pipeline_hash'][:8]}, this one is "
                f"{self._mixture.pipeline_hash[:8]}): its stores, weights, seed, windows, batch or replicas differ"
            )
        self.close()
        self._start(state)

    def close(self) -> None:
        """Stops the threads; may be called twice."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _fill(source, place: Callable, out: queue.Queue, stop: threading.Event) -> None:
    """Puts (batch, state after it, None) until stopped, or (None, None, error) once."""
    item: tuple[Any, Any, Exception | None]
    while not stop.is_set():
        try:
            item = (place(next(source)), source.get_state(), None)
        except Exception as error:
            item = (None, None, error)
        while not stop.is_set():
            try:
                out.put(item, timeout=0.05)
                break
            except queue.Full:
                continue
        if item[2] is not None:
            return


def eval_batches(
    windows: Windows, to_sample: ToSample, source: int, batch_size: int, indices: Sequence[int]
) -> Iterator[tuple[Batch, np.ndarray]]:
    """The given windows in order, as batches of a static size.

    Yields:
        batch, is_valid bool [batch_size]: the last batch is filled up with copies of its last window, not valid.
    """
    for start in range(0, len(indices), batch_size):
        chosen = [int(i) for i in indices[start : start + batch_size]]
        samples = [to_sample(windows[i], source) for i in chosen]
        is_valid = np.arange(batch_size) < len(samples)
        yield stack(samples + samples[-1:] * (batch_size - len(samples))), is_valid
