"""The latency bench: cases, percentiles, goals, and our side at tiny shapes."""

import importlib.metadata
import importlib.util
import json
import os

import numpy as np
import pytest

from tools.bench import harness, latency
from tools.bench import latency_cases as cases
from tools.bench.latency_cases import Program
from tools.bench.latency_rows import agreement, goal_note, percentiles
from tools.bench.worker import Worker, WorkerError


def test_every_form_of_our_program_gives_the_same_answer(dual):
    _, ours = dual
    main = ours.call("policy, 2 steps")()
    assert main["actions"].shape == (8, 4)
    assert np.abs(main["actions"]).max() > 0.1
    for form in cases.FORMS:
        other = ours.call(f"policy, 2 steps, {form.form}")()
        np.testing.assert_allclose(other["actions"], main["actions"], atol=1e-5, err_msg=form.name)


def test_networks_are_served_in_their_compute_dtype_layer_by_layer():
    import jax
    from flax import nnx

    from tests.helpers import small_config
    from wam.inference import served
    from wam.models.joint_dit import create

    model = nnx.eval_shape(lambda: served(create(small_config(dtype="bfloat16", scan_layers=False))))
    config = model.config
    assert len(model.blocks) == config.depth
    up = model.blocks[0]["video"].up.kernel
    assert (up.shape, up.dtype) == ((config.video_width, config.video_mlp), jax.numpy.bfloat16)
    kept = (model.blocks[0]["video"].q_norm.scale, model.sigma["video"].input.kernel, model.null_text)
    assert {x.dtype.name for x in kept} == {"float32"}


def test_programs_are_called_by_name():
    for program in (*cases.PROGRAMS, *cases.FORMS, *cases.QUICK):
        assert Program.named(program.name) == program


def test_answers_that_differ_are_never_timed():
    actions, pixels = np.ones((8, 4), np.float32), np.full((1, 2, 4, 4, 3), 7, np.uint8)
    said = agreement({"actions": actions, "pixels": pixels}, {"actions": actions, "pixels": pixels + 1}, "float32")
    assert said == "actions differ by 0.0e+00, pixels by 1 of 255"
    for name, change in (("actions", 1e-3), ("actions", np.nan), ("pixels", 2)):
        theirs = {"actions": actions, "pixels": pixels}
        theirs[name] = (theirs[name] + change).astype(theirs[name].dtype)
        with pytest.raises(WorkerError, match=f"{name} differ by .*so nothing was timed"):
            agreement({"actions": actions, "pixels": pixels}, theirs, "float32")
    with pytest.raises(WorkerError, match=r"\['actions'\] here and \[\] in PyTorch"):
        agreement({"actions": actions}, {}, "float32")
    with pytest.raises(WorkerError, match=r"\[8, 4\] here and \[7, 4\]"):
        agreement({"actions": actions}, {"actions": actions[:7]}, "float32")


def test_medians_are_of_blocks_and_tails_of_all_calls_together():
    blocks = [[0.001] * 50, [0.002] * 49 + [0.1]]
    assert percentiles(blocks, 50) == [1.0, 2.0]
    (p95,), (p99,) = (percentiles(blocks, p) for p in (95, 99))
    assert p95 == pytest.approx(2.0)
    assert 2.0 <= p99 < 100.0


def test_goals_are_named_on_the_chip_they_are_for():
    base = next(case for case in cases.GPU if case.size == "base" and case.topology == "shared")
    ten, four = cases.PROGRAMS[:2]
    assert goal_note(base, ten, "NVIDIA H200", 19.0) == "; goal: at most 20 ms a chunk (50 chunks/s), reached"
    assert goal_note(base, ten, "NVIDIA H200", 21.0).endswith("missed")
    assert goal_note(base, four, "NVIDIA H200", 1.0) == goal_note(base, ten, "NVIDIA L4", 1.0) == ""
    assert "reached" in goal_note(cases.DEMO, Program("policy", 2), "cpu", 3.0)


