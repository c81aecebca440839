"""How long saving a checkpoint blocks training, and what writing it costs the steps that follow.

python -m tools.bench.saving SPEC.json WORKDIR      # started by tools.bench.train; prints one JSON object
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import jax

from tools.bench.ours import OurTrain
from wam.checkpoint import Checkpoints

WATCHED = 3
"""Steps timed one by one before and after each save."""


def timed_step(side: OurTrain) -> float:
    start = time.perf_counter()
    side.steps(1)
    return time.perf_counter() - start


def main(spec_path: str, workdir: str, saves: int = 3) -> None:
    side = OurTrain(json.loads(Path(spec_path).read_text()))
    side.steps(2)
    checkpoints = Checkpoints(workdir, keep_latest=1, best_metric="")
    usual: list[float] = []
    blocked, after = [], []
    for _ in range(saves):
        usual += [timed_step(side) for _ in range(WATCHED)]
        start = time.perf_counter()
        checkpoints.save(side.state, {}, side.trainer.apply.constants, {}, {})
        blocked.append(time.perf_counter() - start)
        after.append(sum(timed_step(side) for _ in range(WATCHED)))
        checkpoints.wait()
    checkpoints.close()
    median = sorted(usual)[len(usual) // 2]
    size = sum(x.nbytes for x in jax.tree.leaves(side.state))
    slower = [max(0.0, seconds - WATCHED * median) for seconds in after]
    print(json.dumps({"step": usual, "blocked": blocked, "slower": slower, "watched": WATCHED, "bytes": size}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
