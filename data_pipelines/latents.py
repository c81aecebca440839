"""Precomputed latents: a sidecar of a store, made by one tokenizer for windows cut in one way.

    <store>/latents/<key>/plan.json             written first; whoever continues must mean the same
    <store>/latents/<key>/<shard>.array_record  one record = the latents [V', F, P, C] of one window's V' real views;
                                                the last one = those of black frames, for masked views
    <store>/latents/<key>/<shard>.index         which windows these are (msgpack); its presence marks a finished shard
    <store>/latents/<key>/manifest.json         written last; a directory without it is not read

A causal tokenizer's latents depend on the first frame of what it is given: latents belong to windows, not to clips. The
key is a digest of the tokenizer and of what decides a window's pixels, so that several kinds lie side by side. A window
is named by its anchor (clip, stored frame), so that action rates and horizons may change without encoding again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from data_pipelines.differences import first_difference
from data_pipelines.records import pack_array, unpack_array
from data_pipelines.shard_reader import Shards
from data_pipelines.shards import INDEX, SHARD, file_sha256, fsync_rename, write_atomically
from data_pipelines.store import MANIFEST

FORMAT_VERSION = 1
FOLDER, PLAN = "latents", "plan.json"
DTYPES = {"float16": np.dtype("<f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype("<f4")}


@dataclasses.dataclass(frozen=True)
class TokenizerFacts:
    """Which tokenizer made latents, or is to read them."""

    id: str
    """its kind"""
    digest: str
    """of its description and all its arrays"""
    cameras: tuple[str, ...] = ()
    """the camera table its `camera` argument indexes; empty: it does not tell cameras apart"""

    def __str__(self) -> str:
        return f"{self.id} {self.digest[:8]}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that decides the bytes of a directory of latents."""

    store: str
    """hash of the store"""
    tokenizer: TokenizerFacts
    window: Mapping[str, Any]
    """`Windows.pixel_facts`"""
    shape: tuple[int, int, int]
    """(F, P, C)"""
    dtype: str = "float16"
    every: int = 1
    """of the windows the first one and every so many-th after it; their phase drifts from episode to episode"""
    batch_size: int = 16
    """windows encoded at once"""
    shard_windows: int = 1024

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r} of latents; choose from {', '.join(DTYPES)}")
        for name in ("every", "batch_size", "shard_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of latents must be at least 1, got {getattr(self, name)}")

    def to_json(self) -> dict:
        return {"format_version": FORMAT_VERSION, **json.loads(json.dumps(dataclasses.asdict(self)))}

    @property
    def key(self) -> str:
        return key_of(self.tokenizer, self.window)


