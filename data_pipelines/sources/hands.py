"""Names of a hand's joints and of the numbers that describe a pair of hands."""

SIDES = ("left", "right")
FINGERTIPS = ("ThumbTip", "IndexFingerTip", "MiddleFingerTip", "RingFingerTip", "LittleFingerTip")
JOINTS = tuple(f"{side}{part}" for side in SIDES for part in ("Hand", *FINGERTIPS))
HAND_NAMES = tuple(
    name
    for side in SIDES
    for name in (
        *(f"{side}Hand_{axis}" for axis in "xyz"),
        *(f"{side}Hand_rot6d_{k}" for k in range(6)),
        *(f"{side}{tip}_{axis}" for tip in FINGERTIPS for axis in "xyz"),
    )
)
"""Of the 48 dimensions of state and action."""
