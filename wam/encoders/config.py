"""Shapes and switches of the encoders, and the published sizes by name."""

from __future__ import annotations

import dataclasses

Triple = tuple[float, float, float]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


def _check(config: object, choices: dict[str, tuple[str, ...]]) -> None:
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            value, kind = getattr(config, name), type(config).__name__
            raise ValueError(f"{kind}.{name} is {value!r}; choose from {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A stack of pre-norm transformer layers."""

    width: int
    depth: int
    heads: int
    mlp: int
    head_dim: int = 64
    norm: str = "layer"
    """`layer`: LayerNorm with affine parameters; `rms`: RMSNorm with a scale."""
    eps: float = 1e-6
    activation: str = "gelu"
    gated: str = "none"
    """MLP: down(activation(gate(x)) * up(x)) instead of down(activation(up(x))), gate and up with their kernels
    `apart` (T5) or in `one` (DINOv2)."""
    bias: bool = True
    """Of the attention's output and the MLP."""
    qkv_bias: bool = True
    layer_scale: bool = False
    """A learned factor per channel on what attention and MLP add."""
    scaled: bool = True
    """Attention logits are divided by sqrt(head_dim); T5 leaves that to its initialisation."""
    causal: bool = False
    relative_bias: str = "none"
    """T5's bias on the logits by distance: `shared` by all layers, one per `layer`, or `none`."""
    buckets: int = 32
    max_distance: int = 128

    attention: str = "xla"
    """Backend of `jax.nn.dot_product_attention`: `xla`, or `cudnn` (bfloat16 only)."""
    scan_layers: bool = True
    remat: bool = False
    """Backward passes keep the layers' inputs alone."""
    dtype: str = "float32"
    """Compute dtype; norms and softmax stay float32."""

    def __post_init__(self):
        _check(
            self,
            {
                "norm": ("layer", "rms"),
                "activation": ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu"),
                "gated": ("none", "apart", "one"),
                "relative_bias": ("none", "shared", "layer"),
                "attention": ("xla", "cudnn"),
                "dtype": ("float32", "bfloat16"),
            },
        )
        if self.attention == "cudnn" and self.dtype == "float32":
            raise ValueError(f"{type(self).__name__}.attention 'cudnn' computes in bfloat16: set dtype to it")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig(StackConfig):
    family: str
    """`t5`, `umt5`, `clip` or `siglip`: whose tensor names and layouts its files have."""
    vocabulary: int
    positions: int = 0
    """Learned absolute positions, hence the longest text; 0: none (relative bias alone)."""
    pooling: str = "none"
    """`eos`: the token at the first end-of-text id (`eos_id`); `last`: the last token, padding or not."""
    eos_id: int = 1
    projection: int = 0
    """Width of a linear map on the pooled token; 0: none."""
    projection_bias: bool = False

    def __post_init__(self):
        super().__post_init__()
        _check(self, {"family": ("t5", "umt5", "clip", "siglip"), "pooling": ("none", "eos", "last")})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(StackConfig):
    family: str
    """`clip`, `siglip`, `dinov2`, `vjepa2` or `mae`: whose tensor names and layouts its files have."""
    patch: int
    image_size: int
    """Side of the square images it was trained on; decides the grid of learned positions."""
    tubelet: int = 1
    """Frames a patch spans."""
    patch_bias: bool = True
    class_token: bool = True
    registers: int = 0
    """Tokens without content or position, after the class token."""
    mask_token: bool = False
    """Learned stand-in for the patches that pretraining hides."""
    positions: str = "learned"
    """`learned` or `sincos` (fixed) vectors per token, interpolated to other grids; `rotary`: 3-D RoPE."""
    antialias: bool = False
    """Positions are interpolated with an antialiased filter (DINOv2 with registers)."""
    pre_norm: bool = False
    """A norm before the first layer (CLIP)."""
    final_norm: str = "tokens"
    """After the last layer, of all `tokens` or of the `pooled` one alone."""
    pooling: str = "none"
    """`class`: the class token; `attention`: a learned query attends to all tokens (SigLIP)."""
    projection: int = 0
    """Width of a linear map without bias on the pooled token; 0: none."""
    features: str = "final"
    """What `images.encode` gives: the `final` tokens, or those before the last layer, without a norm (`penultimate`,
    which Wan I2V reads from CLIP)."""
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    resize: str = "bicubic"
    """Filter with which its images were resized, antialiased: `bicubic` or `bilinear`."""

    def __post_init__(self):
        super().__post_init__()
        _check(
            self,
            {
                "family": ("clip", "siglip", "dinov2", "vjepa2", "mae"),
                "positions": ("learned", "sincos", "rotary"),
                "final_norm": ("tokens", "pooled"),
                "pooling": ("none", "class", "attention"),
                "features": ("final", "penultimate"),
                "resize": ("bicubic", "bilinear"),
            },
        )
        if self.pooling == "class" and not self.class_token:
            raise ValueError("ViTConfig.pooling 'class' needs class_token=True")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the training images."""
        return self.image_size // self.patch, self.image_size // self.patch


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorConfig(StackConfig):
    """V-JEPA 2's predictor of masked tokens, beside an encoder of `encoder_width`."""

    encoder_width: int
    mask_tokens: int = 10


def _clip(width: int, depth: int, heads: int, patch: int, activation: str = "quick_gelu", **fields) -> ViTConfig:
    return ViTConfig(
        family="clip", width=width, depth=depth, heads=heads, head_dim=width // heads, mlp=4 * width, eps=1e-5,
        activation=activation, patch=patch, image_size=224, patch_bias=False, pre_norm=True, final_norm="pooled",
        pooling="class", mean=CLIP_MEAN, std=CLIP_STD, **fields,
    )  # fmt: skip


def _siglip(image_size: int) -> ViTConfig:
    return ViTConfig(
        family="siglip", width=1152, depth=27, heads=16, head_dim=72, mlp=4304, activation="gelu_tanh", patch=14,
        image_size=image_size, class_token=False, pooling="attention", mean=HALF, std=HALF,
    )  # fmt: skip


def _dinov2(width: int, depth: int, heads: int, **fields) -> ViTConfig:
    return ViTConfig(
        family="dinov2", width=width, depth=depth, heads=heads, layer_scale=True, patch=14, image_size=518,
        mask_token=True, pooling="class", **{"mlp": 4 * width, **fields},
    )  # fmt: skip


def _vjepa2(width: int, depth: int, heads: int, mlp: int) -> ViTConfig:
    return ViTConfig(
        family="vjepa2", width=width, depth=depth, heads=heads, head_dim=width // heads, mlp=mlp, patch=16,
        image_size=256, tubelet=2, class_token=False, positions="rotary", resize="bilinear",
    )  # fmt: skip


VISION: dict[str, ViTConfig] = {
    "clip-vit-b/32": _clip(768, 12, 12, 32),
    "clip-vit-l/14": _clip(1024, 24, 16, 14),
    "clip-vit-h/14": _clip(1280, 32, 16, 14, "gelu", features="penultimate"),
    "siglip-so400m/14": _siglip(224),
    "siglip-so400m/14-384": _siglip(384),
    "dinov2-b": _dinov2(768, 12, 12),
    "dinov2-l": _dinov2(1024, 24, 16),
    "dinov2-g": _dinov2(1536, 40, 24, mlp=4096, gated="one", activation="silu"),
    "vjepa2-vitl": _vjepa2(1024, 24, 16, 4096),
    "vjepa2-vith": _vjepa2(1280, 32, 16, 5120),
    "vjepa2-vitg": _vjepa2(1408, 40, 22, 6144),
    "vit-mae-b": ViTConfig(
        family="mae", width=768, depth=12, heads=12, mlp=3072, eps=1e-12, patch=16, image_size=224, positions="sincos",
        pooling="class", resize="bilinear",
    ),
}  # fmt: skip
"""`clip-vit-h/14` is the image encoder of Wan 2.1 I2V, which reads the tokens before its last layer."""


def vjepa2_predictor(encoder: ViTConfig) -> PredictorConfig:
    """The predictor released beside every V-JEPA 2 encoder."""
    return PredictorConfig(width=384, depth=12, heads=12, head_dim=32, mlp=1536, encoder_width=encoder.width)


def _t5(family: str, vocabulary: int, relative_bias: str) -> TextEncoderConfig:
    return TextEncoderConfig(
        family=family, vocabulary=vocabulary, width=4096, depth=24, heads=64, mlp=10240, norm="rms",
        activation="gelu_tanh", gated="apart", bias=False, qkv_bias=False, scaled=False, relative_bias=relative_bias,
    )  # fmt: skip


def _clip_text(width: int, depth: int, heads: int, activation: str = "quick_gelu") -> TextEncoderConfig:
    return TextEncoderConfig(
        family="clip", vocabulary=49408, width=width, depth=depth, heads=heads, mlp=4 * width, eps=1e-5,
        activation=activation, causal=True, positions=77, pooling="eos", eos_id=49407,
    )  # fmt: skip


TEXT: dict[str, TextEncoderConfig] = {
    "umt5-xxl": _t5("umt5", 256384, "layer"),
    "t5-xxl": _t5("t5", 32128, "shared"),
    "clip-vit-b/32": _clip_text(512, 12, 8),
    "clip-vit-l/14": _clip_text(768, 12, 12),
    "clip-vit-h/14": _clip_text(1024, 24, 16, "gelu"),
    "siglip-so400m/14-384": TextEncoderConfig(
        family="siglip", vocabulary=32000, width=1152, depth=27, heads=16, head_dim=72, mlp=4304,
        activation="gelu_tanh", positions=64, pooling="last", projection=1152, projection_bias=True,
    ),
}  # fmt: skip
"""`t5-xxl` is T5 v1.1."""
