"""Real files of three formats and a simulator's store in one mixture: the small version of tools/prove/real_mixture."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.ingest import ingest
from data_pipelines.ingest_plan import IngestConfig
from data_pipelines.mixture import Mixture
from data_pipelines.store import ClipStore, ShardWriter, finish_store
from experiments.configs import real_mixture
from experiments.held_out import batch_of, check_held_out, windows_of
from experiments.recipe import Recipe, load_data
from tests.data_pipelines.conftest import make_episode
from tests.experiments.commands import run
from tools.prove.real_mixture import digests, losses
from wam.diffusion.sampler import program
from wam.evaluation.world_model import generate_all
from wam.policy import load_policy

CONFIG = "experiments/configs/real_mixture.py:tiny"
SOURCES = ("expert", "bridge", "gr1", "droid")
ROBOTS = {"expert": "sawyer_metaworld", "bridge": "widowx_bridge", "gr1": "gr1_relative"}
GR1, BRIDGE = "lerobot_v2_groot_gr1_sim/episode_00000", "bridge_dataset/train-00000/"
KEPT = {f"{GR1}{i}": [[0, 60]] for i in (3, 4)} | {f"{BRIDGE}{i}": [[0, 10]] for i in range(8)}
KEPT |= {f"{camera}_left.mp4": [[0, 60]] for camera in ("exterior_image_1", "wrist_image")}


def reaching(name):
    """A Sawyer that goes and comes back; the state tells when."""
    blank, time = make_episode(name, 60, stride=4, size=32, cameras=("corner2",)), np.linspace(0, 1, 61)
    action = np.where(time[:60, None] < 0.5, [1.0, -1.0, 0.5, -1.0], [-1.0, 1.0, -0.5, 1.0]).astype(np.float32)
    state = np.stack([time, 1 - time, 2 * time, np.full(61, ord(name) / 100)], -1).astype(np.float32)
    return dataclasses.replace(blank, state=state, action=action)


@pytest.fixture(scope="module")
def workdir(shared_samples, tmp_path_factory):
    """Four stores, and a training of seconds by the real command."""
    workdir = tmp_path_factory.mktemp("real_mixture")
    root, keep = workdir / "data", workdir / "keep.json"
    keep.write_text(json.dumps(KEPT))
    for name, dataset, path, validation in (
        ("bridge", "bridge", "bridge_octo_debug/1.0.0", (f"{BRIDGE}6", f"{BRIDGE}7")),
        ("gr1", "gr1_relative", "lerobot_v2_groot_gr1_sim", (f"{GR1}4",)),
        ("droid", "video", "dreamzero_droid", ("wrist_image_left.mp4",)),
    ):
        config = IngestConfig(dataset, str(shared_samples / path), (32, 32), validation=validation, keep=str(keep),
                              fps=None if name == "bridge" else 5.0)  # fmt: skip
        ingest(root, name, config, progress=False)
    for split, names in (("train", "abc"), ("validation", "d")):
        with ShardWriter(root / split / "expert", "s0") as shard:
            for name in names:
                shard.add(reaching(name))
        finish_store(root / split / "expert")
    run("train", f"--config={CONFIG}", f"--workdir={workdir}", f"--config.data.root={root}", "--noprogress")
    return workdir


def test_all_sources_meet_in_one_batch(workdir):
    recipe = Recipe.of(real_mixture.get_config("tiny"))
    data = load_data(recipe, workdir / "data", workdir)
    mixture = Mixture(data.train, dict(recipe.config.data.weights), data.to_sample, batch_size=16, seed=0, threads=1)
    with mixture.iterator(place=lambda batch: batch) as batches:
        batch = next(batches)
    of = {name: batch["source"] == recipe.sources.index(name) for name in SOURCES}
    assert all(rows.any() for rows in of.values())
    clocks = {"expert": (80, 0.1), "bridge": (5, 0.8), "gr1": (20, 0.4), "droid": (None, 0.4)}
    for name, (hz, seconds) in clocks.items():
        assert np.allclose(batch["video_time"][of[name]][:, -1], seconds)
        if hz is None:  # nothing to imitate, nothing to regress
            assert not batch["action_mask"][of[name]].any() and not batch["imitate"][of[name]].any()
        else:
            assert np.allclose(np.diff(batch["action_time"][of[name], 0]), 1 / hz)
            dims = batch["action_mask"][of[name]].any((0, 1, 2)).sum()
            assert dims == {"expert": 4, "bridge": 7, "gr1": 44}[name]


def test_losses_fall_on_each_source(workdir):
    found = losses(workdir)
    assert set(found) == set(SOURCES) and set(found["droid"]) == {"video"}
    for name, terms in found.items():
        assert name == "droid" or set(terms) == {"video", "action", "policy"}
        for term, of in terms.items():
            assert np.isfinite(list(of.values())).all()
            assert of["train_last"] < of["train_first"], (name, term, of)
    mixture = json.loads((workdir / "mixture.json").read_text())
    assert mixture["realised"] == pytest.approx(mixture["asked"], abs=1e-3)


def test_one_checkpoint_answers_every_robot(workdir):
    policy = load_policy(workdir, unroll=False)
    assert set(policy.embodiments) == set(ROBOTS.values())
    for name, hz, view, dim in (("expert", 80, "corner2", 4), ("bridge", 5, "image_0", 7), ("gr1", 20, "ego_view", 44)):
        robot = policy.embodiment(ROBOTS[name])
        assert (robot.action_hz, robot.views) == (hz, (view,))
        chunk, _ = policy.infer(
            {"images": {view: np.full((32, 32, 3), 128, np.uint8)}, "state": robot.decode_state(np.zeros(dim)),
             "instruction": "pick", "embodiment": robot.spec.name}
        )  # fmt: skip
        assert chunk.actions.shape == (8, dim) and np.allclose(chunk.action_seconds, np.arange(8) / hz)
        # In the robot's units: of the size of its own data, which differs by orders of magnitude between the robots.
        _, action = robot.normalizers
        distance = np.abs(chunk.actions - action.center) / np.maximum(action.scale, 1e-6)
        assert np.median(distance) < 5


def test_open_loop(workdir):
    said = run("evaluate", f"--checkpoint={workdir}", "--open_loop").stdout
    result = json.loads((workdir / "open_loop.json").read_text())
    assert set(result["sources"]) == set(ROBOTS) and result["left_out"] == {"droid": "has no actions"}
    bridge, gr1 = result["sources"]["bridge"], result["sources"]["gr1"]
    assert (bridge["windows"], bridge["episodes"], bridge["unit"], bridge["units"]) == (20, 2, "episode", 2)
    assert gr1["unit"] == "stretch" and gr1["units"] > 1 and len(gr1["dims"]) == 44
    for row in result["sources"].values():
        low, high = row["skill_ci95"]
        assert low <= row["skill"] <= high
        assert row["skill"] == pytest.approx(1 - row["normalised"]["policy"] / row["normalised"]["mean"])
    with np.load(workdir / "eval" / "open_loop_bridge.npz") as chunks:
        assert chunks["real"].shape == chunks["policy"].shape == (20, 8, 7)
    # Acting sees no frame of the future, which open-loop batches hold.
    policy, store = load_policy(workdir, unroll=False), ClipStore(workdir / "data" / "validation" / "bridge")
    batch = batch_of(policy, windows_of(policy, store, "bridge"), "bridge", [3])
    blind = {**batch, "video": batch["video"] * (np.arange(3) == 0)[:, None, None, None].astype(np.uint8)}
    assert (blind["video"] != batch["video"]).any()
    answers = [generate_all(policy, seen, program("policy", 2), 32, pixels=False) for seen in (batch, blind)]
    assert np.array_equal(*answers)
    assert "bridge       widowx_bridge           20" in said and "droid        left out: has no actions" in said


def test_held_out_by_content(workdir, shared_samples):
    found = digests(shared_samples, workdir / "data")
    # The sample's two files hold the same records: what is called val there is no held-out data.
    assert found["bridge_files"] == {"train": 25, "val": 25, "distinct": 25, "in_both": 25}
    assert [found[name]["in_both"] for name in ("bridge", "gr1", "droid")] == [0, 0, 0]
    train, held_out = (ClipStore(workdir / "data" / split / "bridge") for split in ("train", "validation"))
    check_held_out(held_out, train)
    with pytest.raises(
        ValueError, match=r"6 of 6 clips of .*/train/bridge are in .*/train/bridge too: an error on them"
    ):
        check_held_out(train, train)


def test_flags_of_another_evaluation(workdir):
    failed = run("evaluate", f"--checkpoint={workdir}", "--open_loop", "--episodes=3", check=False)
    assert failed.returncode and "evaluate: --episodes is of the closed loop" in failed.stderr
