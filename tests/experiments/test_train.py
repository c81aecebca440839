"""The real commands on real (tiny) data: resume bit for bit, refuse what does not fit."""

import json
import random
import shutil
import signal
import subprocess

import numpy as np
import pytest

from data_pipelines.mixture import Mixture
from experiments.configs.debug import get_config
from experiments.recipe import Recipe, load_data
from tests.experiments.commands import ROOT, run
from tools import replay_step
from tools.prove import survive
from wam.checkpoint import read_everything
from wam.evaluation.report import write_report
from wam.training.metrics import read_rows

pytestmark = pytest.mark.requires_sim


CONFIG = "--config=experiments/configs/debug.py"


def test_resume_equals_the_uninterrupted_run_bit_for_bit(debug_run, tmp_path):
    """Killed after the checkpoint at step 10 and started again: same state, next batch and metrics."""
    again = tmp_path / "again"
    shutil.copytree(debug_run, again, symlinks=True)
    shutil.rmtree(again / "checkpoints" / "20")
    result = run("train", CONFIG, f"--workdir={again}", "--noprogress", f"--config.data.root={debug_run / 'data'}")
    assert "resuming at step 10 of 20" in result.stdout
    same = survive.equal(debug_run, again, 20)
    assert same == dict.fromkeys(("data", "parameters", "ema", "moments", "other", "metrics"), True)
    _, data = read_everything(again, 20)
    assert data["grain"] == {"next_index": 20}
    assert [row["step"] for row in read_rows(again) if row["split"] == "train"] == list(range(1, 21))


def test_weights_may_change_when_a_run_goes_on(debug_run, tmp_path):
    """From the checkpoint at step 10 with another weight: said, drawn, and on record with the step."""
    again = tmp_path / "again"
    shutil.copytree(debug_run, again, symlinks=True)
    shutil.rmtree(again / "checkpoints" / "20")
    before = json.loads((again / "config.json").read_text())["config"]["data"]["weights"]
    result = run("train", CONFIG, f"--workdir={again}", "--noprogress", f"--config.data.root={debug_run / 'data'}",
                 "--config.data.weights.play=0.62", "--config.data.weights.expert=0.32")  # fmt: skip
    said = "resuming at step 10 of 20; the data go on with other weights (expert: 0.62 -> 0.32; play: 0.32 -> 0.62)"
    assert said in result.stdout and "no sample is repeated or skipped" in result.stdout
    record = json.loads((again / "config.json").read_text())
    now = {**before, "expert": 0.32, "play": 0.62}
    assert record["weights"] == [{"step": 0, "weights": before}, {"step": 10, "weights": now}]
    assert record["asked"]["data"]["weights"] == record["config"]["data"]["weights"] == now
    facts = json.loads((again / "mixture.json").read_text())
    assert facts["history"] == record["weights"] and facts["weights"] == now
    assert facts["asked"] == pytest.approx({"expert": 0.47, "play": 0.47, "ego": 0.06})
    assert sum(facts["drawn"].values()) == 160 and facts["action_free"] == facts["realised"]["ego"]
    for name, share in facts["asked"].items():
        assert abs(facts["drawn"][name] - 160 * share) < 3  # two mixes of three sources, each within 1.5
        assert facts["epochs"][name] == facts["drawn"][name] / facts["windows"][name]
    rows = [row for row in read_rows(again) if row["split"] == "train"]
    assert rows[-1]["epochs/play"] == facts["epochs"]["play"]
    assert f"expert {facts['realised']['expert']:.2%} (47.00% asked" in result.stdout


def test_the_proof_sees_a_difference(debug_run, tmp_path):
    """Step 10 is not step 20: what the proof and the tests call equal would not be, were it another state."""
    other = tmp_path / "other"
    shutil.copytree(debug_run / "checkpoints" / "10", other / "checkpoints" / "20")
    assert survive.equal(debug_run, other, 20) == dict.fromkeys(
        ("data", "parameters", "ema", "moments", "other", "metrics"), False
    )


