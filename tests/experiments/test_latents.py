"""Training from precomputed latents is training from pixels, and never from latents of something else."""

import json
import shutil

import jax
import numpy as np
import pytest

from data_pipelines.mixture import Mixture
from experiments.configs.debug import get_config
from experiments.encoding import write_latents
from experiments.fitted import set_constants
from experiments.given_tokenizer import given_tokenizer
from experiments.recipe import Recipe, load_data
from tests.data_pipelines.sources.video_writer import write_video
from tests.experiments.commands import run
from wam.config import MeshConfig
from wam.training import sharding
from wam.training.trainer import Trainer

pytestmark = pytest.mark.requires_sim

STORES = ("train/expert", "train/play", "train/ego", "validation/expert", "validation/play")


def recipe_of(**data):
    config = get_config()
    config.data.update(data)
    return Recipe.of(config)


@pytest.fixture(scope="module")
def encoded(debug_run, tmp_path_factory):
    """(root of stores with float32 latents, the run whose tokenizer made them)."""
    root = tmp_path_factory.mktemp("encoded") / "data"
    shutil.copytree(debug_run / "data", root)
    made = write_latents([root / store for store in STORES], str(debug_run), recipe_of(), dtype="float32",
                         shard_windows=40, progress=False)  # fmt: skip
    assert sorted(made) == sorted(str(root / store) for store in STORES)
    return root, debug_run


def first_batches(recipe, data):
    """The first batch of training, and one of held-out windows."""
    mixture = Mixture(data.train, dict(recipe.config.data.weights), data.to_sample, batch_size=8, seed=0)
    with mixture.iterator() as batches:
        batch = next(batches)
    rows = [data.validation_sample(data.validation["play"][i], recipe.sources.index("play")) for i in range(8)]
    return batch, {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_a_step_from_latents_is_the_step_from_pixels(encoded, tmp_path):
    """Float32 latents, equal windows: equal loss, gradient and held-out latents; one source lacks the second camera."""
    root, tokenizer = encoded
    found = {}
    for name, path in (("video", ""), ("latents", str(tokenizer))):
        (tmp_path / name).mkdir()
        recipe = recipe_of(latents=path, weights={"expert": 0.4, "play": 0.3, "ego": 0.3})
        if name == "video":  # the tokenizer itself: the last bits of one fitted again depend on threads
            for fitted in ("fitted.json", "fitted.npz"):
                shutil.copy(tokenizer / fitted, tmp_path / name)
        data = load_data(recipe, root, tmp_path / name)
        found[name] = first_batches(recipe, data)
        assert all(name in batch and len({"video", "latents"} & set(batch)) == 1 for batch in found[name])
    trainer = Trainer(
        data.model, recipe.objective, recipe.optimizer, data.fitted.tokenizer,
        sharding.make_mesh(MeshConfig(), jax.devices()[:1]), batch_size=8, sources=len(recipe.sources),
        prepare=lambda model: set_constants(model, data.fitted),
    )  # fmt: skip
    pixels, latents = (
        jax.device_get(trainer.step(trainer.init(steps=1, seed=0), trainer.place(found[name][0]))[1])
        for name in ("video", "latents")
    )
    assert pixels["samples"].min() > 0  # all three sources, the one without its second camera too
    np.testing.assert_array_equal(pixels["sample_id"], latents["sample_id"])
    for there, here in zip(jax.tree.leaves(pixels), jax.tree.leaves(latents), strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-6, atol=1e-6)
    seen, read = found["video"][1], found["latents"][1]
    encode = jax.jit(data.fitted.tokenizer.encode)
    np.testing.assert_allclose(encode(seen["video"], seen["camera"]), read["latents"], rtol=1e-6, atol=1e-6)


def test_a_tokenizer_is_the_same_from_a_run_and_from_its_checkpoint_alone(encoded, tmp_path):
    _, tokenizer = encoded
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "checkpoints").symlink_to(tokenizer / "checkpoints")
    config = recipe_of().tokenizer
    ways = [given_tokenizer(path, config, (32, 32)) for path in (tokenizer, tmp_path / "policy")]
    assert ways[0].facts == ways[1].facts and len(ways[0].facts.cameras) == 3
    with pytest.raises(ValueError, match=r"was fitted on the cameras .* and does not know 'left'"):
        ways[0].table(("corner2", "left"))


