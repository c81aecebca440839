"""A run with a pretrained text encoder: trained, loaded, moved, and refused where the encoder is another."""

import shutil

import numpy as np
import pytest

from tests.experiments.commands import run
from tests.pretrained.tiny_encoders import WIDTH, write_umt5
from wam.policy import load_policy

pytestmark = pytest.mark.requires_sim


def test_a_checkpoint_asks_for_its_text_encoder(debug_run, tmp_path):
    encoder = write_umt5(tmp_path / "text_encoder")
    workdir, cache = tmp_path / "run", tmp_path / "cache"
    run(
        "train", "--config=experiments/configs/debug.py", f"--workdir={workdir}", "--noprogress",
        f"--config.data.root={debug_run / 'data'}", "--config.train.steps=1", "--config.text.kind=pretrained",
        f"--config.text.path={encoder}", f"--config.text.dim={WIDTH}", "--config.text.tokens=12",
        f"--config.text.cache={cache}",
    )  # fmt: skip
    assert len(list(cache.rglob("*.npz"))) >= 2, "the instructions and the empty text"
    policy = load_policy(workdir, unroll=False)
    assert policy.config.text_dim == WIDTH and len(policy.text_config.weights) == 64
    observation = policy.example_observation()
    spoken, _ = policy.infer({**observation, "instruction": "open the faucet"})
    assert np.isfinite(spoken.actions).all()

    moved = tmp_path / "moved"
    encoder.rename(moved)
    with pytest.raises(FileNotFoundError, match=r"text.path .*text_encoder is not there"):
        load_policy(workdir)
    again, _ = load_policy(workdir, unroll=False, text_path=moved).infer(
        {**observation, "instruction": "open the faucet"}
    )
    np.testing.assert_array_equal(again.actions, spoken.actions)
    shutil.rmtree(moved)
    write_umt5(encoder, seed=1)
    with pytest.raises(ValueError, match="is not the one that was trained with"):
        load_policy(workdir)
