"""The study on fake runs: no training, no simulator, only the files that runs leave behind."""

import json
import pathlib

import pytest

from tools import study
from tools.render_readme import render_table
from tools.study import Run
from wam.evaluation.baselines import wilson_interval

TASKS = ("button-press-topdown", "window-open", "dial-turn", "faucet-open", "faucet-close")
EPISODES = 20


@pytest.fixture(autouse=True)
def fixed_tasks(monkeypatch):
    """The recipe's choice of tasks may change; what is tested here does not depend on it."""
    get_config = study.demo.get_config

    def fixed(variant=""):
        config = get_config(variant)
        config.collect.tasks, config.evaluate.swap, config.evaluate.episodes = TASKS, TASKS[-2:], EPISODES
        return config

    monkeypatch.setattr(study.demo, "get_config", fixed)


def score(successes: dict[str, int]) -> dict:
    def row(solved, episodes):
        return {"success": solved / episodes, "successes": solved, "episodes": episodes,
                "ci95": list(wilson_interval(solved, episodes))}  # fmt: skip

    tasks = {task: row(solved, EPISODES) for task, solved in successes.items()}
    return {**row(sum(successes.values()), EPISODES * len(successes)), "tasks": tasks}


def fake_metrics(seed: int, steps: int, policy: int = 19) -> dict:
    every = dict.fromkeys(TASKS, 0)
    blind = dict(zip(TASKS, (8, 4, 5, 17, 12), strict=True))
    decibels = {"true": 15.0 + seed, "shuffled": 13.0, "zero": 13.1, "copy_last": 10.0, "ceiling": 20.0}
    forward = {"psnr": decibels, "moving": decibels, "win_rate": 0.8}
    inverse = {"r2": 0.9, "r2_wrong_video": -0.1, "policy_r2": 0.6, "r2_gripper": 0.95}
    return {
        "about": {"checkpoint_step": steps, "split": "test", "seed": seed, "episodes_per_task": EPISODES,
                  "tasks": list(TASKS)},
        "closed_loop": {
            "policy": score(dict.fromkeys(TASKS, policy)),
            "joint": score(dict.fromkeys(TASKS, 18)),
            "random": score(every),
            "blind_replay": score(blind),
            "swapped_instruction": score(dict.fromkeys(TASKS[-2:], 1)),
        },
        "forward_dynamics": {"play": forward, "expert": forward},
        "inverse_dynamics": {"play": {**inverse, "r2": 0.4}, "expert": inverse},
        "tokenizer": {"psnr": 28.0},
        "train": {"steps": steps, "seconds": 590.0, "step_ms_median": 280.0, "data_wait_share": 0.001,
                  "parameters": 2_500_000},
    }  # fmt: skip


class Runner:
    """Stands for the commands: notes what is asked, and writes what the real ones would."""

    def __init__(self, fails: tuple[str, ...] = ()):
        self.asked: list[str] = []
        self.fails = fails

    def __call__(self, arguments: list[str], log: pathlib.Path) -> int:
        options = dict(a.lstrip("-").split("=", 1) for a in arguments if "=" in a)
        command = arguments[1].removeprefix("experiments.")
        if command == "collect":
            self.asked.append(command)
            pathlib.Path(options["out"]).mkdir(parents=True)
            (pathlib.Path(options["out"]) / "collection.json").write_text('{"rows": []}')
            return 0
        workdir = pathlib.Path(options["workdir"] if command == "train" else arguments[3])
        self.asked.append(f"{command} {workdir.name}")
        if f"{command} {workdir.name}" in self.fails:
            return 1
        workdir.mkdir(exist_ok=True)
        if command == "train":
            _, _, variant = options["config"].partition(":")
            config = study.demo.get_config(variant)
            config.data.root, config.train.seed = options["config.data.root"], int(options["config.train.seed"])
            asked = json.loads(config.to_json_best_effort())
            record = {"asked": asked, "config": asked, "steps": 2000, "git": "abc", "versions": {"jax": "0"},
                      "chip": "cpu", "devices": 1, "cores": 2, "date": "2026-01-02",
                      "budget": {"minutes": float(options["budget_minutes"]), "step_ms": 280.0}}  # fmt: skip
            (workdir / "config.json").write_text(json.dumps(record))
        else:
            seed = int(options["seed"])
            (workdir / "metrics.json").write_text(json.dumps(fake_metrics(seed, 2000, policy=19 - seed)))
        return 0


