"""The simulation of latencies on a fake simulator: it goes on where it was stopped, and says what cannot be done."""

import json
import sys

import pytest

from tools.prove import real_time

RAN: list[tuple] = []


class Fake:
    """Two of three episodes succeed; `frozen_prefix` is not possible."""

    def __init__(self, checkpoint, *, episodes, **_):
        self.about = {"checkpoint_step": 7, "sampler_steps": 2, "split": "test", "execute": 8, "horizon": 16,
                      "on_miss": "hold", "checkpoint": str(checkpoint), "episodes": episodes}  # fmt: skip

    def run(self, way, delay, seed):
        if way == "frozen_prefix":
            raise ValueError("trained without prefixes")
        if (way, delay, seed) == ("guided", 4, 1):
            raise KeyboardInterrupt
        RAN.append((way, delay, seed))
        counts = dict.fromkeys(("requests", "answers", "waited", "slowed", "late"), 0)
        return {"successes": 2, "episodes": 3, "mean_steps": 50.0, "counts": {"steps": 100, "missed": 25, **counts},
                "jerk": {"seam": 0.2 * (1 + seed), "inside": 0.1, "seams": 10 * (1 + seed)}}  # fmt: skip


def test_it_resumes_and_pools_seeds(tmp_path, monkeypatch, capsys):
    out = tmp_path / "real_time.json"
    arguments = ["real_time", "--checkpoint", "run", "--delays", "4", "--seeds", "0", "1", "--out", str(out)]
    monkeypatch.setattr(real_time, "Simulation", Fake)
    monkeypatch.setattr(sys, "argv", [*arguments, "--ways", "async", "frozen_prefix", "guided"])
    with pytest.raises(KeyboardInterrupt):
        real_time.main()
    assert RAN == [("async", 4, 0), ("guided", 4, 0), ("async", 4, 1)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--ways", "naive", "async", "frozen_prefix"])
    real_time.main()
    assert RAN[3:] == [("naive", 4, 0), ("naive", 4, 1)]
    printed = capsys.readouterr().out
    assert "frozen_prefix: not possible: trained without prefixes" in printed
    # Seams of both seeds count alike: (10 x 0.2 + 20 x 0.4) / 30.
    assert "| async | 4 | 4/6 [0.30, 0.90] | 50 | 0.333 | 0.1 | 3.33 | 25.0% |" in printed
    assert len(json.loads(out.read_text())["cases"]) == 5
    monkeypatch.setattr(sys, "argv", [*arguments, "--episodes", "7"])
    with pytest.raises(SystemExit, match="of another checkpoint or other settings; choose another --out"):
        real_time.main()
