"""DreamZero's released checkpoints (arXiv:2602.15922) as a whole `JointDiT`: shapes, switches, the map of their names.

A checkpoint is a Wan trunk in the naming of its first release, with modules for states and actions beside it, under
`PREFIX`; the frozen encoders and the autoencoder that it carries along are left out, by `FROZEN`. Weights of the
modules are [embodiments, in, out], as here. Releases hold one set, whatever the embodiment.

The network is that of the class `CausalWanModel` in the main release, under teacher forcing, with a window as long as
the clip. State tokens are encoded states and see themselves alone; a variant in circulation puts zeros in their place.
Sampling there differs from training there in one point, which is not reproduced: queries of the state then see the
actions and the video too.

A trunk made to have its first frame in every patch (14B) reads a `guide`; both sizes attend to an `image`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from wam.pretrained import wan_trunk
from wam.pretrained.mapping import Entry
from wam.pretrained.tensor_files import TensorFiles
from wam.pretrained.wan_trunk import WanConfig

PREFIX = "action_head.model."
FROZEN = ("action_head.text_encoder.", "action_head.image_encoder.", "action_head.vae.")
"""What stands in a checkpoint as Wan released it; `tools/import_weights.py` reads the releases of each."""

SWITCHES: dict[str, Any] = {"topology": "shared", "steps_per_token": 1, "codecs": "mlp", "action_places": "count",
                            "state_sigma": "action", "lead_width": 0, "inverse_width": 0}  # fmt: skip
"""Where DreamZero does otherwise than our own defaults, beside `wan_trunk.SWITCHES`."""

MODULES = {
    "state_encoder.layer1": "state_in.hidden",
    "state_encoder.layer2": "state_in.output",
    "action_encoder.W1": "action_in.input",
    "action_encoder.W2": "action_in.hidden",
    "action_encoder.W3": "action_in.output",
    "action_decoder.layer1": "action_out.hidden",
    "action_decoder.layer2": "action_out.output",
}


@dataclasses.dataclass(frozen=True)
class DreamZeroConfig(WanConfig):
    """The trunk, and the sizes of what stands beside it."""

    action_dim: int = 32
    state_dim: int = 64
    code_width: int = 1024
    embodiments: int = 1

    fills: ClassVar[tuple[str, ...]] = (*WanConfig.fills, "state_in", "action_in", "action_out")

    def model_fields(self) -> dict[str, Any]:
        """See `WanConfig.model_fields`; one set of modules is shared by as many embodiments as the model has."""
        return {
            **super().model_fields(),
            **SWITCHES,
            "action_width": self.width,
            "action_mlp": self.ffn_dim,
            "action_dim": self.action_dim,
            "state_dim": self.state_dim,
            "code_width": self.code_width,
            "embodiments": self.embodiments,
            "shared_codecs": self.embodiments == 1,
        }


RELEASED: dict[str, DreamZeroConfig] = {
    "dreamzero-5b": DreamZeroConfig(24, 30, 14336, in_channels=48, out_channels=48, image_dim=1280,
                                    added_kv_proj_dim=3072),
    "dreamzero-14b": DreamZeroConfig(40, 40, 13824, in_channels=36, image_dim=1280, added_kv_proj_dim=5120),
}  # fmt: skip
"""On Wan 2.2 TI2V-5B and Wan 2.1 I2V-14B. The sizes of actions and states are those of the code's defaults; a
checkpoint's own are read from its tensors."""


def parse(config: Mapping[str, Any]) -> DreamZeroConfig:
    """The inverse of `to_json`."""
    fields = {name: value for name, value in config.items() if not name.startswith("_")}
    return DreamZeroConfig(**{**fields, "patch_size": tuple(fields["patch_size"])})


def to_json(config: DreamZeroConfig) -> dict[str, Any]:
    return {"_class_name": "CausalWanModel", **dataclasses.asdict(config), "patch_size": [*config.patch_size]}


def entries(config: DreamZeroConfig) -> list[Entry]:
    """Every tensor of a checkpoint but the frozen ones."""
    found = [entry._replace(theirs=PREFIX + entry.theirs) for entry in wan_trunk.entries(config, "original")]
    for theirs, ours in MODULES.items():
        found += [Entry(f"{PREFIX}{theirs}.W", f"{ours}.kernel"), Entry(f"{PREFIX}{theirs}.b", f"{ours}.bias")]
    return found


def heads_of(config: Mapping[str, Any] | None, source: Path) -> int:
    """Attention heads by a checkpoint's own config.json: the one size that no tensor shows."""
    node: Any = config
    for key in ("action_head_cfg", "config", "diffusion_model_cfg", "num_heads"):
        node = node.get(key) if isinstance(node, Mapping) else None
    if not isinstance(node, int) or node < 1:
        raise ValueError(
            f"{source} has no config.json with action_head_cfg.config.diffusion_model_cfg.num_heads: say which release "
            f"it is, as --from {min(RELEASED)}"
        )
    return node


def read(tensors: TensorFiles, heads: int) -> DreamZeroConfig:
    """The sizes of a checkpoint by its tensors' shapes.

    Raises:
      ValueError: it is none of DreamZero's, or holds adapters that are not merged.
    """
    if adapters := sorted(name for name in tensors if ".lora_" in name):
        raise ValueError(
            f"this checkpoint holds adapters beside the weights ({adapters[0]!r}): merge them into the weights first"
        )

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if PREFIX + name not in tensors.info:
            raise ValueError(f"this is no checkpoint of DreamZero: it lacks {PREFIX + name!r}")
        found = tensors.info[PREFIX + name].shape
        if len(found) != axes:
            raise ValueError(f"{PREFIX + name!r} has shape {[*found]}, expected {axes} axes")
        return found

    width, channels, *patch = shape("patch_embedding.weight", 5)
    if width % heads:
        raise ValueError(f"this checkpoint is {width} wide, which {heads} attention heads do not divide")
    numbers = [re.match(re.escape(PREFIX) + r"blocks\.(\d+)\.", name) for name in tensors]
    image_dim = shape("img_emb.proj.1.weight", 2)[1] if f"{PREFIX}img_emb.proj.1.weight" in tensors.info else None
    embodiments, action_dim, _ = shape("action_encoder.W1.W", 3)
    _, state_dim, code_width = shape("state_encoder.layer1.W", 3)
    return DreamZeroConfig(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        num_layers=len({match.group(1) for match in numbers if match}),
        ffn_dim=shape("blocks.0.ffn.0.weight", 2)[0],
        in_channels=channels,
        out_channels=shape("head.head.weight", 2)[0] // (patch[0] * patch[1] * patch[2]),
        patch_size=(patch[0], patch[1], patch[2]),
        text_dim=shape("text_embedding.0.weight", 2)[1],
        freq_dim=shape("time_embedding.0.weight", 2)[1],
        cross_attn_norm=f"{PREFIX}blocks.0.norm3.weight" in tensors.info,
        image_dim=image_dim,
        added_kv_proj_dim=width if image_dim else None,
        action_dim=action_dim,
        state_dim=state_dim,
        code_width=code_width,
        embodiments=embodiments,
    )
