"""Folders of plain video: whole files, and clips by seconds."""

import pickle

import numpy as np
import pytest

from data_pipelines.episode import check_episode
from data_pipelines.sources.source import BadEpisode, read_episode
from data_pipelines.sources.video_folder import EPIC_KITCHENS, ClipColumns, VideoFolder
from tests.data_pipelines.sources.video_writer import numbers_of, write_video


def table(directory, *rows, header="video,start,end,caption", encoding="utf-8"):
    path = directory / "clips.csv"
    path.write_bytes("\n".join([header, *rows, ""]).encode(encoding))
    return path


def test_whole_videos_with_captions(tmp_path):
    for name in ("clip_2", "clip_10", "kitchen/clip_1"):
        write_video(tmp_path / f"{name}.mp4", 12)
    (tmp_path / "clip_10.txt").write_text("wash the cup\n")
    (tmp_path / "notes.md").write_text("no video")
    source = pickle.loads(pickle.dumps(VideoFolder(tmp_path)))  # noqa: S301 (bytes of this very line)
    abouts = [source.about(i) for i in range(len(source))]
    assert [about.episode for about in abouts] == ["clip_2.mp4", "clip_10.mp4", "kitchen/clip_1.mp4"]
    assert [about.instruction for about in abouts] == ["", "wash the cup", ""]
    assert abouts[0].frames == 12 and abouts[0].fps == pytest.approx(10) and abouts[0].cameras == {"ego": (32, 48)}
    lowdim = source.lowdim(0)
    assert lowdim.state is None and lowdim.action is None
    assert np.allclose(lowdim.extra["time"], np.arange(12) / 10)
    assert numbers_of(source.frames(0, "ego", [11, 0, 5, 5])) == [11, 0, 5, 5]
    check_episode(read_episode(source, 1))


def test_real_videos(shared_samples):
    source = VideoFolder(shared_samples / "dreamzero_droid")
    assert len(source) == 3
    for i in range(3):
        about = source.about(i)
        assert about.frames == 419 and about.fps == pytest.approx(15) and about.cameras == {"ego": (180, 320)}
    assert source.frames(0, "ego", [200, 3]).shape == (2, 180, 320, 3)


def test_clips_by_seconds(tmp_path):
    write_video(tmp_path / "long.mp4", 30)
    clips = table(tmp_path, "long,0.5,1.2,wash", "long.mp4,0:00:02,0:00:02.5,", "long,0,3,")
    source = VideoFolder(tmp_path, clips)
    about = source.about(0)
    assert (about.episode, about.frames, about.instruction) == ("clips:2", 7, "wash")
    assert about.extra == {"video": "long", "start": "0.5", "end": "1.2"}
    assert numbers_of(source.frames(0, "ego", range(7))) == [5, 6, 7, 8, 9, 10, 11]
    assert numbers_of(source.frames(1, "ego", range(5))) == [20, 21, 22, 23, 24]
    assert np.allclose(source.lowdim(1).extra["time"], np.arange(5) / 10)
    assert source.about(2).frames == 30 and source.problems == []


def test_epic_kitchens(tmp_path):
    write_video(tmp_path / "P01" / "P01_01.MP4", 30)
    header = "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,narration"
    clips = table(
        tmp_path,
        'P01_01_0,P01,P01_01,00:00:00.560,00:00:00.10,00:00:01.00,"open door, slowly"',
        header=header,
        encoding="utf-8-sig",
    )
    source = VideoFolder(tmp_path, clips, columns=EPIC_KITCHENS)
    assert source.about(0).instruction == "open door, slowly" and source.about(0).frames == 9
    assert numbers_of(source.frames(0, "ego", [0])) == [1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("long,2,1,", "the clip ends at 1 s, not after its start at 2 s"),
        ("long,1,1,", "the clip ends at 1 s, not after its start at 1 s"),
        ("long,7,9,", "shows no frame between 7 s and 9 s"),
        ("long,-1,1,", "'-1' is no time in a video"),
        ("long,nan,1,", "'nan' is no time in a video"),
        ("long,soon,1,", "'soon' is no time in a video"),
        ("long", "'' is no time in a video"),
        ("short,0,1,", "has 0 videos called 'short'"),
        ("twice,0,1,", "has 2 videos called 'twice'"),
        ("long,0.5,0.6,", "shows a single frame"),
        ("cut,0,1,", r"cut\.mp4"),
        ("empty,0,1,", r"empty\.mp4"),
        ("long,0,1,caf\udce9", "the caption is not UTF-8 text"),
    ],
)
def test_a_bad_clip_is_named_and_the_others_are_untouched(tmp_path, row, said):
    for name in ("long", "a/twice", "b/twice", "cut"):
        write_video(tmp_path / f"{name}.mp4", 30)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "cut.mp4").read_bytes()[:900])
    (tmp_path / "empty.mp4").write_bytes(b"")
    path = tmp_path / "clips.csv"
    text = "\n".join(["video,start,end,caption", "long,0,1,first", row, "a/twice,1,2,last", ""])
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    source = VideoFolder(tmp_path, path)
    with pytest.raises(BadEpisode, match=said):
        source.frames(1, "ego", range(source.about(1).frames))
    assert [source.about(i).instruction for i in (0, 2)] == ["first", "last"]
    assert [numbers_of(source.frames(i, "ego", [0, 9])) for i in (0, 2)] == [[0, 9], [10, 19]]


def test_a_truncated_video_is_a_bad_episode(tmp_path):
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", 30)
    (tmp_path / "b.mp4").write_bytes((tmp_path / "b.mp4").read_bytes()[:-400])
    source = VideoFolder(tmp_path)
    with pytest.raises(BadEpisode, match=r"b\.mp4"):
        source.about(1)
    assert numbers_of(source.frames(0, "ego", [29])) == [29]


def test_captions_must_be_text(tmp_path):
    write_video(tmp_path / "a.mp4", 3)
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BadEpisode, match=r"'a\.mp4': .*a\.txt is not UTF-8 text"):
        VideoFolder(tmp_path).about(0)


def test_clips_that_reach_beyond_their_video_are_counted(tmp_path):
    write_video(tmp_path / "long.mp4", 30)
    source = VideoFolder(tmp_path, table(tmp_path, "long,2,4,", "long,1,2,"))
    assert [source.about(i).frames for i in (0, 1, 0)] == [10, 10, 10]
    assert source.problems == ["1 clips end after their video"]


def test_folders_and_tables_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no video"):
        VideoFolder(tmp_path)
    write_video(tmp_path / "long.mp4", 3)
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv does not exist"):
        VideoFolder(tmp_path, tmp_path / "nothing.csv")
    columns = ClipColumns("video", "start_timestamp", "end", "narration")
    with pytest.raises(ValueError, match=r"has no columns \['start_timestamp', 'narration'\]"):
        VideoFolder(tmp_path, table(tmp_path, "long,0,1,"), columns=columns)
    with pytest.raises(ValueError, match="lists no clip"):
        VideoFolder(tmp_path, table(tmp_path))
    with pytest.raises(ValueError, match="has no camera 'wrist', only 'ego'"):
        VideoFolder(tmp_path).frames(0, "wrist", [0])