def run_study(tmp_path, *arguments: str, runner: Runner | None = None) -> Runner:
    runner = runner or Runner()
    study.main(["--out", f"{tmp_path}/out", "--results", f"{tmp_path}/results", *arguments], runner)
    return runner


def results(tmp_path, name: str) -> dict:
    return json.loads((tmp_path / "results" / f"{name}.json").read_text())


def test_order_is_by_seed():
    names = [run.name for run in study.plan(study.STUDIES, [0, 1], [0])]
    assert names == ["demo-s0", "action_only-s0", "no_play-s0", "no_ego-s0", "demo-s1"]
    assert [run.name for run in study.plan(["no_play"], [0, 1], [3])] == ["no_play-s3"]


def test_collects_once_then_trains_and_evaluates_each_run(tmp_path):
    runner = run_study(tmp_path, "--only", "demo", "no_play", "--seeds", "0", "1")
    assert runner.asked == ["collect", "train demo-s0", "evaluate demo-s0", "train no_play-s0", "evaluate no_play-s0",
                            "train demo-s1", "evaluate demo-s1"]  # fmt: skip


def test_same_call_again_does_nothing_and_a_lost_evaluation_is_done_again(tmp_path):
    run_study(tmp_path, "--only", "demo")
    before = (tmp_path / "results" / "demo.json").read_bytes()
    assert run_study(tmp_path, "--only", "demo").asked == []
    assert (tmp_path / "results" / "demo.json").read_bytes() == before
    path = tmp_path / "out" / "demo-s1" / "metrics.json"
    metrics = json.loads(path.read_text())
    for broken in ({**metrics, "about": {**metrics["about"], "split": "validation"}},
                   {key: value for key, value in metrics.items() if key != "forward_dynamics"}):  # fmt: skip
        path.write_text(json.dumps(broken))
        assert run_study(tmp_path, "--only", "demo").asked == ["train demo-s1", "evaluate demo-s1"]


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path):
    runner = Runner(fails=("train demo-s1", "evaluate no_ego-s0"))
    with pytest.raises(SystemExit) as stop:
        run_study(tmp_path, runner=runner)
    message = str(stop.value.code)
    assert "demo-s1: experiments.train ended with status 1" in message
    assert "no_ego-s0: experiments.evaluate ended with status 1" in message
    assert runner.asked[-1] == "evaluate demo-s2"
    assert "evaluate demo-s1" not in runner.asked
    assert results(tmp_path, "demo")["seeds"] == [0, 2]
    assert "2 of 3 seeds (0, 2)" in results(tmp_path, "demo")["note"]
    assert [row[0] for row in results(tmp_path, "demo_ablations")["rows"]] == ["demo", "action_only", "no_play"]


def test_an_evaluation_that_leaves_too_little_is_a_failure(tmp_path):
    def lazy(arguments, log):
        return 0 if "experiments.evaluate" in arguments else Runner()(arguments, log)

    with pytest.raises(SystemExit, match=r"demo-s0: evaluation left no complete .*metrics\.json"):
        study.main(["--out", f"{tmp_path}/out", "--results", f"{tmp_path}/results", "--only", "demo"], lazy)
    assert not list((tmp_path / "results").iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--minutes", "6"], "trained for 8.0 minutes, not 6"), (["--data", "x"], "config.data")]
)
def test_runs_of_another_study_are_not_mixed_in(tmp_path, arguments, said):
    run_study(tmp_path, "--only", "demo", "--seeds", "0")
    runner = Runner()
    with pytest.raises(SystemExit, match=said):
        run_study(tmp_path, *arguments, runner=runner)
    assert runner.asked == []


