"""Figures of a run. Every function returns a `matplotlib.figure.Figure`; none shows, saves or keeps one.

The three to use on a policy's output are `plot_rollout`, `plot_actions` and `plot_learning_curves`. Figures are 10
inches wide, made to be read at page width, in colours that colour-blind readers can tell apart.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

P = ParamSpec("P")
Numbers = Sequence[float] | np.ndarray

# The palette of Okabe and Ito, and one colour a role: the same thing has the same colour in every figure.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#AA4499", "#56B4E9"
INK, GREY, PALE = "#1c2430", "#7c8591", "#d8dde3"
CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, INK, GREY)
CASES = {
    "ceiling": ("tokenizer's ceiling", INK, (0, (4, 2))),
    "true": ("true actions", BLUE, "-"),
    "shuffled": ("shuffled actions", VERMILION, "-"),
    "zero": ("zero actions", ORANGE, "-"),
    "copy_last": ("copy of the last frame", GREY, (0, (1, 1.2))),
}
POLICIES = {
    "policy": ("policy mode", BLUE, "o"),
    "joint": ("joint mode", GREEN, "s"),
    "swapped_instruction": ("swapped instruction", PURPLE, "D"),
    "blind_replay": ("blind replay", ORANGE, "^"),
    "random": ("random actions", GREY, "v"),
}
STYLE: Any = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "svg.hashsalt": "wam",
}
WIDTH = 10.0


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return function(*args, **kwargs)

    return wrapper


def save(figure: Figure, target: str | Path | BinaryIO, **options: Any) -> None:
    """`figure.savefig` in the style of this module; equal figures give equal files."""
    with mpl.rc_context(STYLE):
        figure.savefig(target, **options)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 images; infinite if they are equal."""
    error = np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error > 0 else float("inf")


@styled
def plot_rollout(
    videos: Mapping[str, np.ndarray], seconds: Numbers, *, reference: str = "real", columns: int = 9
) -> Figure:
    """Film strip: one row a video, one column a moment, with the PSNR against the reference below each frame.

    Args:
        videos: {label: uint8 [T, h, w, 3]}, all of one shape, from top to bottom.
        seconds: [T], time of each frame.
        reference: the label that the others are compared with; without such a label no PSNR is written.
        columns: at most so many frames, spread evenly, the first and the last among them.

    Raises:
        ValueError: no video, or videos and seconds that do not fit each other.
    """
    if not videos:
        raise ValueError("plot_rollout needs at least one video")
    shapes = {label: np.shape(video) for label, video in videos.items()}
    if len(set(shapes.values())) != 1 or len(seconds) != next(iter(shapes.values()))[0]:
        raise ValueError(f"plot_rollout needs videos of one shape and a time a frame: {shapes}, {len(seconds)} times")
    frames = np.unique(np.linspace(0, len(seconds) - 1, min(columns, len(seconds))).round().astype(int))
    height, width = next(iter(videos.values())).shape[1:3]
    # One picture in one axes: as many axes as frames take seconds to lay out. Its units are the videos' pixels.
    cell = min((WIDTH - 0.3) / len(frames), 1.55)  # inches from frame to frame
    pitch_x, pitch_y = width + width // 24 + 1, height + round(0.19 * width / cell) + 1
    canvas = np.full((len(videos) * pitch_y - (pitch_y - height), len(frames) * pitch_x, 3), 255, np.uint8)
    wide, high = cell * len(frames), cell * canvas.shape[0] / pitch_x
    left, top, bottom = 0.28, 0.22, 0.2
    figure = Figure(figsize=(left + wide, top + high + bottom))
    ax = figure.add_axes((left / (left + wide), bottom / (top + high + bottom), wide / (left + wide),
                          high / (top + high + bottom)))  # fmt: skip

    def write(text: str, x: float, y: float, shift: tuple[float, float], **style: Any) -> None:
        ax.annotate(text, (x - 0.5, y - 0.5), xytext=shift, textcoords="offset points", annotation_clip=False, **style)

    for row, (label, video) in enumerate(videos.items()):
        y = row * pitch_y
        write(label, 0, y + height / 2, (-4, 0), rotation=90, ha="right", va="center", fontweight="bold")
        for column, frame in enumerate(frames):
            x = column * pitch_x
            canvas[y : y + height, x : x + width] = video[frame]
            if row == 0:
                write(f"{seconds[frame]:.2f} s", x + width / 2, 0, (0, 3), ha="center", va="bottom", fontsize=8.5)
            if reference in videos and label != reference:
                value = psnr(video[frame], videos[reference][frame])
                said = "equal" if np.isinf(value) else f"{value:.1f} dB"
                write(said, x + width / 2, y + height, (0, -2), ha="center", va="top", fontsize=8, color=GREY)
    ax.imshow(canvas, interpolation="nearest", aspect="auto")
    ax.set_axis_off()
    return figure


