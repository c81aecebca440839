"""One episode of a data set as it is, or one window as a model sees it, after every transform and back.

    python tools/view_dataset.py --dataset NAME --path DIR --options split=train --index 3 --out page.html
    python tools/view_dataset.py --store runs/demo/data/train/expert --index 3
    python tools/view_dataset.py --store runs/demo/data/train/expert --index 40 --workdir runs/demo

The first two show episode `--index`: film strips, actions and states. With the directory of a run, or with `--config
RECIPE.py` (what is fitted on data is then fitted anew, on all stores of the recipe), `--index` is a window of the
store: what is stored, grouped and encoded, normalised, padded, the frames and what the tokenizer makes of them, and the
way back to the stored numbers with the largest error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.lint.episodes import Episodes
from data_pipelines.lint.survey import Survey, look
from tools import dataset_page as shared
from wam.evaluation import dataset_plots, plots
from wam.evaluation.page import Html, figure, join, note, page, table, tag
from wam.evaluation.report_media import Budget, figure_uri

if TYPE_CHECKING:
    from data_pipelines.windows import Windows
    from experiments.recipe import Data

MEDIA_BYTES = 12_000_000
FRAMES, SIDE = 12, 256


def episode_page(episodes: Episodes, i: int) -> str:
    """Episode i as HTML; IndexError, or BadEpisode if it cannot be read."""
    if not 0 <= i < len(episodes):
        raise IndexError(f"{episodes.name} has the episodes 0 to {len(episodes) - 1}, not {i}")
    budget = Budget(MEDIA_BYTES)
    episode = look(episodes, i, frames=FRAMES, run=2, side=SIDE)
    survey = Survey(episodes.name, len(episodes), [episode], {}, [], episodes.embodiment)
    rows = episode.rows
    facts = {
        "instruction": rows.instruction or "(none)",
        "control steps": f"{rows.steps:,} at {rows.hz:g} Hz, {rows.steps / rows.hz:.2f} s",
        "frames": f"{len(rows.frame_step):,} of each of {', '.join(rows.cameras) or 'no camera'}",
        "robot": episodes.embodiment.name if episodes.embodiment else "not declared",
        "digest of the rows": rows.digest or "(nothing varies)",
    }
    sections = [
        ("Episode", table(["", ""], [[name, value] for name, value in facts.items()])),
        ("Frames", join(shared.strips(episode, budget) or [note("There is no camera.")])),
    ]
    for what in ("action", "state"):
        if (values := survey.pooled(what)).size:
            names = survey.names(what)
            kinds = survey.action_kinds if what == "action" else ()
            labels = [f"{name} ({kind})" for name, kind in zip(names, kinds, strict=True)] if kinds else names
            shown = dataset_plots.plot_traces({what: values}, labels, rows.hz)
            parts = [_figure(figure_uri(shown), f"{what.capitalize()}s in the data set's own units.", budget)]
            sections.append((f"{what.capitalize()}s", join([*parts, _ranges(values, names)])))
    return page(f"{episodes.name}: {rows.name}", tag("style", Html(shared.STYLE)), sections)


def _ranges(values: np.ndarray, names: Sequence[str]) -> Html:
    columns = [values[0], values.min(0), values.mean(0), values.max(0), values[-1]]
    rows = [[name, *(f"{column[d]:.4g}" for column in columns)] for d, name in enumerate(names)]
    return table(["dimension", "first", "least", "mean", "largest", "last"], rows)


def _figure(uri: str, caption: str, budget: Budget, width: float | None = None) -> Html:
    if not budget.take(uri):
        return note(f"{caption} Left out: the page has reached its size limit.")
    return figure(uri, caption, alt=caption, width=width)


@dataclasses.dataclass(frozen=True)
class RoundTrip:
    """One window on its way to the model and back. M chunks of K actions; A, S stored dims, A', S' the model's."""

    stored_action: np.ndarray
    """f32 [M, K, A]: what the store holds, grouped to the window's rate: deltas added up, else the latest value"""
    stored_state: np.ndarray
    """f32 [M, S] at each chunk's start"""
    window: dict[str, Any]
    """encoded: `Windows[i]`"""
    sample: dict[str, np.ndarray]
    """normalised and padded: `ToSample(window)`"""
    denormalised_action: np.ndarray
    """f32 [M, K, A'] from the sample"""
    denormalised_state: np.ndarray
    """f32 [M, S']"""
    restored_action: np.ndarray
    """f32 [M, K, A]: decoded from that"""
    restored_state: np.ndarray

    @property
    def errors(self) -> dict[str, float]:
        """Largest absolute difference over real steps, of each half of the way and of the whole."""
        steps, chunks = self.window["action_mask"], self.window["state_mask"]
        pairs = {
            "action, normalised and back": (self.denormalised_action[steps], self.window["action"][steps]),
            "state, normalised and back": (self.denormalised_state[chunks], self.window["state"][chunks]),
            "action, all the way back to the store": (self.restored_action[steps], self.stored_action[steps]),
            "state, all the way back to the store": (self.restored_state[chunks], self.stored_state[chunks]),
        }
        return {name: float(np.abs(a - b).max(initial=0.0)) for name, (a, b) in pairs.items()}


