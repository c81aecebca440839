"""The real commands on real (tiny) data: resume bit for bit, refuse what does not fit."""

import json
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.experiments.commands import run

pytestmark = pytest.mark.requires_sim


def restored(workdir: pathlib.Path, step: int) -> dict:
    """All items of a checkpoint as host arrays."""
    handlers = {"params": ocp.StandardCheckpointHandler(), "train_state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(), "assets": ocp.JsonCheckpointHandler()}  # fmt: skip
    options = ocp.CheckpointManagerOptions(read_only=True)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.CheckpointManager(workdir / "checkpoints", options=options, item_handlers=handlers) as manager:
        out = {"data": manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]}
        for item in ("params", "train_state"):
            metadata = manager.item_metadata(step)[item]
            like = jax.tree.map(
                lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here), getattr(metadata, "tree", metadata)
            )
            out[item] = manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(like)}))[item]
    return out


def test_resume_equals_the_uninterrupted_run_bit_for_bit(debug_run, tmp_path):
    """Killed after the checkpoint at step 10 and started again: same parameters, moments, EMA, and next batch."""
    again = tmp_path / "again"
    shutil.copytree(debug_run, again, symlinks=True)
    shutil.rmtree(again / "checkpoints" / "20")
    result = run("train", "--config=experiments/configs/debug.py", f"--workdir={again}", "--noprogress",
                 f"--config.data.root={debug_run / 'data'}")  # fmt: skip
    assert "resuming at step 10 of 20" in result.stdout
    first, second = restored(debug_run, 20), restored(again, 20)
    assert first["data"] == second["data"]
    assert first["data"]["grain"] == {"next_index": 20}
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = [[json.loads(line) for line in (w / "metrics.jsonl").read_text().splitlines()] for w in (debug_run, again)]
    volatile = ("seconds", "step_ms", "data_wait_share")
    stable = [[{k: v for k, v in row.items() if k not in volatile} for row in of] for of in rows]
    assert stable[0] == stable[1]
    assert [row["step"] for row in stable[0] if row["split"] == "train"] == [5, 10, 15, 20]


def test_a_finished_run_is_reused(debug_run):
    before = (debug_run / "metrics.jsonl").read_text()
    result = run("train", "--config=experiments/configs/debug.py", f"--workdir={debug_run}", "--noprogress",
                 f"--config.data.root={debug_run / 'data'}")  # fmt: skip
    assert "resuming at step 20 of 20" in result.stdout
    assert (debug_run / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.stps=3"], "there is no config key 'config.train.stps'; did you mean 'config.train.steps'?"),
        (["--config.train.steps=many"], "many"),
        (["--config.data.weights.expert=0"], "weights must be positive"),
        (["--config.model.attention=flash"], "model.attention is 'flash'; choose from xla, chunked, cudnn"),
        (["--config.data.root=/nowhere"], "collect them with python -m experiments.collect"),
        (["--config.train.seed=5"], "holds a run with another config (config.train.seed: 0 there, 5 here)"),
        (["--config.mesh.fsdp=3"], "mesh.fsdp = 3 does not divide the 1 devices"),
    ],
)
def test_bad_settings_get_one_sentence(debug_run, tmp_path, arguments, message):
    other = ["--config.data.root=" + str(debug_run / "data")] if "root" not in arguments[0] else []
    workdir = debug_run if "seed" in arguments[0] else tmp_path / "run"
    result = run("train", "--config=experiments/configs/debug.py", f"--workdir={workdir}", "--noprogress", *other,
                 *arguments, check=False)  # fmt: skip
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "checkpoints").exists() or not list((tmp_path / "run" / "checkpoints").iterdir())


def test_other_data_than_the_fitted_assets_is_refused(debug_run, tmp_path):
    """Statistics and tokenizer of one dataset never meet another."""
    run_dir = tmp_path / "run"
    shutil.copytree(debug_run, run_dir, symlinks=True, ignore=shutil.ignore_patterns("checkpoints", "config.json"))
    facts = json.loads((run_dir / "fitted.json").read_text())
    facts["hashes"]["play"] = "0" * 64
    (run_dir / "fitted.json").write_text(json.dumps(facts))
    result = run("train", "--config=experiments/configs/debug.py", f"--workdir={run_dir}", "--noprogress",
                 f"--config.data.root={debug_run / 'data'}", check=False)  # fmt: skip
    assert result.returncode != 0
    assert "were fitted on another 'play' store (00000000" in result.stderr


def test_evaluation_writes_metrics(debug_run):
    result = run("evaluate", f"--checkpoint={debug_run}", "--report", "--split=validation", "--workers=1")
    assert "wrote" in result.stdout
    metrics = json.loads((debug_run / "metrics.json").read_text())
    for name in ("policy", "joint", "random", "blind_replay", "swapped_instruction"):
        row = metrics["closed_loop"][name]
        assert {"success", "successes", "episodes", "ci95", "tasks"} <= set(row)
        assert row["episodes"] == 4
    for kind in ("play", "expert"):
        forward = metrics["forward_dynamics"][kind]
        assert {"true", "shuffled", "zero", "copy_last", "ceiling"} == set(forward["psnr"]) == set(forward["moving"])
        assert 0 <= forward["win_rate"] <= 1
        assert {"r2", "r2_wrong_video", "policy_r2"} <= set(metrics["inverse_dynamics"][kind])
        with np.load(debug_run / "eval" / f"dynamics_{kind}.npz", allow_pickle=False) as images:
            np.testing.assert_array_equal(images["real"][:, 0], images["true"][:, 0])
    assert metrics["train"]["steps"] == 20
    assert len(metrics["verdicts"]) == 4
    run("report", str(debug_run))
    assert "window" in (debug_run / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=no/such/run"], "holds no checkpoint"),
        (["--checkpoint=RUN", "--tasks=fly"], "unknown task 'fly'"),
        (["--checkpoint=RUN", "--mode=dream"], "dream"),
        (["--checkpoint=RUN", "--execute_steps=17"], "--execute_steps 17 is more than a chunk holds (16)"),
    ],
)
def test_evaluation_refuses_bad_input(debug_run, arguments, message):
    result = run("evaluate", *(a.replace("RUN", str(debug_run)) for a in arguments), check=False)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
