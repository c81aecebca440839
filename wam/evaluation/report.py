"""The report of a run: one HTML file that holds its results, figures and short videos, and needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wam.evaluation import plots
from wam.evaluation.page import Html, figure, join, note, page, table, tag
from wam.evaluation.record import CASE_NAMES, POLICY_NAMES, RunRecord, duration, number, percent, train_sentence
from wam.evaluation.report_media import Budget, animation_uri, figure_uri, foreseen, slowdown

MEDIA_BYTES = 9_000_000
"""Of embedded videos and film strips; with the other figures the page stays below 12 MB."""
MODE_TEXT = {"policy": "policy mode", "joint": "joint mode"}


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
        ("Training", _training(run)),
        ("Data", _data(run)),
        ("Run", _about(run)),
    ]
    path = run.workdir / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    path.write_text(page(f"World-action model: {run.workdir.resolve().name}", _byline(run), sections))
    return path


def _byline(run: RunRecord) -> Html:
    metrics, about = run.metrics, run.about
    parts = [
        f"git {str(about['git'])[:12]}" if about.get("git") else "no git revision",
        f"{about['chip']}, {about['cores']} cores" if "chip" in about and "cores" in about else None,
        f"seed {metrics['seed']}" if "seed" in metrics else None,
        f"evaluated on {metrics['split']} layouts" if "split" in metrics else None,
        f"trained {about['date']}" if "date" in about else None,
    ]
    return tag("p", " · ".join(part for part in parts if part), class_="byline")


def _verdicts(run: RunRecord) -> Html:
    if not (verdicts := run.metrics.get("verdicts")):
        return note("No verdicts in this run.")
    return tag("ul", *(tag("li", verdict) for verdict in verdicts), class_="verdicts")


def _tiles(run: RunRecord) -> Html:
    """The few figures that a reader looks for first."""
    tiles = []
    metrics = run.metrics
    if policy := metrics.get("closed_loop", {}).get("policy"):
        low, high = policy["ci95"]
        solved = f"{policy['successes']} of {policy['episodes']} episodes; interval {100 * low:.0f} to {100 * high:.0f}\u00a0%"
        tiles.append(("success, policy mode", f"{100 * policy['success']:.0f}\u00a0%", solved))
    for kind, dynamics in metrics.get("forward_dynamics", {}).items():
        gain = dynamics["moving"]["true"] - dynamics["moving"]["shuffled"]
        tiles.append((f"action gain, {kind}", f"{gain:+.1f}\u00a0dB", "moving region, true over shuffled actions"))
    if inverse := metrics.get("inverse_dynamics", {}).get("expert"):
        tiles.append(("inverse dynamics", f"{inverse['r2']:.2f}", f"R² on expert data; {inverse['r2_wrong_video']:.2f} with a wrong video"))  # fmt: skip
    if train := metrics.get("train"):
        tiles.append(("training", duration(train["seconds"]), f"{train['steps']:,} steps, {train['parameters'] / 1e6:.2f} M parameters"))  # fmt: skip
    return tag(
        "div",
        *(tag("div", tag("span", name, class_="name"), tag("b", value), tag("span", said), class_="tile") for name, value, said in tiles),
        class_="tiles",
    )  # fmt: skip


def _closed_loop(run: RunRecord, budget: Budget) -> Html:
    if not (closed := run.metrics.get("closed_loop")):
        return note("No closed-loop evaluation in this run.")
    shown = [name for name in POLICY_NAMES if name in closed]
    rows = [["all tasks", *(_interval(closed[name]) for name in shown)]]
    rows += [[task, *(_interval(closed[name].get("tasks", {}).get(task)) for name in shown)] for task in run.tasks()]
    parts: list[Html] = [
        tag("p", "Success in percent on layouts that training never saw, with 95 % Wilson intervals. Blind replay plays "
            "the mean demonstration without looking; a task that it solves says little about sight."),  # fmt: skip
        table(["task", *(POLICY_NAMES[name] for name in shown)], rows, strong=[0]),
    ]
    if absent := [POLICY_NAMES[name] for name in POLICY_NAMES if name not in closed]:
        parts.append(note(f"Not evaluated in this run: {', '.join(absent)}."))
    parts.append(figure(figure_uri(plots.plot_success(closed)), "Success with 95 % Wilson intervals.", alt="Success per task with intervals"))
    hz = _control_hz(run)
    for mode, said in MODE_TEXT.items():
        episodes = run.episodes(mode)
        parts.append(tag("h3", f"Episodes in {said}"))
        if not episodes:
            parts.append(note(f"No recorded episodes in {said} in this run."))
            continue
        parts += [_episode_videos(episodes, hz, budget), *_episode_figures(mode, episodes, hz, budget)]
    return join(parts)


def _interval(result: Mapping[str, Any] | None) -> Html:
    mean, _, interval = percent(dict(result) if result else None).partition(" ")
    return join([mean, " ", tag("small", interval)]) if interval else join([mean])


def _control_hz(run: RunRecord) -> float | None:
    """Control steps per second: the last imagined frame lies at the end of the chunk's K steps."""
    for arrays in run.dynamics().values():
        return arrays["action"].shape[1] / float(arrays["seconds"][-1])
    for arrays in run.episodes("joint").values():
        return arrays["predicted"].shape[1] / float(arrays["imagined_seconds"][-1])
    return None


