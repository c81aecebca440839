"""`AugmentConfig`: how training images are changed at random. Off by default."""

from __future__ import annotations

import dataclasses

WRIST = ("none", "colour", "all")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the random changes; each is the same for all frames of a view's clip, see `augment`.

    Usual in the field for robot policies: crop 0.95, rotation 5, brightness 0.3, contrast 0.4, saturation 0.5 (openpi),
    and hue 0.08 (DreamZero, without the rotation). Crop and rotation move the picture and leave the actions as they
    are: customary while they are small, as an action relates to the scene and hardly to the pixel, but a model of where
    actions lead in the image sees the disagreement.
    """

    crop: float = 1.0
    """Side of a crop as a part of the image's, its place drawn uniformly; it is resized to the whole image."""
    rotation: float = 0.0
    """Degrees: an angle drawn from [-rotation, rotation]."""
    brightness: float = 0.0
    """Factor drawn from 1 +- this; likewise contrast (about the clip's mean grey) and saturation."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Part of the circle of hues by which colours turn, drawn from [-hue, hue]."""
    wrist: str = "none"
    """What cameras that move with a hand get: `none`, `colour` (no crop or rotation: openpi), or `all`."""

    def __post_init__(self):
        if not 0.5 <= self.crop <= 1:
            raise ValueError(f"augment.crop is {self.crop}; it is a part of the image's side, from 0.5 to 1 (off)")
        for name, most in (("rotation", 45), ("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"augment.{name} is {getattr(self, name)}; it goes from 0 (off) to {most}")
        if self.wrist not in WRIST:
            raise ValueError(f"augment.wrist is {self.wrist!r}; choose from {', '.join(WRIST)}")

    @property
    def moves(self) -> bool:
        """Does it change where things are in the image?"""
        return self.crop < 1 or self.rotation > 0

    @property
    def colours(self) -> bool:
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0

    @property
    def active(self) -> bool:
        return self.moves or self.colours
