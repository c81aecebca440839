"""Where the time of a training goes: step time, waiting for data, throughput, utilisation, device memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import jax

VOLATILE = ("seconds", "step_ms", "data_wait_share", "compile_seconds", "validation_seconds", "save_ms",
            "tokens_per_second", "mfu", "hbm_gb", "hbm_peak_gb")  # fmt: skip
"""Names in a row of metrics that differ between two runs of the same training; all others are equal, bit for bit."""


class Meter:
    """Measures the steps between two rows of metrics.

    Args:
        tokens: of a step, all devices together; 0 leaves the throughput out.
        flops: of a step by the analytic formula, all devices together.
        peak: FLOP/s of all devices together by their datasheet; None, where it is not known, leaves out the MFU.
    """

    def __init__(self, *, tokens: int = 0, flops: int = 0, peak: float | None = None):
        self._tokens, self._flops, self._peak = tokens, flops, peak
        self.start(0, 0.0)

    def start(self, step: int, waited: float) -> None:
        """Begins an interval after `step`; `waited` is the time the data iterator has made its callers wait so far."""
        self._step, self._waited = step, waited
        self._apart: dict[str, float] = {}
        self._since = time.monotonic()

    @contextlib.contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Time in here is none of the steps'. It is reported by this name (`_ms` or `_seconds` tell the unit)."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._apart[name] = self._apart.get(name, 0.0) + time.monotonic() - start

    def row(self, step: int, waited: float) -> dict[str, float]:
        """Values of the interval that ends after `step`; the next one begins here."""
        seconds = max(1e-9, time.monotonic() - self._since - sum(self._apart.values()))
        steps = max(1, step - self._step)
        values = {"step_ms": 1000 * seconds / steps, "data_wait_share": (waited - self._waited) / seconds}
        for name, apart in self._apart.items():
            values[name] = 1000 * apart if name.endswith("_ms") else apart
        if self._tokens:
            values["tokens_per_second"] = self._tokens * steps / seconds
        if self._peak:
            values["mfu"] = self._flops * steps / seconds / self._peak
        self.start(step, waited)
        return values | device_memory()


def device_memory() -> dict[str, float]:
    """GiB in use and at most in use on this process's fullest device; nothing where the backend does not say (CPU)."""
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    names = {"hbm_gb": "bytes_in_use", "hbm_peak_gb": "peak_bytes_in_use"}
    return {name: max(s[key] for s in stats) / 2**30 for name, key in names.items() if stats and key in stats[0]}
