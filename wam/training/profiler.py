"""A trace of a few steps, to be opened in XProf (`xprof --logdir DIR`) or, as `perfetto_trace.json.gz`, in Perfetto."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax

WARM = 10
"""Steps before the trace when only a number of steps is asked for: the first ones compile and fill caches."""


class Profiler:
    """Traces the steps first + 1 to last into `directory`; a trace of no steps does nothing."""

    def __init__(self, directory: Path, first: int = 0, last: int = 0):
        self._directory, self._first, self._last = directory, first, last
        self._running = False

    @classmethod
    def asked(cls, text: str | None, directory: Path, start: int, end: int) -> Profiler:
        """From `A:B` (the steps after step A up to step B) or a number of steps; the run takes `start` to `end`.

        Raises:
            ValueError: it is neither, or the run does not take these steps.
        """
        if text is None:
            return cls(directory)
        found = re.fullmatch(r"(?:(\d+):)?(\d+)", text)
        if found is None:
            raise ValueError(f"--profile_steps is {text!r}; give a number of steps, or A:B for the steps between them")
        first = int(found.group(1)) if found.group(1) else min(start + WARM, max(start, end - int(found.group(2))))
        last = int(found.group(2)) if found.group(1) else first + int(found.group(2))
        if not start <= first < last <= end:
            raise ValueError(f"--profile_steps={text} is not within the steps of this run, {start} to {end}")
        return cls(directory, first, last)

    def step(self, number: int) -> jax.profiler.StepTraceAnnotation:
        """To be entered around step `number` (counted from 0), so that the viewer knows it as one."""
        if number == self._first < self._last:
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def after(self, done: int, results: Any) -> bool:
        """Ends the trace behind its last step, once `results` are there; True when it has been written."""
        if not self._running or done < self._last:
            return False
        jax.block_until_ready(results)
        self.close()
        return True

    def close(self) -> None:
        """Ends a trace that the end of the run cut short."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
