"""The parts of a report made from recorded episodes and imagined windows: videos, film strips and action traces."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wam.evaluation import plots
from wam.evaluation.page import Html, figure, note, tag
from wam.evaluation.record import RunRecord
from wam.evaluation.report_media import Budget, animation_uri, figure_uri, foreseen, slowdown

Arrays = Mapping[str, np.ndarray]


def control_hz(run: RunRecord) -> float | None:
    """Control steps per second, None if nothing imagined was recorded.

    The last imagined frame lies at the end of the chunk's K steps, so K over its time is the rate.
    """
    for arrays in run.dynamics().values():
        return arrays["action"].shape[1] / float(arrays["seconds"][-1])
    for arrays in run.episodes("joint").values():
        return arrays["predicted"].shape[1] / float(arrays["imagined_seconds"][-1])
    return None


def _action_names(arrays: Arrays, count: int) -> list[str]:
    """The names stored beside the actions, or numbers where a recording has none."""
    return [str(name) for name in arrays.get("action_names", [f"action {i}" for i in range(count)])]


def _animation(videos: Arrays, seconds: np.ndarray, slow: int, caption: str, budget: Budget) -> Html:
    uri = animation_uri(list(videos.values()), seconds, slow=slow)
    if not budget.take(uri):
        return note(f"{caption} Video left out: the page has reached its size limit.")
    return figure(uri, caption, alt=", ".join(videos), labels=list(videos) if len(videos) > 1 else ())


def _strip(videos: Arrays, seconds: np.ndarray, caption: str, budget: Budget) -> Html:
    strip = plots.plot_rollout(videos, seconds)
    uri = figure_uri(strip, pixels=True)
    if not budget.take(uri):
        return note(f"{caption} Film strip left out: the page has reached its size limit.")
    return figure(uri, caption, alt="Film strip of " + ", ".join(videos), width=100 * strip.get_figwidth())


def _side_by_side(episode: Arrays) -> dict[str, np.ndarray]:
    """The videos of an episode: real, and in joint mode what was imagined for each moment."""
    videos = {"real": episode["frames"]}
    if "imagined" in episode:
        seconds = episode["imagined_seconds"]
        ahead = seconds / seconds[-1] * episode["predicted"].shape[1]
        videos["imagined"] = foreseen(
            episode["frames"], episode["frame_step"], episode["imagined"], ahead, episode["chunk_step"]
        )
    return videos


def episode_parts(mode: str, episodes: Mapping[str, Arrays], hz: float | None, budget: Budget) -> list[Html]:
    """A video of every recorded episode; of the first one also a film strip (joint mode) and its action traces."""
    cards = []
    for task, episode in episodes.items():
        seconds = episode["frame_step"] / (hz or 20.0)
        slow = slowdown(seconds, 3.0)
        speed = ("" if slow == 1 else f", slowed {slow} times") if hz else ", speed not to scale"
        outcome = "solved" if bool(episode["success"]) else "failed"
        said = f" “{episode['instruction']}”" if "instruction" in episode else ""
        caption = f"{task}, layout {int(episode['layout_index'])}: {outcome}{speed}.{said}"
        cards.append(_animation(_side_by_side(episode), seconds, slow, caption, budget))
    task, episode = next(iter(episodes.items()))
    videos = _side_by_side(episode)
    parts = [tag("div", *cards, class_="grid three" if len(videos) > 1 else "grid five")]
    if len(videos) > 1:
        caption = f"{task}: the episode, and what the newest earlier chunk had imagined for each moment."
        parts.append(_strip(videos, episode["frame_step"] / hz if hz else episode["frame_step"], caption, budget))
    predicted = episode["predicted"]
    names = _action_names(episode, predicted.shape[-1])
    traces = plots.plot_actions(predicted, episode["executed"], names, hz, chunk_steps=episode["chunk_step"])
    caption = f"{task}, {mode} mode: predicted chunks (a dot at each start) over the executed actions, robot's units."
    return [*parts, figure(figure_uri(traces), caption, alt="Predicted and executed actions")]


def imagined_parts(arrays: Arrays, budget: Budget, count: int = 6) -> list[Html]:
    """Videos of up to `count` windows, each task once before any twice, and film strips of the first of them."""
    tasks = [str(task) for task in arrays["task"]]
    first = sorted(tasks.index(task) for task in set(tasks))
    chosen = [*first, *(i for i in range(len(tasks)) if i not in first)][:count]
    seconds = arrays["seconds"]
    slow = slowdown(seconds, 2.0)
    cards, strips = [], []
    for i in chosen:
        videos = {"real": arrays["real"][i], "true actions": arrays["true"][i], "shuffled": arrays["shuffled"][i]}
        cards.append(_animation(videos, seconds, slow, f"{tasks[i]}, window {i}.", budget))
    for i in chosen[: 2 if len(seconds) <= 3 else 1]:  # short strips go in pairs
        videos = {case: arrays[case][i] for case in ("real", "true", "shuffled", "zero", "ceiling")}
        caption = f"{tasks[i]}, window {i}. The frame at 0.00 s is observed; PSNR against the real frame."
        strips.append(_strip(videos, seconds, caption, budget))
    speed = f" Videos are slowed {slow} times." if slow > 1 else ""
    return [
        note(f"Windows recorded by the evaluation, each task once before any twice; not chosen by result.{speed}"),
        tag("div", *cards, class_="grid two"),
        tag("div", *strips, class_="grid two" if len(strips) > 1 else "grid"),
    ]


def inverse_traces(kind: str, arrays: Arrays, hz: float | None) -> Html:
    """Actions of the first recorded window: recorded, recovered from the video, and the policy's."""
    recorded = arrays["action"][0]
    predicted = {"inverse dynamics": arrays["inverse"][0], "policy mode": arrays["policy"][0]}
    names = _action_names(arrays, recorded.shape[-1])
    traces = plots.plot_actions(predicted, recorded, names, hz, executed_label="recorded")
    caption = f"{arrays['task'][0]}, {kind} data, window 0: actions recovered from the video, in the robot's units."
    return figure(figure_uri(traces), caption, alt="Recovered and recorded actions")