@styled
def plot_actions(
    predicted: np.ndarray | Mapping[str, np.ndarray],
    executed: np.ndarray | None,
    names: Sequence[str],
    control_hz: float | None,
    *,
    chunk_steps: Numbers | None = None,
    executed_label: str = "executed",
) -> Figure:
    """Predicted action chunks over the executed actions, one panel a dimension.

    Args:
        predicted: [chunks, K, A] or [K, A], in the robot's units, or {label: such an array}.
        executed: [steps, A], or None.
        names: A names.
        control_hz: control steps per second; None: the axis counts steps.
        chunk_steps: the step at which each chunk begins; None: chunks follow each other.
        executed_label: what the executed actions are called.

    Raises:
        ValueError: arrays whose action dimension is not the number of names.
    """
    groups = predicted if isinstance(predicted, Mapping) else {"predicted": predicted}
    chunks = {label: np.reshape(array, (-1, *np.shape(array)[-2:])) for label, array in groups.items()}
    found = {label: array.shape[-1] for label, array in chunks.items()}
    if executed is not None:
        found[executed_label] = np.shape(executed)[-1]
    if set(found.values()) != {len(names)}:
        raise ValueError(f"plot_actions: {len(names)} names for arrays of action dimension {found}")
    tick = 1.0 / control_hz if control_hz else 1.0
    columns = 1 if len(names) <= 4 else 2
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(WIDTH, 1.15 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for dimension, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
        if executed is not None:
            # An action holds until the next one: a staircase.
            edges = np.arange(len(executed) + 1) * tick
            label = executed_label if dimension == 0 else None
            ax.stairs(executed[:, dimension], edges, baseline=None, color=INK, alpha=0.8, lw=1.1, label=label)
        for (group, array), color in zip(chunks.items(), (VERMILION, BLUE, GREEN, PURPLE), strict=False):
            starts = np.arange(len(array)) * array.shape[1] if chunk_steps is None else np.asarray(chunk_steps)
            if len(starts) != len(array):
                raise ValueError(f"plot_actions: {len(starts)} chunk steps for {len(array)} chunks of {group!r}")
            for index, (start, chunk) in enumerate(zip(starts, array, strict=True)):
                time = (start + np.arange(len(chunk)) + 0.5) * tick
                label = f"{group} chunks" if len(array) > 1 else group
                first = dimension == 0 and index == 0
                ax.plot(time, chunk[:, dimension], color=color, lw=1.3, alpha=0.85, label=label if first else None)
                ax.plot(time[:1], chunk[:1, dimension], ".", color=color, ms=5)
                ax.axvline(start * tick, color=PALE, lw=0.8, zorder=0)
        ax.grid(visible=False, axis="x")
        ax.set_ylabel(name)
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.margins(x=0.01)
        # A nearly constant dimension would fill the panel with its noise: show a fifth of its size at least.
        low, high = ax.get_ylim()
        room = max(0.0, 0.2 * max(abs(low), abs(high)) - (high - low)) / 2
        ax.set_ylim(low - room, high + room)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax in axes[-1]:
        ax.set_xlabel("time (s)" if control_hz else "control step")
    figure.align_ylabels(axes)
    figure.legend(loc="outside upper right", ncols=4)
    return figure


def _series(rows: Sequence[Mapping[str, Any]], key: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["step"], row[key]) for row in rows if row["split"] == split and row.get(key) is not None]
    return np.array([step for step, _ in points]), np.array([value for _, value in points], float)


def _smooth(values: np.ndarray, share: float = 0.04) -> np.ndarray:
    """Moving average over `share` of the curve, narrower at its ends."""
    half = int(len(values) * share / 2)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, index[::-1]))
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)


