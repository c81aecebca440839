"""A run's video tokenizer from imported weights."""

from __future__ import annotations

import numpy as np

from wam.config import TokenizerConfig, build
from wam.pretrained import loading, wan_vae
from wam.pretrained.mapping import flatten, to_ours
from wam.pretrained.provenance import read_provenance
from wam.pretrained.tensor_files import TensorFiles
from wam.tokenizers.wan_tokenizer import WanTokenizer, shapes
from wam.tokenizers.wan_vae_config import WanVAEConfig


def wan_tokenizer(config: TokenizerConfig, image_size: tuple[int, int]) -> WanTokenizer:
    """The autoencoder of Wan that `config.path` holds, for images of (height, width).

    Raises:
      FileNotFoundError, ValueError: nothing was imported there, or something else; or `config` says another patch,
        number of frames or of channels than the autoencoder has, or images do not divide into patches.
    """
    provenance = read_provenance(config.path)
    fields = dict(provenance["config"])
    if fields.pop("video_tokenizer", None) != "wan_vae":
        raise ValueError(
            f"tokenizer.path {config.path} holds imported weights of {provenance['kind']!r}, no autoencoder"
        )
    vae = build(WanVAEConfig, {**fields, "dtype": config.dtype})
    for name, has in (("patch", vae.patch * vae.cell), ("frames_per_latent", vae.frames_per_latent),
                      ("channels", vae.patch**2 * vae.channels)):  # fmt: skip
        if getattr(config, name) != has:
            raise ValueError(f"tokenizer.{name} is {getattr(config, name)}; the autoencoder in {config.path} has {has}")
    if any(side % config.patch for side in image_size):
        raise ValueError(f"tokenizer.patch {config.patch} does not divide images of {image_size[0]}x{image_size[1]}")
    entries, tensors = loading.own_entries(wan_vae.entries(vae)), TensorFiles(config.path)
    loading.verify(entries, tensors, {path: tuple(x.shape) for path, x in flatten(shapes(vae)).items()})
    params = to_ours(entries, {name: np.asarray(x, np.float32) for name, x in tensors.items()})
    return WanTokenizer(vae, (image_size[0] // config.patch, image_size[1] // config.patch), params)
