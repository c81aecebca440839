"""Diagnostics: self-consistency of made-up models, bars by dimension, with and without imagination."""

import json
import shutil
import types

import numpy as np
import pytest

from tests.evaluation.conftest import NAMES
from wam.evaluation import consistency
from wam.evaluation.closed_loop import Episode, summarize
from wam.evaluation.diagnostic_plots import plot_open_loop
from wam.evaluation.report import write_report

TASKS = ["a", "b"] * 8


def made_up(monkeypatch, shows):
    """Self-consistency of a model that proposes random actions; its pixels are `shows(actions)`, read back exactly."""
    rng = np.random.default_rng(0)
    proposed = rng.uniform(-1, 1, (16, 1, 4, 3)).astype(np.float32)  # n, M, K, A: the last is a gripper
    calls = []

    def generate_all(policy, batch, program, size, pixels, seed=0):
        calls.append((program.name, program.steps, pixels))
        if program.name == "joint":
            frames = np.round((shows(proposed) + 1) * 100).astype(np.uint8)  # [n, 1, 4, 3] -> [n, v, T - 1, h, w, 3]
            return np.broadcast_to(frames[:, :, :, None, None], (16, 1, 4, 2, 2, 3)) if pixels else proposed
        assert not batch["video"][:, 1].any() and (batch["video"][:, :, 0] == 0).all(), "only predicted frames change"
        return batch["video"][:, :1, 1:, 0, 0].astype(np.float32) / 100 - 1

    monkeypatch.setattr(consistency, "generate_all", generate_all)
    spec = types.SimpleNamespace(model_action_kinds=("delta", "delta", "gripper"))
    policy = types.SimpleNamespace(
        config=types.SimpleNamespace(target_views=(0,)),
        observations=types.SimpleNamespace(table=[None, types.SimpleNamespace(spec=spec)]),
    )
    batch = {"video": np.zeros((16, 2, 5, 2, 2, 3), np.uint8), "embodiment": np.ones(16, np.int32),
             "action_mask": np.ones((16, 1, 4, 3), bool)}  # fmt: skip
    out = consistency.self_consistency(policy, batch, TASKS, steps=3)
    assert calls[:2] == [("joint", 3, False), ("joint", 3, True)] and {call[0] for call in calls[2:]} == {"inverse"}
    assert out["actions"]["proposed"].shape == out["actions"]["inferred"].shape == (16, 4, 3)
    return out


def test_a_video_of_the_proposed_actions_is_consistent(monkeypatch):
    out = made_up(monkeypatch, lambda actions: actions)
    assert out["r2"] > 0.999 and out["error"] < 0.01
    assert out["r2_wrong_video"] < -0.5 and out["error_wrong_video"] > 0.5
    assert "R^2 1.00" in (said := consistency.verdict("play", out)) and said.endswith("They tell one story.")


def test_a_video_that_has_nothing_to_do_with_the_actions_is_not(monkeypatch):
    out = made_up(monkeypatch, lambda actions: np.roll(actions, 3, 0))
    assert out["r2"] < 0 and abs(out["r2"] - out["r2_wrong_video"]) < 1
    still = made_up(monkeypatch, lambda actions: 0 * actions)
    assert abs(still["r2"]) < 0.1 and still["r2"] == pytest.approx(still["r2_wrong_video"])
    assert consistency.verdict("play", still).endswith("Video and actions are all but independent.")


def test_self_consistency_needs_pixels():
    with pytest.raises(ValueError, match="the batch holds latents alone"):
        consistency.self_consistency(types.SimpleNamespace(), {"latents": np.zeros(3)}, ["a"])


def test_bars_show_the_worst_dimensions_first():
    dims = {"good": {"policy": 0.1, "mean": 1.0, "hold": 2.0}, "bad": {"policy": 3.0, "mean": 2.0, "hold": 1.0},
            "fixed": {"policy": 0.0, "mean": 0.0, "hold": 0.0}}  # fmt: skip
    (ax,) = plot_open_loop({"dims": dims}).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["bad", "good"]
    assert [bar.get_width() for bar in ax.patches] == [1.5, 0.1, 0.5, 2.0]
    (ax,) = plot_open_loop({"dims": dims}, most=1).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["bad"]


@pytest.fixture
def run(complete_run, tmp_path):
    """A run without curves and recordings: quick to write."""
    copy = shutil.copytree(complete_run, tmp_path / "demo", ignore=shutil.ignore_patterns("report", "eval"))
    (copy / "metrics.jsonl").unlink()
    return copy


def test_the_report_compares_layout_by_layout(run):
    def closed(joint):
        path = run / "metrics.json"
        metrics = json.loads(path.read_text())
        for name, won in (("policy", range(6)), ("joint", joint)):
            metrics["closed_loop"][name] = summarize([Episode("reach", i, i in won, 9) for i in range(20)])
        path.write_text(json.dumps(metrics))
        return write_report(run).read_text()

    said = closed(range(16))
    assert "With and without imagination" in said and "+50.0 points, 95 % [+30.0, +70.0]" in said
    assert "Solved with imagination alone: 10; without it alone: 0 (exact McNemar test, p = 0.002)" in said
    assert "So imagining helps." in said
    assert "So no difference is established." in closed(range(1, 7))
    assert "So imagining hurts." in closed(())


def test_the_report_shows_every_dimension(run):
    said = write_report(run).read_text()
    assert "Open-loop error by dimension: expert, sawyer_metaworld" in said
    assert all(f">{name}<" in said for name in NAMES)
    assert "skill 0.61, 95 % [0.52, 0.70]" in said and "ego left out: has no actions." in said
    assert "R², own video" in said and ">0.83<" in said and ">-0.71<" in said
    (run / "open_loop.json").unlink()
    said = write_report(run).read_text()
    assert "No open-loop evaluation in this run" in said and "--open_loop" in said
