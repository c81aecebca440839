"""An encoder on disk, as it was released (`config.json`, safetensors) or as `tools/import_weights.py` wrote it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from wam.config import build
from wam.encoders.config import PredictorConfig, StackConfig, TextEncoderConfig, ViTConfig
from wam.encoders.text import TextTransformer
from wam.encoders.transformer import frozen, structure
from wam.encoders.vit import MaskedPredictor, ViT
from wam.pretrained import text_encoders, vision_encoders
from wam.pretrained.loading import own_entries, verify
from wam.pretrained.mapping import Entry, flatten, to_ours, unflatten
from wam.pretrained.provenance import PROVENANCE, file_digest, read_json, read_provenance
from wam.pretrained.stack_names import Released
from wam.pretrained.tensor_files import TensorFiles


class Modality(NamedTuple):
    config: type
    module: type
    config_from: Callable[[Mapping[str, Any]], Any]
    entries: Callable[..., list[Entry]]
    released: Callable[..., Released]
    head: str = ""
    """CLIP's projection, which some files have and some lack."""


_TEXT, _VISION = text_encoders, vision_encoders
MODALITIES = {
    "text": Modality(
        TextEncoderConfig, TextTransformer, _TEXT.config_from, _TEXT.entries, _TEXT.released, "text_projection.weight"
    ),
    "vision": Modality(
        ViTConfig, ViT, _VISION.config_from, _VISION.entries, _VISION.released, "visual_projection.weight"
    ),
    "predictor": Modality(
        PredictorConfig, MaskedPredictor, _VISION.predictor_config_from, _VISION.predictor_entries,
        _VISION.predictor_released,
    ),
}  # fmt: skip
"""A file may hold several: CLIP and SigLIP one of text and one of images, V-JEPA 2 a predictor beside the encoder."""


class Encoder(NamedTuple):
    """An encoder as it was found; nothing is loaded yet."""

    config: Any
    entries: list[Entry]
    tensors: TensorFiles
    digests: Mapping[str, str]
    """File of the release -> sha256."""


def find(source: str | Path, modality: str, *, expected: Any = None, tensors: TensorFiles | None = None) -> Encoder:
    """The encoder of a modality in a directory, or in a file with `config.json` beside it.

    Args:
      source: a release, or imported weights.
      modality: one of `MODALITIES`.
      expected: a configuration the release must have.
      tensors: those of `source`, where they are open already; what belongs to other encoders leaves them.

    Raises:
      FileNotFoundError: there is no such directory, or it lacks a file.
      ValueError: it holds something else; the sentence says what.
    """
    tensors = TensorFiles(source) if tensors is None else tensors
    directory = Path(source) if Path(source).is_dir() else Path(source).parent
    if (directory / PROVENANCE).is_file():
        return _imported(directory, modality, tensors)
    kinds = MODALITIES[modality]
    try:
        config = kinds.config_from(read_json(directory / "config.json"))
    except KeyError as error:
        raise ValueError(f"{directory / 'config.json'} lacks {error}") from None
    head = tensors.info.get(kinds.head)
    if head is not None and config.family == "clip":
        config = dataclasses.replace(config, projection=head.shape[0])
    if expected is not None:
        for field in dataclasses.fields(expected):
            wanted, found = getattr(expected, field.name), getattr(config, field.name)
            if wanted != found and field.name not in ("features", "projection"):
                raise ValueError(f"{directory} has {field.name} {found!r}; the release asked for has {wanted!r}")
        config = dataclasses.replace(expected, projection=config.projection)
    entries, others = kinds.released(config, tensors.info)
    for name in others:  # they are another part's, not left over
        del tensors.info[name]
    return Encoder(config, entries, tensors, {})


def _imported(directory: Path, modality: str, tensors: TensorFiles) -> Encoder:
    facts = read_provenance(directory)
    try:
        fields, digests = dict(facts["config"]), facts["files"]
        found = fields.pop("modality")
    except (KeyError, TypeError):
        raise ValueError(f"{directory} holds imported weights of {facts.get('kind')!r}, which is no encoder") from None
    if found != modality:
        raise ValueError(f"{directory} holds imported weights for {found}, expected {modality}")
    kinds = MODALITIES[modality]
    config = build(kinds.config, fields)
    return Encoder(config, own_entries(kinds.entries(config)), tensors, digests)


def to_json(config: StackConfig) -> dict[str, Any]:
    """What the provenance of an imported encoder keeps of it; `find` reads it."""
    modality = next(name for name, kinds in MODALITIES.items() if isinstance(config, kinds.config))
    return {"modality": modality, **dataclasses.asdict(config)}


def shapes_of(config: StackConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of our parameters by dotted path."""
    kinds = next(kinds for kinds in MODALITIES.values() if isinstance(config, kinds.config))
    return {path: x.shape for path, x in flatten(structure(kinds.module, config)[1]).items()}


def load(encoder: Encoder) -> Any:
    """Its parameters on the device, frozen: in the dtype it computes in. The host holds one parameter at a time.

    ValueError if a tensor is missing, one too many, or of another shape or a quantised dtype.
    """
    verify(encoder.entries, encoder.tensors, shapes_of(encoder.config))
    by_path: dict[str, list[Entry]] = {}
    for entry in encoder.entries:
        by_path.setdefault(entry.ours, []).append(entry)
    flat: dict[str, Any] = {}
    for group in by_path.values():
        flat |= flatten(frozen(to_ours(group, encoder.tensors), encoder.config))
    return unflatten(flat)


def digests(encoder: Encoder) -> dict[str, str]:
    """sha256 of every file of the release; imported weights name those they came from."""
    return dict(encoder.digests) or {file.name: file_digest(file) for file in encoder.tensors.files}
