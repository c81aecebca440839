"""The chunk executor: what is executed when, counted exactly; the clock is simulated and nobody sleeps."""

import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.serving.toy import HORIZON, HZ, TwoWays, drive
from wam.evaluation.real_time import seam_jerk
from wam.serving.background import ThreadInference
from wam.serving.ensembling import average
from wam.serving.executor import FALLBACK, ChunkExecutor, ExecutorConfig
from wam.serving.limits import Limits

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Numbered:
    """Answers chunk r (from 1) with the actions 100 r + k: every executed number says where it comes from."""

    def __init__(self):
        self.count = 0

    def __call__(self, request):
        self.count += 1
        return 100.0 * self.count + np.arange(HORIZON)[:, None]


def numbered(delay, steps, **options):
    actions, sources, executor, requests = drive(Numbered(), delay, steps, rest=(0.0,), **options)
    return actions[:, 0].tolist(), sources, executor.report(), requests


def span(chunk, start, stop):
    return [100.0 * chunk + k for k in range(start, stop)]


def test_an_answer_takes_over_at_the_action_that_is_due():
    actions, sources, report, requests = numbered(4, 32, strategy="async")
    # Asked at 0 and waited for, then asked after every 8 actions; its first 4 are past when a chunk takes over.
    assert actions == [0.0] * 4 + span(1, 0, 12) + span(2, 4, 12) + span(3, 4, 12)
    assert [step for step, _ in requests] == [0, 12, 20, 28]
    assert sources.tolist() == [FALLBACK] * 4 + [1] * 12 + [2] * 8 + [3] * 8
    expected = {"steps": 32, "requests": 4, "answers": 3, "waited": 4, "missed": 0, "late": 0, "slowed": 0}
    assert {name: report[name] for name in expected} == expected
    assert report["latency"] == {"p50": 4 / HZ, "p95": 4 / HZ, "max": 4 / HZ}


def test_without_latency_no_step_waits():
    for strategy in ("naive", "async"):
        actions, _, report, _ = numbered(0, 24, strategy=strategy)
        assert actions == span(1, 0, 8) + span(2, 0, 8) + span(3, 0, 8)
        assert report["waited"] == report["missed"] == 0


def test_naive_stops_and_waits():
    actions, _, report, _ = numbered(4, 28, strategy="naive")
    assert actions == [0.0] * 4 + span(1, 0, 8) + [0.0] * 4 + span(2, 0, 8) + [0.0] * 4
    assert (report["waited"], report["missed"]) == (4, 8)


@pytest.mark.parametrize("policy", ["hold", "repeat"])
def test_misses_are_counted_and_follow_the_policy(policy):
    """Latency 12 of a chunk of 16: 8 actions are left when a chunk is asked for. Time goes on only where they do."""
    actions, sources, report, requests = numbered(12, 60, strategy="async", on_miss=policy)
    assert [step for step, _ in requests] == [0, 20, 32, 44, 56]
    if policy == "hold":
        executed = span(1, 0, 16) + [0.0] * 4 + span(2, 8, 16) + [0.0] * 4 + span(3, 8, 16) + [0.0] * 4 + span(4, 8, 12)
    else:
        executed = span(1, 0, 16) + [115.0] * 4 + span(2, 12, 16) + [215.0] * 8 + span(3, 12, 16) + [315.0] * 8
        executed += span(4, 12, 16)
    assert actions == [0.0] * 12 + executed
    assert (report["waited"], report["missed"], report["answers"]) == (12, 12 if policy == "hold" else 20, 4)
    assert (sources[28:32] == FALLBACK).all()


def test_holding_keeps_what_is_absolute():
    actions, *_ = numbered(12, 32, strategy="async", delta=False)
    assert actions[28:] == [115.0] * 4


