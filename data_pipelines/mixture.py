"""The training data: per source shuffle -> repeat -> stride by stream, then mix -> read -> transform -> batch.

A run has S streams, and every process owns some of them: stream i makes the i-th share of every global batch, whoever
reads it, so the number of processes changes nothing. Each source is strided over the streams before mixing (slicing a
mix would alias with its periodic pattern) and after its global shuffle, so what all streams have consumed is a prefix
of every source's order, from which any other number of streams, or other weights, can continue.

All streams mix alike (`Shares`): each has its share of every one of n sources to within H = 1 + 1/2 + ... + 1/(n-1)
samples at any time, the run to within S x H. So after 1000 H samples a stream, and ever after, the samples of a source
are what its weight asks for to within 0.1 % of all samples, in every stream as in the run.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import grain
import numpy as np

from data_pipelines.differences import differences
from data_pipelines.shares import Shares
from data_pipelines.transforms import ToSample
from data_pipelines.windows import Windows
from wam.batch import Batch, check_batch


def stack(samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
    """Samples to a batch: every field gets a leading B."""
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def choose_streams(replicas: int, *, asked: int = 0, recorded: int = 0) -> int:
    """How many streams a run has.

    Args:
        replicas: groups of processes that feed different rows; each must own equally many streams.
        asked: `data.streams` of the config; 0 leaves the choice to this function.
        recorded: of the run's earlier part, which goes on exactly as long as `replicas` divides it; 0: there is none.

    Raises:
        ValueError: `asked` does not divide over the replicas.
    """
    if recorded:
        return recorded if recorded % replicas == 0 else replicas
    if asked % replicas:
        raise ValueError(f"data.streams {asked} does not divide over {replicas} data replicas: choose a multiple of it")
    return asked or replicas


def share_streams(streams: int, replica: int, replicas: int) -> tuple[int, ...]:
    """The streams that one of `replicas` data replicas owns: neighbours, so that batches keep the order of streams."""
    if streams % replicas or not 0 <= replica < replicas:
        raise ValueError(f"{streams} streams cannot be shared out to replica {replica} of {replicas}")
    each = streams // replicas
    return tuple(range(replica * each, (replica + 1) * each))


class Mixture:
    """An endless, deterministic stream of batches over weighted sources, for the process that owns some of its streams.

    Args:
        sources: name -> windows, the same mapping that `to_sample` was made for.
        weights: name -> share of the samples, in proportion to their sum; sources without a weight are left out.
        to_sample: raw window to sample.
        batch_size: GLOBAL batch; every stream makes batch_size / streams of its samples.
        seed: of all shuffles; every source and every epoch gets its own permutation, which depends on the seed and the
            source's name alone: another source beside it changes nothing.
        streams: into how many streams every source is dealt out.
        own: the streams read here, all by default; a local batch is their batches one after the other.
        threads: batches made at the same time; no influence on the result.
        prefetch: finished batches that wait in memory; no influence on the result.

    Raises:
        ValueError: no source, an unknown name, a weight that is not positive, a source without windows, a batch that
            does not divide by the streams, or a stream that does not exist.
    """

    def __init__(
        self,
        sources: Mapping[str, Windows],
        weights: Mapping[str, float],
        to_sample: ToSample,
        *,
        batch_size: int,
        seed: int,
        streams: int = 1,
        own: Sequence[int] | None = None,
        threads: int = 2,
        prefetch: int = 2,
    ):
        if not weights:
            raise ValueError("the mixture is empty: give a weight to one source at least")
        if unknown := sorted(set(weights) - set(sources)):
            raise ValueError(f"unknown sources {unknown} in the mixture; there are {sorted(sources)}")
        if bad := {name: weight for name, weight in weights.items() if not 0 < weight < float("inf")}:
            raise ValueError(f"weights must be positive numbers, got {bad}: leave a source out to switch it off")
        if empty := [name for name in weights if not len(sources[name])]:
            raise ValueError(f"sources {empty} have no usable window: their episodes are too short for this config")
        if batch_size < 1 or streams < 1 or batch_size % streams:
            raise ValueError(f"a batch of {batch_size} cannot be split into {streams} streams")
        self.streams, self.own = streams, tuple(range(streams) if own is None else own)
        if not self.own or len(set(self.own)) < len(self.own) or not set(self.own) <= set(range(streams)):
            raise ValueError(f"a process cannot own the streams {self.own} of {streams}")
        self.batch_size, self._each = batch_size, batch_size // streams
        self.local_batch_size = self._each * len(self.own)
        names = [name for name in sources if name in weights]
        position = list(sources)
        for name in names:
            sample = to_sample(sources[name][0], position.index(name))
            check_batch(sample, to_sample.spec, None)

        self._windows, self._to_sample = dict(sources), to_sample
        self.weights = {name: float(weights[name]) for name in names}
        self.shares = Shares.of(self.weights)
        self._orders: dict[str, grain.MapDataset] = {}  # of (source, window): everything that all streams consume
        for name in names:
            source = position.index(name)
            own_seed = int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1)[0])
            order = grain.MapDataset.range(len(sources[name])).shuffle(seed=own_seed).repeat()
            self._orders[name] = order.map(lambda window, source=source: (source, window))
        self._options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        facts = {
            "sources": {name: {"position": position.index(name)} | sources[name].facts for name in names},
            "transform": to_sample.facts,
            "batch_size": batch_size,
            "seed": seed,
            "grain": grain.__version__,  # its shuffle decides the order
        }
        self.facts = json.loads(json.dumps(facts))
        """all that decides the order and the content of the samples but the weights and the streams"""

    def order(self, start: Mapping[str, int] | None = None) -> grain.MapDataset:
        """The (source, window) of every sample of this process, in order, before anything is read.

        Args:
            start: name -> how many samples of a source were consumed, over all streams, before the first batch.
        """
        begin = start or dict.fromkeys(self._orders, 0)

        def item(index: int) -> tuple[int, int]:
            batch, row = divmod(index, self.local_batch_size)
            owned, row = divmod(row, self._each)
            name, before = self.shares[batch * self._each + row]
            return self._orders[name][begin[name] + self.own[owned] + self.streams * before]

        return grain.MapDataset.range(sys.maxsize).map(item)

    def dataset(self, start: Mapping[str, int] | None = None) -> grain.MapDataset:
        """The local batches, from the same start as `order`."""
        windows, to_sample = list(self._windows.values()), self._to_sample
        samples = self.order(start).map(lambda item: to_sample(windows[item[0]][item[1]], item[0]))
        return samples.batch(self.local_batch_size, drop_remainder=True, batch_fn=stack)

    def iterator(self, *, place: Callable[[Batch], Any] = lambda batch: batch, ahead: int = 2) -> TrainIterator:
        """Starts reading. `place` runs in the background thread, e.g. to put the batch on devices."""
        return TrainIterator(self, place, ahead)

    def state_after(self, batches: int, start: Mapping[str, int] | None = None) -> dict:
        """State of an iterator from which `batches` batches were consumed; the same on every process of a run."""
        return {
            "pipeline": self.facts,
            "weights": self.weights,
            "streams": self.streams,
            "start": dict(start or dict.fromkeys(self._orders, 0)),
            "grain": {"next_index": batches},
        }

    def consumed(self, state: Mapping[str, Any]) -> dict[str, int]:
        """How many samples of each source all streams together have consumed: this long a prefix of its order."""
        each = Shares.of(state["weights"]).counts(state["grain"]["next_index"] * (self.batch_size // state["streams"]))
        return {name: state["start"][name] + state["streams"] * each[name] for name in self._orders}

    def epochs(self, state: Mapping[str, Any]) -> dict[str, float]:
        """How often all streams together have gone through each source."""
        return {name: count / len(self._windows[name]) for name, count in self.consumed(state).items()}

    def adopt(self, state: Mapping[str, Any]) -> tuple[dict, str | None]:
        """(state for this mixture, what to tell the user) from the state of a run, whatever its streams and weights.

        With the same streams and shares the batches go on exactly as they would have. Otherwise every source goes on
        behind the prefix that was consumed of it: no sample is repeated or skipped, but they meet in other batches than
        they would have. ValueError, with the fields, if anything else differs.
        """
        if changed := differences(state["pipeline"], self.facts):
            raise ValueError(
                f"the data of this run have changed ({changed}): only the values of data.weights and the number of "
                "streams may; use a new --workdir"
            )
        reasons = []
        if state["streams"] != self.streams:
            reasons.append(f"in {self.streams} streams instead of {state['streams']}")
        if Shares.of(state["weights"]) != self.shares:
            reasons.append(f"with other weights ({differences(state['weights'], self.weights)})")
        if not reasons:
            return dict(state), None
        start = self.consumed(state)
        counts = ", ".join(f"{count:,} of {name}" for name, count in start.items())
        return self.state_after(0, start), (
            f"the data go on {' and '.join(reasons)}, behind what was consumed ({counts}): no sample is repeated or "
            "skipped, but batches are composed anew"
        )


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
        self._source = iter(self._mixture.dataset(state["start"]).to_iter_dataset(self._mixture._options))
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
        self._state = {**self._state, "grain": state}
        return batch

    def state(self) -> dict:
        """JSON-able; with it, `set_state` makes the batch after the last consumed one the next."""
        return self._state

    def set_state(self, state: dict) -> str | None:
        """Continues from a state of the same pipeline, see `Mixture.adopt`; ValueError for any other.

        Returns:
            None when the batches go on exactly, else a sentence about it for the log.
        """
        state, note = self._mixture.adopt(state)
        self.close()
        self._start(state)
        return note

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
    windows: Windows, to_sample: ToSample, source: int, batch_size: int, indices: Sequence[int], *, replica: int = 0,
    replicas: int = 1,
) -> Iterator[tuple[Batch, np.ndarray]]:  # fmt: skip
    """The given windows in order, as batches of a static size; of each the rows of one data replica.

    Yields:
        batch, is_valid bool [batch_size / replicas]: the last batch is filled up with copies of its last window, not
        valid.
    """
    rows = slice(replica * batch_size // replicas, (replica + 1) * batch_size // replicas)
    for start in range(0, len(indices), batch_size):
        chosen = [int(i) for i in indices[start : start + batch_size]]
        is_valid = np.arange(batch_size) < len(chosen)
        chosen += chosen[-1:] * (batch_size - len(chosen))
        samples = {i: to_sample(windows[i], source) for i in set(chosen[rows])}  # a copy is not read again
        yield stack([samples[i] for i in chosen[rows]]), is_valid[rows]
