import concurrent.futures
import pickle

import numpy as np
import pytest

from data_pipelines.sources.source import BadEpisode
from data_pipelines.sources.video import Videos
from tests.data_pipelines.sources.lerobot_fixture import FPS, decode, images, write_video

QUIET = {"x265-params": "log-level=none:open-gop=1:bframes=3"}


@pytest.mark.parametrize(
    ("codec", "gop", "options"),
    [
        ("libx264", 12, {"bf": "3"}),
        ("libx264", 6, {"bf": "3", "x264-params": "open-gop=1"}),
        ("libx264", 2, {"bf": "1"}),
        ("libx264", 250, {}),
        ("libx265", 8, QUIET),
        ("mpeg4", 5, {"bf": "2"}),
        ("libsvtav1", 2, {"preset": "12"}),
    ],
)
def test_any_frame_is_the_one_of_a_plain_decode(tmp_path, codec, gop, options):
    path = tmp_path / "a.mp4"
    write_video(path, images(1, 50), codec=codec, gop=gop, **options)
    expected, videos = decode(path), Videos()
    assert len(expected) == 50 and (expected[0] != expected[-1]).any()
    index = videos.index(path)
    assert len(index) == 50 and index.size == (48, 64) and index.fps == FPS
    rng = np.random.default_rng(0)
    for which in ([0], [49], [0, 49], [30, 7, 7, 31], range(50), *[[i] for i in rng.permutation(50)[:12]]):
        np.testing.assert_array_equal(videos.read(path, index, which), expected[list(which)])
    # Spans that begin anywhere, their times rounded as in a parquet file of float32.
    for first, last in [(0, 13), (13, 22), (22, 50), (49, 50)]:
        span = videos.index(path, float(np.float32(first / FPS)), float(np.float32(last / FPS)))
        np.testing.assert_array_equal(videos.read(path, span, range(len(span))), expected[first:last])


def test_times_mean_the_nearest_frame(tmp_path):
    path, videos = tmp_path / "a.mp4", Videos()
    write_video(path, images(1, 30))
    exact = videos.index(path, 1.0, 2.0)
    for off in (-0.04, 0.04):  # of frames 0.1 s apart
        np.testing.assert_array_equal(videos.index(path, 1.0 + off, 2.0 + off).pts, exact.pts)
    np.testing.assert_array_equal(videos.index(path, 1.06, 2.06).pts, videos.index(path, 1.1, 2.1).pts)


def test_other_containers_with_rounded_times(tmp_path):
    path = tmp_path / "a.mkv"
    write_video(path, images(2, 40), fps=30, bf="2")
    videos, expected = Videos(), decode(path)
    span = videos.index(path, 10 / 30, 33 / 30)
    np.testing.assert_array_equal(videos.read(path, span, [22, 0, 9]), expected[[32, 10, 19]])


def test_threads_share_files_and_decoders_are_reused_and_closed(tmp_path):
    paths = [tmp_path / f"{i}.mp4" for i in range(3)]
    for i, path in enumerate(paths):
        write_video(path, images(i, 30))
    expected = [decode(path) for path in paths]
    videos = pickle.loads(pickle.dumps(Videos(open_files=2)))  # noqa: S301 (our own bytes)
    jobs = [
        (int(f), sorted(map(int, which)))
        for f, which in ((j % 3, np.random.default_rng(j).permutation(30)[:5]) for j in range(40))
    ]

    def read(job):
        file, which = job
        return videos.read(paths[file], videos.index(paths[file]), which)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for (file, which), got in zip(jobs, pool.map(read, jobs), strict=True):
            np.testing.assert_array_equal(got, expected[file][which])
    assert len(videos._idle) == 2


def test_a_cut_off_file_serves_what_is_left(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, images(3, 60), faststart=True)
    expected, data = decode(path), path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    videos = Videos()
    span = videos.index(path, 0.0, 1.2)
    np.testing.assert_array_equal(videos.read(path, span, range(12)), expected[:12])
    with pytest.raises(BadEpisode, match=r"a\.mp4 (is cut off at|is damaged)"):
        videos.index(path)
    path.write_bytes(data[:100])
    with pytest.raises(BadEpisode, match=r"a\.mp4 (is damaged|holds no video)"):
        Videos().index(path)


def test_bad_requests(tmp_path):
    videos, path = Videos(), tmp_path / "a.mp4"
    with pytest.raises(BadEpisode, match=r"a\.mp4 does not exist"):
        videos.index(path)
    path.write_bytes(b"")
    with pytest.raises(BadEpisode, match=r"a\.mp4 is damaged"):
        videos.index(path)
    write_video(path, images(0, 10))
    index = videos.index(path)
    assert videos.read(path, index, []).shape == (0, 48, 64, 3)
    for i in (10, -1):
        with pytest.raises(BadEpisode, match=f"a.mp4 has no frame {i}, only 10"):
            videos.read(path, index, [3, i])
