"""The parts of a report that say where a policy is wrong: with and without imagination, by dimension, by itself."""

from __future__ import annotations

from wam.evaluation.diagnostic_plots import plot_open_loop
from wam.evaluation.page import Html, figure, join, note, table, tag
from wam.evaluation.paired import compare
from wam.evaluation.record import RunRecord, number, percent
from wam.evaluation.report_media import figure_uri

OPEN_LOOP = (
    "Actions of the policy against those of held-out episodes, window by window: mean absolute error in the robot's "
    "units, beside always answering with the mean action of the training data and beside holding still. A policy may "
    "be right in another way than the demonstrator, so this is no success; but a dimension that is no better than the "
    "mean has not been learned from the picture."
)
CONSISTENCY = (
    "The joint mode proposes actions and imagines their video. Inverse dynamics then read the actions back from that "
    "video, decoded to pixels, and from the imagined video of another window of the same task. R² of the proposed "
    "actions over the translation dimensions, and the root mean square error in normalised units. It needs no label: "
    "it says whether video and actions tell one story, not whether the story is true."
)


def imagination(run: RunRecord) -> Html:
    """Success with and without imagination on the same layouts, with the difference and its interval."""
    closed = run.metrics.get("closed_loop", {})
    if not {"policy", "joint"} <= set(closed):
        return note("Not evaluated both with and without imagination.")
    pair = compare(closed["joint"], closed["policy"])
    rows = [[name, percent(closed[mode])] for mode, name in
            (("policy", "policy mode, without imagination"), ("joint", "joint mode, with imagination"))]  # fmt: skip
    shown = table(["success, %, 95 % Wilson intervals", "all tasks"], rows)
    if pair is None:
        return join([shown, note("No paired comparison: this run was evaluated before outcomes were kept by layout.")])
    low, high = (100 * bound for bound in pair["ci95"])
    verdict = "imagining helps" if low > 0 else "imagining hurts" if high < 0 else "no difference is established"
    text = (
        f"With imagination minus without, layout by layout: {100 * pair['difference']:+.1f} points, 95 % "
        f"[{low:+.1f}, {high:+.1f}] (paired bootstrap over {pair['episodes']} layouts). Solved with imagination alone: "
        f"{pair['only_first']}; without it alone: {pair['only_second']} (exact McNemar test, p = {pair['p']:.2g}). "
        f"So {verdict}."
    )
    return join([shown, tag("p", text)])


def consistency(run: RunRecord) -> Html:
    """Whether the model's own video shows the actions it proposes."""
    if not (results := dict(sorted(run.metrics.get("consistency", {}).items()))):
        return note("No evaluation of self-consistency in this run.")
    keys = {"r2": "R², own video", "r2_wrong_video": "R², another's", "error": "error, own video",
            "error_wrong_video": "error, another's", "windows": "windows"}  # fmt: skip
    rows = [[f"{kind} data", *(str(of[key]) if key == "windows" else number(of.get(key)) for key in keys)]
            for kind, of in results.items()]  # fmt: skip
    return join([tag("p", CONSISTENCY), table(["imagined video against proposed actions", *keys.values()], rows)])


def open_loop(run: RunRecord) -> Html:
    """Errors of every action dimension on held-out episodes."""
    if not run.open_loop:
        return note("No open-loop evaluation in this run: evaluate it with --open_loop and write the report again.")
    found = run.open_loop
    parts = [tag("p", OPEN_LOOP), note(f"{found['mode']} mode, {found['steps']} sampler steps, {found['split']} data, "
                                       f"checkpoint at step {found['checkpoint_step']:,}.")]  # fmt: skip
    for name, row in found["sources"].items():
        low, high = row["skill_ci95"]
        parts += [
            tag("h3", f"Open-loop error by dimension: {name}, {row['embodiment']}"),
            note(f"{row['windows']} windows of {row['episodes']} episodes. Squared error against the mean's: skill "
                 f"{row['skill']:.2f}, 95 % [{low:.2f}, {high:.2f}]."),
            table(["mean absolute error, robot's units", "policy", "mean action", "hold still", "policy / mean"],
                  [[dim, *(f"{of[case]:.4g}" for case in ("policy", "mean", "hold")),
                    number(of["policy"] / of["mean"]) if of["mean"] > 0 else "-"] for dim, of in row["dims"].items()]),
            figure(figure_uri(plot_open_loop(row)), "Left of the line: better than the mean action.",
                   alt="Open-loop error by dimension"),
        ]  # fmt: skip
    return join([*parts, *(note(f"{name} left out: {why}.") for name, why in found["left_out"].items())])
