"""From a recipe (`ConfigDict`) and a directory of stores to the parts of a run: windows, assets, model, stream."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.collect.collect import CollectConfig
from data_pipelines.embodiments import agree, get_embodiment
from data_pipelines.outcomes import Outcomes
from data_pipelines.store import ClipStore
from data_pipelines.transforms import ToSample
from data_pipelines.windows import WindowConfig, Windows
from experiments.fitted import Fitted, fit
from experiments.given_tokenizer import GivenTokenizer, given_tokenizer
from wam.batch import BatchSpec
from wam.config import (
    DERIVED,
    NAMED_SIZES,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TextConfig,
    TokenizerConfig,
    TrainConfig,
    build,
)
from wam.embodiment import NONE_EMBODIMENT, EmbodimentSpec
from wam.envs import embodiment_of, env_factory
from wam.pretrained.instructions import text_encoder
from wam.pretrained.provenance import read_provenance
from wam.training.augment_config import AugmentConfig
from wam.training.distill_config import DistillConfig
from wam.training.finetune_config import FinetuneConfig

ACTION_HZ = 80.0
PER_SOURCE = ("frame_seconds", "action_hz", "views")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A `ConfigDict` turned into the library's frozen dataclasses."""

    config: ConfigDict
    tokenizer: TokenizerConfig
    text: TextConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    train: TrainConfig
    finetune: FinetuneConfig
    augment: AugmentConfig
    distill: DistillConfig

    @classmethod
    def of(cls, config: ConfigDict) -> Recipe:
        """ValueError names an unknown or missing part or field."""
        known = ("sim", "collect", "data", "tokenizer", "text", "model", "objective", "optimizer", "mesh", "train",
                 "evaluate", "finetune", "augment", "distill")  # fmt: skip
        for name in config:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise ValueError(
                    f"the config has an unknown part {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                )
        if missing := [name for name in ("data", "tokenizer", "model", "objective", "train") if name not in config]:
            raise ValueError(f"the config lacks the part {missing[0]!r}")
        if unknown := sorted(set(config.data.get("sources", {})) - set(config.data.weights)):
            raise ValueError(f"data.sources has {unknown[0]!r}, which has no weight in data.weights")

        def part(name: str, kind: type) -> Any:
            return build(kind, config.get(name, ConfigDict()).to_dict())

        return cls(
            config,
            part("tokenizer", TokenizerConfig),
            part("text", TextConfig),
            part("objective", ObjectiveConfig),
            part("optimizer", OptimizerConfig),
            part("mesh", MeshConfig),
            part("train", TrainConfig),
            part("finetune", FinetuneConfig),
            part("augment", AugmentConfig),
            part("distill", DistillConfig),
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the training sources; the position is the batch's `source`."""
        return tuple(self.config.data.weights)

    def model_config(self, image_size: int, cameras: tuple[str, ...], action_dim: int, state_dim: int,
                     embodiments: int) -> ModelConfig:  # fmt: skip
        """The model's shape: what the recipe says, what the data fixes, and the named size as the default."""
        data, fields = self.config.data, self.config.model.to_dict()
        size = fields.pop("size", "tiny")
        if size not in NAMED_SIZES:
            raise ValueError(f"unknown model.size {size!r}; choose from {', '.join(NAMED_SIZES)}")
        seconds = tuple(data.frame_seconds)
        r, side = self.tokenizer.frames_per_latent, image_size // self.tokenizer.patch
        if (len(seconds) - 1) % r:
            raise ValueError(
                f"data.frame_seconds has {len(seconds)} frames; tokenizer.frames_per_latent {r} needs 1 + {r} n"
            )
        derived = {
            "grid": (side, side),
            "latent_channels": self.tokenizer.channels,
            "latent_frames": 1 + (len(seconds) - 1) // r,
            "frames_per_latent": r,
            "views": len(data.views),
            "cameras": len(cameras),
            "latent_rate": float((len(seconds) - 1) / r / seconds[-1]),
            "chunks": data.get("chunks", 1),
            "action_horizon": data.get("action_horizon", 16),
            # A pretrained action head may have room for more than the data needs.
            "action_dim": max(action_dim, data.get("action_dim", 0)),
            "state_dim": max(state_dim, data.get("state_dim", 0)),
            "embodiments": embodiments,
            "text_dim": self.text.dim,
        }
        if set(derived) != set(DERIVED):
            raise AssertionError("wam.config.DERIVED is out of date")
        if clash := sorted(set(fields) & set(derived)):
            raise ValueError(f"model.{clash[0]} is decided by the data and the tokenizer; set it there")
        return build(ModelConfig, {**NAMED_SIZES[size], **derived, **fields})

    def by_shape(self) -> tuple[ModelConfig, BatchSpec]:
        """The model and its batches by shape, from the recipe alone: as `load_data` will find them in what it collects.

        A recipe that does not collect all it trains on states it: data.image_size, data.embodiments (names of robots)
        and, where not all cameras are among the views, data.cameras. ValueError if only data could tell.
        """
        if "embodiments" in self.config.data or not {"sim", "collect"} <= set(self.config):
            return self._stated_shape()
        sim = self.config.sim
        robot, size = embodiment_of(sim.name), env_factory(sim.name, sim.get("render", {})).keywords["render"].size
        filmed: set[str] = set(sim.cameras) if set(self.sources) - {"ego"} else set()
        if "ego" in self.sources:
            filmed.add(self.config.collect.get("ego_camera", CollectConfig.ego_camera))
        return self._shape(size, self.cameras(filmed), [robot])

    def _stated_shape(self) -> tuple[ModelConfig, BatchSpec]:
        data = self.config.data
        for field in ("image_size", "embodiments"):
            if field not in data:
                raise ValueError(
                    f"the config has no `sim` and `collect`, and no data.{field}: the model's shape is known only from "
                    "its data"
                )
        return self._shape(data.image_size, self.cameras(()), [get_embodiment(name) for name in data.embodiments])

    def _shape(self, size: int, cameras: tuple[str, ...], robots: list[EmbodimentSpec]
               ) -> tuple[ModelConfig, BatchSpec]:  # fmt: skip
        for name in self.sources:
            window_config(self.config.data, cameras, name, control_hz=max(r.control_hz for r in robots))
        if size % self.tokenizer.patch:
            raise ValueError(f"tokenizer.patch {self.tokenizer.patch} does not divide the image size {size}")
        action_dim, state_dim = room(robots)
        model = self.model_config(size, cameras, action_dim, state_dim, 1 + len(robots))
        return model, model.batch_spec(size, size, self.text.tokens)

    def cameras(self, filmed: Iterable[str]) -> tuple[str, ...]:
        """The run's camera table: what data.cameras says, or the views and then all others there are."""
        data = self.config.data
        own = (source.get("views", ()) for source in data.get("sources", {}).values())
        views = dict.fromkeys([*data.views, *itertools.chain(*own)])
        return tuple(data.get("cameras", ())) or (*views, *sorted(set(filmed) - set(views)))


def room(robots: Iterable[EmbodimentSpec]) -> tuple[int, int]:
    """(A, S) of a batch that has room for all of them."""
    robots = list(robots)
    return (
        max((robot.model_action_dim for robot in robots if robot.action_dim), default=1),
        max((robot.model_state_dim for robot in robots if robot.state_dim), default=1),
    )


def window_config(data: Any, cameras: tuple[str, ...], source: str, *, control_hz: float) -> WindowConfig:
    """How the windows of a source are cut, by the `data` part of a recipe or of a checkpoint's copy of it.

    `data.sources[source]` overrides what all sources share; an action_hz of 0 is the source's own `control_hz`.
    """
    own = dict(data.get("sources", {}).get(source, {}))
    if unknown := sorted(set(own) - set(PER_SOURCE)):
        raise ValueError(f"data.sources.{source} has {unknown[0]!r}; a source decides {', '.join(PER_SOURCE)} alone")
    for field in ("frame_seconds", "views"):
        if field in own and len(own[field]) != len(data[field]):
            raise ValueError(
                f"data.sources.{source}.{field} has {len(own[field])} entries, data.{field} has {len(data[field])}: "
                "all samples of a batch have equally many"
            )
    return WindowConfig(
        frame_seconds=tuple(own.get("frame_seconds", data["frame_seconds"])),
        action_horizon=data.get("action_horizon", 16),
        action_hz=own.get("action_hz", data.get("action_hz", ACTION_HZ)) or control_hz,
        views=tuple(own.get("views", data["views"])),
        cameras=cameras,
        chunks=data.get("chunks", 1),
    )


def open_stores(root: Path, split: str, names: tuple[str, ...]) -> dict[str, ClipStore]:
    """The stores of a split that exist; FileNotFoundError if none does."""
    stores = {name: ClipStore(root / split / name) for name in names if (root / split / name).is_dir()}
    if not stores:
        raise FileNotFoundError(
            f"{root / split} holds none of the sources {', '.join(names)}; "
            "collect them with python -m experiments.collect"
        )
    return stores


@dataclasses.dataclass(frozen=True)
class Data:
    """The training and validation side of a run."""

    train: dict[str, Windows]
    validation: dict[str, Windows]
    to_sample: ToSample
    validation_sample: ToSample
    spec: BatchSpec
    fitted: Fitted
    model: ModelConfig
    text: TextConfig
    """As the recipe has it, with the digest of the encoder's files."""
    robots: dict[str, Windows]
    """embodiment -> the first source of it, whose timing and cameras are those of its observations"""


def load_data(recipe: Recipe, root: Path, workdir: Path) -> Data:
    """Opens the stores, fits or reads the assets, and derives the model's shape.

    Raises:
      FileNotFoundError: a store of the mixture is missing.
      ValueError: the fitted assets of `workdir` belong to other stores.
    """
    stores = open_stores(root, "train", recipe.sources)
    if missing := [name for name in recipe.sources if name not in stores]:
        raise FileNotFoundError(
            f"{root / 'train'} lacks the source {missing[0]!r} of data.weights; collect it or drop it"
        )
    held_out = open_stores(root, "validation", recipe.sources)
    cameras = recipe.cameras({c for store in stores.values() for c in store.manifest["cameras"]})
    begun = Fitted.load(workdir) if (workdir / "fitted.json").exists() else None
    given = None
    if path := recipe.config.data.get("latents", ""):
        height, width = next(iter(stores.values())).manifest["image_size"]
        given = GivenTokenizer.of(begun) if begun else given_tokenizer(path, recipe.tokenizer, (height, width))
        cameras = given.table(cameras)
    train = {name: _windows(recipe, name, store, cameras) for name, store in stores.items()}
    # A source without a validation split keeps its place in the table but is never read for validation.
    validation = {name: _windows(recipe, name, store, cameras) for name, store in held_out.items()}
    robots = check_robots({f"{split}/{name}": windows for split, of in (("train", train), ("validation", validation))
                            for name, windows in of.items()})  # fmt: skip
    if begun:
        fitted = begun
        for name, windows in train.items():
            if fitted.hashes.get(name) != windows.store.hash:
                mend = (
                    "distil on the teacher's data" if recipe.distill.teacher else "use a new --workdir for other data"
                )
                raise ValueError(
                    f"statistics and tokenizer of {workdir} were fitted on another {name!r} store "
                    f"({str(fitted.hashes.get(name))[:8]}, not {windows.store.hash[:8]}); {mend}"
                )
    else:
        data = recipe.config.data
        fitted = fit(recipe.tokenizer, train, cameras, normalization=data.get("normalization", "quantile"),
                     overrides=dict(data.get("normalization_overrides", {})),
                     tokenizer=given.tokenizer if given else None)  # fmt: skip
        fitted.save(workdir)
    _check_fitted(recipe, fitted)
    action_dim, state_dim = room(fitted.statistics.specs.values())
    size = fitted.tokenizer.image_size
    model = recipe.model_config(size[0], cameras, action_dim, state_dim, len(fitted.embodiments))
    spec = model.batch_spec(size[0], size[1], recipe.text.tokens)
    if spec.guide or spec.image:
        raise ValueError(
            "model.guide_channels and image_dim want `guide` and `image` in every batch, which stores do not hold: "
            "take a text-to-video trunk"
        )
    if given:
        spec = dataclasses.replace(spec, latent=(model.latent_frames, model.patches, model.latent_channels))
        train, validation = ({name: given.encoded(w) for name, w in of.items()} for of in (train, validation))
    normalizers = {name: fitted.statistics.normalizers(name) for name in fitted.embodiments if name != "none"}
    encode, text = text_encoder(recipe.text)
    everywhere = {name: validation.get(name, windows) for name, windows in train.items()}
    encode.prepare(
        {
            meta["instruction"]
            for windows in (*train.values(), *validation.values())
            for meta in windows.store.index.meta
        }
    )
    outcomes = _outcomes(recipe, model, train)
    to_sample, validation_sample = (
        ToSample(spec, windows, normalizers, fitted.embodiments, encode, outcomes) for windows in (train, everywhere)
    )
    return Data(train, validation, to_sample, validation_sample, spec, fitted, model, text, robots)


def _outcomes(recipe: Recipe, model: ModelConfig, train: Mapping[str, Windows]) -> Outcomes | None:
    """What the value query learns from; None without one. ValueError if no store of the run has an outcome."""
    if not model.value_bins:
        return None
    outcomes = build(Outcomes, dict(recipe.config.data.get("value", {})))
    if not {kind for windows in train.values() for kind in windows.store.manifest["kinds"]} & set(outcomes.kinds):
        raise ValueError(
            f"model.value_bins is {model.value_bins}, but no store of data.weights has episodes of the kinds "
            f"data.value.kinds {list(outcomes.kinds)}: there is no outcome to learn a value from"
        )
    return outcomes


def _windows(recipe: Recipe, name: str, store: ClipStore, cameras: tuple[str, ...]) -> Windows:
    config = window_config(recipe.config.data, cameras, name, control_hz=store.manifest["control_hz"])
    asked = recipe.config.data.get("sources", {}).get(name, {}).get("views", ())
    if missing := sorted(set(asked) - set(store.manifest["cameras"])):
        raise ValueError(f"data.sources.{name}.views has {missing[0]!r}; its cameras are {store.manifest['cameras']}")
    return Windows(store, config)


def _check_fitted(recipe: Recipe, fitted: Fitted) -> None:
    """ValueError if the recipe says of its data what is not so, or wants other normalisers than were fitted."""
    data, names, size = recipe.config.data, fitted.embodiments[1:], list(fitted.tokenizer.image_size)
    if "embodiments" in data and sorted(data.embodiments) != sorted(names):
        raise ValueError(f"data.embodiments is {sorted(data.embodiments)}, the stores are of {sorted(names)}")
    if "image_size" in data and size != [data.image_size] * 2:
        raise ValueError(f"data.image_size is {data.image_size}, the stores have images of {size}")
    kinds = dict.fromkeys(names, data.get("normalization", "quantile")) | dict(data.get("normalization_overrides", {}))
    if kinds != fitted.statistics.normalization:
        raise ValueError(
            f"the normalisers of this run are {fitted.statistics.normalization}, data.normalization asks for {kinds}: "
            "use a new --workdir"
        )


def check_robots(windows: Mapping[str, Windows]) -> dict[str, Windows]:
    """Embodiment -> the first source of it.

    ValueError if sources of one embodiment differ in timing or in what they say of the robot: a policy could serve one
    of them only.
    """
    agree((name, source.embodiment) for name, source in windows.items())
    first: dict[str, tuple[str, Windows]] = {}
    for name, source in windows.items():
        other, known = first.setdefault(source.embodiment.name, (name, source))
        if source.embodiment.action_dim and source.config.timing != known.config.timing:
            raise ValueError(
                f"the sources {other!r} and {name!r} are both of the embodiment {source.embodiment.name!r} but have "
                f"(frame_seconds, action_hz) {known.config.timing} and {source.config.timing}: give them the same in "
                "data.sources"
            )
    return {embodiment: source for embodiment, (_, source) in first.items()}


def assets(recipe: Recipe, data: Data) -> dict[str, Any]:
    """The JSON part of a checkpoint: everything inference and evaluation need to know besides arrays."""
    fitted = data.fitted
    about, _ = fitted.tokenizer.to_state()
    embodiments = []
    for name in fitted.embodiments:
        entry: dict[str, Any] = {"spec": NONE_EMBODIMENT.to_json()}
        if name != "none":
            state, action = fitted.statistics.normalizers(name)
            entry = {
                "spec": fitted.statistics.specs[name].to_json(),
                "state": state.to_json(),
                "action": action.to_json(),
                "frame_seconds": list(data.robots[name].config.frame_seconds),
                "action_hz": data.robots[name].config.action_hz,
                "views": list(data.robots[name].views),
            }
        embodiments.append(entry)
    return {
        "config": json.loads(recipe.config.to_json_best_effort()),
        "model": dataclasses.asdict(data.model),
        "tokenizer": about,
        "text": dataclasses.asdict(data.text),
        "embodiments": embodiments,
        "cameras": list(fitted.cameras),
        "sources": list(recipe.sources),
        "store_hashes": fitted.hashes,
        "lead_r2": fitted.lead_r2,
        "finetune": dataclasses.asdict(recipe.finetune),
        "trunk": read_provenance(recipe.finetune.trunk) if recipe.finetune.trunk else None,
    }
