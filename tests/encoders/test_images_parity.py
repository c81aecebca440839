"""Pixels as every family's own processor prepares them."""

import numpy as np
import pytest

from wam.encoders.config import VISION
from wam.encoders.images import normalise, resize


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def processor(name):
    import transformers

    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    kinds = {
        "clip-vit-l/14": lambda: transformers.CLIPImageProcessorPil(),
        "siglip-so400m/14": lambda: transformers.SiglipImageProcessorPil(),
        "dinov2-b": lambda: transformers.BitImageProcessorPil(**imagenet),  # as its preprocessor_config.json says
        "vit-mae-b": lambda: transformers.ViTImageProcessorPil(**imagenet),
    }
    return kinds[name]()


@pytest.mark.parametrize("name", ["clip-vit-l/14", "siglip-so400m/14", "dinov2-b", "vit-mae-b"])
def test_preprocessing_parity(name):
    config, x, reference = VISION[name], images(2, 40, 56, 3), processor(name)
    plain = {"do_center_crop": False} if hasattr(reference, "do_center_crop") else {}
    theirs = reference(list(x), do_resize=False, return_tensors="np", **plain)["pixel_values"]
    error = float(np.abs(np.asarray(normalise(x, config)) - np.moveaxis(theirs, 1, -1)).max())
    smaller = {"height": 24, "width": 30}
    theirs = reference(list(x), size=smaller, do_rescale=False, do_normalize=False, return_tensors="np", **plain)
    theirs = np.moveaxis(theirs["pixel_values"], 1, -1).astype(int)
    levels = int(np.abs(np.asarray(resize(x, (24, 30), config)).astype(int) - theirs).max())
    print(f"parity {name}: normalised within {error:.1e}, resized within {levels} of 255 levels")
    assert error <= 1e-5
    assert levels <= 1  # fixed-point arithmetic there


def test_vjepa2_normalisation_parity():
    from transformers.models.vjepa2.video_processing_vjepa2 import VJEPA2VideoProcessor  # runs with torchvision only

    assert VISION["vjepa2-vitl"].mean == tuple(VJEPA2VideoProcessor.image_mean)
    assert VISION["vjepa2-vitl"].std == tuple(VJEPA2VideoProcessor.image_std)
    assert VISION["vjepa2-vitl"].resize == "bilinear" == VJEPA2VideoProcessor.resample.name.lower()
