"""Imported weights on disk: verified tensors under our names and in our layout, and where they came from.

A directory holds `weights*.safetensors` in the dtype of the source, so that nothing is lost, and `provenance.json`:
the kind, the model's configuration, the source, the sha256 of each of its files, name and dtype of every tensor there,
and the names of those that were left out.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from jax.sharding import Sharding

from wam.models.lora import LEAVES
from wam.pretrained import dreamzero, loading, wan_trunk
from wam.pretrained.dreamzero import DreamZeroConfig
from wam.pretrained.loading import Row, Shapes
from wam.pretrained.mapping import Entry
from wam.pretrained.provenance import FORMAT, PROVENANCE, file_digest, read_provenance
from wam.pretrained.released import KINDS
from wam.pretrained.tensor_files import NAMES, TensorFiles
from wam.pretrained.writing import SHARD_BYTES, new_directory, write_tensors


def import_model(kind: str, source: Path, out: Path, *, named: str | None = None,
                 shard_bytes: int = SHARD_BYTES) -> list[Row]:  # fmt: skip
    """Verifies a released model and writes it to `out`, which appears whole or not at all; returns what it holds.

    Args:
      kind: one of `KINDS`.
      source: the file or directory.
      out: a directory that does not exist yet.
      named: how the source is called in the provenance; by default its path.
      shard_bytes: of one file.

    Raises:
      ValueError, FileNotFoundError: the source is not what it should be, in one sentence.
      FileExistsError, OSError: it cannot be written there.
    """
    tensors = TensorFiles(source)
    model = KINDS[kind](source, tensors)
    left_out = tensors.leave_out(model.left_out)
    rows = loading.verify(model.entries, tensors, model.shapes)
    provenance = {
        "format": FORMAT,
        "kind": kind,
        "config": model.config,
        "source": named or str(source),
        "files": {file.name: file_digest(file) for file in tensors.files},
        "tensors": {row.theirs: NAMES[row.dtype] for row in rows},
        "left_out": left_out,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }
    with new_directory(out) as temporary:
        write_tensors(temporary, "weights", loading.to_own(model.entries, tensors), shard_bytes=shard_bytes)
        (temporary / PROVENANCE).write_text(json.dumps(provenance, indent=1))
    return rows


def trunk_config(directory: str | Path) -> wan_trunk.WanConfig:
    """The configuration of an imported trunk; ValueError if something else was imported."""
    provenance = read_provenance(directory)
    kinds = {"WanTransformer3DModel": wan_trunk.parse, "CausalWanModel": dreamzero.parse}
    parse = kinds.get(provenance["config"].get("_class_name"))
    if parse is None:
        raise ValueError(f"{directory} holds imported weights of {provenance['kind']!r}, expected a Wan trunk")
    return parse(provenance["config"])


def trunk_entries(config: wan_trunk.WanConfig) -> list[Entry]:
    """The map of a trunk as it is exported."""
    return dreamzero.entries(config) if isinstance(config, DreamZeroConfig) else wan_trunk.entries(config)


def load_trunk(directory: str | Path, shapes: Shapes, shardings: Mapping[str, Sharding]) -> dict[str, Array]:
    """The parameters of a model that an imported trunk fills, float32 and sharded, by dotted path.

    Args:
      directory: of `import_model`.
      shapes: of all parameters of the model.
      shardings: likewise.

    Raises:
      ValueError: the trunk does not fit the model; the first tensor that differs is named.
    """
    config = trunk_config(directory)
    entries = loading.own_entries(trunk_entries(config))
    in_trunk = [path for path in shapes if path.startswith(config.fills) and not path.endswith(LEAVES)]
    own = {path: shapes[path] for path in in_trunk}
    try:
        return loading.load(entries, TensorFiles(directory), own, shardings)
    except ValueError as error:
        raise ValueError(f"the trunk in {directory} does not fit the model: {error}") from None


def export_trunk(config: wan_trunk.WanConfig, params: Mapping[str, Any], out: Path,
                 dtypes: Mapping[str, np.dtype] | np.dtype, *, shard_bytes: int = SHARD_BYTES) -> None:  # fmt: skip
    """Writes a trunk as a model of `diffusers` (config.json and safetensors); `out` appears whole or not at all.

    A checkpoint of DreamZero gets its own names and no config.json: that of the release, which describes more than the
    network, goes with it.

    `params`: by dotted path, more than the trunk's may be among them. `dtypes`: see `loading.to_foreign`.
    """
    with new_directory(out) as temporary:
        pieces = loading.to_foreign(trunk_entries(config), params, dtypes)
        if isinstance(config, DreamZeroConfig):
            write_tensors(temporary, "model", pieces, shard_bytes=shard_bytes)
        else:
            write_tensors(temporary, "diffusion_pytorch_model", pieces, shard_bytes=shard_bytes)
            (temporary / "config.json").write_text(json.dumps(wan_trunk.to_json(config), indent=2))


def source_dtypes(directory: str | Path, entries: Sequence[Entry]) -> dict[str, np.dtype]:
    """The dtype each tensor had in the source, by its name in `entries`, whichever naming the source followed."""
    info = TensorFiles(directory).info
    return {entry.theirs: info[loading.own_name(entry)].dtype for entry in entries}
