"""The benchmarks' harness: format, direction of ratios, order of blocks, provenance, and README from the results."""

import json
import os

import pytest

from tools.bench import cases, harness, render, train
from tools.bench.worker import Worker, WorkerError

RESULT = {"name": "train", "command": "python -m tools.bench.train", "chip": "cpu", "cores": 2,
          "versions": {"processor": "A", "python": "3.11"}, "git": "abc", "date": "2026-01-01"}  # fmt: skip


def test_a_row_has_the_format_and_drops_the_peer_without_one():
    row = harness.row("a case", "ms", [3.0, 1.0, 2.0], peer="PyTorch 2", theirs=[4.0, 4.0], note="why")
    assert row == {
        "case": "a case",
        "unit": "ms",
        "ours": {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3},
        "peer": "PyTorch 2",
        "theirs": {"median": 4.0, "min": 4.0, "max": 4.0, "n": 2},
        "ratio": 2.0,
        "note": "why",
    }
    assert set(harness.row("a case", "ms", [1.0])) == {"case", "unit", "ours", "note"}


@pytest.mark.parametrize(("unit", "ours", "theirs", "ratio"), [
    ("ms", 1.0, 2.0, 2.0), ("MiB", 4.0, 2.0, 0.5), ("TFLOP/s", 4.0, 2.0, 2.0), ("% of the datasheet", 20.0, 40.0, 0.5),
])  # fmt: skip
def test_above_one_means_that_ours_is_better(unit, ours, theirs, ratio):
    assert harness.row("c", unit, [ours], peer="p", theirs=[theirs])["ratio"] == ratio


def test_a_unit_without_a_direction_and_an_empty_spread_are_refused():
    with pytest.raises(ValueError, match="unit 'parsec' has no direction"):
        harness.row("c", "parsec", [1.0])
    with pytest.raises(ValueError, match="at least one measured value"):
        harness.row("c", "ms", [])


def test_blocks_alternate_so_that_a_steady_drift_cancels():
    order = harness.palindromes(["a", "b", "c"], 2)
    assert order == ["a", "b", "c", "c", "b", "a"] * 2
    drifting = {side: sum(i for i, name in enumerate(order) if name == side) for side in "abc"}
    assert len(set(drifting.values())) == 1


def test_results_go_to_one_file_a_chip_with_all_fields_and_are_not_mixed(tmp_path):
    rows = [harness.row("x", "ms", [1.0])]
    path = harness.write(RESULT, rows, folder=tmp_path)
    assert path == tmp_path / "train-cpu.json"
    assert tuple(json.loads(path.read_text())) == harness.FIELDS
    harness.write(RESULT | {"git": "later"}, rows, folder=tmp_path)  # the same machine measures again
    assert json.loads(path.read_text())["git"] == "later"
    before = path.read_text()
    for other in ({"cores": 64}, {"versions": {"processor": "B"}}):
        with pytest.raises(ValueError, match=r"holds figures of A \(2 cores\).*another --out"):
            harness.write(RESULT | other, rows, folder=tmp_path)
    assert path.read_text() == before


def test_appending_keeps_other_cases_of_the_same_code_alone(tmp_path):
    harness.write(RESULT, [harness.row(c, "ms", [1.0]) for c in ("x", "y")], folder=tmp_path)
    path = harness.write(RESULT, [harness.row("y", "ms", [2.0])], folder=tmp_path, append=True)
    rows = json.loads(path.read_text())["rows"]
    assert [(r["case"], r["ours"]["median"]) for r in rows] == [("x", 1.0), ("y", 2.0)]
    with pytest.raises(ValueError, match="measured with another git"):
        harness.write(RESULT | {"git": "later"}, rows, folder=tmp_path, append=True)


def test_provenance_names_machine_and_versions():
    result = harness.provenance("train", "the command", "NVIDIA H100 80GB HBM3")
    assert result["chip"] == "h100-80gb-hbm3"
    assert result["versions"].keys() >= {"processor", "python", "jax", "numpy"}
    assert result["cores"] >= 1
    assert harness.provenance("train", "the command", "cpu")["chip"] == "cpu"


def test_the_readme_is_the_rendering_of_the_results():
    text = render.README.read_text()
    assert render.render(text) == text, "run python -m tools.bench.render"


def test_rendering_shows_losing_rows_and_numbers_notes(tmp_path):
    rows = [
        harness.row("win", "ms", [1.0], peer="PyTorch 2", theirs=[2.0], note="one"),
        harness.row("loss", "ms", [4.0, 2.0, 6.0], peer="PyTorch 2", theirs=[2.0], note="two"),
        harness.row("alone", "s", [1.0], note="one"),
    ]
    harness.write(RESULT, rows, folder=tmp_path)
    page = render.render("words\n" + render.MARKER + "old", tmp_path)
    assert "old" not in page
    assert "| loss | ms | 4 (2 to 6) | PyTorch 2 | 2 (2 to 2) | 0.5 | (2) |" in page
    assert "| alone | s | 1 (1 to 1) |  |  |  | (1) |" in page
    assert page.endswith("1. one\n2. two\n")
    assert render.render(page, tmp_path) == page


