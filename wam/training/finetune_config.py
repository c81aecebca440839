"""What a run starts from, and what of it trains."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """What a run starts from, and what of it trains.

    Parameters are named by their dotted paths (`blocks.video.up.kernel`), patterns are those of a shell:
    `blocks.video.*` is all of the video expert's blocks. A pattern that fits nothing is an error.
    """

    trunk: str = ""
    """Directory of an imported trunk (`tools/import_weights.py`); empty: fresh weights."""
    action_expert: str = "fresh"
    """`fresh`, or `interpolated`: the action expert starts from the video expert's weights, narrowed (Fast-WAM)."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are; they must come from the trunk. They have no moments, no EMA, no gradient."""
    lora: tuple[tuple[str, int, float], ...] = ()
    """(pattern of linear maps, rank, alpha): a low-rank term of scale alpha / rank joins each, whose kernel is frozen;
    the first pattern that fits counts."""
    learning_rates: tuple[tuple[str, float], ...] = ()
    """(pattern of parameters, factor on the learning rate); the first that fits counts."""

    def __post_init__(self):
        if self.action_expert not in ("fresh", "interpolated"):
            raise ValueError(f"finetune.action_expert is {self.action_expert!r}; choose from fresh, interpolated")
        for name, size in (("lora", 3), ("learning_rates", 2)):
            for entry in getattr(self, name):
                if not isinstance(entry, tuple) or len(entry) != size or not isinstance(entry[0], str):
                    fields = "rank, alpha" if size == 3 else "factor"
                    raise ValueError(f"finetune.{name} has {entry!r}; write (pattern, {fields})")
        for pattern, rank, _ in self.lora:
            if rank < 1:
                raise ValueError(f"finetune.lora of {pattern!r} has rank {rank}; it must be at least 1")
        if not self.trunk and (self.freeze or self.lora or self.action_expert != "fresh"):
            raise ValueError("finetune.freeze, lora and action_expert need finetune.trunk: fresh weights must train")