def stored(windows: Windows, i: int) -> tuple[np.ndarray, np.ndarray]:
    """(actions [M, K, A], states [M, S]) of window i as the store has them; steps past the end repeat the last one.

    Computed from the store alone and step by step, so that it also tests what it stands beside.
    """
    clip, anchor = windows.locate(i)
    state, action, _ = windows.store.low_dim(clip)
    config, hz = windows.config, windows.control_hz
    assert state is not None
    assert action is not None
    group = max(1, round(hz / config.action_hz))
    adds_up = np.array([kind == "delta" for kind in windows.embodiment.action_kinds])
    starts = [anchor + int(np.floor(seconds * hz + 1e-3)) for seconds in config.observation_seconds]
    actions = np.zeros((len(starts), config.action_horizon, action.shape[1]), np.float32)
    for m, start in enumerate(starts):
        for k in range(config.action_horizon):
            steps = [min(start + k * group + g, len(action) - 1) for g in range(group)]
            actions[m, k] = np.where(adds_up, action[steps].sum(0), action[steps[-1]])
    return actions, state[[min(start, len(state) - 1) for start in starts]]


def round_trip(data: Data, source: str, i: int) -> RoundTrip:
    """Window i of a training source with actions, there and back."""
    windows = data.train[source]
    robot = windows.embodiment
    state_normalizer, action_normalizer = data.to_sample.normalizers[robot.name]
    window = windows[i]
    sample = data.to_sample(window, list(data.train).index(source))
    action = action_normalizer.denormalize(sample["action"][..., : robot.model_action_dim])
    state = state_normalizer.denormalize(sample["state"][..., : robot.model_state_dim])
    stored_action, stored_state = stored(windows, i)
    return RoundTrip(
        stored_action, stored_state, window, sample, action, state, robot.decode_action(action, stored_state),
        robot.decode_state(state),
    )  # fmt: skip


def window_page(data: Data, source: str, i: int) -> str:
    """Window i of a training source as the model sees it, as HTML; IndexError or ValueError."""
    windows = data.train[source]
    if not 0 <= i < len(windows):
        raise IndexError(f"the store {source!r} has the windows 0 to {len(windows) - 1}, not {i}")
    budget, meta = Budget(MEDIA_BYTES), windows.meta(i)
    window = windows[i]
    sample = data.to_sample(window, list(data.train).index(source))
    sections = [("Window", _window_facts(windows, i, sample)), ("Frames", _frames(data, window, budget))]
    if windows.embodiment.action_dim:
        sections += _numbers(windows, round_trip(data, source, i), budget)
    else:
        sections.append(("Actions", note("Video without actions: every action and state of the sample is masked.")))
    sections.append(("Tensors", _tensors(sample)))
    return page(f"{source}, window {i}: {meta['instruction'] or 'no instruction'}",
                tag("style", Html(shared.STYLE)), sections)  # fmt: skip


def _window_facts(windows: Windows, i: int, sample: dict[str, np.ndarray]) -> Html:
    config, meta = windows.config, windows.meta(i)
    facts = {
        "episode": f"{meta['episode']}, from step {meta['start_step']}",
        "instruction": f"{meta['instruction'] or '(none)'}: {int(sample['text_mask'].sum())} of "
        f"{len(sample['text_mask'])} text tokens are real",
        "frames at": ", ".join(f"{t:g}" for t in config.frame_seconds) + " s",
        "actions": f"{config.chunks} x {config.action_horizon} at {config.action_hz:g} Hz, from "
        f"{windows.control_hz:g} Hz in the store",
        "robot": f"{windows.embodiment.name}, number {int(sample['embodiment'])} of the run's table",
        "may be copied": ", ".join("yes" if copied else "no" for copied in sample["imitate"]),
    }
    return table(["", ""], [[name, value] for name, value in facts.items()])


def _frames(data: Data, window: dict[str, Any], budget: Budget) -> Html:
    """The real views, and what the tokenizer makes of them."""
    from jax import numpy as jnp

    tokenizer, parts = data.fitted.tokenizer, []
    camera = window["camera"]
    latents = tokenizer.encode(jnp.asarray(window["frames"][None]), jnp.asarray(camera[None]))
    decoded = np.asarray(tokenizer.decode(latents, jnp.asarray(camera[None])))[0]
    decoded = np.clip(np.round(decoded * 255), 0, 255).astype(np.uint8)
    for view in np.flatnonzero(window["view_mask"]):
        name = data.fitted.cameras[camera[view]]
        strip = plots.plot_rollout(
            {"as stored": window["frames"][view], "reconstructed": decoded[view]}, window["video_time"],
            reference="as stored", columns=FRAMES,
        )  # fmt: skip
        past = int((~window["frame_mask"]).sum())
        said = f"View {view}, camera {name}; latents {list(latents.shape[2:])} (frames, patches, channels)."
        said += f" The last {past} frames are past the end and masked." if past else ""
        parts.append(_figure(figure_uri(strip, pixels=True), said, budget, 100 * strip.get_figwidth()))
    masked = [str(view) for view in np.flatnonzero(~window["view_mask"])]
    return join([*parts, note(f"Views {', '.join(masked)} are masked: this source has no camera for them.")]
                if masked else parts)  # fmt: skip


