"""The report of a run: one HTML file that holds its results, figures and short videos, and needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wam.evaluation import plots, report_diagnostics
from wam.evaluation.page import Html, figure, join, note, page, table, tag
from wam.evaluation.record import CASE_NAMES, POLICY_NAMES, RunRecord, duration, number, percent, train_sentence
from wam.evaluation.report_media import Budget, figure_uri
from wam.evaluation.report_rollouts import control_hz, episode_parts, imagined_parts, inverse_traces

MEDIA_BYTES = 9_000_000
"""Of embedded videos and film strips; with the other figures the page stays below 12 MB."""

CLOSED_LOOP = (
    "Success in percent on layouts that training never saw, with 95 % Wilson intervals. Blind replay plays the mean "
    "demonstration without looking: a task that it solves says little about sight. Swapped: the policy is given the "
    "instruction of the other task in the same scene, so success is what ignoring language yields."
)
WORLD_MODEL = (
    "Held-out windows predicted from one observation under the true actions, under those of another window of the "
    "same task, and under zeros, beside a copy of the last frame and the tokenizer's own reconstruction. Moving "
    "region: pixels that change by more than a tenth of the range. Win rate: share of windows whose moving region is "
    "better under the true actions than under shuffled ones."
)
INVERSE = (
    "R² of the actions read from the video of the future, over the translation dimensions and against the mean "
    "action; with the video of another window; and of policy mode, which does not see the future."
)


def write_report(workdir: str | Path) -> Path:
    """Writes `report/index.html` into the directory of an evaluated run and returns its path.

    Raises:
        FileNotFoundError: the directory is no run, or was not evaluated.
        ValueError: one of its files is damaged.
    """
    run = RunRecord.read(workdir)
    budget = Budget(MEDIA_BYTES)
    sections = [
        ("Verdict", join([_verdicts(run), _tiles(run)])),
        ("Closed loop", _closed_loop(run, budget)),
        ("World model", _world_model(run, budget)),
        ("Inverse dynamics", _inverse_dynamics(run)),
        ("Self-consistency", report_diagnostics.consistency(run)),
        ("Open loop", report_diagnostics.open_loop(run)),
        ("Training", _training(run)),
        ("Data", _data(run)),
        ("Run", _about(run)),
    ]
    path = run.workdir / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    path.write_text(page(f"World-action model: {run.workdir.resolve().name}", _byline(run), sections), encoding="utf-8")
    return path


def _byline(run: RunRecord) -> Html:
    about, metrics = run.about, run.metrics
    parts = {
        "date": f"trained {about.get('date')}",
        "git": f"git {about.get('git')}",
        "chip": f"{about.get('chip')}, {about.get('cores')} cores",
        "seed": f"evaluation seed {metrics.get('seed')}",
        "split": f"{metrics.get('split')} layouts",
    }
    return tag("p", " · ".join(said for key, said in parts.items() if key in about or key in metrics), class_="byline")


def _verdicts(run: RunRecord) -> Html:
    if not (verdicts := run.metrics.get("verdicts")):
        return note("No verdicts in this run: its world model was not evaluated.")
    return tag("ul", *(tag("li", verdict) for verdict in verdicts), class_="verdicts")


def _tiles(run: RunRecord) -> Html:
    """The few figures that a reader looks for first."""
    metrics = run.metrics
    tiles: list[Html] = []

    def tile(name: str, value: str, said: str) -> None:
        tiles.append(tag("div", tag("span", name, class_="name"), tag("b", value), tag("span", said), class_="tile"))

    if policy := metrics.get("closed_loop", {}).get("policy"):
        low, high = (100 * bound for bound in policy["ci95"])
        said = f"{policy['successes']} of {policy['episodes']} episodes; interval {low:.0f} to {high:.0f}\u00a0%"
        tile("success, policy mode", f"{100 * policy['success']:.0f}\u00a0%", said)
    for kind, result in sorted(metrics.get("forward_dynamics", {}).items()):
        gain = result["moving"]["true"] - result["moving"]["shuffled"]
        tile(
            f"action gain, {kind}", f"{round(gain, 1) + 0.0:+.1f}\u00a0dB", "moving region, true over shuffled actions"
        )
    if inverse := metrics.get("inverse_dynamics", {}).get("expert"):
        said = f"R² on expert data; {inverse['r2_wrong_video']:.2f} with a wrong video"
        tile("inverse dynamics", f"{inverse['r2']:.2f}", said)
    if train := metrics.get("train"):
        said = f"{train['steps']:,} steps, {train['parameters'] / 1e6:.2f} M parameters"
        tile("training", duration(train["seconds"]), said)
    return tag("div", *tiles, class_="tiles")


def _interval(result: dict[str, Any] | None) -> Html:
    mean, _, interval = percent(result).partition(" ")
    return join([mean, " ", tag("small", interval)]) if interval else join([mean])


def _closed_loop(run: RunRecord, budget: Budget) -> Html:
    if not (closed := run.metrics.get("closed_loop")):
        return note("No closed-loop evaluation in this run.")
    shown = {name: closed[name] for name in POLICY_NAMES if name in closed}
    rows = [["all tasks", *map(_interval, shown.values())]]
    rows += [
        [task, *(_interval(result.get("tasks", {}).get(task)) for result in shown.values())] for task in run.tasks()
    ]
    parts = [tag("p", CLOSED_LOOP), table(["task", *(POLICY_NAMES[name] for name in shown)], rows, strong=[0])]
    parts += [note(f"No {said} evaluation in this run.") for name, said in POLICY_NAMES.items() if name not in closed]
    uri = figure_uri(plots.plot_success(closed))
    parts.append(figure(uri, "Success with 95 % Wilson intervals.", alt="Success per task with intervals"))
    parts += [tag("h3", "With and without imagination"), report_diagnostics.imagination(run)]
    hz = control_hz(run)
    for mode in ("policy", "joint"):
        episodes = run.episodes(mode)
        parts.append(tag("h3", f"Episodes in {mode} mode"))
        parts += episode_parts(mode, episodes, hz, budget) if episodes else [note("None recorded in this run.")]
    return join(parts)


def _world_model(run: RunRecord, budget: Budget) -> Html:
    if not (results := dict(sorted(run.metrics.get("forward_dynamics", {}).items()))):
        return note("No evaluation of the forward dynamics in this run.")
    rows = []
    for kind, result in results.items():
        for metric, name in {"psnr": "whole frame, dB", "moving": "moving region, dB", "ssim": "SSIM"}.items():
            cells = [number(result.get(metric, {}).get(case), 3 if metric == "ssim" else 2) for case in CASE_NAMES]
            rows.append([f"{kind}, {name}", *cells, number(result.get("win_rate")) if metric == "moving" else ""])
    windows = ", ".join(f"{result['windows']} {kind}" for kind, result in results.items() if "windows" in result)
    ceiling = number(run.metrics.get("tokenizer", {}).get("psnr"), 1)
    parts = [
        tag("p", WORLD_MODEL),
        table(["mean over the predicted frames", *CASE_NAMES.values(), "win rate"], rows),
        note(f"Windows: {windows or 'not recorded'}. The tokenizer alone reaches {ceiling} dB."),
    ]
    if by_frame := {kind: result for kind, result in results.items() if "per_frame" in result}:
        uri = figure_uri(plots.plot_dynamics(by_frame))
        parts.append(figure(uri, "Quality of the prediction by horizon.", alt="Prediction quality by horizon"))
    videos = run.dynamics()
    for kind, arrays in videos.items():
        parts += [tag("h3", f"Imagined under given actions: {kind} data"), *imagined_parts(arrays, budget)]
    return join(parts if videos else [*parts, note("No recorded rollouts of the forward dynamics in this run.")])


def _inverse_dynamics(run: RunRecord) -> Html:
    if not (results := dict(sorted(run.metrics.get("inverse_dynamics", {}).items()))):
        return note("No evaluation of the inverse dynamics in this run.")
    columns = {"r2": "right video", "r2_wrong_video": "wrong video", "policy_r2": "no future", "r2_gripper": "gripper"}
    rows = [[f"{kind} data", *(number(result.get(key)) for key in columns)] for kind, result in results.items()]
    hz = control_hz(run)
    traces = [inverse_traces(kind, arrays, hz) for kind, arrays in run.dynamics().items()]
    return join([tag("p", INVERSE), table(["R²", *columns.values()], rows), *traces])


def _training(run: RunRecord) -> Html:
    train = run.metrics.get("train")
    parts = [tag("p", train_sentence(train) + ".") if train else note("No training figures in this run.")]
    if not any(row["split"] == "train" for row in run.rows):
        return join([*parts, note("No learning curves in this run (metrics.jsonl is absent or empty).")])
    uri = figure_uri(plots.plot_learning_curves(run.rows))
    caption = "Lines: training, averaged, with the raw values pale behind. Open dots: validation."
    return join([*parts, figure(uri, caption, alt="Learning curves")])


def _data(run: RunRecord) -> Html:
    if not run.mixture:
        return note("No record of the mixture in this run (mixture.json is absent).")
    mixture, rows = run.mixture, []
    for source, asked in mixture["asked"].items():
        count, size = mixture["drawn"].get(source, 0), mixture["windows"][source]
        shares = [f"{asked:.1%}", f"{mixture['realised'][source]:.1%}", f"{count:,.0f}"]
        rows.append([source, *shares, f"{size:,}", f"{mixture['epochs'][source]:.1f}"])
    changes = [
        f"from step {entry['step']:,} on "
        + ", ".join(f"{name} {weight:g}" for name, weight in entry["weights"].items())
        for entry in mixture["history"][1:]
    ]
    uri = figure_uri(plots.plot_mixture(run.mixture))
    return join(
        [
            tag(
                "p",
                "The mixture as it was really drawn: samples that a training step consumed; "
                f"{mixture['action_free']:.1%} of them without actions.",
            ),
            *([note("The weights were changed: " + "; ".join(changes) + ".")] if changes else []),
            table(["source", "asked for", "drawn", "samples", "windows", "epochs"], rows),
            figure(uri, "Sources and modes of the samples consumed.", alt="Sources and modes"),
        ]
    )


def _about(run: RunRecord) -> Html:
    about = run.about
    phases = [[name, duration(seconds)] for name, seconds in run.phases.items()]
    versions = [[name, str(version)] for name, version in about.get("versions", {}).items()]
    parts = [
        tag("p", "Command: ", tag("code", str(about.get("command", "not recorded")))),
        tag("p", "Git revision: ", tag("code", str(about.get("git", "not recorded")))),
        tag("h3", "Wall time by phase"),
        table(["phase", "time"], phases) if phases else note("No wall times in this run."),
        tag("h3", "Versions"),
        table(["package", "version"], versions) if versions else note("No versions in this run."),
        tag("h3", "Config"),
    ]
    if "asked" in about and (settled := _differences(about["asked"], about["config"])):
        parts.append(table(["settled before the first step", "asked for", "used"], settled))
    whole = tag("pre", json.dumps(about.get("config", {}), indent=2))
    return join([*parts, tag("details", tag("summary", "The whole config"), whole)])


def _differences(asked: Any, used: Any, path: str = "config") -> list[list[str]]:
    """[key, value asked for, value used] of every leaf that a run changed, such as steps chosen from a time budget."""
    if isinstance(asked, dict) and isinstance(used, dict):
        keys = dict.fromkeys([*asked, *used])
        return [row for key in keys for row in _differences(asked.get(key), used.get(key), f"{path}.{key}")]
    return [] if asked == used else [[path, json.dumps(asked), json.dumps(used)]]
