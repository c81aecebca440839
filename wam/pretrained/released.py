"""The released models that can be imported, by the names `tools/import_weights.py` knows them under."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from wam.encoders.config import TEXT
from wam.models.joint_dit import create
from wam.pretrained import dreamzero, encoder_files, wan_trunk, wan_vae
from wam.pretrained.loading import Shapes
from wam.pretrained.mapping import Entry, flatten
from wam.pretrained.provenance import read_json
from wam.pretrained.tensor_files import TensorFiles
from wam.tokenizers import wan_tokenizer
from wam.tokenizers.wan_vae_config import WAN_VAES, WanVAEConfig
from wam.training.state import split


class Model(NamedTuple):
    """A released model as it was found."""

    config: dict[str, Any]
    """JSON; `wam.pretrained.imported` keeps it, and whoever uses the weights builds the module from it."""
    entries: list[Entry]
    shapes: Shapes
    """Of our parameters."""
    left_out: tuple[str, ...] = ()
    """Beginnings of the names of tensors that are known and not imported."""


def read_config(source: Path) -> dict[str, Any] | None:
    """The `config.json` beside the weights; None if there is none. ValueError if it is damaged."""
    path = (source if source.is_dir() else source.parent) / "config.json"
    return read_json(path) if path.is_file() else None


@functools.cache
def trunk_shapes(config: wan_trunk.WanConfig) -> Shapes:
    """Shapes of the parameters of a `JointDiT` that a trunk fills, by dotted path."""
    _, params = split(nnx.eval_shape(lambda: create(wan_trunk.model_config(config))))
    return {path: x.shape for path, x in flatten(params).items() if path.startswith(config.fills)}


def _trunk(expected: wan_trunk.WanConfig | None, source: Path, tensors: TensorFiles) -> Model:
    found = read_config(source)
    if found is not None and found.get("_class_name") == "WanModel":
        found = None  # of the first release, in other words; the tensors' shapes say as much
    config = expected if found is None else wan_trunk.parse(found)
    if config is None:
        raise ValueError(f"{source} has no config.json of diffusers: say which release it is, as --from wan2.1-1.3b")
    if expected is not None:
        _check_release("config.json has", wan_trunk.to_json(config), wan_trunk.to_json(expected))
    return Model(
        wan_trunk.to_json(config), wan_trunk.entries(config, wan_trunk.naming_of(tensors.info)), trunk_shapes(config)
    )


def _check_release(whose: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, value in expected.items():
        if found[name] != value:
            raise ValueError(f"{whose} {name} {found[name]!r}; the release asked for has {value!r}")


def _video_tokenizer(release: str, source: Path, tensors: TensorFiles) -> Model:
    expected = WanVAEConfig(**WAN_VAES[release])
    found = read_config(source)
    if found is not None and found.get("_class_name") == "AutoencoderKLWan":
        config = dataclasses.asdict(wan_vae.config_from_diffusers(found))
        _check_release("config.json means", config, dataclasses.asdict(expected))
    original = "quant_conv.weight" not in tensors.info
    shapes = {path: tuple(x.shape) for path, x in flatten(wan_tokenizer.shapes(expected)).items()}
    return Model({"video_tokenizer": "wan_vae", **dataclasses.asdict(expected)},
                 wan_vae.entries(expected, original=original), shapes)  # fmt: skip


def _encoder(modality: str, expected: Any, source: Path, tensors: TensorFiles) -> Model:
    found = encoder_files.find(source, modality, expected=expected, tensors=tensors)
    return Model(encoder_files.to_json(found.config), found.entries, encoder_files.shapes_of(found.config))


def _dreamzero(expected: dreamzero.DreamZeroConfig | None, source: Path, tensors: TensorFiles) -> Model:
    heads = expected.num_attention_heads if expected else dreamzero.heads_of(read_config(source), source)
    config = dreamzero.read(tensors, heads)
    if expected is not None:
        of_trunk = {field.name: getattr(expected, field.name) for field in dataclasses.fields(wan_trunk.WanConfig)}
        _check_release("the checkpoint has", dataclasses.asdict(config), of_trunk)
    return Model(dreamzero.to_json(config), dreamzero.entries(config), trunk_shapes(config), dreamzero.FROZEN)


_T5 = ("umt5-xxl", "t5-xxl")
KINDS: Mapping[str, Callable[[Path, TensorFiles], Model]] = {
    "wan": functools.partial(_trunk, None),
    **{name: functools.partial(_trunk, config) for name, config in wan_trunk.RELEASED.items()},
    **{f"{name}-vae": functools.partial(_video_tokenizer, name) for name in WAN_VAES},
    **{name: functools.partial(_encoder, "text", TEXT[name]) for name in _T5},
    **{name: functools.partial(_encoder, "text", None) for name in ("t5", "clip-text")},
    **{name: functools.partial(_encoder, "vision", None) for name in ("clip", "siglip", "dinov2", "vjepa2", "vit-mae")},
    "vjepa2-predictor": functools.partial(_encoder, "predictor", None),
    "dreamzero": functools.partial(_dreamzero, None),
    **{name: functools.partial(_dreamzero, config) for name, config in dreamzero.RELEASED.items()},
}
"""Name -> what reads a source of that kind. Names without a size take it from config.json; `dreamzero` its heads."""
