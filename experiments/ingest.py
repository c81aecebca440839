"""Any dataset to the stores that training reads.

    python -m experiments.ingest --dataset=gr1 --path=DIRECTORY --out=data --name=gr1 --image_size=64 --fps=10

makes data/train/gr1 and data/validation/gr1. The same command goes on where it was stopped; another one is refused
there. Episodes that cannot be read are listed in quarantine.jsonl with the reason, the others are not touched by them.

With --latents=TOKENIZER (a run, or an imported autoencoder) and the --config of the recipe that will train, the latents
of all windows are written beside the frames, as by python -m experiments.latents, which has more settings.
"""

from __future__ import annotations

import json
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from data_pipelines.engines import ENGINES, EngineError
from data_pipelines.ingest import QUARANTINE, IngestError, ingest
from data_pipelines.ingest_plan import IngestConfig
from data_pipelines.resize import FITS
from experiments import cli

_DATASET = flags.DEFINE_string("dataset", None, "Name of an entry in data_pipelines.datasets, or FILE.py:NAME.")
_PATH = flags.DEFINE_string("path", None, "Where the dataset is.")
_OUT = flags.DEFINE_string("out", None, "ROOT of the stores: ROOT/train/NAME and ROOT/validation/NAME.")
_NAME = flags.DEFINE_string("name", None, "NAME of the stores, and of the source in recipes.")
_OPTIONS = flags.DEFINE_list("options", [], "Of the dataset's format, such as split=val.")
_SIZE = flags.DEFINE_list("image_size", None, "HEIGHT,WIDTH in pixels, or one number for both.")
_FIT = flags.DEFINE_enum("fit", IngestConfig.fit, FITS, "Where the aspect differs: squeeze, add black bars, or cut.")
_FPS = flags.DEFINE_float("fps", None, "Store at most so many frames a second; all by default.")
_VALIDATION = flags.DEFINE_list("validation", ["0.1"], "Share of the episodes held out, or their names.")
_KEEP = flags.DEFINE_string("keep", None, "JSON file {episode: [[start, end), ...]}: steps at which windows may start.")
_MIN_STEPS = flags.DEFINE_integer("min_steps", IngestConfig.min_steps, "Leave shorter episodes out.")
_DROP_IDLE = flags.DEFINE_float(
    "drop_idle", None, "Start no window where no state and no action changes by more than this, in their own units."
)
_IDLE_SECONDS = flags.DEFINE_float("idle_seconds", IngestConfig.idle_seconds, "Shorter pauses are not idle.")
_SUCCESS = flags.DEFINE_bool("success_only", False, "Leave out episodes that the dataset does not call successful.")
_CLIP = flags.DEFINE_float("clip_seconds", IngestConfig.clip_seconds, "Length of a record.")
_OVERLAP = flags.DEFINE_float("overlap_seconds", IngestConfig.overlap_seconds, "How far a window may reach.")
_CODEC = flags.DEFINE_enum("codec", IngestConfig.codec, ["h264", "png"], "How frames are stored; png has no loss.")
_CRF = flags.DEFINE_integer("crf", IngestConfig.crf, "Of h264: 0 (best) to 51.")
_GOP = flags.DEFINE_integer("gop", IngestConfig.gop, "Of h264: frames from one keyframe to the next.")
_SHARD = flags.DEFINE_integer("shard_frames", IngestConfig.shard_frames, "About so many frames of the source a shard.")
_PROCESSES = flags.DEFINE_integer("processes", 1, "At the same time; no influence on the result.", lower_bound=1)
_ENGINE = flags.DEFINE_enum("engine", "local", ENGINES, "What runs the shards; no influence on the result.")
_ENGINE_OPTIONS = flags.DEFINE_string(
    "engine_options", "", 'Of beam: flags such as --runner=DirectRunner; of ray: JSON such as {"address": "auto"}.'
)
_MAX_BAD = flags.DEFINE_float("max_bad", 0.1, "Fail if a larger share of the episodes is quarantined.")
_LATENTS = flags.DEFINE_string("latents", None, "Tokenizer of which latents are written as well.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe whose windows the latents are of.", lock_config=True)
_PROGRESS = flags.DEFINE_bool("progress", True, "Show a bar.")


def _options(pairs: list[str]) -> dict:
    """Of key=value: numbers, true, false and null as in JSON, everything else text."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--options takes key=value pairs, got {pair!r}")
        try:
            options[key.strip()] = json.loads(value)
        except ValueError:
            options[key.strip()] = value
    return options


def _size(numbers: list[str]) -> tuple[int, int]:
    if len(numbers) not in (1, 2) or not all(number.strip().isdigit() for number in numbers):
        raise ValueError(f"--image_size takes HEIGHT,WIDTH or one number, got {','.join(numbers)!r}")
    return int(numbers[0]), int(numbers[-1])


def _validation(values: list[str]) -> float | tuple[str, ...]:
    if len(values) == 1:
        try:
            return float(values[0])
        except ValueError:
            pass
    return tuple(values)


def config_from_flags() -> IngestConfig:
    return IngestConfig(
        dataset=str(_DATASET.value),
        path=str(_PATH.value),
        image_size=_size(_SIZE.value or []),
        options=_options(_OPTIONS.value),
        fit=_FIT.value,
        fps=_FPS.value,
        validation=_validation(_VALIDATION.value),
        keep=_KEEP.value,
        min_steps=_MIN_STEPS.value,
        drop_idle=_DROP_IDLE.value,
        idle_seconds=_IDLE_SECONDS.value,
        success_only=_SUCCESS.value,
        clip_seconds=_CLIP.value,
        overlap_seconds=_OVERLAP.value,
        codec=_CODEC.value,
        crf=_CRF.value,
        gop=_GOP.value,
        shard_frames=_SHARD.value,
    )


def summary(result: dict) -> str:
    """What was made, for people."""
    lines = [f"{'store':12s} {'episodes':>8s} {'clips':>8s} {'frames':>9s} {'fps':>6s} {'MB':>9s}"]
    for split, manifest in result["stores"].items():
        size = sum(shard["bytes"] for shard in manifest["shards"].values())
        counts = f"{manifest['episodes']:8d} {manifest['records']:8d} {manifest['frames']:9d} {manifest['fps']:6.3g}"
        lines.append(f"{split:12s} {counts} {size / 1e6:9.1f}")
    if set(result["stores"]) == {"train"} and _VALIDATION.value != ["0"]:
        lines.append("no episode fell to validation: name some, --validation=EPISODE,EPISODE")
    lines += [f"{count} episodes left out: {reason}" for reason, count in result["skipped"].items()]
    if result["quarantined"]:
        lines.append(f"{len(result['quarantined'])} episodes cannot be read, see {QUARANTINE}; the first:")
        lines.append(f"  {result['quarantined'][0]['reason']}")
    lines += [f"the source: {problem}" for problem in result["problems"]]
    return "\n".join([*lines, f"{result['made']} shards made, {result['found']} found"])


def _write_latents(tokenizer: str, splits: list[str]) -> None:
    from experiments.encoding import write_latents
    from experiments.recipe import Recipe

    stores = [pathlib.Path(str(_OUT.value), split, str(_NAME.value)) for split in splits]
    write_latents(stores, tokenizer, Recipe.of(_CONFIG.value), engine=_ENGINE.value, options=_ENGINE_OPTIONS.value,
                  workers=_PROCESSES.value if _ENGINE.value == "ray" else 1, progress=_PROGRESS.value)  # fmt: skip


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"ingest: unknown argument {argv[1]!r}: everything is set with flags, see --help")
    try:
        if (_LATENTS.value is None) != (_CONFIG.value is None):
            raise ValueError("--latents and --config belong together: windows are cut as that recipe says")
        if _LATENTS.value and _ENGINE.value == "beam":
            raise ValueError("--latents runs on --engine=local or ray: Beam has no workers with accelerators")
        result = ingest(
            str(_OUT.value),
            str(_NAME.value),
            config_from_flags(),
            engine=_ENGINE.value,
            processes=_PROCESSES.value,
            engine_options=_ENGINE_OPTIONS.value,
            max_bad=_MAX_BAD.value,
            progress=_PROGRESS.value,
        )
        if _LATENTS.value:
            _write_latents(_LATENTS.value, list(result["stores"]))
    except (ValueError, OSError, IngestError, EngineError) as error:
        sys.exit(f"ingest: {error}")
    print(summary(result))


if __name__ == "__main__":
    flags.mark_flags_as_required(["dataset", "path", "out", "name", "image_size"])
    cli.run(main)
