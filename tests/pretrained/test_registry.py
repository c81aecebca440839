"""Encoders and autoencoders through the same command as trunks, and a run's tokenizer from what it writes."""

import numpy as np
import pytest

from tests.pretrained.tiny_encoders import write_umt5
from tests.tokenizers.wan_vae_cases import KINDS, config_of, random_params
from tools import import_weights
from wam.config import TokenizerConfig
from wam.pretrained import encoder_files, loading, wan_vae
from wam.pretrained.mapping import flatten
from wam.pretrained.video_tokenizers import wan_tokenizer
from wam.pretrained.writing import write_tensors
from wam.tokenizers.wan_vae_config import WAN_VAES


def test_a_text_encoder_is_imported_and_found_again(tmp_path):
    source = write_umt5(tmp_path / "encoder")
    import_weights.main(["--from", "t5", "--src", str(source), "--out", str(tmp_path / "out")])
    found, wanted = (encoder_files.find(path, "text") for path in (tmp_path / "out", source))
    assert found.config == wanted.config
    ours, theirs = (flatten(encoder_files.load(encoder)) for encoder in (found, wanted))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(x, theirs[path]) for path, x in ours.items())


@pytest.mark.parametrize("original", [False, True])
def test_an_autoencoder_becomes_the_tokenizer_of_a_run(tmp_path, monkeypatch, original):
    monkeypatch.setitem(WAN_VAES, "wan2.1", KINDS["wan2.1"])
    config = config_of("wan2.1")
    params, source, out = random_params(config), tmp_path / "release", tmp_path / "out"
    source.mkdir()
    entries = wan_vae.entries(config, original=original)
    write_tensors(source, "model", loading.to_foreign(entries, flatten(params), np.dtype(np.float32)))
    import_weights.main(["--from", "wan2.1-vae", "--src", str(source), "--out", str(out)])
    asked = TokenizerConfig(kind="wan_vae", path=str(out), patch=16, frames_per_latent=4, channels=16)
    tokenizer = wan_tokenizer(asked, (32, 48))
    assert tokenizer.grid == (2, 3) and tokenizer.image_size == (32, 48)
    loaded = flatten(tokenizer.params)
    assert all(np.array_equal(x, loaded[path]) for path, x in flatten(params).items())
    with pytest.raises(ValueError, match=r"patch 16 does not divide images of 40x48"):
        wan_tokenizer(asked, (40, 48))
    with pytest.raises(ValueError, match=r"tokenizer\.patch is 8; the autoencoder in .* has 16"):
        wan_tokenizer(TokenizerConfig(kind="wan_vae", path=str(out), patch=8), (32, 48))
