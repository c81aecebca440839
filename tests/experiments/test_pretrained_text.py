"""A recipe with a pretrained text encoder: batches and policies get its tokens, and ask for the files trained with."""

import json
import shutil

import numpy as np
import pytest

from experiments.configs.debug import get_config
from experiments.recipe import Recipe, assets, load_data
from tests.pretrained.tiny_encoders import WIDTH, write_umt5
from wam.checkpoint import Inference, read_inference
from wam.policy import Policy

pytestmark = pytest.mark.requires_sim


def test_a_run_uses_its_text_encoder_and_its_checkpoints_ask_for_it(debug_run, tmp_path):
    directory, cache = write_umt5(tmp_path / "text_encoder"), tmp_path / "cache"
    config = get_config()
    config.text = {"kind": "pretrained", "path": str(directory), "cache": str(cache), "tokens": 12, "dim": WIDTH}
    recipe = Recipe.of(config)
    data = load_data(recipe, debug_run / "data", debug_run)
    said = {meta["instruction"] for windows in data.train.values() for meta in windows.store.index.meta}
    assert len(list(cache.rglob("*.npz"))) == len({"", *said}), "encoded before training, the empty text among them"
    window = next(iter(data.train.values()))[0]
    sample = data.to_sample(window, 0)
    assert sample["text"].shape == (12, WIDTH) and sample["text_mask"].any() and data.model.text_dim == WIDTH
    assert data.text.weights in data.to_sample.facts["text"]

    about = json.loads(json.dumps(assets(recipe, data)))
    saved = Inference(**{**read_inference(debug_run)._asdict(), "assets": about})
    policy = Policy(saved)
    row = policy.observations.row({**policy.example_observation(), "instruction": window["instruction"]})
    np.testing.assert_array_equal(row["text"], sample["text"])
    np.testing.assert_array_equal(row["text_mask"], sample["text_mask"])

    moved = tmp_path / "moved"
    directory.rename(moved)
    with pytest.raises(FileNotFoundError, match=r"text.path .*text_encoder is not there"):
        Policy(saved)
    again = Policy(saved, text_path=moved)
    np.testing.assert_array_equal(again.encode_text(window["instruction"])[0], sample["text"])
    shutil.rmtree(moved)
    write_umt5(directory, seed=1)
    with pytest.raises(ValueError, match="is not the one that was trained with"):
        Policy(saved)
