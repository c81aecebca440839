"""Figures are checked by what they draw: panels, labels, curves and values, not pixels."""

import json

import numpy as np
import pytest

from wam.evaluation import plots


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


@pytest.fixture(scope="module")
def metrics(complete_run):
    return json.loads((complete_run / "metrics.json").read_text())


@pytest.fixture(scope="module")
def rows(complete_run):
    return [json.loads(line) for line in (complete_run / "metrics.jsonl").read_text().splitlines()]


def test_psnr_of_a_known_error():
    image = np.full((4, 4, 3), 100, np.uint8)
    assert plots.psnr(image, image + np.uint8(51)) == pytest.approx(10 * np.log10(255**2 / 51**2))
    assert plots.psnr(image, image) == float("inf")


def test_rollout_shows_every_frame_with_time_and_psnr():
    real = np.zeros((3, 8, 10, 3), np.uint8)
    figure = plots.plot_rollout({"real": real, "imagined": real + np.uint8(51)}, [0.0, 0.1, 0.25])
    (ax,) = figure.axes
    assert [t for t in texts(ax) if t.endswith(" s")] == ["0.00 s", "0.10 s", "0.25 s"]
    assert [t for t in texts(ax) if t.endswith("dB")] == ["14.0 dB"] * 3
    canvas = ax.images[0].get_array()
    assert (canvas == 51).all(-1).sum() == (canvas == 0).all(-1).sum() == 3 * 8 * 10


def test_rollout_thins_long_videos_and_keeps_both_ends():
    video = np.zeros((40, 8, 8, 3), np.uint8)
    (ax,) = plots.plot_rollout({"imagined": video}, np.arange(40) / 10, columns=5).axes
    assert [t for t in texts(ax) if t.endswith(" s")] == ["0.00 s", "1.00 s", "2.00 s", "2.90 s", "3.90 s"]
    assert not [t for t in texts(ax) if "dB" in t]


@pytest.mark.parametrize(
    ("videos", "seconds", "said"),
    [
        ({}, [], "at least one video"),
        ({"a": np.zeros((2, 8, 8, 3)), "b": np.zeros((3, 8, 8, 3))}, [0, 1], "one shape"),
        ({"a": np.zeros((2, 8, 8, 3))}, [0, 1, 2], "3 times"),
    ],
)
def test_rollout_names_what_does_not_fit(videos, seconds, said):
    with pytest.raises(ValueError, match=said):
        plots.plot_rollout(videos, seconds)


def test_actions_stand_at_their_time():
    predicted = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    figure = plots.plot_actions(predicted, np.zeros((6, 3)), "xyz", 10.0, chunk_steps=[0, 3])
    assert [ax.get_ylabel() for ax in figure.axes] == ["x", "y", "z"]
    assert figure.axes[-1].get_xlabel() == "time (s)"
    chunk = next(line for line in figure.axes[1].lines if list(line.get_ydata()) == [13, 16, 19, 22])
    np.testing.assert_allclose(chunk.get_xdata(), [0.35, 0.45, 0.55, 0.65])
    boundaries = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_xdata()[0] == line.get_xdata()[-1]]
    np.testing.assert_allclose(sorted(set(boundaries)), [0.0, 0.05, 0.3, 0.35], atol=1e-9)  # starts and first steps
    np.testing.assert_allclose(figure.axes[0].patches[0].get_data().edges, np.arange(7) / 10)


def test_actions_take_one_chunk_several_predictors_and_no_execution():
    figure = plots.plot_actions({"a": np.zeros((4, 7)), "b": np.ones((4, 7))}, None, list("abcdefg"), None)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert sum(ax.axison for ax in figure.axes) == 7
    assert figure.axes[-1].get_xlabel() == "control step"


@pytest.mark.parametrize(
    ("names", "steps", "said"), [("xy", None, "2 names"), ("xyz", [0], "1 chunk steps for 2 chunks")]
)
def test_actions_name_what_does_not_fit(names, steps, said):
    with pytest.raises(ValueError, match=said):
        plots.plot_actions(np.zeros((2, 4, 3)), np.zeros((8, 3)), names, 10.0, chunk_steps=steps)


def test_learning_curves_have_a_panel_for_every_split(rows):
    figure = plots.plot_learning_curves(rows)
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.axison]
    assert titles == [
        "All loss terms",
        "Gradient norm",
        "Learning rate",
        *(f"{term} loss by {group}" for term in ("Video", "Action") for group in ("mode", "source", "sigma")),
    ]
    panel = figure.axes[titles.index("Video loss by sigma")]
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert labels == ["0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8", "0.8-1"]


def test_a_name_keeps_its_colour_where_others_are_absent():
    row = {"step": 1, "split": "train", "video": 1.0, "action": 1.0}
    row |= {"video/mode/forward": 1.0, "video/mode/joint": 1.0, "action/mode/inverse": 1.0, "action/mode/joint": 1.0}
    figure = plots.plot_learning_curves([row, row | {"step": 2}])
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes}
    color = {
        title: next(line.get_color() for line in panels[title].lines if line.get_label() == "joint")
        for title in ("Video loss by mode", "Action loss by mode")
    }
    assert len(set(color.values())) == 1


def test_learning_curves_need_training_rows():
    with pytest.raises(ValueError, match="at least one row"):
        plots.plot_learning_curves([{"step": 0, "split": "validation", "loss": 1.0}])


def test_smoothing_keeps_straight_lines_and_ends():
    line = np.linspace(0, 5, 101)
    np.testing.assert_allclose(plots._smooth(line, share=0.2), line)
    assert plots._smooth(np.array([3.0])) == [3.0]


def test_success_draws_every_interval(metrics):
    closed = metrics["closed_loop"]
    (ax,) = plots.plot_success(closed).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["all tasks", *closed["policy"]["tasks"]]
    ends = [path.vertices[:, 0].tolist() for path in ax.collections[0].get_paths()]
    assert ends[0] == closed["policy"]["ci95"]
    assert len(ax.collections) == 5


def test_success_of_a_part_of_the_tasks(metrics):
    """Swapped instructions are evaluated for one pair of tasks only."""
    closed = metrics["closed_loop"]
    swapped = closed["swapped_instruction"] | {"tasks": {"push": closed["policy"]["tasks"]["push"]}}
    (ax,) = plots.plot_success({"policy": closed["policy"], "swapped_instruction": swapped}).axes
    assert len(ax.collections[1].get_paths()) == 2


def test_dynamics_draw_every_case_over_the_horizon(metrics):
    figure = plots.plot_dynamics(metrics["forward_dynamics"])
    assert len(figure.axes) == 6
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    assert len(lines) == 5
    expected = metrics["forward_dynamics"]["expert"]["per_frame"]["moving"]["true"]
    assert list(lines["true actions"].get_ydata()) == expected
    assert list(lines["true actions"].get_xdata()) == [0.1, 0.2]


def test_mixture_shows_shares(complete_run):
    mixture = json.loads((complete_run / "mixture.json").read_text())
    sources, modes = plots.plot_mixture(mixture).axes
    widths = [patch.get_width() for patch in sources.patches]
    assert sum(widths) == pytest.approx(1)
    assert widths[0] == pytest.approx(35220 / 64000)
    assert [label.get_text() for label in modes.get_yticklabels()] == list(mixture["modes"])
