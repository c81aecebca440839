"""The proof of planning without its trainings: pooling, the room that chance leaves, and what a value knows."""

import argparse

import numpy as np
import pytest

from tools.prove import judgement, planning
from tools.render_readme import render_table


def result(solved, seconds=10.0):
    return {"episodes": {f"reach/{i}": i in solved for i in range(20)}, "seconds": seconds}


def test_rows_pool_seeds_and_are_set_against_the_policy():
    policy = [result(range(10)), result(range(8))]
    row = planning.table_row("policy", policy, policy)
    assert (row["success"]["successes"], row["success"]["episodes"], row["seconds an episode"]) == (18, 40, 0.5)
    room = [planning.any_of([of, result({15, 16, 17})]) for of in policy]
    row = planning.table_row("any_of_4", room, policy)
    assert (row["success"]["successes"], row["only this solved"], row["only policy solved"]) == (24, 6, 0)
    assert row["against policy"]["mean"] == pytest.approx(0.15) and row["seconds an episode"] == 1.0
    few = {"episodes": {f"reach/{i}": i < 2 for i in range(5)}, "seconds": 1.0}
    row = planning.table_row("cem", [few, few], policy)  # on as many layouts as it played
    assert row["against policy"]["mean"] == pytest.approx(2 / 5 - 1)


def test_what_a_value_knows():
    rng = np.random.default_rng(0)
    won = np.arange(40) < 20
    ranks = np.where(won, 1.0, 0.0)[:, None, None] + 0.01 * rng.normal(size=(40, 8, 3))
    found = judgement.described(ranks, won)
    assert found["auc"] == 1 and found["between_moments"] == pytest.approx(0.5, abs=0.01)
    assert found["between_chunks"] < 0.01 < found["between_moments"] and found["between_futures"] < 0.011
    assert judgement.auc(np.array([0.5, 1.0]), np.array([0.5, 2.0])) == pytest.approx(0.375)
    assert np.isnan(judgement.auc(np.array([1.0]), np.array([])))
    asked = argparse.Namespace(seeds=[0, 1], steps=1500, split="test")
    note = planning.note(asked, 2 * [{"moments": 40, "V": found, "Q": found}])
    assert "V ranks moments by how their episodes end with an AUC of 1.00" in note
    assert "AUC of 1.00" in render_table({"rows": [{"how": "policy"}], "note": note})