def test_a_run_that_is_killed_and_stopped_ends_like_any_other(debug_run, tmp_path):
    """SIGKILL at random instants and in the middle of a save, then SIGTERM: nothing is lost but time."""
    workdir, data, rng = tmp_path / "run", debug_run / "data", random.Random(0)
    workdir.mkdir()
    for name in ("fitted.json", "fitted.npz"):
        shutil.copy(debug_run / name, workdir)
    command = survive.train_command(workdir, data, 20)
    kills = [survive.kill_once("anywhere", workdir, data, 20, rng, startup=5.0)]
    while not kills[-1]["during_a_save"]:
        assert len(kills) < 5, kills
        kills.append(survive.kill_once("save", workdir, data, 20, rng, startup=5.0))
        assert not kills[-1]["finished"], kills
    env = {**survive.ENV, "WAM_STOPPED_EXIT_CODE": "75"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("train: ")
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    assert "stopped by SIGTERM after step" in said
    assert process.returncode == 75
    stopped = survive.newest_step(workdir)
    assert 0 < stopped < 20
    done = subprocess.run(command, cwd=ROOT, env=survive.ENV, capture_output=True, text=True, check=True, timeout=300)
    assert f"resuming at step {stopped} of 20" in done.stdout
    same = survive.equal(debug_run, workdir, 20)
    assert same.pop("metrics") is False  # it saves more often, and every save ends a row
    assert all(same.values()), same
    assert (workdir / "mixture.json").read_text() == (debug_run / "mixture.json").read_text()


def test_a_training_whose_steps_are_not_finite_stops_with_their_batches_on_record(debug_run, tmp_path):
    """Statistics whose middle overflows: no batch with a robot's state gives a finite loss."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copy(debug_run / "fitted.npz", workdir)
    fitted = json.loads((debug_run / "fitted.json").read_text())
    (state,) = fitted["statistics"]["state"].values()
    state |= {"q01": [3e38] * 4, "q99": [3e38] * 4}
    (workdir / "fitted.json").write_text(json.dumps(fitted))
    result = run("train", CONFIG, f"--workdir={workdir}", f"--config.data.root={debug_run / 'data'}", "--noprogress",
                 "--config.train.max_skipped=2", check=False)  # fmt: skip
    assert result.returncode == 1
    assert (
        "train: the loss or its gradient was not finite in 2 steps in a row, the last one 2; checkpoints are intact"
        in (result.stderr)
    )
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in (workdir / "skipped").iterdir()) == ["step_1.json", "step_2.json"]
    record = json.loads((workdir / "skipped" / "step_2.json").read_text())
    assert (record["step"], record["seed"], record["loss"], len(record["samples"])) == (2, 0, "nan", 8)
    recipe = Recipe.of(get_config())
    batch = replay_step.rebuild(load_data(recipe, debug_run / "data", workdir), recipe.sources, record["samples"])
    assert replay_step.faults(batch)[0].endswith(": state is not finite")


def test_a_replayed_step_is_the_step_that_was_taken(debug_run):
    """The first step starts from parameters that the seed alone decides: its replay gives the loss it had."""
    recipe = Recipe.of(get_config())
    data = load_data(recipe, debug_run / "data", debug_run)
    mixture = Mixture(data.train, dict(recipe.config.data.weights), data.to_sample, batch_size=8, seed=0)
    with mixture.iterator() as batches:
        batch = next(batches)
    samples = [{"source": recipe.sources[source], "window": int(window)} for source, window in batch["sample_id"]]
    rebuilt = replay_step.rebuild(data, recipe.sources, samples)
    for name, values in batch.items():
        np.testing.assert_array_equal(rebuilt[name], values, err_msg=name)
    record = {"step": 1, "seed": 0, "loss": "?", "grad_norm": "?", "samples": samples}
    said = replay_step.replay(record, debug_run, None)
    assert "all inputs are finite" in said
    assert sum(" window " in line for line in said) == 8
    row = next(row for row in read_rows(debug_run) if row["split"] == "train")
    (found,) = (line.split() for line in said if line.startswith("loss"))
    assert float(found[1].rstrip(",")) == pytest.approx(row["loss"], rel=1e-3)
    assert float(found[-1]) == pytest.approx(row["grad_norm"], rel=1e-3)


def test_a_damaged_checkpoint_is_one_sentence(debug_run, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(debug_run, broken, symlinks=True)
    for path in (broken / "checkpoints" / "20" / "train_state").glob("**/d/*"):  # not every file of these is in use
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = run("train", CONFIG, f"--workdir={broken}", "--noprogress", f"--config.data.root={debug_run / 'data'}",
                 check=False)  # fmt: skip
    assert result.returncode == 1
    assert "train: the checkpoint at step 20 of" in result.stderr
    assert result.stderr.strip().endswith("checkpoints/20 to continue from step 10"), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


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
        (["--config.data.weights.expert=0"], "weights must be positive numbers"),
        (["--config.model.attention=flash"], "model.attention is 'flash'; choose from xla, chunked, cudnn"),
        (["--config.data.root=/nowhere"], "collect them with python -m experiments.collect"),
        (["--config.train.seed=5"], "holds a run with another config (config.train.seed: 0 -> 5)"),
        (
            ["--config.train.best_metric=los"],
            "train.best_metric 'los' is no metric of the validation; did you mean 'loss'?",
        ),
        (["--wandb=project"], "--wandb needs the package wandb: pip install wandb, or leave the flag out"),
        (["--config.mesh.fsdp=3"], "mesh fsdp=3 does not divide the 1 devices"),
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
    result = run("evaluate", f"--checkpoint={debug_run}", "--report", "--split=validation", "--workers=1",
                 "--episodes=1", "--execute_steps=16")  # fmt: skip
    assert "wrote" in result.stdout
    metrics = json.loads((debug_run / "metrics.json").read_text())
    for name in ("policy", "joint", "random", "blind_replay", "swapped_instruction"):
        row = metrics["closed_loop"][name]
        assert {"success", "successes", "episodes", "ci95", "tasks"} <= set(row)
        assert row["episodes"] == 2
    for kind in ("play", "expert"):
        forward = metrics["forward_dynamics"][kind]
        assert {"true", "shuffled", "zero", "copy_last", "ceiling"} == set(forward["psnr"]) == set(forward["moving"])
        assert 0 <= forward["win_rate"] <= 1
        assert {"r2", "r2_wrong_video", "policy_r2"} <= set(metrics["inverse_dynamics"][kind])
        assert {"r2", "r2_wrong_video", "error", "error_wrong_video", "windows"} == set(metrics["consistency"][kind])
        with np.load(debug_run / "eval" / f"dynamics_{kind}.npz", allow_pickle=False) as images:
            np.testing.assert_array_equal(images["real"][:, 0], images["true"][:, 0])
    assert metrics["train"]["steps"] == 20
    assert len(metrics["verdicts"]) == 6
    assert "window" in write_report(debug_run).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=no/such/run"], "holds no checkpoint"),
        (["--checkpoint=RUN", "--tasks=fly"], "unknown task 'fly'"),
        (["--checkpoint=RUN", "--mode=dream"], "dream"),
        (["--checkpoint=RUN", "--execute_steps=17"], "--execute_steps 17 is more than a chunk holds (16)"),
        (["--checkpoint=RUN", "--report", "--solver=heun"], "--solver is of a single run, --report takes the standard"),
    ],
)
def test_evaluation_refuses_bad_input(debug_run, arguments, message):
    result = run("evaluate", *(a.replace("RUN", str(debug_run)) for a in arguments), check=False)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
