"""A text encoder on disk as it would be released, small and with random weights."""

import json
from pathlib import Path

import numpy as np

from tests.encoders.tiny_tokenizers import train_sentencepiece
from wam.encoders.config import TextEncoderConfig
from wam.pretrained import text_encoders
from wam.pretrained.encoder_files import shapes_of
from wam.pretrained.mapping import to_theirs, unflatten
from wam.pretrained.writing import Piece, write_tensors

WIDTH = 24
CONFIG = TextEncoderConfig(
    family="umt5", vocabulary=70, width=WIDTH, depth=2, heads=2, head_dim=8, mlp=32, norm="rms",
    activation="gelu_tanh", gated="apart", bias=False, qkv_bias=False, scaled=False, relative_bias="layer",
)  # fmt: skip
FACTS = {
    "model_type": "umt5", "vocab_size": 70, "d_model": WIDTH, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32,
    "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32,
}  # fmt: skip


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = shapes_of(CONFIG)
    params = {path: 0.3 * rng.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()}
    return to_theirs(text_encoders.entries(CONFIG), unflatten(params))


def write(directory: Path, found: dict[str, np.ndarray]) -> None:
    pieces = [Piece(name, x.dtype, x.shape, lambda x=x: x) for name, x in found.items()]
    write_tensors(directory, "model", pieces)


def write_umt5(directory: Path, seed: int = 0) -> Path:
    """A directory with config.json, model.safetensors and spiece.model."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(FACTS))
    write(directory, tensors(seed))
    train_sentencepiece(directory)
    return directory
