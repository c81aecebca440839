"""A plant and an analytic policy in simulated time: quick, exact, and with two ways around an obstacle."""

import numpy as np

from wam.serving.background import Request, SimulatedClock, SimulatedInference
from wam.serving.executor import ChunkExecutor, ExecutorConfig
from wam.serving.limits import Limits

HZ, HORIZON = 80.0, 16


class TwoWays:
    """Goes to x = 1 and passes on the left or the right: a coin decides, unless actions it continues have decided.

    Actions are increments (x, y). `guide`: continues the whole old chunk softly instead of its frozen part exactly.
    """

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)

    def __call__(self, request: Request) -> np.ndarray:
        x, frozen = float(request.observation[0]), request.planned[: request.frozen]
        side = np.sign(frozen[-1, 1]) if len(frozen) and frozen[-1, 1] else self.rng.choice([-1.0, 1.0])
        chunk = np.zeros((HORIZON, 2), np.float32)
        chunk[: len(frozen)] = frozen
        x += float(frozen[:, 0].sum())
        for k in range(len(frozen), HORIZON):
            chunk[k] = 0.05 * (1 - x), 0.03 * side
            x += chunk[k, 0]
        return chunk


def drive(policy, delay: int, steps: int, limits: Limits | None = None, rest=(0.0, 0.0), delta=True, **options):
    """Runs an executor over the plant: (actions [steps, A], sources [steps], executor, requests with their steps)."""
    clock, requests, position = SimulatedClock(HZ), [], np.zeros(len(rest))

    def infer(request: Request) -> np.ndarray:
        requests.append((clock.steps, request))
        return policy(request)

    dims = len(rest)
    inference = SimulatedInference(clock, lambda: delay / HZ, infer)
    config = ExecutorConfig(**{"control_hz": HZ, "horizon": HORIZON, "execute": 8, **options})
    executor = ChunkExecutor(inference, config, limits or Limits.of(dims), rest, [delta] * dims)
    actions, sources = [], []
    for _ in range(steps):
        action = executor.step(position.copy())
        position = position + action if delta else action
        actions.append(action)
        sources.append(executor.source)
        clock.advance()
    return np.stack(actions), np.array(sources), executor, requests
