"""What a recipe's `augment` means for the cameras of a run."""

from __future__ import annotations

from experiments.recipe import Data, Recipe
from wam.training.augment import Augmentation


def augmentation(recipe: Recipe, data: Data) -> Augmentation:
    """The augmentation of a run; wrist cameras are those of `data.wrist` and of the stores' manifests (`wrist`).

    Raises:
        ValueError: `data.wrist` names a camera that no store has, or the run trains on precomputed latents.
    """
    cameras, named = data.fitted.cameras, tuple(recipe.config.data.get("wrist", ()))
    if recipe.augment.active:
        if unknown := [name for name in named if name not in cameras]:
            raise ValueError(f"data.wrist names {unknown}, which no store has: its cameras are {list(cameras)}")
        if data.spec.latent is not None:
            raise ValueError(
                "augment changes pixels, but this run trains on precomputed latents: leave augment off, or the latents"
            )
    wrist = {*named, *(name for w in data.train.values() for name in w.store.manifest.get("wrist", ()))}
    return Augmentation(recipe.augment, tuple(i for i, name in enumerate(cameras) if name in wrist))
