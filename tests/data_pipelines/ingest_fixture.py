"""Small datasets to ingest, and what came of it."""

import msgpack

from data_pipelines.ingest_plan import IngestConfig
from tests.data_pipelines.sources.lerobot_fixture import CAMERA

TOY = f'''
from data_pipelines.dataset import Dataset
from data_pipelines.sources.lerobot import LeRobot
from wam.embodiment import EmbodimentSpec

ROBOT = EmbodimentSpec("toy", ("absolute", "absolute"), ("a", "b", "c"), ("x", "y"), 10.0)
toy = Dataset("toy", LeRobot, ROBOT, {{"front": "{CAMERA}"}})
'''


def toy_config(tmp_path, path, **changes):
    """An ingest of a dataset of `lerobot_fixture`, one episode a shard."""
    (tmp_path / "toy.py").write_text(TOY)
    defaults = {"clip_seconds": 0.8, "overlap_seconds": 0.3, "gop": 4, "shard_frames": 8, "validation": 0.0}
    return IngestConfig(f"{tmp_path / 'toy.py'}:toy", str(path), (32, 32), **defaults | changes)


def clips(store):
    """{(episode, first step): hash of the record} of a store's directory."""
    found = {}
    for path in sorted(store.glob("*.index")):
        for clip in msgpack.unpackb(path.read_bytes())["clips"]:
            found[clip["meta"]["episode"], clip["start"]] = clip["sha256"]
    return found


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
