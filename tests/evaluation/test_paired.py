"""Paired comparisons: intervals that pairs make narrower, and what is refused."""

import numpy as np
import pytest

from wam.evaluation.baselines import wilson_interval
from wam.evaluation.closed_loop import Episode, summarize
from wam.evaluation.paired import compare, paired_difference


def test_pairs_know_a_difference_that_rates_do_not():
    """100 layouts, half of them hopeless; on the others the first is a little better."""
    first = np.arange(100) < 50
    second = np.arange(100) < 42
    out = paired_difference(first, second)
    assert (out["difference"], out["only_first"], out["only_second"], out["episodes"]) == (0.08, 8, 0, 100)
    assert wilson_interval(50, 100)[0] < wilson_interval(42, 100)[1], "the rates' intervals overlap"
    assert 0 < out["ci95"][0] < 0.08 < out["ci95"][1]
    assert out["p"] == pytest.approx(2 / 2**8)
    back = paired_difference(second, first)
    assert back["difference"] == -0.08 and back["p"] == out["p"] and back["ci95"][1] < 0
    assert paired_difference(first, first) == {
        "difference": 0.0, "ci95": [0.0, 0.0], "only_first": 0, "only_second": 0, "episodes": 100, "p": 1.0
    }  # fmt: skip


def test_seeds_of_a_layout_stay_together():
    """Three copies of the same outcomes are no more evidence than one; the interval says so."""
    first, second = np.arange(60) % 3 > 0, np.arange(60) % 4 > 0
    one, three = paired_difference(first, second), paired_difference([first] * 3, [second] * 3)
    assert three["episodes"] == 180 and three["difference"] == pytest.approx(one["difference"])
    assert three["ci95"] == one["ci95"]


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        level = rng.uniform(size=80)
        first, second = level + 0.05 * rng.normal(size=80) < 0.7, level + 0.05 * rng.normal(size=80) < 0.6
        low, high = paired_difference(first, second)["ci95"]
        hits += low <= 0.1 <= high
    assert 52 <= hits <= 60


def test_summaries_are_compared_layout_by_layout():
    def summary(won):
        return summarize([Episode(task, i, i in won, 5) for task in "ab" for i in (2, 0, 1)])  # in any order

    policy, joint = summary({0, 2}), summary({0})
    assert policy["tasks"]["a"]["outcomes"] == [1, 0, 1]
    out = compare(joint, policy)
    assert (out["difference"], out["only_first"], out["only_second"]) == (pytest.approx(-1 / 3), 0, 2)
    del policy["tasks"]["a"]["outcomes"]
    assert compare(joint, policy) is None, "an older metrics.json"
    with pytest.raises(ValueError, match="needs the same layouts"):
        compare(joint, summarize([Episode("a", 0, True, 5)]))
    with pytest.raises(ValueError, match=r"the same episodes on both sides, got \(2,\) and \(3,\)"):
        paired_difference([1, 0], [1, 0, 1])