def key_of(tokenizer: TokenizerFacts, window: Mapping[str, Any]) -> str:
    """Name of the directory of latents of these windows by this tokenizer."""
    facts = json.dumps({"tokenizer": dataclasses.asdict(tokenizer), "window": dict(window)}, sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def difference(there: Any, here: Any) -> str:
    """The first field in which two JSON values differ, in words; empty if they are equal."""
    found = first_difference(there, here)
    return f"{found[0]}: {found[1]} there, {found[2]} here" if found else ""


def begin(store_dir, plan: Plan) -> pathlib.Path:
    """The directory for latents, with its plan; ValueError if others were begun there."""
    directory = pathlib.Path(store_dir) / FOLDER / plan.key
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / PLAN).exists():
        if found := difference(read_json(directory / PLAN), plan.to_json()):
            raise ValueError(f"{directory} holds latents made otherwise ({found}): keep to that, or delete it")
    else:
        write_atomically(directory / PLAN, json.dumps(plan.to_json(), indent=1, sort_keys=True).encode())
    return directory


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """ValueError if the file holds no JSON object."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it is no JSON object; delete {path.parent} and write the latents again")
    return found


def finish_shard(temporary: pathlib.Path, directory: pathlib.Path, name: str, anchors: np.ndarray) -> None:
    """Makes a written shard visible: first its records, then its index. anchors: int32 [n, 2], (clip, frame)."""
    index = {
        "format_version": FORMAT_VERSION,
        "bytes": temporary.stat().st_size,
        "sha256": file_sha256(temporary),
        "anchors": pack_array(np.asarray(anchors, np.int32)),
    }
    fsync_rename(temporary, directory / f"{name}{SHARD}")
    write_atomically(directory / f"{name}{INDEX}", msgpack.packb(index))


def finish(directory: pathlib.Path, names: Iterable[str]) -> dict:
    """Writes the manifest over the shards of these names and returns it; ValueError names one that is missing."""
    shards = {}
    for name in names:
        path, records = directory / f"{name}{INDEX}", directory / f"{name}{SHARD}"
        if not path.exists():
            raise ValueError(f"{directory} lacks the shard {name!r}: run the same command again to write it")
        index = msgpack.unpackb(path.read_bytes())
        if not records.exists() or records.stat().st_size != index["bytes"]:
            raise ValueError(f"{records} is truncated or altered: delete it and {path.name}, and run the command again")
        shards[name] = {
            "records": index["anchors"]["shape"][0],
            "bytes": index["bytes"],
            "sha256": index["sha256"],
            "index_bytes": path.stat().st_size,
            "index_sha256": file_sha256(path),
        }
    plan = read_json(directory / PLAN)
    facts = json.dumps([plan, shards], sort_keys=True).encode()
    manifest = {
        "format_version": FORMAT_VERSION,
        "hash": hashlib.sha256(facts).hexdigest(),
        "plan": plan,
        "records": sum(shard["records"] for shard in shards.values()),
        "shards": shards,
    }
    write_atomically(directory / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return manifest


class LatentStore:
    """Random access to finished latents; read only, thread-safe, picklable. Checked as by `Shards`.

    Raises:
        FileNotFoundError: not finished, or not there.
        ValueError: another format version, or a shard that is truncated or altered.
    """

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        if not (self.directory / MANIFEST).exists():
            raise FileNotFoundError(
                f"{self.directory} holds no finished latents: it has no {MANIFEST}; run experiments.latents again"
            )
        self.manifest = read_json(self.directory / MANIFEST)
        if (version := self.manifest.get("format_version")) != FORMAT_VERSION:
            raise ValueError(f"{self.directory} has format version {version}, this code reads {FORMAT_VERSION}")
        self._shards = Shards(self.directory, self.manifest["shards"], extra=1)
        plan = self.manifest["plan"]
        self._dtype = DTYPES[plan["dtype"]]
        self._shape = (len(plan["window"]["cameras"]), *plan["shape"])

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def hash(self) -> str:
        """Identifies the content."""
        return self.manifest["hash"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(F, P, C)"""
        F, P, C = self._shape[1:]
        return F, P, C

    @functools.cached_property
    def anchors(self) -> np.ndarray:
        """int32 [n, 2]: (clip, stored frame of the clip) of every record, increasing."""
        return np.concatenate([unpack_array(index["anchors"]) for index in self._shards.indices()])

    def __getitem__(self, i: int) -> np.ndarray:
        """f32 [V', F, P, C]: the latents of the real views."""
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)} latents")
        return self._unpack(self._shards.read(i))

    @functools.cached_property
    def black(self) -> np.ndarray:
        """f32 [F, P, C]: what a masked view holds, as if its zeros had been encoded with the pixels."""
        return self._unpack(self._shards.read_extra())[0]

    def _unpack(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, self._dtype).reshape(self._shape).astype(np.float32)

    def verify(self) -> None:
        """Reads every byte and compares the hashes; ValueError names the first file that was altered."""
        self._shards.verify()


def find_latents(store_dir, store_hash: str, tokenizer: TokenizerFacts, window: Mapping[str, Any]) -> LatentStore:
    """The latents of these windows of a store by this tokenizer.

    Raises:
        FileNotFoundError: the store has none at all, or they are not finished.
        ValueError: it has others: of another tokenizer, of windows cut otherwise, or of other content of the store.
    """
    directory, window = pathlib.Path(store_dir), json.loads(json.dumps(dict(window)))
    mine = directory / FOLDER / key_of(tokenizer, window)
    if mine.is_dir():
        latents = LatentStore(mine)
        if (made_of := latents.manifest["plan"]["store"]) != store_hash:
            raise ValueError(
                f"the latents in {mine} were made of another content of the store ({made_of[:8]}, not "
                f"{store_hash[:8]}): delete them and write them again"
            )
        return latents
    plans = [read_json(path) for path in sorted((directory / FOLDER).glob(f"*/{PLAN}"))]
    if not plans:
        raise FileNotFoundError(
            f"{directory} has no latents: write them with python -m experiments.latents --store={directory}, "
            "or leave data.latents empty to read pixels"
        )
    wanted = json.loads(json.dumps(dataclasses.asdict(tokenizer)))
    for plan in plans:
        if plan["tokenizer"] == wanted:
            raise ValueError(
                f"the latents of {directory} belong to other windows ({difference(plan['window'], window)}): write "
                "those of this config as well"
            )
    found = sorted({f"{plan['tokenizer']['id']} {plan['tokenizer']['digest'][:8]}" for plan in plans})
    same = [plan["tokenizer"] for plan in plans if plan["tokenizer"]["digest"] == tokenizer.digest]
    if same:
        raise ValueError(f"the latents of {directory} number cameras otherwise ({difference(same[0], wanted)})")
    raise ValueError(f"{directory} has latents of {', '.join(found)}, not of the run's tokenizer {tokenizer}")
