"""Collection of real simulated episodes: stored, read back, replayed, interrupted and repeated."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines.collect import collect as collecting
from data_pipelines.collect.collect import CollectConfig, CollectionError, collect
from data_pipelines.collect.layouts import check_disjoint, layout_seed
from data_pipelines.store import ClipStore
from wam.envs.metaworld import SPLIT_SEEDS, MetaWorldEnv, RenderConfig

pytestmark = pytest.mark.requires_sim
RENDER = RenderConfig(size=32)
CAMERAS = ("corner2", "topview")
MAKE_ENV = functools.partial(MetaWorldEnv, render=RENDER)
CONFIG = CollectConfig(
    tasks=("reach",),
    layout_seeds=SPLIT_SEEDS,
    cameras=CAMERAS,
    episodes={"train": {"expert": 4, "play": 2, "ego": 1}, "validation": {"expert": 1}},
    episodes_per_shard=2,
    play_steps=32,
)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    root = tmp_path_factory.mktemp("collection") / "data"
    return root, collect(root, CONFIG, MAKE_ENV, {"name": "metaworld"})


def data_files(root):
    """{relative path: bytes} of all shards, indices and manifests."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "collection.json"]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_what_is_stored_is_what_was_recorded(collection):
    root, _ = collection
    store = ClipStore(root / "train" / "expert")
    layouts, _ = collecting._sample_layouts(CONFIG, MAKE_ENV, "reach")
    job = collecting.Job("train", "expert", "reach", 2, layouts["train/expert"][2:4])
    clip = store[3]
    episode = collecting.record(CONFIG, MAKE_ENV, job, 3)
    assert clip.meta == episode.meta
    assert clip.episode_steps == episode.steps
    for name in ("frame_step", "state", "action", "imitate"):
        np.testing.assert_array_equal(getattr(clip, name), getattr(episode, name)[: len(getattr(clip, name))])
    for camera in CAMERAS:
        np.testing.assert_array_equal(clip.frames[camera], episode.frames[camera][: len(clip.frames[camera])])


@pytest.mark.parametrize("source", ["expert", "play"])
def test_replaying_stored_actions_gives_the_stored_states_and_pixels(collection, source):
    root, _ = collection
    clip = ClipStore(root / "train" / source)[0]
    assert clip.is_last, "the episode must lie in one clip for this test"
    env = MAKE_ENV("reach", CAMERAS)
    state = env.reset(np.array(clip.meta["layout"]))
    for _ in range(clip.meta.get("approach_steps", 0)):
        state, _ = env.step(env.expert_action())
    frame, solved_at = 0, -1
    for step in range(clip.steps + 1):
        np.testing.assert_array_equal(state, clip.state[step])
        if frame < len(clip.frame_step) and clip.frame_step[frame] == step:
            images = env.render()
            for camera in CAMERAS:
                np.testing.assert_array_equal(images[camera], clip.frames[camera][frame])
            frame += 1
        if step < clip.steps:
            state, success = env.step(clip.action[step])
            solved_at = step + 1 if success and solved_at < 0 else solved_at
    assert frame == len(clip.frame_step) == clip.steps // CONFIG.frame_stride + 1
    assert solved_at == clip.meta["success_step"]
    if source == "expert":
        assert 0 < solved_at == clip.steps - CONFIG.after_success
    env.close()