def _curves(ax: Axes, rows: Sequence[Mapping[str, Any]], keys: Mapping[str, str], colors: Sequence[Any]) -> None:
    """Training as a line (raw values pale behind it), validation as dots of the same colour."""
    positive = True
    for (label, key), color in zip(keys.items(), colors, strict=False):
        step, value = _series(rows, key, "train")
        ax.plot(step, value, color=color, lw=0.6, alpha=0.25)
        ax.plot(step, value if key == "learning_rate" else _smooth(value), color=color, lw=1.5, label=label)
        step, held_out = _series(rows, key, "validation")
        ax.plot(step, held_out, "o--", color=color, ms=3.5, lw=0.8, mfc="white", mew=1.1)
        positive &= bool((value > 0).all() and (held_out > 0).all())
    if positive and "learning_rate" not in keys.values():
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_xlabel("step")


@styled
def plot_learning_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Losses per term, mode, source and sigma bin: training as lines, validation as open dots.

    Args:
        rows: lines of `metrics.jsonl`. Keys `<term>`, `<term>/mode/<mode>`, `<term>/source/<source>` and
            `<term>/sigma/<bin>` become curves; whatever is absent gets no panel.

    Raises:
        ValueError: no training row.
    """
    if not any(row["split"] == "train" for row in rows):
        raise ValueError("plot_learning_curves needs at least one row of training metrics")
    keys = dict.fromkeys(key for row in rows for key in row)
    terms = [t for t in ("video", "action", "policy", "inverse") if t in keys]
    panels: list[tuple[str, dict[str, str], Sequence[Any]]] = [
        ("All loss terms", {t: t for t in ["loss", *terms] if t in keys}, (INK, *CYCLE)),
        ("Gradient norm", {"gradient norm": "grad_norm"} if "grad_norm" in keys else {}, (INK,)),
        ("Learning rate", {"learning rate": "learning_rate"} if "learning_rate" in keys else {}, (INK,)),
    ]
    groups = {"mode": "by mode", "source": "by source", "sigma": "by sigma"}
    split = {group: sorted({key.split("/", 2)[2] for key in keys if f"/{group}/" in key}) for group in groups}
    for term in terms:
        for group, said in groups.items():
            names, labels = split[group], split[group]
            hues: Iterator[Any] = itertools.cycle(CYCLE)
            if group == "sigma" and names:  # equal bins of 0..1, named by their index
                names = sorted(names, key=int)
                bins = 1 + int(names[-1])
                labels = [f"{int(i) / bins:.2g}-{(int(i) + 1) / bins:.2g}" for i in names]
                hues = iter(mpl.colormaps["viridis"](np.linspace(0.0, 0.85, len(names))))
            # A name keeps its colour in every panel, also where others of its group are absent.
            rest = zip((f"{term}/{group}/{name}" for name in names), labels, hues, strict=False)
            found = [(key, label, color) for key, label, color in rest if key in keys]
            curves = {label: key for key, label, _ in found}
            panels.append((f"{term.capitalize()} loss {said}", curves, [color for *_, color in found]))
    panels = [panel for panel in panels if panel[1]]
    lines = -(-len(panels) // 3)
    figure = Figure(figsize=(WIDTH, 2.35 * lines), layout="constrained")
    axes = figure.subplots(lines, 3, squeeze=False)
    for ax, (title, curves, colors) in zip(axes.flat, panels, strict=False):
        _curves(ax, rows, curves, colors)
        ax.set_title(title)
        if list(curves) != [title.lower()]:
            many = len(curves) > 4
            if many and ax.get_yscale() == "log":  # room for the legend
                low, high = ax.get_ylim()
                ax.set_ylim(top=high * (high / low) ** 0.22)
            ax.legend(loc="upper right", ncols=3 if many else 1, handlelength=1.0, columnspacing=0.8,
                      labelspacing=0.25, handletextpad=0.4, borderaxespad=0.1)  # fmt: skip
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    return figure


@styled
def plot_success(closed_loop: Mapping[str, Any]) -> Figure:
    """Success of every kind of control, overall and per task, as dots with 95 % intervals.

    Args:
        closed_loop: {name: {"success", "ci95": [low, high], "tasks": {task: the same}}} for names of `POLICIES`.
    """
    shown = [name for name in POLICIES if name in closed_loop]
    tasks = list(dict.fromkeys(task for name in shown for task in closed_loop[name].get("tasks", {})))
    lines = ["all tasks", *tasks]
    figure = Figure(figsize=(WIDTH, 0.12 * len(lines) * (1.5 + len(shown)) + 0.8), layout="constrained")
    ax = figure.subplots()
    for offset, name in zip(np.linspace(-0.32, 0.32, len(shown)), shown, strict=True):
        label, color, marker = POLICIES[name]
        per_task = closed_loop[name].get("tasks", {})
        points = [(i, s) for i, s in enumerate([closed_loop[name], *map(per_task.get, tasks)]) if s is not None]
        y = np.array([i for i, _ in points]) + (offset if len(shown) > 1 else 0.0)
        low, high = np.array([s["ci95"] for _, s in points], float).T
        ax.hlines(y, low, high, color=color, lw=1.6, alpha=0.55)
        ax.plot([s["success"] for _, s in points], y, marker, color=color, ms=5, ls="", label=label)
    ax.set_yticks(range(len(lines)), lines)
    ax.get_yticklabels()[0].set_fontweight("bold")
    for edge in np.arange(len(lines) - 1) + 0.5:
        ax.axhline(edge, color=PALE, lw=0.6)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(-0.015, 1.015), ylim=(len(lines) - 0.5, -0.5), xlabel="success, with 95 % Wilson interval")
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside upper right", ncols=len(shown))
    return figure


@styled
def plot_dynamics(forward_dynamics: Mapping[str, Any]) -> Figure:
    """Error of the imagined future by horizon, under the true actions and under others.

    Args:
        forward_dynamics: {kind of data: {"per_frame": {"psnr" | "moving" | "ssim": {case: [value per step]}},
            "seconds": [time of each step]}} for cases of `CASES`.
    """
    metrics = {"psnr": "whole frame, PSNR (dB)", "moving": "moving region, PSNR (dB)", "ssim": "whole frame, SSIM"}
    figure = Figure(figsize=(WIDTH, 2.6 * len(forward_dynamics) + 0.3), layout="constrained")
    axes = figure.subplots(len(forward_dynamics), 3, sharex="row", squeeze=False)
    for row, (kind, result) in zip(axes, forward_dynamics.items(), strict=True):
        for ax, (metric, label) in zip(row, metrics.items(), strict=True):
            for case, (said, color, line) in CASES.items():
                if (values := result["per_frame"].get(metric, {}).get(case)) is not None:
                    marker = "." if case in ("true", "shuffled", "zero") else ""
                    ax.plot(result["seconds"], values, ls=line, marker=marker, color=color, label=said)
            ax.set(ylabel=label, xlabel="horizon (s)", title=f"{kind.capitalize()} data")
            if len(result["seconds"]) <= 6:
                ax.set_xticks(result["seconds"])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


@styled
def plot_mixture(mixture: Mapping[str, Any]) -> Figure:
    """Shares of the sources asked for beside the shares really drawn, and the samples of every mode.

    Args:
        mixture: {"asked": {source: share}, "drawn": {source: samples}, "modes": {mode: samples}}.
    """
    sources = list(mixture["asked"])
    asked = np.array([mixture["asked"][source] for source in sources], float)
    drawn = np.array([mixture["drawn"].get(source, 0) for source in sources], float)
    modes = mixture.get("modes", {})
    figure = Figure(figsize=(WIDTH, 0.36 * max(len(sources), len(modes), 3) + 0.95), layout="constrained")
    left, right = figure.subplots(1, 2)
    y = np.arange(len(sources))
    bars = left.barh(y, drawn / max(1.0, drawn.sum()), 0.55, color=BLUE, label="drawn")
    left.bar_label(bars, [f"{count:,.0f}" for count in drawn], padding=8, color=GREY, fontsize=8)
    left.vlines(asked, y - 0.36, y + 0.36, color=VERMILION, lw=2.2, label="asked for")
    left.set_yticks(y, sources)
    left.set(xlabel="share of the samples (count beside the bar)", title="Sources", xlim=(0, 1.12))
    left.legend(loc="lower right")
    count = np.array(list(modes.values()), float)
    bars = right.barh(np.arange(len(modes)), count / max(1.0, count.sum()), 0.55, color=GREEN)
    right.bar_label(bars, [f"{value:,.0f}" for value in count], padding=3, color=GREY, fontsize=8)
    right.set_yticks(range(len(modes)), list(modes))
    right.set(xlabel="share of the samples", title="Modes")
    right.margins(x=0.15)
    right.xaxis.set_major_locator(MaxNLocator(5))
    for ax in (left, right):
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure
