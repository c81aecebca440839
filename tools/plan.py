"""Does it fit, and how long does it take? Any recipe on any mesh, before anybody pays for a device.

    python tools/plan.py --config=experiments/configs/wan14b.py --mesh data=8,fsdp=32 [--chip H100] [--mfu 0.4]

Prints parameters, tokens and FLOPs of a training step, bytes of one device, and for every chip the expected step time
at an assumed utilisation, whether it fits, and what to change where it does not. Needs no accelerator and no data; any
field of the recipe can be set as in training (`--config.model.remat=full`). Axes that `--mesh` leaves out have size 1;
without it the recipe's mesh counts, with one device where that says "all that remain".
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import re
import sys
from collections.abc import Iterator

from absl import flags
from ml_collections import config_flags

from experiments import cli
from experiments.recipe import Recipe
from wam.config import MeshConfig
from wam.models.flops import forward_flops, stream_tokens, train_step_flops
from wam.training import memory
from wam.training.chips import CHIPS, Chip
from wam.training.memory import Setting, device_bytes
from wam.training.sharding import AXES, check_mesh, mesh_shape

USABLE = 0.92
"""Share of a chip's memory that a step may fill; the rest is the runtime's, the collectives' and fragmentation's."""

NOTE = """Step: three forward passes of matrix products over devices x peak x {mfu:.0%} MFU, which is assumed; what
remat recomputes is not counted. Activations are a model, right within a factor of {within:g}; "close": there may be too
many. A chip fits whose memory is filled to {usable:.0%} at most."""

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe; see experiments/configs.", lock_config=True)
_MESH = flags.DEFINE_string("mesh", None, "Devices along each axis, as data=8,fsdp=32,tensor=1,context=1.")
_CHIP = flags.DEFINE_list("chip", list(CHIPS), "Chips to plan for, separated by commas.")
_MFU = flags.DEFINE_float("mfu", 0.4, "Model FLOPs utilisation to assume.", lower_bound=0.01, upper_bound=1.0)


def parse_mesh(text: str) -> dict[str, int]:
    """'data=8,fsdp=32' -> the size of every axis; ValueError says in one sentence what is wrong."""
    mesh: dict[str, int] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\w+)\s*=\s*(-?\d+)\s*", part)
        if found is None:
            raise ValueError(f"--mesh {text!r}: {part!r} is not AXIS=DEVICES; write it as data=8,fsdp=32")
        axis, size = found.group(1), int(found.group(2))
        if axis not in AXES:
            near = difflib.get_close_matches(axis, AXES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(AXES)}"
            raise ValueError(f"--mesh {text!r}: there is no axis {axis!r}; {hint}")
        if axis in mesh:
            raise ValueError(f"--mesh {text!r} names {axis!r} twice")
        if size < 1:
            raise ValueError(f"--mesh {text!r}: {axis} must be at least 1, since a plan cannot count devices")
        mesh[axis] = size
    return {axis: mesh.get(axis, 1) for axis in AXES}


def recipe_mesh(config: MeshConfig) -> dict[str, int]:
    """The recipe's own mesh, at its smallest."""
    smallest = config if config.data > 0 else dataclasses.replace(config, data=1)
    return mesh_shape(smallest, math.prod(getattr(smallest, axis) for axis in AXES))


def setting_of(recipe: Recipe, mesh: dict[str, int]) -> Setting:
    """What decides the bytes of the recipe on a mesh; ValueError where they do not go together."""
    model, spec = recipe.by_shape()
    setting = Setting(model, recipe.objective, spec, mesh, recipe.train.batch_size, recipe.train.accumulate,
                      recipe.finetune)  # fmt: skip
    check_mesh(mesh, model, setting.batch_size, setting.accumulate)
    return setting


def on_chip(setting: Setting, chip: Chip) -> Setting:
    """The setting with an attention backend that the chip has."""
    if setting.model.attention in chip.attention:
        return setting
    return dataclasses.replace(setting, model=dataclasses.replace(setting.model, attention="xla"))