def test_seeds_are_pooled_with_an_interval(tmp_path):
    run_study(tmp_path)
    data = results(tmp_path, "demo")
    policy = data["pooled"]["all tasks"]["policy"]
    assert (policy["successes"], policy["episodes"]) == (5 * (19 + 18 + 17), 300)
    assert policy["ci95"] == pytest.approx(wilson_interval(270, 300), abs=1e-4)
    assert policy["by_seed"] == {"0": 0.95, "1": 0.9, "2": 0.85}
    # Blind replay is the same for every seed, so its episodes count once.
    assert data["pooled"]["all tasks"]["blind_replay"]["episodes"] == 100
    assert data["needs_sight"] == list(TASKS[:3])
    assert data["pooled"]["tasks that need sight"]["policy"]["episodes"] == 180
    assert data["pooled"]["window-open"]["swapped_instruction"] is None
    assert data["pooled"]["all tasks"]["swapped_instruction"]["episodes"] == 120
    assert data["budget_minutes"] == 8
    assert data["runs"]["demo-s2"]["closed_loop"]["policy"]["tasks"]["dial-turn"]["successes"] == 17
    table = render_table(data)
    assert "| all tasks | 270/300 [0.86, 0.93] |" in table
    assert "3 of 3 seeds (0, 1, 2), each trained for 8 minutes on cpu with 2 cores." in table


def test_dynamics_and_ablations(tmp_path):
    run_study(tmp_path)
    moving = results(tmp_path, "demo_dynamics")["rows"][1]
    assert moving[:4] == ["play", "forward, moving pixels, dB", {"median": 16, "min": 15, "max": 17},
                          {"median": 13, "min": 13, "max": 13}]  # fmt: skip
    data = results(tmp_path, "demo_ablations")
    rows = {row[0]: dict(zip(data["columns"], row, strict=True)) for row in data["rows"]}
    assert list(rows) == list(study.STUDIES)
    assert rows["demo"]["seeds"] == 1, "the demo is compared by the seeds of its ablations"
    assert rows["demo"]["gain on play, dB"] == 2.0
    assert rows["no_play"]["policy"]["episodes"] == 100
    assert rows["action_only"]["joint"] == rows["action_only"]["inverse R² on expert"] == "not trained"
    assert "| no_ego | 1 | 2,000 | 280 | 95/100" in render_table(data)
    render_table(results(tmp_path, "demo_dynamics"))


def test_a_smaller_call_takes_nothing_away(tmp_path):
    run_study(tmp_path)
    run_study(tmp_path, "--only", "no_play")
    assert results(tmp_path, "demo")["seeds"] == [0, 1, 2]
    assert len(results(tmp_path, "demo_ablations")["rows"]) == 4


def test_dry_run_prints_what_is_missing(tmp_path, capsys):
    run_study(tmp_path, "--only", "demo", "--seeds", "0")
    capsys.readouterr()
    runner = run_study(tmp_path, "--only", "demo", "no_play", "--seeds", "0", "--dry_run")
    lines = capsys.readouterr().out.splitlines()
    assert runner.asked == []
    assert [line.split()[2] for line in lines] == ["experiments.train", "experiments.evaluate"]
    assert f"--config={study.RECIPE}:no_play" in lines[0]
    run_study(tmp_path, "--only", "demo", "--seeds", "0", "--dry_run")
    assert capsys.readouterr().out == "study: nothing is missing\n"


def test_commands_run_in_the_environment_of_the_project(tmp_path, monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    log = tmp_path / "log"
    code = "import os, sys; print(os.environ['MALLOC_ARENA_MAX'], flush=True); sys.exit(3)"
    assert study.execute(["-c", code], log) == 3
    assert log.read_text().splitlines()[-1] == "1"
    assert Run("no_play", 2).name == "no_play-s2"
