"""Shares: exact for any weights, in every prefix, at any place."""

import collections

import numpy as np
import pytest

from data_pipelines.differences import differences
from data_pipelines.shares import Shares

RNG = np.random.default_rng(0)
MIXES = [
    {"one": 0.3},
    {"a": 0.5, "b": 0.5},
    {"a": 0.75, "b": 0.25},
    {"a": 0.9, "b": 0.1},
    {"small": 0.001, "a": 0.6, "b": 0.399},
    {"tiny": 1e-9, "big": 1e9, "middle": 1.0},
    dict(zip("abcdefghij", [1.0] * 10, strict=True)),
    *({f"s{i}": float(w) for i, w in enumerate(RNG.lognormal(0, 2, n))} for n in (2, 3, 5, 12, 40)),
]


@pytest.mark.parametrize("weights", MIXES, ids=len)
def test_every_prefix_has_the_shares_and_every_item_follows_from_the_counts(weights):
    shares, total = Shares.of(weights), sum(weights.values())
    seen: collections.Counter[str] = collections.Counter()
    for k in range(3000):
        assert shares.counts(k) == {name: seen[name] for name in shares.names}
        for name, weight in weights.items():
            assert -max(shares.slack, 1e-6) < seen[name] - k * weight / total < 1
        name, before = shares[k]
        assert before == seen[name]
        seen[name] += 1


@pytest.mark.parametrize("weights", MIXES, ids=len)
def test_shares_are_within_a_thousandth_from_the_stated_length_on(weights):
    shares, total = Shares.of(weights), sum(weights.values())
    start = int(1000 * shares.slack) + 1
    for k in [*range(start, start + 200), *RNG.integers(start, 10**6, 200).tolist(), 10**15]:
        for name, count in shares.counts(k).items():
            assert abs(count / k - weights[name] / total) < 1e-3
            assert shares.asked[name] == pytest.approx(weights[name] / total, rel=1e-12)


def test_far_away_it_is_as_exact_as_near():
    shares = Shares.of({"small": 0.001, "a": 0.6, "b": 0.399})
    assert shares.parts == (600, 399, 1) and shares.names == ("a", "b", "small")
    for k in (10**6, 10**15):
        assert shares.counts(k) == {"a": k * 6 // 10, "b": k * 399 // 1000, "small": k // 1000}
        assert [shares[k + i] for i in range(0, 1000, 250)] == [
            (name, before + shares.counts(k)[name]) for name, before in (shares[i] for i in range(0, 1000, 250))
        ]


def test_weights_are_taken_as_written_whatever_their_scale_and_order():
    assert Shares.of({"a": 0.9, "b": 0.1}) == Shares.of({"b": 1, "a": 9}) == Shares(("a", "b"), (9, 1))
    assert Shares.of({"a": 0.9, "b": 0.1}) != Shares.of({"a": 0.9, "b": 0.1000001})


def test_differences_name_the_fields():
    before = {"data": {"weights": {"a": 1}, "views": ["x", "y"]}, "seed": 0, "text": "abc", "hash": "0123456789" * 6}
    assert differences(before, {**before}) == ""
    assert differences(before, {**before, "seed": 1}) == "seed: 0 -> 1"
    now = {"data": {"weights": {"b": 1}, "views": ["x", "z"]}, "seed": 0, "text": "abc", "hash": "f" * 60}
    assert differences(before, now) == (
        "data.weights.a: 1 -> absent; data.weights.b: absent -> 1; data.views[1]: 'y' -> 'z'; and 1 more"
    )
    assert differences({"h": before["hash"]}, {"h": now["hash"]}) == "h: 01234567... -> ffffffff..."
    assert differences({"x": [1, 2]}, {"x": [1]}) == "x: [1, 2] -> [1]"