@pytest.mark.parametrize(("change", "said"), [
    ({"chip": "gpu"}, "train-cpu.json: it holds train of gpu"), ({"extra": 1}, "train-cpu.json: its fields are"),
    ({"rows": []}, "train-cpu.json: it has no rows"), ({"rows": [{"speed": 1}]}, "unknown fields"),
])  # fmt: skip
def test_a_bad_results_file_is_named(tmp_path, change, said):
    good = RESULT | {"rows": [harness.row("x", "ms", [1.0])]}
    (tmp_path / "train-cpu.json").write_text(json.dumps(good | change))
    with pytest.raises(ValueError, match=said):
        render.render(render.MARKER, tmp_path)


@pytest.mark.parametrize("case", [*cases.CPU, *cases.GPU], ids=lambda case: case.name)
def test_every_case_builds_its_network_and_batch(case):
    from tools.bench.exchange import latent_batch

    model = case.model("xla")
    assert case.tokens == model.patches * model.latent_frames
    assert json.loads(json.dumps(case.spec("xla", "cpu")))["model"]["depth"] == model.depth
    small = latent_batch(model, cases.TEXT_TOKENS, 1)
    assert small["latents"].shape == (1, 1, case.frames, model.patches, model.latent_channels)
    assert "video" not in small  # no pixels, so no tokenizer runs


def test_sides_that_disagree_are_never_timed():
    step = {"loss": 1.0, "video": 0.5, "grad_norm": 10.0}
    said = train.check_equal([step, step], [step, step | {"loss": 1.000001, "grad_norm": 10.0005}], "float32")
    assert "2 steps agree to 1.0e-06, gradient norms to 5.0e-05" in said
    with pytest.raises(WorkerError, match=r"video of step 1 is 0\.5 here and 0\.50001 in PyTorch"):
        train.check_equal([step, step], [step, step | {"video": 0.50001}], "float32")
    with pytest.raises(WorkerError, match="grad_norm of step 0 is 10 here"):
        train.check_equal([step], [step | {"grad_norm": 10.005}], "float32")
    with pytest.raises(WorkerError, match="nan in PyTorch"):
        train.check_equal([step], [step | {"loss": float("nan")}], "float32")


def test_dry_run_names_every_case_and_bad_flags_end_in_a_sentence(capsys):
    train.main(["--device=cuda", "--dry_run"])
    out = capsys.readouterr().out
    assert all(case.name in out for case in cases.GPU)
    with pytest.raises(SystemExit, match="no case holds"):
        train.main(["--device=cpu", "--only", "gigantic", "--dry_run"])


def start_fake_side(tmp_path, **spec):
    (tmp_path / "spec.json").write_text(json.dumps({"checked_steps": 3, **spec}))
    return Worker("tests.tools.fake_side", tmp_path / "spec.json", log=tmp_path / "log.txt", env=dict(os.environ))


def test_a_side_answers_from_its_own_process(tmp_path):
    worker = start_fake_side(tmp_path)
    block = worker.block(steps=5, matmul=7)
    worker.stop()
    assert [metrics["loss"] for metrics in worker.metrics] == [1.0, 2.0, 3.0]
    assert worker.note == "nothing happens here"
    assert worker.first_step > 0
    assert block["ceiling"] == 7.0
    assert 2**20 < block["peak"] < 2**33  # resident bytes of a Python process
    assert worker.process.returncode == 0
    assert "a library says hello" in (tmp_path / "log.txt").read_text()  # and it did not garble the answers


def test_a_side_that_cannot_start_says_why(tmp_path):
    with pytest.raises(WorkerError, match="No module named 'no_such_package'"):
        start_fake_side(tmp_path, lacks="no_such_package")
    with pytest.raises(WorkerError, match=r"ended with status 1: .*No module named tests\.tools\.nobody"):
        Worker("tests.tools.nobody", tmp_path / "spec.json", log=tmp_path / "other.txt", env=dict(os.environ))


def test_a_busy_machine_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (64.0, 0.0, 0.0))
    monkeypatch.setattr(harness, "cores", lambda: 2)
    with pytest.raises(SystemExit, match=r"busy \(load 64\.0 on 2 cores\)"):
        train.main(["--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_quick_compiles_the_peer_of_one_case_alone():
    compiled = [case for case in cases.CPU for side in train.peers_of(case, True) if side.compile]
    assert compiled == [case for case in cases.CPU if case.quick]
    assert len(compiled) == 1
    assert all(len(train.peers_of(case, False)) == 2 for case in cases.CPU)
