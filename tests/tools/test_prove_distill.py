"""The proof of distillation without its trainings: pooling, pairing, verdicts, and cells that are not made twice."""

import pytest

from tools.prove import distill
from tools.render_readme import render_table
from wam.evaluation.closed_loop import Episode, summarize


def summary(won):
    return summarize([Episode("reach", i, i < won, 9) for i in range(40)])


def cells(student):
    return {
        (system, n, mode): [summary(student if system != "teacher" else 30)] * 2
        for system, steps in distill.SYSTEMS.items()
        for n in steps
        for mode in distill.MODES
    }


def ends(student):
    return {"policy": {"action": {"teacher-1": 0.2, "teacher-2": 0.1, "one-1": student, "two-2": student / 2}}}


def test_rows_pool_seeds_and_pair_layouts():
    rows = distill.table(cells(34))
    assert len(rows) == (3 + 1 + 1) * len(distill.MODES)
    one = next(row for row in rows if (row["system"], row["mode"]) == ("one", "joint"))
    assert (one["successes"], one["episodes"], one["by_seed"]) == (68, 80, [0.85, 0.85])
    gap = one["minus_teacher_1"]
    assert gap["difference"] == pytest.approx(0.1) and gap["only_first"] == 8 and gap["ci95"][0] > 0
    assert "minus_teacher_1" not in rows[0]
    assert distill.verdicts(rows, [ends(0.15)]) == []
    text = render_table({"rows": distill.shown(rows)})
    assert "| joint | student | 1 | 68/80 [0.76, 0.91] | 0.1 [" in text and "| policy | teacher | 5 | 60/80 [" in text


def test_worse_students_are_named():
    wrong = distill.verdicts(distill.table(cells(20)), [ends(0.15)])
    assert len(wrong) == 4 and wrong[0].startswith("student one, policy mode: -0.250, 95 % [-0.")
    wrong = distill.verdicts(distill.table(cells(30)), [ends(0.15), ends(0.25)])
    assert wrong == [
        "student one, policy mode: its action ends 0.25 away, the teacher's 0.2",
        "student two, policy mode: its action ends 0.125 away, the teacher's 0.1",
    ]


def test_a_cell_is_made_once_and_never_taken_for_another(tmp_path):
    made = []
    path = tmp_path / "cells" / "one.json"

    def make():
        made.append(1)
        return {"x": len(made)}

    assert distill.cell(path, make, {"seed": 0}) == distill.cell(path, make, {"seed": 0}) == {"x": 1}
    with pytest.raises(ValueError, match="is of other settings"):
        distill.cell(path, make, {"seed": 1})
