"""What a policy does becomes episodes of a store, and a store that trains a value."""

import dataclasses
import functools
import pickle

import jax
import numpy as np
import pytest

from data_pipelines.collect.disturbance import Perturbation
from data_pipelines.collect.layouts import SOURCES, layout_seed
from data_pipelines.collect.rollouts import Recording
from data_pipelines.mixture import stack
from data_pipelines.outcomes import Outcomes
from data_pipelines.store import ClipStore, finish_store
from data_pipelines.transforms import ToSample
from data_pipelines.windows import WindowConfig, Windows
from tests.helpers import IMAGE, small_config, small_tokenizer
from tests.planning.slider import Slider
from wam.config import MeshConfig, ObjectiveConfig, OptimizerConfig
from wam.embodiment import Normalizer
from wam.envs.metaworld import SPEC
from wam.training import sharding
from wam.training.trainer import Trainer

CAMERAS = ("left", "right")


make_env = functools.partial(Slider, spec=SPEC)


def play(env, layouts, max_steps=96):
    """Every layout with full speed along x, in the face that closed-loop evaluation uses."""
    for layout in layouts:
        env.reset(layout)
        for _ in range(max_steps):
            if env.step(np.array([1.0, 0.0, 0.0, 1.0]))[1]:
                break
    env.close()


@pytest.fixture
def recording(tmp_path):
    return Recording(make_env, str(tmp_path / "rollouts"), "train/rollouts", CAMERAS, 10, 3001, 8)


def stored(recording, layouts=((0.295,), (2.0,), (0.805,)), **changes):
    recording = dataclasses.replace(recording, **changes)
    play(pickle.loads(pickle.dumps(recording))("reach", CAMERAS), np.array(layouts))  # noqa: S301 (our own bytes)
    finish_store(recording.store, {"policy": {"step": 7}})
    return ClipStore(recording.store)


def test_episodes_say_how_they_ended(recording):
    assert not recording.is_done("reach")
    store = stored(recording)
    assert recording.is_done("reach")
    metas = [meta for meta, start in zip(store.index.meta, store.index.start, strict=True) if start == 0]
    assert [meta["success_step"] for meta in metas] == [30, -1, 81]
    assert [meta["success"] for meta in metas] == [True, False, True]
    assert {meta["kind"] for meta in metas} == {"rollout"}
    assert [meta["episode"] for meta in metas] == [f"train/rollouts/reach/{i:05d}" for i in (10, 11, 12)]
    assert store.manifest["meta"] == {"policy": {"step": 7}}
    # Successes may be copied, failures never; the last frame shows the end, between two strides.
    assert [bool(flags.all()) for flags in store.index.imitate] == [True, False, True]
    assert not store.index.imitate[1].any()
    assert store.index.frame_step[0].tolist() == [0, 8, 16, 24, 30]
    assert store[0].frames["right"][-1].max() == pytest.approx(255 * 0.3, abs=1)
    assert not stored(recording, store=recording.store + "2", imitate=False).index.imitate[0].any()


def test_a_shard_whose_player_died_is_not_finished(recording):
    env = recording("reach", CAMERAS)
    env.reset(np.array([0.3]))
    env.step(np.ones(4))
    del env
    assert not recording.is_done("reach")
    assert stored(recording).manifest["episodes"] == 3
    with pytest.raises(ValueError, match="the policy looks through 'top'; the store films left, right"):
        recording("reach", ("top",))


def test_disturbed_steps_are_executed_recorded_and_not_imitated(recording):
    often = Perturbation(start_probability=1.0, start_steps=(5, 6), burst_probability=0.2, burst_steps=(2, 3))
    store = stored(recording, layouts=[(0.2,)], perturbation=often)
    clip = store[0]
    odd = (clip.action != np.array([1, 0, 0, 1], np.float32)).any(1)
    assert odd[:5].all() and 5 < odd.sum() < clip.steps
    np.testing.assert_array_equal(clip.imitate, ~odd)
    np.testing.assert_allclose(clip.state[-1], 0.01 * clip.action.sum(0), atol=1e-5)
    again = stored(recording, layouts=[(0.2,)], perturbation=often, store=recording.store + "2")
    np.testing.assert_array_equal(clip.action, again[0].action)
    other = stored(recording, layouts=[(0.2,)], perturbation=often, store=recording.store + "3", seed=1)
    assert clip.steps != other[0].steps or not np.array_equal(clip.action, other[0].action)


def test_rollouts_have_layouts_of_their_own():
    seeds = [layout_seed(split, source) for split in (1, 100, 200) for source in (*SOURCES, "rollouts")]
    assert len(set(seeds)) == len(seeds)


def test_a_store_of_rollouts_trains_a_value(recording):
    """Windows, batch and three steps: the value's loss counts every forward and inverse sample, and falls."""
    no_paths = {"depth": 1, "lead_width": 0, "inverse_width": 0, "text_attention": False}  # compiles faster
    model = small_config(value_bins=9, cameras=2, latent_frames=3, action_horizon=8, **no_paths)
    windows = Windows(stored(recording, after_success=16), WindowConfig((0.0, 0.1, 0.2), 8, 80.0, CAMERAS, CAMERAS))
    spec = model.batch_spec(IMAGE, IMAGE, text_tokens=1)
    one, names = Normalizer(-np.ones(4), np.ones(4)), ("none", SPEC.name)
    text = functools.partial(lambda width, _: (np.ones((1, width), np.float32), np.ones(1, bool)), model.text_dim)
    to_sample = ToSample(spec, {"rollouts": windows}, {SPEC.name: (one, one)}, names, text, Outcomes())
    known = [i for i in range(len(windows)) if not np.isnan(windows[i]["success"]).any()]
    # Solved after 30 and 81 steps, and played on: chunks are learned from up to the last frame before.
    assert {windows.meta(i)["start_step"] for i in known if windows.meta(i)["success_step"] == 30} == {0, 8, 16, 24}
    batch = stack([to_sample(windows[known[i % len(known)]], 0) for i in range(24)])
    assert batch["value_mask"].all() and 0 < batch["value"].mean() < 1
    trainer = Trainer(
        model, ObjectiveConfig(modes={"forward": 0.5, "inverse": 0.4, "value": 0.1}, policy_draws=0, value_weight=1.0),
        OptimizerConfig(learning_rate=1e-2, warmup_steps=0), small_tokenizer(model),
        sharding.make_mesh(MeshConfig(), jax.devices()[:1]), batch_size=24, sources=1,
    )  # fmt: skip
    state, batch, losses = trainer.init(steps=100, seed=0), trainer.place(batch), []
    for _ in range(8):
        state, metrics = trainer.step(state, batch)
        error, count = metrics["terms"]["value"]["all"]
        assert count == 24
        losses.append(float(error / count))
    assert losses[0] == pytest.approx(np.log(9), abs=0.01)  # the head begins at zero: all bins alike
    assert losses[-1] < 0.9 * losses[0]