def test_flags_and_metadata_of_each_source(collection):
    root, result = collection
    expert = ClipStore(root / "train" / "expert").index
    imitate = [flags.mean() for flags in expert.imitate]
    assert 0 < min(imitate) < 1, "this seed perturbs some steps and leaves others"
    assert all(meta["success_step"] > 0 for meta in expert.meta)
    play = ClipStore(root / "train" / "play").index
    assert not any(flags.any() for flags in play.imitate)
    assert [len(flags) for flags in play.imitate] == [CONFIG.play_steps] * 2
    ego = ClipStore(root / "train" / "ego")
    assert ego.manifest["cameras"] == ["gripperPOV"]
    assert ego.manifest["kinds"] == ["ego"]
    assert ego[0].action is None
    assert ego[0].state is None
    assert not ego[0].imitate.any()
    assert ego[0].meta["embodiment"] == "none"
    assert ego[0].meta["instruction"] == "reach the goal"
    rows = {(row["split"], row["source"]): row for row in result["rows"]}
    assert rows["train", "expert"]["episodes"] == rows["train", "expert"]["successes"] == 4
    assert rows["train", "play"]["steps"] == 64
    assert rows["train", "play"]["imitate_steps"] == 0
    assert rows["train", "play"]["images"] == 2 * 2 * (32 // 4 + 1)
    assert json.loads((root / "collection.json").read_text())["rows"] == result["rows"]


def test_layouts_of_splits_and_sources_are_disjoint(collection):
    root, result = collection
    stored = {}
    for name in ("train/expert", "train/play", "train/ego", "validation/expert"):
        stored[name] = np.array([meta["layout"] for meta in ClipStore(root / name).index.meta])
        np.testing.assert_array_equal(
            np.unique(stored[name], axis=0), np.unique(result["layouts"]["reach"][name], axis=0)
        )
    check_disjoint(stored)
    seeds = [layout_seed(seed, source) for seed in SPLIT_SEEDS.values() for source in ("expert", "play", "ego")]
    assert len(set(seeds)) == 9
    with pytest.raises(ValueError, match=r"layouts 'train/expert' and 'test' share \["):
        check_disjoint(stored | {"test": stored["train/expert"][2:3]})


def test_a_second_run_finds_everything_and_changes_nothing(collection):
    root, result = collection
    before = data_files(root)
    again = collect(root, CONFIG, MAKE_ENV, {"name": "metaworld"})
    assert again["shards"] == {"made": 0, "found": result["shards"]["made"]}
    assert data_files(root) == before


def test_another_configuration_does_not_mix_in(collection):
    root, _ = collection
    with pytest.raises(ValueError, match=r"was collected with config.play_steps = 32, now it is 40: choose another"):
        collect(root, dataclasses.replace(CONFIG, play_steps=40), MAKE_ENV, {"name": "metaworld"})
    with pytest.raises(ValueError, match=r"simulator.name = metaworld, now it is other"):
        collect(root, CONFIG, MAKE_ENV, {"name": "other"})


RECIPE = """
from ml_collections import ConfigDict
def get_config():
    episodes = {"train": {"expert": 4, "play": 2, "ego": 1}, "validation": {"expert": 1}}
    collect = {"tasks": ("reach",), "episodes": episodes, "episodes_per_shard": 2, "play_steps": 32, "processes": 1}
    sim = {"name": "metaworld", "cameras": ("corner2", "topview"), "render": {"size": 32}}
    return ConfigDict({"collect": collect, "sim": sim})
"""


def start_program(recipe, out, *flags):
    command = [sys.executable, "-m", "experiments.collect", f"--config={recipe}", f"--out={out}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_a_killed_program_continues_to_the_same_bytes(collection, tmp_path):
    """The other run had two processes and was never interrupted."""
    recipe, out = tmp_path / "recipe.py", tmp_path / "out"
    recipe.write_text(RECIPE)
    program = start_program(recipe, out)
    while not list(out.glob("*/*/*.index")):
        assert program.poll() is None, program.stderr.read()
        time.sleep(0.01)
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate()
    done = {path.name for path in out.glob("*/*/*.index")}
    assert done
    assert not (out / "validation" / "expert" / "manifest.json").exists()
    program = start_program(recipe, out)
    printed, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    assert f"{len(done)} found" in printed
    assert "validation/expert" in printed
    assert data_files_without_manifests(out) == data_files_without_manifests(collection[0])


def data_files_without_manifests(root):
    return {name: data for name, data in data_files(root).items() if not name.endswith("manifest.json")}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.collect.tasks=('reech',)"], "unknown Meta-World task 'reech'; choose from assembly"),
        (["--config.sim.cameras=('front',)"], "unknown Meta-World camera 'front'; choose from topview"),
    ],
)
def test_the_program_refuses_in_one_sentence(tmp_path, flags, said):
    (tmp_path / "recipe.py").write_text(RECIPE)
    program = start_program(tmp_path / "recipe.py", tmp_path / "out", *flags)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 1
    assert errors.strip().splitlines()[-1].startswith(f"collect: {said}")
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


class BrokenEnv(MetaWorldEnv):
    """Fails on play, whose workspace no expert asks for."""

    @property
    def workspace(self):
        raise RuntimeError("the arm fell off")


def test_a_failing_job_is_named_and_the_others_are_kept(tmp_path):
    config = dataclasses.replace(CONFIG, episodes={"train": {"expert": 1, "play": 1}}, processes=1)
    with pytest.raises(
        CollectionError, match=r"1 of 2 jobs failed: train/play/reach-00000: RuntimeError: the arm fell"
    ):
        collect(tmp_path / "data", config, functools.partial(BrokenEnv, render=RENDER), {"name": "broken"})
    assert (tmp_path / "data" / "train" / "expert" / "reach-00000.index").exists()


def test_a_failed_expert_is_kept_but_never_imitated():
    config = dataclasses.replace(CONFIG, expert_max_steps=8)
    env = MAKE_ENV("reach")
    job = collecting.Job("train", "expert", "reach", 0, env.sample_layouts(1, 1))
    episode = collecting.record(config, MAKE_ENV, job, 0)
    assert episode.steps == 8
    assert episode.meta["success_step"] == -1
    assert not episode.imitate.any()


def test_bad_configurations_are_refused():
    for change, said in [
        ({"tasks": ("reach", "reach")}, "tasks must name each task once"),
        ({"episodes": {"dev": {"expert": 1}}}, "unknown split 'dev'"),
        ({"episodes": {"train": {"human": 1}}}, "unknown source 'human'"),
        ({"episodes": {"train": {"expert": 0}}}, "nothing to collect"),
        ({"frame_stride": 0}, "frame_stride must be at least 1"),
        ({"cameras": ()}, "at least one camera"),
    ]:
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(CONFIG, **change)


def test_too_little_disk_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = collecting.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(collecting.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"GB free and the collection may need .* GB"):
        collect(tmp_path / "data", CONFIG, MAKE_ENV, {"name": "metaworld"})
    assert not list((tmp_path / "data").iterdir())
