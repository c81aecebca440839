"""The store: episodes on disk as ArrayRecord shards of self-contained clips.

    <store>/manifest.json            written last; a directory without it is not a store
    <store>/<shard>.array_record     one record = one clip: frames as PNG images or h264 (see `video_codec`),
                                     low-dimensional arrays, meta
    <store>/<shard>.index            the same clips without images (msgpack); its presence marks a finished shard

An episode longer than `clip_steps` is cut into clips that overlap by `overlap_steps`. Every stored frame is owned by
exactly one clip (`Clip.anchors`), and a window of up to `overlap_steps` control steps that starts at an owned frame
lies within that clip, so that one read serves any window. `group_size:1` makes a random read cost one record.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import threading
from collections.abc import Sequence

import msgpack
import numpy as np

from data_pipelines.embodiments import check_embodiment
from data_pipelines.episode import Clip, Episode, check_episode
from data_pipelines.records import PNG, ClipImages, unpack_array
from data_pipelines.shard_reader import Shards
from data_pipelines.shards import (
    FORMAT_VERSION,
    INDEX,
    ShardWriter,
    encode_episode,
    file_sha256,
    finished_shards,
    write_atomically,
)
from wam.embodiment import EmbodimentSpec

__all__ = [
    "Clip",
    "ClipIndex",
    "ClipStore",
    "Episode",
    "ShardWriter",
    "check_episode",
    "encode_episode",
    "finish_store",
    "finished_shards",
]

MANIFEST = "manifest.json"


def finish_store(
    store_dir, meta: dict | None = None, embodiment: EmbodimentSpec | None = None, wrist: Sequence[str] = ()
) -> dict:
    """Writes manifest.json from the finished shards, atomically, and returns it; running it again is harmless.

    Args:
        store_dir: directory of finished shards.
        meta: JSON-able facts about the data set as a whole (how it was collected, licence, ...).
        embodiment: the robot, which then travels with the store; None: it is declared by name in `embodiments`.
        wrist: cameras that move with a hand, which augmentation leaves alone; those that no episode has do not count.

    Raises:
        ValueError: no finished shard, an episode stored twice, or shards that do not belong together.
    """
    directory, shards, common, kinds, tasks = pathlib.Path(store_dir), {}, {}, set(), set()
    episodes: dict[str, str] = {}
    strides: list[np.ndarray] = []
    for name in finished_shards(directory):
        index_path = directory / f"{name}{INDEX}"
        index = msgpack.unpackb(index_path.read_bytes())
        firsts = [clip for clip in index["clips"] if clip["start"] == 0]
        for clip in index["clips"]:
            shape = {what: clip[what]["shape"][1] if clip[what] else 0 for what in ("state", "action")}
            facts = {
                "cameras": clip["cameras"],
                "image_size": clip["image_size"],
                "control_hz": clip["meta"]["control_hz"],
                "embodiment": clip["meta"]["embodiment"],
                "state_dim": shape["state"],
                "action_dim": shape["action"],
                "clip_steps": index["clip_steps"],
                "overlap_steps": index["overlap_steps"],
                "codec": index.get("codec", PNG),
                "encoder": index.get("encoder"),
            }
            for key, value in facts.items():
                if common.setdefault(key, value) != value:
                    raise ValueError(
                        f"{directory}: shard {name!r} has {key} {value}, others have {common[key]}: "
                        "put them into separate stores"
                    )
            kinds.add(clip["meta"]["kind"])
            tasks.add(clip["meta"]["task"])
        for clip in firsts:
            episode = clip["meta"]["episode"]
            if episode in episodes:
                raise ValueError(
                    f"{directory}: episode {episode!r} is stored twice (shards {episodes[episode]}, {name})"
                )
            episodes[episode] = name
        strides += [np.diff(unpack_array(clip["frame_step"])) for clip in index["clips"]]
        shards[name] = {
            "records": len(index["clips"]),
            "episodes": len(firsts),
            "steps": sum(clip["episode_steps"] for clip in firsts),
            "frames": sum(clip["anchors"][1] - clip["anchors"][0] for clip in index["clips"]),
            "bytes": index["bytes"],
            "sha256": index["sha256"],
            "index_bytes": index_path.stat().st_size,
            "index_sha256": file_sha256(index_path),
        }
    if not shards:
        raise ValueError(f"{directory} has no finished shard: nothing to make a store of")
    if embodiment is not None:
        if common["embodiment"] != embodiment.name:
            raise ValueError(f"{directory} is of the embodiment {common['embodiment']!r}, not {embodiment.name!r}")
        check_embodiment(directory, common, embodiment)
    digest = hashlib.sha256("".join(shard["sha256"] + shard["index_sha256"] for shard in shards.values()).encode())
    manifest = {
        "format_version": FORMAT_VERSION,
        "hash": digest.hexdigest(),
        **common,
        "fps": common["control_hz"] / float(np.mean(np.concatenate(strides))),
        "kinds": sorted(kinds),
        "tasks": sorted(tasks),
        **{key: sum(shard[key] for shard in shards.values()) for key in ("records", "episodes", "steps", "frames")},
        "shards": shards,
        "meta": meta or {},
    }
    if embodiment is not None:
        manifest["embodiment_spec"] = embodiment.to_json()
    if moving := [camera for camera in common["cameras"] if camera in wrist]:
        manifest["wrist"] = moving
    write_atomically(directory / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return manifest


@dataclasses.dataclass(frozen=True)
class ClipIndex:
    """What is known of all C clips without decoding an image."""

    start: np.ndarray  # int64 [C], step of the episode
    steps: np.ndarray  # int64 [C]
    episode_steps: np.ndarray  # int64 [C]
    anchors: np.ndarray  # int64 [C, 2], [first, last) of the owned frames
    frame_step: list[np.ndarray]  # C x int32 [Nf]
    meta: list[dict]  # C
    state: list[np.ndarray | None]  # C x f32 [steps+1, S]
    action: list[np.ndarray | None]  # C x f32 [steps, A]
    imitate: list[np.ndarray]  # C x bool [steps]
    may_start: list[np.ndarray | None]  # C x bool [Nf], None: a window may start anywhere
    sha256: list[str]  # C, of the records; "" in stores from before it was kept

    @property
    def is_last(self) -> np.ndarray:
        """bool [C]: does the clip reach the end of its episode?"""
        return self.start + self.steps == self.episode_steps


class ClipStore:
    """Random access to the clips of a finished store; read only, thread-safe, picklable.

    Files are checked as by `Shards`. Images are decoded on first use and kept, clip-wise least recently used first out,
    within `cache_bytes`.

    Raises:
        FileNotFoundError: not a store.
        ValueError: another format version, or a shard that is truncated or altered.
    """

    def __init__(self, store_dir, *, cache_bytes: int = 1 << 30):
        self.directory = pathlib.Path(store_dir)
        if not self.directory.is_dir():
            raise FileNotFoundError(f"there is no store at {self.directory}: collect or ingest one first")
        if not (self.directory / MANIFEST).exists():
            raise FileNotFoundError(
                f"{self.directory} is not a finished store: it has no {MANIFEST} (see finish_store)"
            )
        try:
            self.manifest = json.loads((self.directory / MANIFEST).read_text())
            version, shards = self.manifest["format_version"], self.manifest["shards"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.directory / MANIFEST} is not the manifest of a store") from None
        if version != FORMAT_VERSION:
            raise ValueError(f"{self.directory} has format version {version}, this code reads {FORMAT_VERSION}")
        self._shards = Shards(self.directory, shards)
        self._codec = self.manifest.get("codec", PNG)  # absent in stores from before there was a choice
        self._cache_bytes = cache_bytes
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._cache: collections.OrderedDict[int, ClipImages] = collections.OrderedDict()
        self._cached_bytes = 0

    def __getstate__(self) -> dict:
        return {key: self.__dict__[key] for key in ("directory", "manifest", "_shards", "_codec", "_cache_bytes")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def hash(self) -> str:
        """Identifies the content: equal hashes, equal clips in equal order."""
        return self.manifest["hash"]

    @functools.cached_property
    def index(self) -> ClipIndex:
        """Low-dimensional data of all clips; read once, kept in memory (a few tens of bytes a control step)."""
        clips = [clip for index in self._shards.indices() for clip in index["clips"]]
        arrays = {
            key: [unpack_array(clip[key]) for clip in clips] for key in ("frame_step", "state", "action", "imitate")
        }
        return ClipIndex(
            start=np.array([clip["start"] for clip in clips]),
            steps=np.array([len(imitate) for imitate in arrays["imitate"]]),
            episode_steps=np.array([clip["episode_steps"] for clip in clips]),
            anchors=np.array([clip["anchors"] for clip in clips]),
            meta=[clip["meta"] for clip in clips],
            may_start=[unpack_array(clip.get("may_start")) for clip in clips],
            sha256=[clip.get("sha256", "") for clip in clips],
            **arrays,
        )

    def low_dim(self, i: int) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray]:
        """State [steps+1, S], action [steps, A] (None without actions) and imitate [steps] of clip i, no images."""
        return self.index.state[i], self.index.action[i], self.index.imitate[i]

    def frames(self, i: int, cameras: Sequence[str], frames) -> np.ndarray:
        """Frames [n] of clip i of the given V cameras as uint8 [V, n, h, w, 3]; decodes no others."""
        if unknown := sorted(set(cameras) - set(self.manifest["cameras"])):
            raise ValueError(f"{self.directory} has no cameras {unknown}, only {self.manifest['cameras']}")
        images, frames = self._images(i), np.asarray(frames, np.int64)
        return np.stack([images.get(camera, frames) for camera in cameras])

    def __getitem__(self, i: int) -> Clip:
        if not 0 <= i < len(self):
            raise IndexError(f"clip {i} of a store of {len(self)} clips")
        index, state_action_imitate = self.index, self.low_dim(i)
        cameras, (first, last) = self.manifest["cameras"], index.anchors[i]
        return Clip(
            dict(zip(cameras, self.frames(i, cameras, np.arange(len(index.frame_step[i]))), strict=True)),
            index.frame_step[i],
            *state_action_imitate,
            meta=index.meta[i],
            may_start=index.may_start[i],
            start=int(index.start[i]),
            episode_steps=int(index.episode_steps[i]),
            anchors=(int(first), int(last)),
        )

    def verify(self) -> None:
        """Reads every byte and compares the hashes; ValueError names the first file that was altered."""
        self._shards.verify()

    def _images(self, i: int) -> ClipImages:
        with self._lock:
            if i in self._cache:
                self._cache.move_to_end(i)
                return self._cache[i]
            images = ClipImages(msgpack.unpackb(self._shards.read(i)), self._codec)
            self._cache[i] = images
            self._cached_bytes += images.bytes
            while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].bytes
            return images
