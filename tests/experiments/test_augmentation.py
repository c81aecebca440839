"""Which cameras of a run move with a hand, and when augmentation is refused."""

from types import SimpleNamespace

import pytest

from experiments.augmentation import augmentation
from experiments.configs.debug import get_config
from experiments.recipe import Recipe
from wam.training.augment import OFF


def run(wrist=(), declared=(), latent=None, **augment):
    config = get_config()
    config.data.wrist = wrist
    config.augment.update(**augment)
    store = SimpleNamespace(manifest={"wrist": declared} if declared else {})
    data = SimpleNamespace(
        fitted=SimpleNamespace(cameras=("front", "hand", "other_hand")), spec=SimpleNamespace(latent=latent),
        train={"robot": SimpleNamespace(store=store)},
    )  # fmt: skip
    return augmentation(Recipe.of(config), data)  # type: ignore[arg-type]


def test_wrist_cameras_come_from_the_recipe_and_the_stores():
    assert run() == OFF
    assert run(wrist=("hand",), crop=0.95).wrist == (1,)
    assert run(wrist=("hand",), declared=("other_hand",), crop=0.95).wrist == (1, 2)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"data.wrist names \['hnad'\], which no store has: its cameras are \['front'"):
        run(wrist=("hnad",), crop=0.95)
    with pytest.raises(ValueError, match="augment changes pixels, but this run trains on precomputed latents"):
        run(latent=(2, 4, 8), brightness=0.3)
    with pytest.raises(ValueError, match="AugmentConfig has no field 'croop'; did you mean 'crop'"):
        run(croop=0.9)
    run(latent=(2, 4, 8), wrist=("elsewhere",))  # off: nothing to refuse
