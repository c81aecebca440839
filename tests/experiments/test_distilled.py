"""Distillation by the real command: an ordinary checkpoint that names its teacher, resumed bit for bit; misfits."""

import json
import shutil

import numpy as np
import pytest

from experiments import recipe as recipes
from experiments.configs.debug import get_config
from experiments.fitted import Fitted
from experiments.recipe import Recipe, load_data
from experiments.teacher import inherit_fitted, load_teacher
from tests.experiments.commands import run
from tools.prove import survive
from wam.checkpoint import read_inference
from wam.diffusion import sampler
from wam.policy import load_policy
from wam.training.distill_config import DistillConfig

pytestmark = pytest.mark.requires_sim


def distil(debug_run, workdir):
    return run("train", "--config=experiments/configs/debug.py", f"--workdir={workdir}", "--noprogress",
               f"--config.data.root={debug_run / 'data'}", f"--config.distill.teacher={debug_run}",
               "--config.distill.teacher_steps=4", "--config.train.steps=4", "--config.train.checkpoint_every=2",
               "--config.train.eval_every=4")  # fmt: skip


def test_a_student_is_an_ordinary_checkpoint_and_resumes_bit_for_bit(debug_run, tmp_path):
    student, again = tmp_path / "student", tmp_path / "again"
    distil(debug_run, student)
    teacher, saved = read_inference(debug_run), read_inference(student)
    about = saved.assets["teacher"]
    assert (about["run"], about["step"], len(about["digest"])) == ("debug_run", 20, 64)
    assert teacher.assets["teacher"] is None
    assert (student / "fitted.json").read_text() == (debug_run / "fitted.json").read_text()
    moved = np.abs(saved.params["video_in"]["kernel"] - teacher.params["video_in"]["kernel"]).max()
    assert 0 < moved < 0.05, "it started from its teacher"
    policy = load_policy(student)
    for mode in ("policy", "joint", "forward"):
        actions = np.zeros((16, 4), np.float32) if mode == "forward" else None
        chunk, _ = policy.infer(policy.example_observation(), program=sampler.program(mode, 1), actions=actions)
        assert chunk.evaluations == 1 and (mode == "policy" or chunk.video is not None)

    shutil.copytree(student, again)
    shutil.rmtree(again / "checkpoints" / "4")
    result = distil(debug_run, again)
    assert "resuming at step 2 of 4" in result.stdout
    assert survive.equal(student, again, 4) == dict.fromkeys(
        ("data", "parameters", "ema", "moments", "other", "metrics"), True
    )


def test_a_teacher_that_does_not_fit_is_named(debug_run, tmp_path):
    recipe = Recipe.of(get_config())
    data = load_data(recipe, debug_run / "data", debug_run)
    config, assets = DistillConfig(str(debug_run)), recipes.assets(recipe, data)
    teacher = load_teacher(config, assets, data.fitted)
    assert teacher is not None and teacher.about["step"] == 20
    assert load_teacher(DistillConfig(), assets, data.fitted) is None

    def changed(path, value):
        other = json.loads(json.dumps(assets))
        *way, last = path
        at = other
        for key in way:
            at = at[key]
        at[last] = value
        return other

    for path, value, message in (
        (("model", "depth"), 3, r"does not fit this run \(model\.depth: 2 -> 3\)"),
        (("tokenizer", "grid"), [1, 1], r"does not fit this run \(tokenizer"),
        (("embodiments", 1, "action", "low"), [-2.0, -1, -1, -1], r"\(embodiments\[1\]\.action\.low\[0\]: "),
        (("cameras",), ["other"], r"does not fit this run \(cameras"),
    ):
        with pytest.raises(ValueError, match=message):
            load_teacher(config, changed(path, value), data.fitted)
    # How a network is computed may differ.
    assert load_teacher(config, changed(("model", "scan_layers"), False), data.fitted) is not None
    arrays = {name: x + 1 for name, x in data.fitted.tokenizer.to_state()[1].items()}
    tokenizer = type(data.fitted.tokenizer).from_state(data.fitted.tokenizer.to_state()[0], arrays)
    with pytest.raises(ValueError, match=r"reads other latents: .* of its tokenizer is not that of this run"):
        load_teacher(config, assets, Fitted(**{**data.fitted.__dict__, "tokenizer": tokenizer}))
    with pytest.raises(FileNotFoundError, match=r"/none has no fitted\.json: name the run directory of a teacher"):
        inherit_fitted(DistillConfig(str(tmp_path / "none")), tmp_path)