def test_slowing_down_stretches_what_is_left():
    ones, _, executor, requests = drive(lambda _: np.ones((HORIZON, 1)), 12, 57, rest=(0.0,), strategy="async",
                                        on_miss="slow_down")  # fmt: skip
    assert [step for step, _ in requests] == [0, 20, 32, 44, 56]
    # 8 increments are left when a chunk is asked for; they take the 12 steps until it is there.
    np.testing.assert_allclose(ones[12:20], 1.0)
    np.testing.assert_allclose(ones[20:56], 8 / 12, rtol=1e-5)
    report = executor.report()
    assert (report["slowed"], report["missed"]) == (36 + 1, 12)
    # Absolute dimensions pass the same places, later; whole steps again when the answer takes over at its 8th action.
    ramp = np.arange(HORIZON, dtype=float)[:, None]
    places, *_ = drive(lambda _: ramp, 12, 36, rest=(0.0,), delta=False, strategy="async", on_miss="slow_down")
    np.testing.assert_allclose(places[20:32, 0], 7 + np.arange(1, 13) * 8 / 12, rtol=1e-5)
    np.testing.assert_allclose(places[32, 0], 7 + 8 / 12, rtol=1e-5)


@pytest.mark.parametrize("on_miss", ["hold", "repeat"])
@pytest.mark.parametrize("delay", [0, 3, 4, 7, 12])
def test_what_is_said_to_be_frozen_is_what_is_sent(delay, on_miss):
    """Also where the largest change bends it and where the plan ends before the answer comes."""
    rng = np.random.default_rng(delay)

    def keeps_its_prefix(request):
        chunk = rng.uniform(-1, 1, (HORIZON, 2))
        chunk[: request.frozen] = request.planned[: request.frozen]
        return chunk

    actions, _, executor, requests = drive(
        keeps_its_prefix, delay, 80, Limits.of(2, -0.8, 0.8, 0.5), strategy="frozen_prefix", steps_per_token=4,
        on_miss=on_miss,
    )  # fmt: skip
    report = executor.report()
    assert min(report["clipped"]) > 0
    assert min(report["rate_limited"]) > 0
    assert report["late"] == 0
    told = [(step, r) for step, r in requests if step > delay and step + r.frozen <= 80]
    assert len(told) >= 4
    for step, request in told:
        assert request.frozen == min(4 * -(-delay // 4), 8 if on_miss == "hold" else 12)
        np.testing.assert_array_equal(request.planned[: request.frozen], actions[step : step + request.frozen])


def test_a_longer_latency_than_expected_is_late_and_then_expected():
    seen = []

    def infer(request):
        seen.append(request.frozen)
        return TwoWays()(request)

    _, _, executor, _ = drive(infer, 6, 60, strategy="frozen_prefix", longest_prefix=4, steps_per_token=4)
    assert seen[1:] == [4] * (len(seen) - 1)
    assert executor.report()["late"] == len(seen) - 2  # all but the first, and the one that is on its way
    seen.clear()
    _, _, executor, _ = drive(infer, 6, 60, strategy="guided", latency=1.0)
    assert seen[1:] == [6] * (len(seen) - 1), "measured, not the first guess; guidance needs no whole tokens"
    assert executor.report()["late"] == 0


def test_a_frozen_prefix_has_smoother_seams_than_a_stale_chunk():
    jerk = {}
    for strategy in ("async", "frozen_prefix"):
        actions, sources, executor, _ = drive(TwoWays(), 4, 400, strategy=strategy, steps_per_token=4)
        seam, inside = seam_jerk(actions[4:], sources[4:])
        assert len(seam) >= 80
        jerk[strategy] = seam.mean()
        assert executor.report()["missed"] == 0
        assert inside.mean() < 0.01
    assert jerk["frozen_prefix"] < 0.1 * jerk["async"]


def test_ensembling_averages_the_chunks_that_cover_a_step():
    np.testing.assert_allclose(average(np.array([[1.0], [2.0], [4.0]]), 0.0), [7 / 3])
    weights = np.exp(-0.5 * np.arange(2))
    actions, _, report, _ = numbered(4, 20, strategy="async", ensemble=0.5)
    assert actions[:16] == [0.0] * 4 + span(1, 0, 12)
    old, new = span(1, 12, 16), span(2, 4, 8)
    np.testing.assert_allclose(actions[16:], weights @ np.array([old, new]) / weights.sum(), rtol=1e-6)
    assert report["missed"] == 0


# ----------------------------------------------------------------------------- stops and threads


def test_a_wrong_answer_stops_until_cleared():
    for bad, reason in (
        (np.full((HORIZON, 1), np.nan), "inference answered actions that are not finite"),
        (np.zeros((HORIZON, 2)), r"inference answered \[16, 2\] actions, expected \[16, 1\]"),
        (ValueError("no camera"), "inference failed: ValueError: no camera"),
    ):
        answers = iter([np.ones((HORIZON, 1)), bad, np.full((HORIZON, 1), 2.0)])

        def infer(_, answers=answers):
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        actions, _, executor, requests = drive(infer, 2, 20, rest=(0.0,), strategy="async")
        assert actions[:, 0].tolist() == [0.0] * 2 + [1.0] * 10 + [0.0] * 8
        assert [step for step, _ in requests] == [0, 10]
        with pytest.raises(AssertionError, match=reason):
            assert executor.stopped is None, executor.stopped
        assert executor.report()["stopped"] == executor.stopped
        executor.stop("later")
        assert "later" not in executor.stopped
        executor.clear()
        assert executor.stopped is None
        executor.inference._latency = lambda: 0.0
        assert executor.step(None) == [2.0], "a fresh chunk, from its beginning"


def spin(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0)


def test_a_thread_computes_while_steps_go_on_and_outlives_an_exception():
    gate, seen = threading.Semaphore(0), []

    def infer(request):
        gate.acquire()
        seen.append((request.observation, threading.current_thread().name))
        if request.observation == 2:
            raise RuntimeError("out of memory")
        return np.full((4, 1), float(request.observation))

    inference = ThreadInference(infer)
    executor = ChunkExecutor(inference, ExecutorConfig(control_hz=HZ, horizon=4, execute=2, strategy="async"),
                             Limits.of(1), [0.0], [True])  # fmt: skip
    assert [executor.step(1).item() for _ in range(50)] == [0.0] * 50  # blocked, and no step waits for it
    assert executor.report()["waited"] == 50
    gate.release()
    spin(lambda: not executor.due() and executor._chunks)
    assert executor.step(0) == [1.0]
    assert executor.step(0) == [1.0]
    assert executor.step(2) == [1.0]  # asks
    gate.release()
    spin(lambda: executor.due() or executor.stopped)
    assert executor.stopped == "inference failed: RuntimeError: out of memory"
    assert executor.step(0) == [0.0]
    executor.clear()
    executor.step(3)
    executor.stop("emergency button")  # while an answer is on its way
    executor.clear()
    gate.release()
    spin(lambda: executor.due())
    executor.step(4)
    gate.release()
    spin(lambda: not executor.due() and executor._chunks)
    assert executor.step(0) == [4.0], "what was asked for before a stop is dropped"
    assert [s for s, _ in seen] == [1, 2, 3, 4]
    assert {name for _, name in seen} == {"inference"}
    executor.close()


def test_bad_configurations_are_named():
    for options, reason in (
        ({"strategy": "hope"}, "executor.strategy is 'hope'; choose from naive, async, frozen_prefix, guided"),
        ({"on_miss": "panic"}, "executor.on_miss is 'panic'; choose from repeat, hold, slow_down"),
        ({"execute": 17}, "executor.execute is 17; a chunk holds 16 actions"),
        ({"steps_per_token": 3}, "executor.steps_per_token 3 does not divide horizon 16"),
        ({"quantile": 90}, "quantile within"),
    ):
        with pytest.raises(ValueError, match=reason):
            ExecutorConfig(**{"control_hz": HZ, "horizon": HORIZON, **options})


def test_a_robot_needs_numpy_alone():
    code = "import sys, wam.serving.executor; sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
