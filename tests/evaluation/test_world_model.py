"""The image metrics and the words, without a model."""

import numpy as np
import pytest

from wam.evaluation import world_model
from wam.evaluation.closed_loop import Episode, summarize


def test_ssim_of_known_images():
    rng = np.random.default_rng(0)
    a = rng.uniform(size=(2, 32, 24, 3)).astype(np.float32)
    np.testing.assert_allclose(world_model.ssim(a, a), 1.0, atol=1e-4)
    noisy = np.clip(a + rng.normal(0, 0.2, a.shape), 0, 1).astype(np.float32)
    other = rng.uniform(size=a.shape).astype(np.float32)
    assert (np.asarray(world_model.ssim(a, noisy)) > np.asarray(world_model.ssim(a, other)) + 0.2).all()
    flat = np.full((1, 16, 16, 3), 0.5, np.float32)
    brighter = flat + 0.1
    expected = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)
    assert float(world_model.ssim(flat, brighter)[0]) == pytest.approx(expected, rel=1e-3)


def test_verdicts_say_so_when_the_actions_are_ignored():
    def forward(gap, win, true=22.0):
        return {"moving": {"true": 12 + gap, "shuffled": 12.0, "copy_last": 10.0}, "win_rate": win,
                "psnr": {"true": true, "copy_last": 21.0}}  # fmt: skip

    inverse = {"play": {"r2": 0.4, "r2_wrong_video": 0.38}}
    texts = world_model.verdicts({"play": forward(0.05, 0.5), "expert": forward(2.0, 0.9)}, inverse)
    assert "no world-action model" in texts[0]
    assert "obeys the actions and beats copying" in texts[1]
    assert "all but ignores the video" in texts[2]
    assert (
        "copying the last frame is at least as good (psnr)" in world_model.verdicts({"x": forward(2, 0.9, 20)}, {})[0]
    )


def test_summary_counts_per_task_with_intervals():
    episodes = [Episode("a", i, i < 3, 10) for i in range(4)] + [Episode("b", i, False, 10) for i in range(4)]
    out = summarize(episodes)
    assert (out["successes"], out["episodes"], out["success"]) == (3, 8, 0.375)
    assert out["tasks"]["a"]["success"] == 0.75
    assert out["tasks"]["b"]["ci95"][0] == 0.0
    assert out["tasks"]["b"]["ci95"][1] == pytest.approx(0.49, abs=0.01)
