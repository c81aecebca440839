"""A tokenizer that is there already: of a run, or imported; and the latents that it made of a store."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from data_pipelines.latents import TokenizerFacts, find_latents
from data_pipelines.windows import Windows
from experiments.fitted import Fitted
from wam.config import TokenizerConfig
from wam.pretrained.provenance import PROVENANCE
from wam.pretrained.video_tokenizers import wan_tokenizer
from wam.tokenizers.video import VideoTokenizer, digest, from_state


@dataclasses.dataclass(frozen=True)
class GivenTokenizer:
    """A tokenizer, and the table of cameras that its `camera` argument indexes (empty if it tells none apart)."""

    tokenizer: VideoTokenizer
    cameras: tuple[str, ...]

    @classmethod
    def of(cls, fitted: Fitted) -> GivenTokenizer:
        """The one a run began with."""
        return cls(fitted.tokenizer, fitted.cameras if fitted.tokenizer.tells_cameras_apart else ())

    @functools.cached_property
    def facts(self) -> TokenizerFacts:
        """What precomputed latents say of the tokenizer that made them."""
        return TokenizerFacts(self.tokenizer.to_state()[0]["kind"], digest(self.tokenizer), self.cameras)

    def table(self, cameras: tuple[str, ...]) -> tuple[str, ...]:
        """The camera table of whoever uses it for these cameras; ValueError if it was not fitted on one of them."""
        if unknown := [camera for camera in cameras if camera not in self.cameras] if self.cameras else []:
            raise ValueError(
                f"the tokenizer was fitted on the cameras {', '.join(self.cameras)} and does not know {unknown[0]!r}"
            )
        return self.cameras or cameras

    def encoded(self, windows: Windows) -> Windows:
        """These windows read as the latents that it made of them; errors as `find_latents`."""
        store = windows.store
        return windows.with_latents(find_latents(store.directory, store.hash, self.facts, windows.pixel_facts))


def given_tokenizer(path: str | Path, config: TokenizerConfig, image_size: tuple[int, int]) -> GivenTokenizer:
    """The tokenizer of a run directory, or an autoencoder that was imported.

    Args:
      path: a run (its fitted.json, or only its checkpoints), or what tools/import_weights.py wrote.
      config: what the recipe takes it for.
      image_size: of the images it is for.

    Raises:
      FileNotFoundError: there is neither.
      ValueError: it is of another kind or other sizes than the recipe says, or for other images.
    """
    directory = Path(path)
    if (directory / PROVENANCE).is_file():
        if config.path != str(path):
            raise ValueError(f"latents of the autoencoder {path} need tokenizer.path={path}, got {config.path!r}")
        return GivenTokenizer(wan_tokenizer(config, image_size), ())
    if (directory / "fitted.json").is_file():
        given = GivenTokenizer.of(Fitted.load(directory))
    elif (directory / "checkpoints").is_dir():
        from wam.checkpoint import read_inference

        saved = read_inference(directory)
        fitted = from_state(saved.assets["tokenizer"], saved.tokenizer)
        given = GivenTokenizer(fitted, tuple(saved.assets["cameras"]) if fitted.tells_cameras_apart else ())
    else:
        raise FileNotFoundError(f"{path} holds no tokenizer: name a run directory or an imported autoencoder")
    tokenizer: Any = given.tokenizer  # of either kind: both have a config
    has = {
        "kind": given.facts.id,
        "patch": tokenizer.image_size[0] // tokenizer.grid[0],
        "frames_per_latent": tokenizer.config.frames_per_latent,
        "channels": tokenizer.gain.shape[-1],
    }
    for name, value in has.items():
        if getattr(config, name) != value:
            raise ValueError(f"tokenizer.{name} is {getattr(config, name)!r}; the tokenizer of {path} has {value!r}")
    if tuple(tokenizer.image_size) != tuple(image_size):
        raise ValueError(
            f"the tokenizer of {path} is for images of {tokenizer.image_size}, the stores have {image_size}"
        )
    return given
