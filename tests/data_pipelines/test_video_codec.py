import hashlib
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import records, video_codec
from data_pipelines.video_codec import VideoCodec, decode, keyframes
from tests.data_pipelines.sources.lerobot_fixture import images

CODEC = VideoCodec(gop=8)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def smooth(count, h=48, w=64):
    """Waves that move, each colour on its own."""
    t, y, x = np.arange(count)[:, None, None], np.arange(h)[:, None], np.arange(w)
    planes = [np.sin(x / 9 + t / 5) + 0 * y, np.cos(y / 7 - t / 4) + 0 * x, np.sin((x + y) / 11 + t / 6)]
    return (128 + 90 * np.stack(planes, -1)).astype(np.uint8)


@pytest.mark.parametrize(("crf", "least", "most"), [(4, 35, 99), (18, 35, 99), (45, 15, 30)])
def test_frames_survive(crf, least, most):
    frames = smooth(20)
    units = VideoCodec(crf).encode(frames)
    assert least < psnr(np.stack(list(decode(units, range(20)))), frames) < most
    assert sum(map(len, units)) < frames.nbytes / 5


def test_a_frame_is_the_same_from_wherever_it_is_decoded():
    frames = images(0, 21)
    units = CODEC.encode(frames)
    assert len(units) == 21 and keyframes(units) == [0, 8, 16]
    every = list(decode(units, range(21)))
    for first in (0, 8, 16):
        for wanted in ([first], [first + 1, first + 4], [first + 3]):
            alone = list(decode(units[first:], [i - first for i in wanted]))
            assert all(np.array_equal(a, every[i]) for a, i in zip(alone, wanted, strict=True))


def test_bytes_are_equal_in_another_process_and_hold_no_message(request):
    frames = images(2, 12)
    units = CODEC.encode(frames)
    assert units == CODEC.encode(frames)
    code = (
        "import hashlib; from data_pipelines.video_codec import VideoCodec\n"
        "from tests.data_pipelines.sources.lerobot_fixture import images\n"
        "print(hashlib.sha256(b''.join(VideoCodec(gop=8).encode(images(2, 12)))).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=request.config.rootpath, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == hashlib.sha256(b"".join(units)).hexdigest()
    assert b"x264" not in b"".join(units)
    assert "libx264" in CODEC.facts["name"] and CODEC.facts["gop"] == 8


def test_only_what_is_needed_is_decoded(monkeypatch):
    units = CODEC.encode(images(0, 30))
    asked = []
    real = video_codec.decode
    monkeypatch.setattr(video_codec, "decode", lambda u, w: asked.append((len(u), list(w))) or real(u, w))
    record = {"image_size": [48, 64], "cameras": ["front"], "frames/front": units}
    clip = records.ClipImages(record, records.H264)
    got = clip.get("front", np.array([11, 10, 11, 26]))
    assert asked == [(4, [2, 3]), (3, [2])]
    assert np.array_equal(got[0], got[2])
    clip.get("front", np.array([10, 26]))
    assert len(asked) == 2  # kept
    assert np.array_equal(clip.get("front", np.arange(30))[10], got[1])


def test_damage_and_bad_settings_are_said():
    units = CODEC.encode(images(0, 6))
    with pytest.raises(ValueError, match="damaged h264"):
        list(decode([units[0][:40], *units[1:]], [5]))
    with pytest.raises(ValueError, match="even height and width, got 63x64"):
        CODEC.encode(np.zeros((2, 63, 64, 3), np.uint8))
    for bad in ({"crf": 52}, {"gop": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be between"):
            VideoCodec(**bad)
