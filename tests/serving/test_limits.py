"""Limits: what may leave, what is counted, and stops that stay."""

import numpy as np
import pytest

from wam.serving.limits import Gate, Limits


def test_bounds_and_largest_change_hold_whatever_comes():
    rng = np.random.default_rng(0)
    limits = Limits.of(3, [-1, -2, -np.inf], [1, 2, np.inf], [0.1, np.inf, 0.5])
    gate = Gate(limits, np.zeros(3), [True, False, False])
    last = np.zeros(3, np.float32)
    for action in rng.normal(0, 4, (300, 3)):
        sent = gate.send(action)
        assert sent.dtype == np.float32
        assert (sent >= limits.low).all()
        assert (sent <= limits.high).all()
        assert (np.abs(sent - last) <= limits.max_change + 1e-6).all()
        last = sent
    assert (gate.clipped[:2] > 100).all()
    assert gate.clipped[2] == gate.slowed[1] == 0
    assert min(gate.slowed[0], gate.slowed[2]) > 100
    for _ in range(300):
        assert gate.send(np.array([0.5, 1.5, 3.0]))[1] == 1.5
    np.testing.assert_array_equal(gate.last, np.float32([0.5, 1.5, 3.0]))  # reached, and exactly


def test_what_is_not_finite_never_leaves_and_stops():
    for bad in (np.nan, np.inf, -np.inf):
        gate = Gate(Limits.of(2, max_change=0.5), [0.0, 0.0], [True, False])
        np.testing.assert_array_equal(gate.send(np.array([0.4, 0.4])), np.float32([0.4, 0.4]))
        # The increment ends at once, whatever the largest change; the absolute dimension stays where it is.
        np.testing.assert_array_equal(gate.send(np.array([0.3, bad])), np.float32([0.0, 0.4]))
        assert gate.stopped is not None
        assert gate.stopped.startswith("an action is not finite: [0.3")
        np.testing.assert_array_equal(gate.send(np.array([0.3, 0.3])), np.float32([0.0, 0.4]))
        gate.clear()
        np.testing.assert_array_equal(gate.send(np.array([0.3, 0.3])), np.float32([0.3, 0.3]))


def test_bad_limits_are_named():
    for arguments, reason in (
        (([0, 0], [1], [1, 1]), "vectors of one length"),
        (([0, 2], [1, 1], [1, 1]), "low must not be above high"),
        (([0, np.nan], [1, 1], [1, 1]), "low must not be above high"),
        (([0, 0], [1, 1], [1, 0]), "max_change must be positive"),
    ):
        with pytest.raises(ValueError, match=reason):
            Limits(*map(np.asarray, arguments))
    with pytest.raises(ValueError, match="rest: expected an action within the limits"):
        Gate(Limits.of(1, 0, 1), [2.0], [False])
    with pytest.raises(ValueError, match="delta: expected 2 values"):
        Gate(Limits.of(2), [0.0, 0.0], [True])
