import subprocess
import sys

import pytest

from data_pipelines.store import ClipStore
from tests.data_pipelines.sources.video_writer import write_video


@pytest.fixture
def command(tmp_path, request):
    """command(*flags) -> the finished process of an ingest of three videos."""
    for k in range(3):
        write_video(tmp_path / "videos" / f"{k}.mp4", 6 + k)

    def run(*flags):
        program = [sys.executable, "-m", "experiments.ingest", "--dataset=video", f"--path={tmp_path / 'videos'}"]
        program += [f"--out={tmp_path / 'out'}", "--name=v", *flags]
        return subprocess.run(program, cwd=request.config.rootpath, capture_output=True, text=True, check=False)

    return run


def test_the_command(tmp_path, command):
    (tmp_path / "videos" / "1.mp4").write_bytes(b"no video")
    flags = ["--image_size=16,24", "--validation=2.mp4", "--options=camera=head", "--max_bad=0.4"]
    done = command(*flags)
    assert done.returncode == 0, done.stderr
    assert "v: 100%" in done.stderr and "1 episodes cannot be read, see quarantine.jsonl" in done.stdout
    train, validation = (ClipStore(tmp_path / "out" / split / "v") for split in ("train", "validation"))
    assert train.index.meta[0]["episode"] == "0.mp4" and validation.index.meta[0]["episode"] == "2.mp4"
    assert train.manifest["image_size"] == [16, 24] and train.manifest["cameras"] == ["head"]
    assert "0 shards made, 1 found" in command(*flags).stdout
    other = command(*flags, "--fit=crop")
    assert other.returncode == 1 and "fit was stretch, now it is crop" in other.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--image_size=x"], "--image_size takes HEIGHT,WIDTH or one number, got 'x'"),
        (["--image_size=16", "--options=camera"], "--options takes key=value pairs, got 'camera'"),
        (["--image_size=16", "--latents=run"], "--latents and --config belong together"),
        (["--image_size=16", "--dataset=moon"], "unknown dataset 'moon'"),
    ],
)
def test_bad_flags_are_one_sentence(command, flags, said):
    done = command(*flags)
    assert done.returncode == 1 and done.stderr.startswith("ingest: ") and said in done.stderr
    assert done.stderr.count("\n") == 1
