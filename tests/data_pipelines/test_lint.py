"""Every check is silent on a clean data set, and speaks alone on one that has exactly its fault."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.datasets import Dataset
from data_pipelines.lint.checks import CHECKS, lint, to_json, worst
from data_pipelines.lint.episodes import ForeignEpisodes, Rows, StoreEpisodes
from data_pipelines.lint.finding import Severity
from data_pipelines.lint.survey import evenly, survey
from data_pipelines.sources.lerobot import LeRobot
from data_pipelines.sources.rlds import Rlds
from tests.data_pipelines.lint_faults import ROBOT, STEPS, broken, clean, episodes_of, surveyed
from wam.embodiment import Gripper

FAULTS = {}


def fault(check, severity, *said):
    """Declares that a change of the clean data makes this check, and no other, say `said`."""

    def add(change):
        FAULTS[change.__name__] = (check, severity, said, change)
        return change

    return add


def _found(memory, robot=ROBOT, **options):
    return {name: found for name, found in lint(surveyed(memory, robot, **options)).items() if found}


def test_the_clean_data_set_is_clean():
    assert _found(clean()) == {}
    assert len({check.name for check in CHECKS}) == len(CHECKS)


@fault("readable", Severity.WARNING, "1 of 8 episodes", "truncated mp4")
def an_unreadable_episode(m):
    m.bad[3] = "episode_3.mp4: truncated mp4"


@fault("metadata", Severity.NOTE, "total_episodes 9")
def lying_metadata(m):
    m.problems.append("meta/info.json says total_episodes 9, there are 8")


@fault("lengths", Severity.ERROR, "'episode_2'", "58 states for 60 actions")
def missing_rows(m):
    m.states[2] = m.states[2][:-2]


@fault("lengths", Severity.ERROR, "'episode_2'", "60 actions", "end at step 49")
def missing_frames(m):
    m.abouts[2] = dataclasses.replace(m.abouts[2], frames=50)


@fault("lengths", Severity.WARNING, "1 episode of 8 is shorter", "'episode_5', has 0.9 s")
def a_short_episode(m):
    for array in (m.states, m.actions, m.times):
        array[5] = array[5][:9]
    m.pixels[5] = {camera: frames[:9] for camera, frames in m.pixels[5].items()}
    m.abouts[5] = dataclasses.replace(m.abouts[5], frames=9)


@fault("rates", Severity.ERROR, "timestamps say 20 rows a second, the data set 10", "8 episodes of 8")
def wrong_fps(m):
    m.times[:] = [time / 2 for time in m.times]


@fault("rates", Severity.WARNING, "'episode_4' step 30 lasts 0.6 s instead of 0.1 s")
def a_gap_in_time(m):
    m.times[4] = np.where(np.arange(STEPS) > 30, m.times[4] + 0.5, m.times[4]) * 5.9 / 6.4
    m.times[4][30:32] = m.times[4][29] + np.array([0.1, 0.7])


@fault("rates", Severity.ERROR, "declared at 10 Hz, the data say 20 Hz")
def another_rate(m):
    m.abouts[:] = [dataclasses.replace(about, fps=20.0) for about in m.abouts]
    m.times[:] = [time / 2 for time in m.times]


@fault("duplicates", Severity.WARNING, "1 episode of 8 is there already", "'episode_1' = 'episode_6'", "sampled frames")
def an_episode_twice(m):
    for part in (m.states, m.actions, m.pixels):
        part[6] = part[1]


@fault("duplicates", Severity.WARNING, "'episode_1' = 'episode_6'", "not in frames")
def an_episode_twice_in_other_pixels(m):
    m.states[6], m.actions[6] = m.states[1], m.actions[1]
    m.pixels[6] = {camera: frames + np.uint8(3) for camera, frames in m.pixels[1].items()}


def _say(m, i, text):
    m.abouts[i] = dataclasses.replace(m.abouts[i], instruction=text)


@fault("language", Severity.WARNING, "1 episode of 8 has no instruction", "'episode_7'")
def no_instruction(m):
    _say(m, 7, " ")


@fault("language", Severity.WARNING, "reads like a label", "'valid' (1 episodes)")
def a_label_as_instruction(m):
    _say(m, 0, "valid")


@fault("language", Severity.WARNING, "75% of the episodes say 'wipe the table'", "the other 4")
def one_instruction_for_most(m):
    for i in range(12):
        m.abouts.append(dataclasses.replace(m.abouts[0], episode=f"more_{i}"))
    other = clean(seed=1, episodes=12)
    for part in ("states", "actions", "pixels", "times"):
        getattr(m, part).extend(getattr(other, part))
    for i in range(20):
        _say(m, i, ("pick it up", "open it", "close it", "push it", "pull it")[i % 5] if i < 5 else "wipe the table")
    _say(m, 4, "push it")


@fault("kind of action", Severity.ERROR, "'dx', 'dy' (declared delta)", "behave like an absolute target", "slope 1")
def targets_declared_delta(m):
    rng = np.random.default_rng(5)
    for state, action in zip(m.states, m.actions, strict=True):
        action[:-1, :2] = state[1:, :2] + rng.normal(0, 0.01, (STEPS - 1, 2))


@fault("kind of action", Severity.ERROR, "'angle' (declared absolute)", "behaves like a delta")
def a_delta_declared_absolute(m):
    for state, action in zip(m.states, m.actions, strict=True):
        action[:-1, 2] = np.diff(state[:, 2]) + np.random.default_rng(1).normal(0, 0.002, STEPS - 1)
        action[-1, 2] = 0


@fault("kind of action", Severity.ERROR, "a delta of deltas", "taken twice")
def deltas_of_deltas(m):
    for state, action in zip(m.states, m.actions, strict=True):
        action[1:-1, :2] = np.diff(state[:, :2], 2, axis=0)
        action[[0, -1], :2] = 0


@fault("kind of action", Severity.ERROR, "'angle'", "state was subtracted twice", "slope -0.9")
def the_state_subtracted_twice(m):
    for state, action in zip(m.states, m.actions, strict=True):
        action[:, 2] -= 2 * state[:, 2]


@fault("action equals state", Severity.ERROR, "'angle' equals the state at the same step", "(1 of 4 dimensions)")
def actions_that_are_states(m):
    for state, action in zip(m.states, m.actions, strict=True):
        action[:, 2] = state[:, 2]


@fault("action equals state", Severity.NOTE, "'angle' equals the state one step later")
def actions_that_are_next_states(m):
    for state, action in zip(m.states, m.actions, strict=True):
        action[:-1, 2] = state[1:, 2]


@fault("gripper", Severity.ERROR, "goes the other way in 2 episodes of 8 ('episode_1', 'episode_4')")
def grippers_of_two_signs(m):
    for i in (1, 4):
        m.actions[i][:, 3] *= -1


@fault("gripper", Severity.NOTE, "opposite signs", "-1.00")
def a_gripper_that_closes_with_larger_commands(m):
    for action in m.actions:
        action[:, 3] *= -1


@fault("gripper", Severity.WARNING, "'gripper' never moves: it is 1")
def a_gripper_that_never_moves(m):
    for action in m.actions:
        action[:, 3] = 1


@fault("gripper", Severity.WARNING, "does not move with the measured 'gripper_opening'")
def a_gripper_of_another_episode(m):
    rng = np.random.default_rng(3)
    for state in m.states:
        state[:, 3] = rng.uniform(0, 1, STEPS)


@fault("gripper", Severity.NOTE, "'gripper' is continuous over")
def a_continuous_gripper(m):
    for state, action in zip(m.states, m.actions, strict=True):
        action[:, 3] = np.sin(np.arange(STEPS) / 6)
        state[1:, 3] = action[:-1, 3] * 0.9


@fault("finite values", Severity.ERROR, "action 'dy' is NaN or infinite in 2 rows", "episode 'episode_2', step 17")
def values_that_are_not_finite(m):
    m.actions[2][17, 1], m.actions[3][5, 1] = np.nan, np.inf


@fault("constant dimensions", Severity.NOTE, "1 of 4 action dimensions hold one value: dy")
def a_constant_dimension(m):
    for action in m.actions:
        action[:, 1] = 0.5


@fault("constant dimensions", Severity.WARNING, "'dy' holds one value in 98 % of the rows", "name min/max")
def a_dimension_that_normalisers_ignore(m):
    for action in m.actions:
        action[:, 1] = 0
    m.actions[3][10, 1] = 2


@fault("outliers", Severity.WARNING, "action 'dx' lies up to", "in 1 row", "episode 'episode_6', step 20")
def an_outlier(m):
    m.actions[6][20, 0] = 6


@fault("saturation", Severity.WARNING, "'dx' at its maximum 0.12", "'dx' at its minimum -0.12")
def clipped_actions(m):
    for action in m.actions:
        action[:, 0] = np.clip(action[:, 0], -0.12, 0.12)


def _still(m, i, first, last):
    """The robot stands from `first` to `last`; the rest of the episode goes on from there."""
    m.states[i][first:last, :2] = m.states[i][first, :2]
    m.states[i][last:, :2] += m.states[i][first, :2] - m.states[i][last, :2]
    m.states[i][first:last, 2:] = m.states[i][first, 2:]
    m.states[i][last:, 2] += m.states[i][first, 2] - m.states[i][last, 2]
    m.actions[i][first:last, :2] = 0
    m.actions[i][first:, 2] = np.append(m.states[i][first + 1 :, 2], m.states[i][-1, 2]) + 0.004
    m.actions[i][first:last, 3] = m.actions[i][first, 3]


@fault("idle time", Severity.WARNING, "1 pause of more than 3 s", "3.6 s, in episode 'episode_3' from 1.2 s")
def a_long_pause(m):
    _still(m, 3, 10, 49)


@fault("discontinuities", Severity.WARNING, "state 'x'", "1 jump", "'episode_5' after step 29")
def a_jump(m):
    m.states[5][30:, 0] += 4 * np.sign(m.states[5][29, 0] - m.states[5][30, 0] + 1e-9)


@fault("angle wrap-around", Severity.WARNING, "'angle'", "wrap-arounds at +-pi", "rot6d")
def an_angle_that_wraps(m):
    for array in (*m.states, *m.actions):
        array[:, 2] = (array[:, 2] + 2.9 + np.pi) % (2 * np.pi) - np.pi


@fault("cameras present", Severity.WARNING, "camera 'wrist' is absent from 1 episode of 8: episode_2")
def a_missing_camera(m):
    del m.pixels[2]["wrist"]
    m.abouts[2] = dataclasses.replace(m.abouts[2], cameras={"front": (24, 32)})


@fault("blank frames", Severity.ERROR, "camera 'wrist' shows nothing in 8 sampled frames of 1 episode", "level 0")
def a_black_camera(m):
    m.pixels[4]["wrist"] = np.zeros_like(m.pixels[4]["wrist"])


@fault("blank frames", Severity.WARNING, "camera 'front' shows nothing in 1 sampled frame")
def a_black_frame(m):
    m.pixels[4]["front"][0] = 0


@fault("frozen cameras", Severity.ERROR, "camera 'front' never changes while the robot moves in 1 episode: 'episode_1'")
def a_frozen_camera(m):
    m.pixels[1]["front"][:] = m.pixels[1]["front"][0]


@fault("frozen cameras", Severity.WARNING, "camera 'front' freezes", "'episode_1'")
def a_camera_that_freezes_half_way(m):
    m.pixels[1]["front"][30:] = m.pixels[1]["front"][30]


@fault("repeated frames", Severity.WARNING, "camera 'wrist' repeats its frame", "stored at 10 frames", "about 5")
def a_camera_at_half_the_rate(m):
    for pixels in m.pixels:
        pixels["wrist"] = pixels["wrist"][np.arange(STEPS) // 2 * 2]


@fault("distinct cameras", Severity.ERROR, "cameras 'front' and 'wrist' show the same pixels in 8 of 8 episodes")
def one_camera_under_two_names(m):
    for pixels in m.pixels:
        pixels["wrist"] = pixels["front"].copy()


@fault("swapped cameras", Severity.ERROR, "'front' and 'wrist' are exchanged in 1 episode of 8: 'episode_6'")
def swapped_cameras(m):
    m.pixels[6]["front"], m.pixels[6]["wrist"] = m.pixels[6]["wrist"], m.pixels[6]["front"]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_by_its_check_alone(name):
    check, severity, said, change = FAULTS[name]
    survey = surveyed(broken(change))
    found = {name: own for name, own in lint(survey).items() if own}
    json.dumps(to_json(survey, found), allow_nan=False)
    assert set(found) == {check}, {key: [f.text for f in value] for key, value in found.items()}
    assert found[check][0].severity == severity
    text = " ".join(finding.text for finding in found[check])
    for part in said:
        assert part in text


def test_every_check_has_a_fault():
    assert {check for check, *_ in FAULTS.values()} | {"leakage"} == {check.name for check in CHECKS}


def test_undeclared_actions_are_described_not_judged():
    (finding, *_), *rest = _found(clean(), robot=None).values()
    assert not rest
    assert finding.severity == Severity.NOTE
    assert "(undeclared) behave like a delta" in finding.text


@pytest.mark.parametrize(
    ("closed", "said"),
    [(-1.0, None), (0.5, "goes from -1 to 1, declared are 1 for open and 0.5 for closed"), (3.0, "wrong way round")],
)
def test_a_gripper_must_be_as_declared(closed, said):
    ends = {"action_grippers": (Gripper("gripper", 1.0, closed),)}
    robot = dataclasses.replace(ROBOT, **ends, state_grippers=(Gripper("gripper_opening", 1.0, 0.0),))
    memory = clean()
    if closed == 3.0:  # declared 1 for open, 3 for closed, and that is where the commands are; the opening disagrees
        for action in memory.actions:
            action[:, 3] += 2
    found = _found(memory, robot)
    assert set(found) == ({"gripper"} if said else set())
    assert said is None or (found["gripper"][0].severity, said in found["gripper"][0].text) == (Severity.ERROR, True)


def test_leakage_is_found_by_content_under_other_names():
    held_out = clean(seed=1)
    assert _found(clean(), against=episodes_of(held_out)) == {}
    held_out.states[3], held_out.actions[3] = clean().states[5], clean().actions[5]
    found = _found(clean(), against=episodes_of(held_out), count=2)  # also where neither is looked at
    assert set(found) == {"leakage"}
    assert "1 of 8 episodes are also in memory: 'episode_5' = 'episode_3'" in found["leakage"][0].text


def test_leakage_of_video_without_rows_is_found_by_its_pixels():
    ours, theirs = clean(), clean(seed=1)
    for memory in (ours, theirs):
        memory.states[:] = memory.actions[:] = [None] * len(memory)
    theirs.pixels[0] = ours.pixels[7]
    assert surveyed(ours, None, against=episodes_of(theirs)).shared == {"episode_7": "episode_0"}


def test_a_sample_of_episodes_is_evenly_spaced_and_says_so():
    survey = surveyed(clean(), count=3)
    assert [episode.number for episode in survey.episodes] == [0, 4, 7]
    assert evenly(8, 0) == list(range(8))
    assert to_json(survey, lint(survey))["episodes"] == {"total": 8, "looked_at": 3, "unreadable": 0}


def test_episodes_of_other_dimensions_are_set_aside():
    memory = clean()
    memory.actions[2] = memory.actions[2][:, :3]
    assert "3 action dims, most have 4 and 4" in _found(memory)["readable"][0].text


def test_the_worst_finding_decides():
    findings = lint(surveyed(broken(FAULTS["a_black_frame"][3])))
    assert (worst(findings), worst(lint(surveyed(clean())))) == (Severity.WARNING, None)


def test_a_store_is_looked_at_like_its_source(write_store, episode):
    """Clips are put together again: rows, digests and frames are those of the episodes written."""
    made = [episode(f"e{i}", 150, seed=i) for i in range(3)]
    episodes = StoreEpisodes(write_store(made))
    for i, one in enumerate(made):
        rows = episodes.rows(i)
        np.testing.assert_array_equal(rows.state, one.state)
        np.testing.assert_array_equal(rows.action, one.action)
        np.testing.assert_array_equal(rows.frame_step, one.frame_step)
        which = [18, 0, 7, 18]
        np.testing.assert_array_equal(episodes.frames(i, "wrist", which), one.frames["wrist"][which])
        as_source = Rows(one.meta["episode"], "", 80.0, one.state[:-1], one.action, np.arange(150), ())
        assert rows.digest == as_source.digest


def test_both_splits_of_the_bridge_sample_are_the_same_episodes(shared_samples):
    train, val = (
        ForeignEpisodes(Dataset("bridge", Rlds), Rlds(shared_samples / "bridge_octo_debug" / "1.0.0", split))
        for split in ("train", "val")
    )
    findings = lint(survey(train, frames=2, against=val))
    assert "25 of 25 episodes are also in" in findings["leakage"][0].text
    assert "camera 'image_3' shows nothing" in findings["blank frames"][0].text
    assert "behave like a delta" in findings["kind of action"][0].text


def test_the_humanoid_sample_has_absolute_actions(shared_samples):
    source = LeRobot(shared_samples / "lerobot_v2_groot_gr1_sim")
    findings = lint(survey(ForeignEpisodes(Dataset("gr1", LeRobot), source), frames=2))
    kinds = [finding for finding in findings["kind of action"] if "absolute" in finding.text]
    assert len(kinds[0].numbers["dimensions"]) >= 10
    assert any("18 of 44 state dimensions" in finding.text for finding in findings["constant dimensions"])
