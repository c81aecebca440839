"""Instructions through a text encoder on disk: values, cache, provenance, and what is said of bad files."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.encoders.tiny_tokenizers import HARD, SENTENCES, train_json
from tests.pretrained import tiny_encoders
from tests.pretrained.tiny_encoders import CONFIG, WIDTH, write_umt5
from tools import import_weights
from wam.config import TextConfig
from wam.encoders.config import TEXT
from wam.encoders.text import TextTransformer
from wam.encoders.tokenizer import TextTokenizer
from wam.encoders.transformer import structure
from wam.pretrained import encoder_files
from wam.pretrained.instructions import text_encoder
from wam.tokenizers.text import HashedNgrams

LENGTH = 40


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return write_umt5(tmp_path_factory.mktemp("released") / "text_encoder")


@pytest.fixture
def config(released, tmp_path):
    return TextConfig(tokens=LENGTH, dim=WIDTH, kind="pretrained", path=str(released), cache=str(tmp_path / "cache"))


def test_tokens_are_the_encoders_and_zeros_follow_them(config, released):
    encode, _ = text_encoder(config)
    texts = [*SENTENCES, *HARD]
    found = encode.encode(texts)
    params = encoder_files.load(encoder_files.find(released, "text"))
    model = nnx.merge(structure(TextTransformer, CONFIG)[0], params)
    ids, mask = TextTokenizer(released, LENGTH)(texts)
    wanted = np.asarray(model(jnp.asarray(ids), jnp.asarray(mask)).tokens) * mask[..., None]
    for (tokens, own_mask), theirs, their_mask in zip(found, wanted, mask, strict=True):
        assert (tokens.shape, tokens.dtype, own_mask.dtype) == ((LENGTH, WIDTH), np.float32, np.bool_)
        np.testing.assert_array_equal(own_mask, their_mask)
        np.testing.assert_allclose(tokens, theirs, atol=1e-5)
    assert sorted({int(m.sum()) for m in mask})[0] == 1 and mask.all(axis=1).any()
    null, null_mask = encode.null()
    np.testing.assert_array_equal(null, encode("  ")[0])
    assert null_mask.sum() == 1 and np.abs(null[0]).max() > 0 and not null[1:].any()


def test_a_text_is_encoded_once_for_all_processes(config, monkeypatch):
    first, _ = text_encoder(config)
    first.prepare(SENTENCES)
    assert first._encode is None, "the weights are freed"
    monkeypatch.setattr(encoder_files, "load", lambda _found: pytest.fail("the weights were loaded again"))
    second, _ = text_encoder(config)
    assert second.name == first.name
    for text in ("", *SENTENCES):
        np.testing.assert_array_equal(first(text)[0], second(text)[0])
    with pytest.raises(pytest.fail.Exception):
        second("a new text")


def test_a_value_depends_neither_on_neighbours_nor_on_order(config, tmp_path):
    one, _ = text_encoder(config)
    other, _ = text_encoder(dataclasses.replace(config, cache=str(tmp_path / "other")))
    together = one.encode([*SENTENCES, *HARD])
    alone = [other(text) for text in reversed([*SENTENCES, *HARD])][::-1]
    for (a, _), (b, _) in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_entry_is_encoded_again(config, caplog):
    encode, _ = text_encoder(config)
    tokens, _ = encode("open the drawer")
    path = encode._cache.path("open the drawer")
    path.write_bytes(path.read_bytes()[:-40])
    again, _ = text_encoder(config)
    np.testing.assert_array_equal(again("open the drawer")[0], tokens)
    assert "is damaged" in caplog.text
    assert text_encoder(config)[0]._cache.read("open the drawer") is not None


def test_bfloat16_is_close_and_has_an_identity_of_its_own(config):
    sharp, _ = text_encoder(config)
    rough, _ = text_encoder(dataclasses.replace(config, dtype="bfloat16"))
    assert sharp.name != rough.name
    a, b = sharp("open the drawer")[0], rough("open the drawer")[0]
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()


def test_the_files_that_were_trained_with_are_asked_for(config, released, tmp_path):
    _, used = text_encoder(config)
    assert len(used.weights) == 64
    moved = tmp_path / "elsewhere" / "text_encoder"
    shutil.copytree(released, moved)
    assert text_encoder(dataclasses.replace(used, path=str(moved)))[1].weights == used.weights
    other = write_umt5(tmp_path / "other", seed=1)
    with pytest.raises(
        ValueError, match=r"is not the one that was trained with: its files have the digest \w{12}, exp"
    ):
        text_encoder(dataclasses.replace(used, path=str(other)))
    with pytest.raises(FileNotFoundError, match=r"text.path .*absent is not there: it names the directory of the text"):
        text_encoder(dataclasses.replace(used, path=str(tmp_path / "absent")))


def test_the_tokenizer_may_lie_beside(config, released, tmp_path):
    pipeline = tmp_path / "pipeline"
    shutil.copytree(released, pipeline / "text_encoder")
    (pipeline / "tokenizer").mkdir()
    (pipeline / "text_encoder" / "spiece.model").rename(pipeline / "tokenizer" / "spiece.model")
    beside = dataclasses.replace(config, path=str(pipeline / "text_encoder"))
    assert text_encoder(beside)[0].name == text_encoder(config)[0].name
    (pipeline / "tokenizer").rename(pipeline / "spoken")
    with pytest.raises(FileNotFoundError, match=r"text_encoder holds no tokenizer: name its file in text.tokenizer"):
        text_encoder(beside)
    named = dataclasses.replace(beside, tokenizer=str(pipeline / "spoken"))
    assert text_encoder(named)[0].name == text_encoder(config)[0].name


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("one missing", r"the file lacks 'encoder.block.1.layer.0.SelfAttention.q.weight'"),
        ("one too many", r"the file has, beyond the map, 'encoder.block.9.x'"),
        ("wrong shape", r"'shared.weight' has shape \[24, 70\], expected \[70, 24\]"),
        ("no config", r"lacks config.json"),
        ("damaged config", r"config.json is no JSON object"),
        ("incomplete config", r"config.json lacks 'd_ff'"),
        ("another model", r"config.json is of model_type 'bert'; known text encoders: t5, umt5, clip, siglip"),
        ("another activation", r"config.json asks for the activation 'tanh'; known: gelu"),
        ("cut short", r"model.safetensors is incomplete"),
    ],
)
def test_bad_files_are_named(config, tmp_path, damage, said):
    directory = write_umt5(tmp_path / "bad")
    found = tiny_encoders.tensors()
    facts = directory / "config.json"
    if damage == "one missing":
        found.pop("encoder.block.1.layer.0.SelfAttention.q.weight")
    elif damage == "one too many":
        found["encoder.block.9.x"] = np.zeros(3, np.float32)
    elif damage == "wrong shape":
        found["shared.weight"] = np.ascontiguousarray(found["shared.weight"].T)
    elif damage == "no config":
        facts.unlink()
    elif damage == "damaged config":
        facts.write_text("{")
    elif damage == "incomplete config":
        facts.write_text(json.dumps({name: x for name, x in tiny_encoders.FACTS.items() if name != "d_ff"}))
    elif damage == "another model":
        facts.write_text('{"model_type": "bert"}')
    elif damage == "another activation":
        facts.write_text(json.dumps(tiny_encoders.FACTS | {"feed_forward_proj": "gated-tanh"}))
    tiny_encoders.write(directory, found)
    if damage == "cut short":
        file = directory / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        text_encoder(dataclasses.replace(config, path=str(directory)))[0]("open")
    assert len(str(error.value).splitlines()) == 1


def test_bad_configurations_are_named(config, released, tmp_path):
    with pytest.raises(ValueError, match=r"text.kind is 'bert'; choose from hashed_ngrams, pretrained"):
        TextConfig(kind="bert")
    with pytest.raises(ValueError, match=r"text.kind 'pretrained' needs text.path"):
        text_encoder(TextConfig(kind="pretrained"))
    with pytest.raises(ValueError, match=r"text.dim is 64, the encoder in .* gives 24: set text.dim to that"):
        text_encoder(dataclasses.replace(config, dim=64))
    with pytest.raises(ValueError, match=r"knows 330 tokens, the encoder in .* 70: they do not belong together"):
        text_encoder(dataclasses.replace(config, tokenizer=str(train_json(tmp_path))))
    with pytest.raises(ValueError, match=r"has width 24; the release asked for has 4096"):
        encoder_files.find(released, "text", expected=TEXT["umt5-xxl"])
    with pytest.raises(ValueError, match=r"model_type 'umt5'; known image encoders: clip_vision_model"):
        encoder_files.find(released, "vision")


def test_the_default_needs_no_files_and_keeps_its_name():
    """Runs that were begun before there was a choice continue: their data pipeline is called the same."""
    encode, used = text_encoder(TextConfig(tokens=4, dim=32))
    assert isinstance(encode, HashedNgrams) and used == TextConfig(tokens=4, dim=32)
    assert encode.name == "hashed_ngrams-1 TextConfig(tokens=4, dim=32, ngram=(3, 5))"


def test_imported_weights_are_the_same_encoder(config, released, tmp_path, capsys):
    """Under our names, with a provenance that carries the digests: nothing has to be hashed again."""
    out = tmp_path / "imported"
    import_weights.main(["--from", "t5", "--src", str(released), "--out", str(out)])
    assert "encoder.block.1.layer.1.DenseReluDense.wi_0.weight" in capsys.readouterr().out
    imported = dataclasses.replace(config, path=str(out), tokenizer=str(released), cache=str(tmp_path / "own"))
    (a, used), (b, again) = text_encoder(config), text_encoder(imported)
    assert (a.name, used.weights) == (b.name, again.weights)
    np.testing.assert_array_equal(a("open the drawer")[0], b("open the drawer")[0])
    provenance = json.loads((out / "provenance.json").read_text())
    (out / "provenance.json").write_text(json.dumps(provenance | {"config": {"_class_name": "Wan"}}))
    with pytest.raises(ValueError, match="holds imported weights of 't5', which is no encoder"):
        text_encoder(imported)
    with pytest.raises(SystemExit, match=r"has width 24; the release asked for has 4096"):
        import_weights.main(["--from", "umt5-xxl", "--src", str(released), "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