def _action_names(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Names stored with the arrays, or numbers."""
    count = next(arrays[key].shape[-1] for key in ("executed", "action") if key in arrays)
    return [str(name) for name in arrays.get("action_names", [f"action {i}" for i in range(count)])]


def _side_by_side(episode: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The videos of an episode: real, and in joint mode what was imagined for each moment."""
    videos = {"real": episode["frames"]}
    if "imagined" in episode:
        seconds = episode["imagined_seconds"]
        ahead = seconds / seconds[-1] * episode["predicted"].shape[1]
        videos["imagined"] = foreseen(
            episode["frames"], episode["frame_step"], episode["imagined"], ahead, episode["chunk_step"]
        )
    return videos


def _animation(videos: Mapping[str, np.ndarray], seconds: Sequence[float], slow: int, caption: str, budget: Budget) -> Html:
    uri = animation_uri(list(videos.values()), seconds, slow=slow)
    if not budget.take(uri):
        return note(f"{caption} Video left out: the page has reached its size limit.")
    return figure(uri, caption, alt=", ".join(videos), labels=list(videos) if len(videos) > 1 else ())


def _episode_videos(episodes: Mapping[str, Mapping[str, np.ndarray]], hz: float | None, budget: Budget) -> Html:
    cards = []
    for task, episode in episodes.items():
        seconds = episode["frame_step"] / (hz or 20.0)
        slow = slowdown(seconds, 3.0)
        speed = ("" if slow == 1 else f", slowed {slow} times") if hz else ", speed not to scale"
        outcome = "solved" if bool(episode["success"]) else "failed"
        caption = f"{task}, layout {int(episode['layout_index'])}: {outcome}{speed}. “{episode['instruction']}”"
        cards.append(_animation(_side_by_side(episode), seconds, slow, caption, budget))
    columns = "three" if any("imagined" in episode for episode in episodes.values()) else "five"
    return tag("div", *cards, class_=f"grid {columns}")


def _episode_figures(
    mode: str, episodes: Mapping[str, Mapping[str, np.ndarray]], hz: float | None, budget: Budget
) -> list[Html]:
    """Film strip (joint mode) and action traces of the first task."""
    task, episode = next(iter(episodes.items()))
    out = []
    videos = _side_by_side(episode)
    if len(videos) > 1:
        seconds = episode["frame_step"] / hz if hz else episode["frame_step"]
        caption = f"{task}: the episode, and what the newest earlier chunk had imagined for each moment."
        out.append(_strip(videos, seconds, caption, budget))
    traces = plots.plot_actions(
        episode["predicted"], episode["executed"], _action_names(episode), hz, chunk_steps=episode["chunk_step"]
    )
    caption = f"{task}, {MODE_TEXT[mode]}: every predicted chunk (a dot at its start) over the actions executed, in the robot's units."
    out.append(figure(figure_uri(traces), caption, alt="Predicted and executed actions"))
    return out


def _strip(videos: Mapping[str, np.ndarray], seconds: Sequence[float], caption: str, budget: Budget) -> Html:
    strip = plots.plot_rollout(videos, seconds)
    uri = figure_uri(strip, pixels=True)
    if not budget.take(uri):
        return note(f"{caption} Film strip left out: the page has reached its size limit.")
    return figure(uri, caption, alt="Film strip of " + ", ".join(videos), width=100 * strip.get_figwidth())


def _world_model(run: RunRecord, budget: Budget) -> Html:
    results = run.metrics.get("forward_dynamics")
    if not results:
        return note("No evaluation of the forward dynamics in this run.")
    said = {"psnr": "whole frame, dB", "moving": "moving region, dB", "ssim": "whole frame, SSIM"}
    rows = []
    for kind, result in results.items():
        for metric, name in said.items():
            cells = [number(result.get(metric, {}).get(case), 3 if metric == "ssim" else 2) for case in CASE_NAMES]
            rows.append([f"{kind}, {name}", *cells, number(result.get("win_rate")) if metric == "moving" else ""])
    windows = ", ".join(f"{result['windows']} {kind}" for kind, result in results.items() if "windows" in result)
    parts = [
        tag("p", "Held-out windows predicted from one observation under the true actions, under those of another window "
            "of the same task, and under zeros, beside a copy of the last frame and the tokenizer's own reconstruction. "
            "Moving region: pixels that change by more than a tenth of the range. "
            "Win rate: share of windows whose moving region is better under the true actions than under shuffled ones."),  # fmt: skip
        table(["PSNR and SSIM, mean over frames", *CASE_NAMES.values(), "win rate"], rows),
        note(f"Windows: {windows or 'not recorded'}. Tokenizer: {number(run.metrics.get('tokenizer', {}).get('psnr'), 1)} dB."),
    ]
    by_frame = {kind: result for kind, result in results.items() if "per_frame" in result}
    if by_frame:
        parts.append(figure(figure_uri(plots.plot_dynamics(by_frame)), "Prediction by horizon.", alt="Prediction error by horizon"))
    videos = run.dynamics()
    if not videos:
        parts.append(note("No recorded rollouts of the forward dynamics in this run."))
    for kind, arrays in videos.items():
        parts += [tag("h3", f"Imagined under given actions: {kind} data"), *_imagined(arrays, budget)]
    return join(parts)


def _imagined(arrays: Mapping[str, np.ndarray], budget: Budget, count: int = 6) -> list[Html]:
    """Videos of the first window of up to `count` tasks, and film strips of the first ones (two if they are short)."""
    tasks = [str(task) for task in arrays["task"]]
    first = sorted({task: tasks.index(task) for task in reversed(tasks)}.values())
    chosen = [*first, *(i for i in range(len(tasks)) if i not in first)][:count]
    names = {"real": "real", "true": "true actions", "shuffled": "shuffled actions"}
    slow = slowdown(arrays["seconds"], 2.0)
    cards = [
        _animation(
            {name: arrays[key][i] for key, name in names.items()}, arrays["seconds"], slow, f"{tasks[i]}, window {i}.", budget
        )
        for i in chosen
    ]
    kinds = ("real", "true", "shuffled", "zero", "ceiling")
    strips = [
        _strip(
            {kind: arrays[kind][i] for kind in kinds},
            arrays["seconds"],
            f"{tasks[i]}, window {i}. The frame at 0.00 s is observed; PSNR against the real frame.",
            budget,
        )
        for i in chosen[: 2 if len(arrays["seconds"]) <= 5 else 1]
    ]
    speed = f" Videos slowed {slow} times." if slow > 1 else ""
    return [
        note(f"The first windows of the evaluation, one a task before a second of any; not selected.{speed}"),
        tag("div", *cards, class_="grid two"),
        tag("div", *strips, class_="grid two") if len(strips) > 1 else join(strips),
    ]


def _inverse_dynamics(run: RunRecord) -> Html:
    results = run.metrics.get("inverse_dynamics")
    if not results:
        return note("No evaluation of the inverse dynamics in this run.")
    columns = {"r2": "right video", "r2_wrong_video": "wrong video", "policy_r2": "policy, no future", "r2_gripper": "gripper"}
    rows = [[f"{kind} data", *(number(result.get(key)) for key in columns)] for kind, result in results.items()]
    parts = [
        tag("p", "R² of the actions read from the video of the future, over the translation dimensions and against the "
            "mean action; with the video of another window; and of policy mode, which does not see the future."),  # fmt: skip
        table(["R²", *columns.values()], rows),
    ]
    hz = _control_hz(run)
    for kind, arrays in run.dynamics().items():
        predicted = {"inverse dynamics": arrays["inverse"][0], "policy mode": arrays["policy"][0]}
        traces = plots.plot_actions(predicted, arrays["action"][0], _action_names(arrays), hz, executed_label="recorded")
        caption = f"{str(arrays['task'][0])}, {kind} data, window 0: actions recovered from the video, in the robot's units."
        parts.append(figure(figure_uri(traces), caption, alt="Recovered and recorded actions"))
    return join(parts)


def _training(run: RunRecord) -> Html:
    parts = []
    if train := run.metrics.get("train"):
        parts.append(tag("p", train_sentence(train) + "."))
    if not any(row.get("split", "train") == "train" for row in run.rows):
        return join([*parts, note("No learning curves in this run (metrics.jsonl is absent or empty).")])
    uri = figure_uri(plots.plot_learning_curves(run.rows))
    caption = "Lines: training, averaged, with the raw values pale behind. Open dots: validation."
    return join([*parts, figure(uri, caption, alt="Learning curves")])


def _data(run: RunRecord) -> Html:
    if not run.mixture:
        return note("No record of the mixture in this run (mixture.json is absent).")
    weights, drawn = run.mixture["weights"], run.mixture["drawn"]
    total, asked = max(1, sum(drawn.values())), sum(weights.values())
    rows = []
    for source, weight in weights.items():
        count, windows = drawn.get(source, 0), run.mixture.get("windows", {}).get(source)
        passes = f"{count / windows:.1f}" if windows else "–"
        cells = [f"{100 * weight / asked:.1f} %", f"{100 * count / total:.1f} %", f"{count:,}"]
        rows.append([source, *cells, "–" if windows is None else f"{windows:,}", passes])
    return join([
        tag("p", "The mixture as it was drawn: samples that a training step consumed, not those asked for."),
        table(["source", "asked for", "drawn", "samples", "windows", "passes"], rows),
        figure(figure_uri(plots.plot_mixture(run.mixture)), "Sources and modes of the samples consumed.", alt="Mixture"),
    ])  # fmt: skip


def _about(run: RunRecord) -> Html:
    about = run.about
    phases = [[name, duration(seconds)] for name, seconds in run.phases.items() if name != "total"]
    if "total" in run.phases:
        phases.append(["total", duration(run.phases["total"])])
    versions = [[name, str(version)] for name, version in about.get("versions", {}).items()]
    settled = _differences(about["asked"], about["config"]) if "asked" in about else []
    return join([
        tag("p", "Command: ", tag("code", str(about.get("command", "not recorded")))),
        tag("p", "Git revision: ", tag("code", str(about.get("git", "not recorded")))),
        tag("h3", "Wall time by phase"),
        table(["phase", "time"], phases) if phases else note("No wall times in this run."),
        tag("h3", "Versions"),
        table(["package", "version"], versions) if versions else note("No versions in this run."),
        tag("h3", "Config"),
        table(["settled before the first step", "asked for", "used"], settled) if settled else Html(""),
        tag("details", tag("summary", "The whole config"), tag("pre", json.dumps(about.get("config", {}), indent=2))),
    ])  # fmt: skip


def _differences(asked: Any, used: Any, path: str = "config") -> list[list[str]]:
    """[key, value asked for, value used] of every leaf that a run changed, such as steps chosen from a time budget."""
    if isinstance(asked, dict) and isinstance(used, dict):
        keys = dict.fromkeys([*asked, *used])
        return [row for key in keys for row in _differences(asked.get(key), used.get(key), f"{path}.{key}")]
    return [] if asked == used else [[path, json.dumps(asked), json.dumps(used)]]
