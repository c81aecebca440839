"""A damaged episode is quarantined with its reason, and the clips of the others are the same bytes."""

import json
import resource
import shutil
import subprocess
import sys

import pytest

from data_pipelines.ingest import IngestError, ingest
from data_pipelines.ingest_plan import IngestConfig
from tests.data_pipelines.ingest_fixture import clips, toy_config
from tests.data_pipelines.sources import lerobot_fixture as made
from tests.data_pipelines.sources.test_egodex import write_pair
from tests.data_pipelines.sources.test_lerobot_damage import DAMAGE_V21, DAMAGE_V30


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """{version: (directory of the dataset, clips of its ingest)}."""
    found = {}
    for version, write in (("v2.1", made.write_v21), ("v3.0", made.write_v30)):
        root = tmp_path_factory.mktemp(version)
        write(root / "set")
        ingest(root / "out", "toy", toy_config(root, root / "set"), progress=False)
        found[version] = root / "set", clips(root / "out" / "train" / "toy")
    return found


def cut_in_the_middle(root):
    """The index of the file is whole, so nobody knows before the frames are decoded."""
    path = made.video_v21(root, 1)
    made.write_video(path, made.images(1, made.LENGTHS[1]), faststart=True)
    data = bytearray(path.read_bytes())
    data[-len(data) // 3 :] = bytes(len(data) // 3 + 1)
    path.write_bytes(data)


SHOWN = [
    "truncated mp4",
    "wrong parquet length",
    "missing column",
    "NaN action",
    "non-UTF-8 instruction",
    "zero-length episode",
    "missing video",
]


@pytest.mark.parametrize(
    ("version", "damage"),
    [("v2.1", DAMAGE_V21[name]) for name in SHOWN]
    + [("v2.1", (cut_in_the_middle, "episode_000001.mp4 is damaged"))]
    + [("v3.0", DAMAGE_V30[name]) for name in DAMAGE_V30 if name in SHOWN],
    ids=[*SHOWN, "mp4 of zeros", *[f"v3.0 {name}" for name in DAMAGE_V30 if name in SHOWN]],
)
def test_lerobot(tmp_path, whole, version, damage):
    original, want = whole[version]
    root, (harm, reason) = tmp_path / "set", damage
    shutil.copytree(original, root)
    harm(root)
    result = ingest(tmp_path / "out", "toy", toy_config(tmp_path, root), progress=False, max_bad=0.5)
    store = tmp_path / "out" / "train" / "toy"
    (line,) = (store / "quarantine.jsonl").read_text().splitlines()
    quarantined = json.loads(line)
    assert quarantined["number"] == 1 and result["quarantined"] == [quarantined]
    with pytest.raises(ValueError, match=reason):
        raise ValueError(quarantined["reason"])
    assert clips(store) == {key: sha for key, sha in want.items() if key[0] != "set/episode_000001"}
    assert len(want) > len(clips(store)) > 2
    with pytest.raises(IngestError, match=r"1 of 3 episodes are bad, more than max_bad = 0.2 .*the first: "):
        ingest(tmp_path / "out", "toy", toy_config(tmp_path, root), progress=False, max_bad=0.2)


def test_hdf5_without_mp4(tmp_path):
    config = {"image_size": (16, 16), "validation": 0.0, "shard_frames": 6}
    for name, video in (("good", True), ("bad", False)):
        for number in (0, 2):
            write_pair(tmp_path / name / "set", number)
        if not video:
            write_pair(tmp_path / name / "set", 1, video=False)
        ingest(
            tmp_path / f"{name}_out",
            "ego",
            IngestConfig("egodex", str(tmp_path / name / "set"), **config),
            progress=False,
            max_bad=0.5,
        )
    stores = [tmp_path / f"{name}_out" / "train" / "ego" for name in ("good", "bad")]
    assert "1.hdf5 has no video" in json.loads((stores[1] / "quarantine.jsonl").read_text())["reason"]
    assert clips(stores[0]) == clips(stores[1])
    assert list(clips(stores[0])) == [("part1/fold_towel/0", 0), ("part1/fold_towel/2", 0)]


def test_nothing_good_is_an_error(tmp_path):
    root = made.write_v21(tmp_path / "set")
    for i in range(3):
        made.edit(made.data_v21(root, i), lambda table: table.drop_columns(["action"]))
    with pytest.raises(ValueError, match="none of 3 episodes can be read"):
        ingest(tmp_path / "out", "toy", toy_config(tmp_path, root), progress=False)


def test_a_full_disk_is_one_sentence_and_no_episode_is_blamed(tmp_path, whole, request):
    program = f"""
import pathlib, resource, sys
from experiments import ingest as command
from absl import flags
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, {resource.RLIM_INFINITY}))
flags.FLAGS(["ingest", *sys.argv[1:]])
command.main(["ingest"])
"""
    config = toy_config(tmp_path, whole["v2.1"][0])
    command = [sys.executable, "-c", program, f"--dataset={config.dataset}", f"--path={config.path}"]
    command += [f"--out={tmp_path / 'out'}", "--name=toy", "--image_size=32", "--codec=png", "--noprogress"]
    done = subprocess.run(command, cwd=request.config.rootpath, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("ingest: ") and done.stderr.count("\n") == 1, done.stderr
    assert "cannot be written" in done.stderr and "run the same command again" in done.stderr
    assert not list((tmp_path / "out").rglob("quarantine.jsonl"))