def _numbers(windows: Windows, trip: RoundTrip, budget: Budget) -> list[tuple[str, Html]]:
    robot, hz = windows.embodiment, windows.config.action_hz
    names, size = robot.model_action_names, robot.model_action_dim

    def trace(values: np.ndarray, labels: Sequence[str], said: str) -> Html:
        flat = values.reshape(-1, values.shape[-1])
        return _figure(figure_uri(dataset_plots.plot_traces({"": flat}, labels, hz)), said, budget)

    real, room = trip.window["action_mask"], trip.sample["action"].shape[-1]
    kinds = [f"{name} ({kind})" for name, kind in zip(names, robot.model_action_kinds, strict=True)]
    masked = f"{int((~real).sum())} of {real.size} steps are masked" + (
        f", and dimensions {size} to {room - 1} are padding" if size < room else ""
    )
    encoded = "2. Encoded: relative where declared, rotations as rot6d, grippers -1 open to 1 closed."
    steps = [
        trace(trip.stored_action, robot.action_names, "1. Stored, grouped to the window's rate, in the robot's units."),
        trace(trip.window["action"], kinds, encoded),
        trace(trip.sample["action"][..., :size], names, f"3. Normalised, as the model gets it; {masked}."),
    ]
    errors = [[name, f"{error:.3g}"] for name, error in trip.errors.items()]
    states = [
        [name, *(f"{values[0][d]:.5g}" for values in (trip.window["state"], trip.sample["state"],
                                                      trip.denormalised_state))]
        for d, name in enumerate(robot.model_state_names)
    ]  # fmt: skip
    return [
        ("Actions", join(steps)),
        ("State", table(["state at the first chunk's start", "encoded", "normalised", "and back"], states)),
        ("And back", join([table(["largest absolute error", ""], errors),
                           note("Single precision: about 1e-7 of the largest value is rounding.")])),
    ]  # fmt: skip


def _tensors(sample: dict[str, np.ndarray]) -> Html:
    rows = []
    for name, array in sample.items():
        array = np.asarray(array)
        real = f"{array.mean():.0%} true" if array.dtype == bool else f"{array.min():.4g} to {array.max():.4g}"
        shown = np.array2string(array, precision=3, threshold=8) if array.size <= 12 else ""
        rows.append([name, f"{array.dtype}{list(array.shape)}", real, shown])
    return table(["field of the batch", "type", "values", ""], rows)


def load_run(store: Path, workdir: Path | None, recipe_path: str | None) -> Data:
    """The data of a run, or of a recipe fitted in a temporary directory, with the store among its training sources."""
    from ml_collections import ConfigDict

    from experiments.recipe import Recipe, load_data

    root = store.resolve().parent.parent
    if workdir is not None:
        if not (workdir / "config.json").is_file():
            raise FileNotFoundError(f"{workdir} is no run: it has no config.json")
        config = ConfigDict(json.loads((workdir / "config.json").read_text())["config"])
        return load_data(Recipe.of(config), root, workdir)
    path, _, variant = str(recipe_path).partition(":")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no recipe {path}; see experiments/configs")
    get_config = runpy.run_path(path)["get_config"]
    with tempfile.TemporaryDirectory() as fitted:
        return load_data(Recipe.of(get_config(variant) if variant else get_config()), root, Path(fitted))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shared.add_arguments(parser)
    parser.add_argument("--index", type=int, default=0, help="of the episode or, with a run or recipe, of the window")
    parser.add_argument("--workdir", type=Path, help="a run: show a window of --store as its model sees it")
    parser.add_argument("--config", help="a recipe, where there is no run yet")
    parser.add_argument("--out", type=Path, default=Path("view.html"), help="the page (default view.html)")
    asked = parser.parse_args(arguments)
    as_model = asked.workdir is not None or asked.config is not None
    if as_model and asked.store is None:
        parser.error("a model sees stores: name one with --store, after ingesting the data set")
    try:
        if as_model:
            data = load_run(asked.store, asked.workdir, asked.config)
            source = asked.store.resolve().name
            if source not in data.train or data.train[source].store.directory.resolve() != asked.store.resolve():
                raise ValueError(f"{asked.store} is no training store of the run: {', '.join(data.train)} are")
            shown = window_page(data, source, asked.index)
        else:
            options = shared.parse_options(asked.options)
            episodes = shared.open_episodes(asked.dataset, asked.path if asked.dataset else asked.store, options)
            shown = episode_page(episodes, asked.index)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(shown, encoding="utf-8")
    except (ValueError, IndexError, OSError) as error:
        print(f"view_dataset: {error}", file=sys.stderr)
        return 2
    print(asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
