import numpy as np
import pytest

from data_pipelines.episode import check_episode
from data_pipelines.sources.source import About, BadEpisode, LowDim, check_lowdim, read_episode


class Made:
    """One episode of five frames of two cameras; `lowdim` and `success` as given."""

    name, problems = "made", ()

    def __init__(self, state, action, success=None):
        self._lowdim, self._success = LowDim(state, action), success

    def __len__(self):
        return 1

    def about(self, i):
        return About("made/0", 5, 12.5, {"a": (4, 6), "b": (4, 6)}, "push it", "push", self._success, {"who": "me"})

    def lowdim(self, i):
        return check_lowdim("made/0", 5, self._lowdim)

    def frames(self, i, camera, which):
        return np.stack([np.full((4, 6, 3), 10 * t + (camera == "b"), np.uint8) for t in which])


def arrays(dims, rows=5):
    return np.arange(rows * dims, dtype=np.float32).reshape(rows, dims)


def test_a_robot_episode():
    imitate = np.array([True, False, True, True, True])
    episode = read_episode(Made(arrays(2), arrays(3), success=True), 0, ["b"], embodiment="arm", imitate=imitate)
    check_episode(episode)
    assert list(episode.frames) == ["b"] and episode.frames["b"][:, 0, 0, 0].tolist() == [1, 11, 21, 31, 41]
    assert episode.frame_step.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(episode.state, arrays(2)[[0, 1, 2, 3, 4, 4]])
    np.testing.assert_array_equal(episode.action, arrays(3))
    np.testing.assert_array_equal(episode.imitate, imitate)
    meta = episode.meta
    assert (meta["episode"], meta["task"], meta["instruction"], meta["control_hz"]) == (
        "made/0",
        "push",
        "push it",
        12.5,
    )
    assert (meta["kind"], meta["success"], meta["success_step"], meta["extra"]) == ("robot", True, 5, {"who": "me"})


def test_actions_without_states_and_video_alone():
    blind = read_episode(Made(None, arrays(3)), 0, embodiment="arm")
    check_episode(blind)
    assert blind.state.shape == (6, 0) and blind.imitate.all() and blind.meta["success"] is None
    video = read_episode(Made(arrays(2), arrays(3)), 0)
    check_episode(video)
    assert video.action is None and video.meta["kind"] == "video" and sorted(video.frames) == ["a", "b"]


def test_what_is_refused():
    with pytest.raises(BadEpisode, match=r"'made/0' has no camera \['c'\], only \['a', 'b'\]"):
        read_episode(Made(None, None), 0, ["a", "c"])
    with pytest.raises(BadEpisode, match="'made/0' has no actions: read it with the embodiment 'none'"):
        read_episode(Made(arrays(2), None), 0, embodiment="arm")
    with pytest.raises(ValueError, match=r"imitate must be bool \[5\] for episode 'made/0', got bool\[4\]"):
        read_episode(Made(arrays(2), arrays(3)), 0, embodiment="arm", imitate=np.ones(4, bool))
    with pytest.raises(BadEpisode, match="'made/0': action has 4 rows for 5 frames"):
        read_episode(Made(arrays(2), arrays(3, rows=4)), 0, embodiment="arm")
    state = arrays(2)
    state[3, 1] = np.inf
    with pytest.raises(BadEpisode, match="'made/0': state is not finite at frame 3"):
        read_episode(Made(state, arrays(3)), 0, embodiment="arm")
