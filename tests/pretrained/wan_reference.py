"""Small Wan transformers of `diffusers` with random weights, none of them zero, and ours with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel

from wam.models.joint_dit import JointDiT, create
from wam.pretrained import wan_trunk
from wam.pretrained.mapping import flatten, to_ours, unflatten
from wam.pretrained.wan_trunk import WanConfig
from wam.training.state import split

TINY: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "ffn_dim": 40,
                        "text_dim": 12, "freq_dim": 16}  # fmt: skip
CASES: dict[str, WanConfig] = {
    "t2v": WanConfig(**TINY, in_channels=4, out_channels=4),
    "no cross norm, two frames a patch": WanConfig(**TINY, in_channels=3, out_channels=3, cross_attn_norm=False,
                                                   patch_size=(2, 1, 3)),
    "i2v": WanConfig(**TINY, in_channels=9, out_channels=3, image_dim=10, added_kv_proj_dim=32),
    "ti2v": WanConfig(**{**TINY, "attention_head_dim": 20}, in_channels=6, out_channels=6),
}  # fmt: skip


def reference(config: WanConfig, seed: int = 0) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    model = WanTransformer3DModel.from_config(wan_trunk.to_json(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: x.detach().numpy() for name, x in model.state_dict().items()}


def gradients(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: x.grad.numpy() for name, x in model.named_parameters()}


def ours(config: WanConfig, model: torch.nn.Module, **fields: Any) -> tuple[Any, Any]:
    """(apply, parameters) of a `JointDiT` whose video expert has the reference's weights."""
    apply, params = split(create(wan_trunk.model_config(config, **fields)))
    imported = flatten(to_ours(wan_trunk.entries(config), arrays(model)))
    own = flatten(params)
    assert {path for path in own if path.startswith(wan_trunk.OURS)} == set(imported)
    return apply, unflatten({**own, **imported})


__all__ = ["CASES", "TINY", "JointDiT", "arrays", "gradients", "ours", "reference"]