def test_the_command_encodes(encoded, tmp_path):
    """float16 on disk, every second window."""
    root, tokenizer = encoded
    store = tmp_path / "ego"
    shutil.copytree(root / "train/ego", store, ignore=shutil.ignore_patterns("latents"))
    said = run("latents", "--config=experiments/configs/debug.py", f"--tokenizer={tokenizer}", f"--store={store}",
               "--every=2").stdout  # fmt: skip
    assert f"{store}: 21 windows" in said and "float16" in said
    result = run("latents", "--config=experiments/configs/debug.py", f"--tokenizer={tokenizer}", f"--store={store}",
                 check=False)  # fmt: skip
    assert result.returncode == 1
    assert "holds latents made otherwise (every: 2 there, 1 here): keep to that, or delete it" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_command_trains_from_latents(encoded, tmp_path):
    root, tokenizer = encoded
    run("train", "--config=experiments/configs/debug.py", f"--workdir={tmp_path}", "--noprogress",
        f"--config.data.root={root}", f"--config.data.latents={tokenizer}", "--config.train.steps=1")  # fmt: skip
    assert json.loads((tmp_path / "train.json").read_text())["steps"] == 1


def test_ingest_writes_latents_beside_the_frames(debug_run, tmp_path):
    write_video(tmp_path / "videos" / "one.mp4", 30, fps=20)
    run("ingest", "--dataset=video", f"--path={tmp_path / 'videos'}", f"--out={tmp_path}", "--name=v", "--validation=0",
        "--options=camera=corner2", "--image_size=32", "--noprogress", f"--latents={debug_run}",
        "--config=experiments/configs/debug.py")  # fmt: skip
    (manifest,) = (tmp_path / "train" / "v" / "latents").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["records"] == 29  # every frame that has another behind it


@pytest.mark.parametrize(
    ("data", "spoil", "message"),
    [
        ({"latents": "/nowhere"}, None, "/nowhere holds no tokenizer: name a run directory or an imported autoenc"),
        ({"frame_seconds": (0.0, 0.05, 0.1)}, None, "ego belong to other windows .frame_seconds: .0.0, 0.05, 0.1, 0.1"),
        (
            {},
            "validation/play/latents",
            "validation/play has no latents: write them with python -m experiments.latents",
        ),
        ({}, "train/expert/latents", "train/expert has no latents: write them with python -m experiments.latents"),
    ],
)
def test_what_lacks_or_does_not_fit_is_one_sentence(encoded, tmp_path, data, spoil, message):
    root, tokenizer = encoded
    if spoil:
        shutil.copytree(root, tmp_path / "data")
        root = tmp_path / "data"
        shutil.rmtree(root / spoil)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_data(recipe_of(**{"latents": str(tokenizer)} | data), root, tmp_path)


def test_a_run_never_reads_latents_of_another_tokenizer(encoded, tmp_path):
    """The run's own tokenizer counts, once it has begun: here one component is scaled otherwise."""
    root, tokenizer = encoded
    shutil.copy(tokenizer / "fitted.json", tmp_path)
    with np.load(tokenizer / "fitted.npz") as found:
        arrays = dict(found)
    arrays["tokenizer/scale_first"] = arrays["tokenizer/scale_first"] * 1.001
    np.savez(tmp_path / "fitted.npz", **arrays)
    with pytest.raises(ValueError, match=r"has latents of patch_pca \w{8}, not of the run's tokenizer patch_pca \w{8}"):
        load_data(recipe_of(latents=str(tokenizer)), root, tmp_path)
    config = get_config()
    config.tokenizer.channels = 8
    (tmp_path / "new").mkdir()
    config.data.latents = str(tokenizer)
    with pytest.raises(ValueError, match=r"tokenizer.channels is 8; the tokenizer of .* has 16"):
        load_data(Recipe.of(config), root, tmp_path / "new")
