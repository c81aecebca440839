"""Accelerators by name: peak matrix throughput and memory, for utilisation and for plans."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as jax counts them."""

    name: str
    flops: float
    """Peak FLOP/s of dense bfloat16 products (without sparsity)."""
    hbm: float
    """Bytes of device memory."""
    kind: str
    """Part of what `jax.Device.device_kind` says of it, in lower case."""
    attention: tuple[str, ...]
    """Attention backends that run there."""


_GPU, _TPU = ("xla", "chunked", "cudnn"), ("xla", "chunked")

# Datasheets: NVIDIA H100 SXM, H200 SXM and GB200 (half a superchip; half of the sparse figure), and the system
# architecture pages of Cloud TPU. Decimal gigabytes.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("H100", 989e12, 80e9, "h100", _GPU),
        Chip("H200", 989e12, 141e9, "h200", _GPU),
        Chip("GB200", 2500e12, 186e9, "gb200", _GPU),
        Chip("v5e", 197e12, 16e9, "tpu v5 lite", _TPU),
        Chip("v5p", 459e12, 95e9, "tpu v5", _TPU),
        Chip("v6e", 918e12, 32e9, "tpu v6 lite", _TPU),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that `jax.Device.device_kind` names; None if it is not in the table."""
    named = [chip for chip in CHIPS.values() if chip.kind in device_kind.lower()]
    return max(named, key=lambda chip: len(chip.kind), default=None)