def test_the_demo_is_the_recipes_shape():
    from experiments.configs import demo

    recipe, model = demo.get_config(), cases.DEMO.model("xla")
    for name in ("topology", "video_prediction", "steps_per_token", "target_views", "text_attention", "inverse_width",
                 "inverse_channels", "lead_width", "scan_layers"):  # fmt: skip
        assert recipe.model[name] == getattr(model, name), name
    assert model.video_frames == len(recipe.data.frame_seconds)
    assert (model.views, model.cameras) == (len(recipe.data.views), len(recipe.data.views) + len(recipe.data.wrist))
    assert cases.DEMO.image_size == (recipe.sim.render.size,) * 2
    assert (recipe.tokenizer.patch, recipe.tokenizer.channels) == (cases.DEMO.patch, model.latent_channels)
    assert (recipe.text.tokens, recipe.text.dim) == (cases.DEMO.text_tokens, model.text_dim)
    assert (recipe.data.action_horizon, recipe.evaluate.execute_steps) == (model.action_horizon, cases.DEMO.executed)


@pytest.mark.parametrize("case", [*cases.CPU, *cases.GPU], ids=lambda case: case.name)
def test_every_case_has_a_spec_and_a_thousand_tokens(case):
    from tools.bench.latency_exchange import observation

    spec = json.loads(json.dumps(case.spec("xla", "cpu")))
    model = case.model("xla")
    assert spec["model"]["depth"] == model.depth
    assert case is cases.DEMO or case.context_tokens == 1025
    batch = observation(model, spec)
    assert batch["video"].shape == (1, model.views, 1, *case.image_size, 3)
    assert "value" not in batch


def start(tmp_path):
    (tmp_path / "spec.json").write_text("{}")
    log = tmp_path / "log.txt"
    return Worker("tests.tools.fake_latency", tmp_path / "spec.json", log=log, env=dict(os.environ))


def test_a_side_answers_call_by_call(tmp_path):
    worker = start(tmp_path)
    bench = latency.Bench("cpu", "cpu", tmp_path, quick=True)
    seconds, result, note = bench.first(worker, "policy, 10 steps", tmp_path)
    assert seconds > 0
    assert note == "compiled"
    np.testing.assert_array_equal(result["actions"], np.ones((2, 3)))
    blocks = bench.measure({latency.OURS: worker}, [(latency.OURS, "policy, 10 steps")], "x")
    ((first, second),) = blocks.values()
    assert len(first) == len(second) == latency.QUICK.calls
    limited = worker.ask({"call": "policy, 10 steps", "calls": 100, "seconds": 0.0})["seconds"]
    assert len(limited) == 3  # a slow case ends a block early, and never without a figure
    with pytest.raises(WorkerError, match="KeyError"):
        worker.ask({"call": "nothing", "output": str(tmp_path / "no.npz")})
    worker.stop()


def test_rows_state_percentiles_rates_and_what_did_not_run(tmp_path, monkeypatch):
    # Whether PyTorch is installed or not.
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    worker = start(tmp_path)
    bench = latency.Bench("cpu", "cpu", tmp_path, quick=True)
    missing = {}
    workers = {latency.OURS: worker, latency.EAGER: start(tmp_path)}
    rows = bench.program(cases.DEMO, cases.MAIN, workers, tmp_path, missing)
    worker.stop()
    workers[latency.EAGER].stop()
    by_unit = {}
    for row in rows:
        by_unit.setdefault(row["unit"], []).append(row)
    assert [row["case"].rsplit(": ")[-1] for row in by_unit["ms"]] == ["p50", "p95", "p99"]
    assert all("eager" in row["peer"] and row["ratio"] > 0 for row in by_unit["ms"])
    (chunks,), (actions,) = by_unit["chunks/s"], by_unit["actions/s"]
    assert actions["ours"]["median"] == pytest.approx(8 * chunks["ours"]["median"], rel=1e-4)
    assert harness.ratio("chunks/s", {"median": 2.0}, {"median": 1.0}) == 2.0


def test_bad_flags_end_in_a_sentence():
    with pytest.raises(SystemExit, match="no case holds"):
        latency.main(["--device=cpu", "--only", "gigantic"])
