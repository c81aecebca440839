"""Tiny synthetic episodes: 80 Hz control, a frame every 8 steps, so that frames are 0.1 s apart."""

import numpy as np
import pytest

from data_pipelines.store import ClipStore, Episode, ShardWriter, finish_store
from data_pipelines.windows import WindowConfig

CAMERAS = ("corner", "wrist")


def make_episode(name, steps, *, stride=8, cameras=CAMERAS, size=8, hz=80.0, free=False, imitate=None, seed=0, **meta):
    """Random images and actions; the hand integrates the actions, so that they really lead somewhere."""
    rng = np.random.default_rng([seed, *name.encode()])
    frame_step = np.arange(0, steps + 1, stride, dtype=np.int32)
    action = rng.uniform(-1, 1, (steps, 4)).astype(np.float32)
    hand = np.concatenate([np.zeros((1, 3)), 0.01 * np.cumsum(action[:, :3], 0)]) + rng.uniform(-1, 1, 3)
    state = np.concatenate([hand, rng.uniform(0, 1, (steps + 1, 1))], -1).astype(np.float32)
    if imitate is None:
        imitate = np.full(steps, not free)
    defaults = {
        "episode": name,
        "task": "reach",
        "instruction": "reach the goal",
        "embodiment": "none" if free else "sawyer_metaworld",
        "kind": "ego" if free else "expert",
        "layout": [0.0],
        "control_hz": hz,
        "success_step": -1,
    }
    frames = {camera: rng.integers(0, 256, (len(frame_step), size, size, 3), dtype=np.uint8) for camera in cameras}
    if free:
        state = action = None
    return Episode(frames, frame_step, state, action, np.asarray(imitate, np.bool_), defaults | meta)


@pytest.fixture
def episode():
    return make_episode


@pytest.fixture
def write_store(tmp_path):
    """write_store(episodes, name) -> open ClipStore, two episodes a shard."""

    def write(episodes, name="store", clip_steps=64, overlap_steps=32, embodiment=None, **options):
        directory = tmp_path / name
        for i in range(0, len(episodes), 2):
            with ShardWriter(directory, f"s{i:03}", clip_steps=clip_steps, overlap_steps=overlap_steps) as shard:
                for one in episodes[i : i + 2]:
                    shard.add(one)
        finish_store(directory, {"note": "synthetic"}, embodiment)
        return ClipStore(directory, **options)

    return write


@pytest.fixture
def config():
    """config(**changes): T=3 frames over 0.2 s, K=16 actions at 80 Hz, two views."""

    def make(**changes):
        defaults = {
            "frame_seconds": (0.0, 0.1, 0.2),
            "action_horizon": 16,
            "action_hz": 80.0,
            "views": CAMERAS,
            "cameras": (*CAMERAS, "ego"),
        }
        return WindowConfig(**defaults | changes)

    return make