def levers(setting: Setting, chip: Chip) -> Iterator[tuple[str, Setting]]:
    """Single changes that need less memory, those that cost least first; the batch shrinks last."""
    model, mesh = setting.model, setting.mesh

    def remeshed(**axes: int) -> Setting:
        return dataclasses.replace(setting, mesh={**mesh, **axes})

    if "cudnn" in chip.attention and model.attention != "cudnn" and model.dtype == "bfloat16":
        yield "model.attention=cudnn", dataclasses.replace(setting, model=dataclasses.replace(model, attention="cudnn"))
    policies = ("none", "dots", "full")
    for remat in policies[policies.index(model.remat) + 1 :]:
        yield f"model.remat={remat}", dataclasses.replace(setting, model=dataclasses.replace(model, remat=remat))
    for times in _doublings(setting.rows):
        accumulate = setting.accumulate * times
        yield f"train.accumulate={accumulate}", dataclasses.replace(setting, accumulate=accumulate)
    for times in _doublings(mesh["data"]):
        axes = {"data": mesh["data"] // times, "fsdp": mesh["fsdp"] * times}
        yield "mesh " + ",".join(f"{k}={v}" for k, v in axes.items()) + " on as many devices", remeshed(**axes)
    for axis, limit in (("fsdp", setting.rows), ("tensor", 8), ("context", 8)):
        for times in _doublings(limit):
            axes = {axis: mesh[axis] * times}
            yield f"mesh {axis}={axes[axis]} on {times} times the devices", remeshed(**axes)
    for times in _doublings(setting.rows):
        batch = setting.batch_size // times
        yield f"train.batch_size={batch}", dataclasses.replace(setting, batch_size=batch)


def _doublings(limit: int) -> Iterator[int]:
    """2, 4, 8, ... up to `limit`."""
    return itertools.takewhile(lambda n: n <= limit, (2**i for i in itertools.count(1)))


def changes(setting: Setting, chip: Chip) -> Iterator[tuple[str, Setting]]:
    """Every lever and every two together; those that ask for more devices come after all others."""
    single = list(levers(setting, chip))
    pairs = [
        (f"{first} and {second}", further)
        for first, changed in single
        # Only what is counted at once: changes of the rows, and of what is recomputed.
        if dataclasses.replace(changed.local(), remat=setting.model.remat) == setting.local()
        for second, further in levers(changed, chip)
    ]
    return iter(sorted([*single, *pairs], key=lambda change: change[1].devices > setting.devices))


def advice(setting: Setting, chip: Chip) -> str:
    """One sentence: the first change that makes the setting fit the chip."""
    least, best = device_bytes(setting).total, ""
    for name, changed in changes(setting, chip):
        try:
            total = device_bytes(changed).total
        except ValueError:  # it does not divide
            continue
        if total <= USABLE * chip.hbm:
            return f"{name} would bring it to {size(total)}"
        if total < least:
            least, best = total, name
    if best:
        return f"no two changes suffice; the least is {size(least)}, with {best}"
    return "no change makes it smaller; take a smaller model or larger chips"


def _scaled(value: float, *units: tuple[str, float]) -> str:
    """In the largest unit that `value` reaches, to three digits; in the last one if it reaches none."""
    unit, scale = next((u for u in units if value >= u[1]), units[-1])
    return f"{value / scale:.3g}{unit}"


def size(count: float) -> str:
    """Bytes for people, in decimal units."""
    units = ((" TB", 1e12), (" GB", 1e9), (" MB", 1e6), (" kB", 1e3))
    return _scaled(count, *units) if count >= 1e3 else f"{count:.0f} B"


def number(count: float) -> str:
    """Counts for people: thousands, millions, billions, trillions."""
    units = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3))
    return _scaled(count, *units) if count >= 1e3 else f"{count:.0f}"


def work(flops: float) -> str:
    return _scaled(flops, (" EFLOP", 1e18), (" PFLOP", 1e15), (" TFLOP", 1e12), (" GFLOP", 1e9), (" MFLOP", 1e6))


def duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def plan(recipe: Recipe, mesh: dict[str, int], chips: list[Chip], mfu: float) -> str:
    """The whole table as text."""
    setting = setting_of(recipe, mesh)
    model, objective, batch_size = setting.model, setting.objective, setting.batch_size
    counts = memory.param_counts(model)
    trained = memory.param_counts(model, recipe.finetune)
    tokens = stream_tokens(model, objective)
    flops = forward_flops(model, objective=objective, text_tokens=setting.spec.text_tokens)
    step = train_step_flops(model, objective, batch_size, text_tokens=setting.spec.text_tokens)
    shares = {name: part / flops.total for name, part in dataclasses.asdict(flops).items()}
    needed = device_bytes(setting)
    in_parts = f", {setting.accumulate} times" if setting.accumulate > 1 else ""
    facts = {
        "mesh": f"{_listed(mesh)}: {setting.devices:,} device{'s' if setting.devices > 1 else ''}",
        "batch": f"{batch_size:,} samples; {setting.rows:,} a device at a time{in_parts}",
        "model": f"{model.dtype}, remat {model.remat}, {model.attention} attention",
        "parameters": f"{sum(counts.values()):,}: {_listed({name: number(n) for name, n in counts.items()})}",
        "trained": f"{sum(trained.values()):,}: {_listed({name: number(n) for name, n in trained.items()})}",
        "tokens": f"{tokens.total:,} a sample: {_listed({name: n for name, n in vars(tokens).items() if n})}",
        "work": f"{work(step)} a step; forward {work(flops.total)} a sample: "
        + _listed({name: f"{share:.0%}" for name, share in shares.items() if share >= 0.005}),
    }
    held = [[name, size(n)] for name, n in vars(needed).items()]
    return "\n".join(
        [
            *(f"{name:12s}{text}" for name, text in facts.items()),
            "",
            *table([["bytes of a device", ""], *held, ["total", size(needed.total)]]),
            "",
            *chip_rows(setting, chips, mfu, step, tokens.total),
            "",
            NOTE.format(mfu=mfu, within=memory.ACTIVATIONS_WITHIN, usable=USABLE),
        ]
    )


def _listed(values: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def chip_rows(setting: Setting, chips: list[Chip], mfu: float, step_flops: int, tokens: int) -> list[str]:
    """One line for each chip, then the advice for those that are too small."""
    rows = [["chip", "step", "tokens a day", "bytes", "of", "fits"]]
    notes = []
    for chip in chips:
        there = on_chip(setting, chip)
        needed, usable = device_bytes(there), USABLE * chip.hbm
        seconds = step_flops / (setting.devices * chip.flops * mfu)
        per_day = number(tokens * setting.batch_size * 86_400 / seconds)
        worst = needed.total + (memory.ACTIVATIONS_WITHIN - 1) * needed.activations
        fits = "no" if needed.total > usable else "close" if worst > usable else "yes"
        rows.append([chip.name, duration(seconds), per_day, size(needed.total), size(chip.hbm), fits])
        if there is not setting:
            notes.append(f"{chip.name}: no {setting.model.attention} attention there; counted with model.attention=xla")
        if fits == "no":
            notes.append(f"{chip.name}: {advice(there, chip)}")
    if setting.model.dtype != "bfloat16":
        notes.append(f"The peaks are those of bfloat16; a recipe that computes in {setting.model.dtype} is slower.")
    return [*table(rows), *([""] if notes else []), *notes]


def table(rows: list[list[str]]) -> list[str]:
    """Columns side by side, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        right = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *right]).rstrip())
    return lines


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"plan: unknown argument {argv[1]!r}: give --config, --mesh, --chip and --mfu")
    import jax

    jax.config.update("jax_platforms", "cpu")  # a plan needs no accelerator, and must not take one from a run
    try:
        if unknown := [name for name in _CHIP.value if name not in CHIPS]:
            raise ValueError(f"unknown chip {unknown[0]!r}; choose from {', '.join(CHIPS)}")
        recipe = Recipe.of(_CONFIG.value)
        mesh = parse_mesh(_MESH.value) if _MESH.value is not None else recipe_mesh(recipe.mesh)
        print(plan(recipe, mesh, [CHIPS[name] for name in _CHIP.value], _MFU.value))
    except ValueError as error:
        sys.exit(f"plan: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    cli.run(main)
