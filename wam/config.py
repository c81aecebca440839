"""Frozen dataclasses that configure the library, and the named model sizes.

Recipes (`experiments/configs/`) are `ConfigDict`s; each sub-tree becomes exactly one of these dataclasses, so a
misspelt field fails when it is constructed, and model code never sees a `ConfigDict`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from wam.batch import BatchSpec

T = TypeVar("T")


def build(cls: type[T], values: dict[str, Any]) -> T:
    """`cls(**values)` with lists turned into tuples; an unknown field is named, with the nearest known one."""
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
            raise ValueError(f"{cls.__name__} has no field {name!r}{hint}")
    return cls(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def to_dict(config: Any) -> dict[str, Any]:
    """The JSON-able fields of a configuration dataclass; `build` inverts it."""
    return dataclasses.asdict(config)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a `JointDiT`. Widths are per expert; heads x head_dim is common to all experts (joint attention)."""

    depth: int = 3
    heads: int = 4
    head_dim: int = 32
    topology: str = "dual"
    """`dual`: a video and an action expert with their own weights; `shared`: one expert for all streams."""
    video_width: int = 128
    video_mlp: int = 512
    action_width: int = 128
    action_mlp: int = 512
    time_width: int = 256
    """Width of the sinusoidal embedding of sigma."""

    grid: tuple[int, int] = (4, 4)
    """Patches of a latent frame, (rows, columns); P = rows * columns."""
    latent_channels: int = 128
    latent_frames: int = 3
    """F: the first frame alone plus M * (latent frames per chunk)."""
    frames_per_latent: int = 1
    """r of the video tokenizer: T = 1 + r (F - 1)."""
    views: int = 2
    target_views: tuple[int, ...] = (0,)
    """View slots whose future is denoised; the others are observed only."""
    cameras: int = 1
    video_prediction: str = "x"
    """`x`: the video head predicts the clean latent; `velocity`: eps - x."""
    latent_rate: float = 10.0
    """Latent frames per second; scales seconds to temporal RoPE positions."""

    chunks: int = 1
    """M: chunks of a training sample, each predicted from the clean ones before it."""
    history_chunks: int = 0
    """Newest clean chunks that a chunk sees; 0: as many as a training sample has."""
    action_horizon: int = 16
    steps_per_token: int = 4
    """Control steps an action token holds."""
    action_dim: int = 4
    state_dim: int = 4
    embodiments: int = 2
    text_dim: int = 64

    text_attention: bool = True
    """Cross-attention to the instruction's tokens in every block; False leaves it to the modulation alone."""
    text_norm: bool = True
    """A norm with affine parameters before it."""
    text_input: str = "linear"
    """From the text encoder's width to the expert's: `linear`, or `mlp` (two layers with a tanh-GELU, as in Wan)."""
    text_padding: str = "masked"
    """`masked`: nothing attends to what is behind the end of an instruction; `zeros`: zeros stand there and are
    attended to, as Wan was trained."""
    pooled_text: bool = True
    """The mean of the instruction's tokens joins the modulation."""
    image_dim: int = 0
    """Width of the image encoder's tokens that the video expert attends to beside the text (Wan I2V); 0: none."""
    image_tokens: int = 257
    """How many there are: the class token and 16 x 16 patches of CLIP ViT-H/14."""

    video_input: str = "apart"
    """`apart`: observed and noisy frames have an input map each, and noisy ones also read the last observed frame;
    `one`: the same map for all frames (Wan, DreamZero)."""
    guide_channels: int = 0
    """Channels of a patch that go with its latent into the input map and are not denoised (Wan I2V); 0: none."""
    places: str = "learned"
    """`learned`: embeddings of view, patch and frame beside the rotary positions; `rotary`: none, and the views stand
    side by side in the rotary columns, as if tiled on one canvas (Wan, DreamZero)."""

    codecs: str = "linear"
    """What encodes states and actions and decodes actions: `linear` maps, or `mlp` (DreamZero, see `registers`)."""
    code_width: int = 1024
    """Between the two layers of the state encoder, and of the action decoder, of `mlp`."""
    shared_codecs: bool = False
    """All embodiments share one set of them (as in DreamZero's releases); otherwise each has its own."""
    action_places: str = "time"
    """Of state and action tokens: `time`, on the video's axis; `count`, each kind on an axis of its own (DreamZero)."""
    state_sigma: str = "clean"
    """`clean`: the state is observed; `action`: it has the sigma of its chunk's actions (DreamZero)."""

    lead_width: int = 128
    """Width of the frame-aligned action path (forward dynamics); 0 removes the path."""
    lead_fourier: int = 64
    lead_scale: float = 3.0
    """Standard deviation of the fixed frequencies on the predicted state (in normalised units)."""
    inverse_width: int = 256
    """Width of the latent-difference path (inverse dynamics); 0 removes the path."""
    inverse_channels: int = 8
    value_bins: int = 0
    """Bins on [0, 1] of the value query's two-hot output; 0: no query."""

    attention: str = "xla"
    attention_chunk: int = 128
    scan_layers: bool = True
    remat: str = "none"
    """What the backward pass recomputes of a block: `none`; `full` (keeps the block's input alone); `dots` (keeps the
    outputs of linear maps)."""
    dtype: str = "float32"
    """Compute dtype; parameters, norms, softmax, time embedding, RoPE and losses stay float32."""

    def __post_init__(self):
        choices = {
            "topology": ("dual", "shared"), "video_prediction": ("x", "velocity"), "text_input": ("linear", "mlp"),
            "text_padding": ("masked", "zeros"), "video_input": ("apart", "one"), "places": ("learned", "rotary"),
            "codecs": ("linear", "mlp"), "action_places": ("time", "count"), "state_sigma": ("clean", "action"),
            "attention": ("xla", "chunked", "cudnn"), "remat": ("none", "full", "dots"),
            "dtype": ("float32", "bfloat16"),
        }  # fmt: skip
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name} is {getattr(self, name)!r}; choose from {', '.join(allowed)}")
        if self.attention == "cudnn" and self.dtype == "float32":
            raise ValueError("model.attention 'cudnn' computes in bfloat16: set model.dtype to it, or choose xla")
        if self.action_horizon % self.steps_per_token:
            raise ValueError(
                f"model.action_horizon {self.action_horizon} is not a multiple of "
                f"steps_per_token {self.steps_per_token}"
            )
        if (self.latent_frames - 1) % self.chunks:
            raise ValueError(
                f"model.latent_frames {self.latent_frames} must be 1 + chunks ({self.chunks}) * frames per chunk"
            )
        if self.image_dim and not self.text_attention:
            raise ValueError("model.image_dim needs model.text_attention: the image is attended to beside the text")
        if self.topology == "shared" and (self.video_width, self.video_mlp) != (self.action_width, self.action_mlp):
            raise ValueError("model.topology 'shared' needs equal video and action widths and MLP widths")
        if not self.target_views or max(self.target_views) >= self.views:
            raise ValueError(f"model.target_views {self.target_views} must name at least one of the {self.views} views")

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def frames_per_chunk(self) -> int:
        """Latent frames a chunk predicts."""
        return (self.latent_frames - 1) // self.chunks

    @property
    def window(self) -> int:
        """Clean chunks that a chunk sees, the current observation among them."""
        return self.history_chunks or self.chunks

    @property
    def video_frames(self) -> int:
        return 1 + self.frames_per_latent * (self.latent_frames - 1)

    @property
    def action_tokens(self) -> int:
        return self.action_horizon // self.steps_per_token

    def batch_spec(self, height: int, width: int, text_tokens: int) -> BatchSpec:
        return BatchSpec(
            views=self.views,
            frames=self.video_frames,
            height=height,
            width=width,
            chunks=self.chunks,
            action_horizon=self.action_horizon,
            action_dim=self.action_dim,
            state_dim=self.state_dim,
            text_tokens=text_tokens,
            text_dim=self.text_dim,
            guide=(self.latent_frames, self.patches, self.guide_channels) if self.guide_channels else None,
            image=(self.image_tokens, self.image_dim) if self.image_dim else None,
        )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """From pixels to latents: `PatchPCA` is fitted on the data, an autoencoder comes from imported weights."""

    kind: str = "patch_pca"
    """`patch_pca`, or `wan_vae`: the frozen autoencoder of Wan, whose `patch`, r and `channels` the others must be."""
    path: str = ""
    """Of the autoencoder: a directory of `tools/import_weights.py`."""
    dtype: str = "float32"
    """In which the autoencoder computes."""
    patch: int = 16
    """Pixels of a token's side."""
    frames_per_latent: int = 1
    channels: int = 128
    power: float = 0.5
    """Latent component c is scaled by sd_c^-power; the observed context is whitened fully (power 1)."""
    fit_frames: int = 4000

    def __post_init__(self):
        for name, allowed in (("kind", ("patch_pca", "wan_vae")), ("dtype", ("float32", "bfloat16"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"tokenizer.{name} is {getattr(self, name)!r}; choose from {', '.join(allowed)}")
        if (self.kind == "wan_vae") != bool(self.path):
            raise ValueError("tokenizer.path belongs to tokenizer.kind 'wan_vae', which needs one")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    tokens: int = 8
    """Lt: longer instructions are cut."""
    dim: int = 64
    """Dt; of a pretrained encoder its width."""
    ngram: tuple[int, int] = (3, 5)
    kind: str = "hashed_ngrams"
    """`hashed_ngrams` needs no files; `pretrained`: a released text encoder, frozen."""
    path: str = ""
    """Of the pretrained encoder: a directory with config.json and safetensors, or imported weights."""
    tokenizer: str = ""
    """Its tokenizer.json or sentencepiece .model, or a directory with one; by default in `path`, or beside it in
    `tokenizer`."""
    cache: str = ""
    """Where embeddings are kept; by default the user's cache directory."""
    dtype: str = "float32"
    """In which the pretrained encoder computes."""
    weights: str = ""
    """Digest of the encoder's files. Written into checkpoints; where it is set, the files must have it."""

    def __post_init__(self):
        for name, allowed in (("kind", ("hashed_ngrams", "pretrained")), ("dtype", ("float32", "bfloat16"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"text.{name} is {getattr(self, name)!r}; choose from {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Which modes are trained how often, and the weight of every loss term."""

    modes: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"joint": 0.3, "async": 0.0, "independent": 0.0, "policy": 0.0, "forward": 0.4,
                                 "inverse": 0.3, "video": 0.0, "value": 0.0}
    )  # fmt: skip
    """Weight of each mode; per sample they are renormalised over the modes its data allows. Without a weight on
    `video`, samples without actions still train it."""
    policy_draws: int = 4
    """Extra noise draws of the action chunk per sample in policy mode, sharing the context pass; 0 disables."""
    prefix_tokens: int = 0
    """Longest frozen prefix of an action chunk, in tokens: the delays to train for (real-time chunking); 0: none."""
    with_video: bool = True
    """False trains the action streams alone: no token of the future video is built."""
    video_weight: float = 1.0
    action_weight: float = 1.0
    policy_weight: float = 1.0
    inverse_weight: float = 1.0
    """Direct regression of the actions from latent differences (the inverse path's own head)."""
    value_weight: float = 0.1
    """Cross-entropy of the value query, with `model.value_bins`."""
    video_shift: float = 1.0
    action_shift: float = 1.0
    joint_video_sees_action: float = 0.5
    drop_text: float = 0.1
    drop_state: float = 0.1
    drop_history: float = 0.0
    sigma_bins: int = 5


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = 1e-3
    final_learning_rate: float = 2e-5
    warmup_steps: int = 100
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.995


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 on `data` takes all that remain.

    `data` and `fsdp` share the rows of a batch; `fsdp` also shards parameters and optimizer; `tensor` splits attention
    heads and MLP widths; `context` splits the patches of every frame.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    cpu_devices: int = 1
    """On a CPU: devices to make of it. Small models do not keep two cores busy with one."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int = 2000
    batch_size: int = 32
    """Global batch size: never multiplied by the number of devices."""
    seed: int = 0
    accumulate: int = 1
    """Microbatches a step is split into, one after the other; the gradient is that of the whole batch."""
    log_every: int = 20
    eval_every: int = 500
    checkpoint_every: int = 500
    keep_latest: int = 2
    """Newest checkpoints that stay."""
    keep_every: int = 0
    """Checkpoints at multiples of this many steps stay for ever; 0: none does."""
    best_metric: str = "loss"
    """Validation metric (lower is better) whose best checkpoint stays; empty: none does."""
    max_skipped: int = 10
    """Steps in a row with a non-finite loss or gradient after which the run stops; single ones are skipped."""


NAMED_SIZES: dict[str, dict[str, int]] = {
    name: dict(
        zip(
            ("depth", "heads", "head_dim", "video_width", "video_mlp", "action_width", "action_mlp"), sizes, strict=True
        )
    )
    for name, sizes in {
        "debug": (2, 2, 16, 32, 64, 16, 32),
        "tiny": (3, 4, 32, 128, 512, 128, 512),
        "small": (12, 12, 64, 768, 3072, 384, 1536),
        "base": (30, 12, 128, 1536, 8960, 512, 2048),
        "wan5b": (30, 24, 128, 3072, 14336, 1024, 4096),
        "wan14b": (40, 40, 128, 5120, 13824, 1024, 4096),
    }.items()
}
"""Keyword arguments of `ModelConfig`. `small` is about 130M parameters; the video experts of `base`, `wan5b` and
`wan14b` have the shapes of Wan 2.1 1.3B, Wan 2.2 TI2V-5B and Wan 2.1 14B."""

DERIVED = ("grid", "latent_channels", "latent_frames", "frames_per_latent", "views", "cameras", "latent_rate", "chunks",
           "action_horizon", "action_dim", "state_dim", "embodiments", "text_dim")  # fmt: skip
"""Fields of `ModelConfig` that the data and the tokenizer decide."""


def model_options() -> dict[str, Any]:
    """The fields of `ModelConfig` that neither the data nor a named size decides, with their defaults."""
    taken = {*DERIVED, *NAMED_SIZES["tiny"]}
    return {name: value for name, value in to_dict(ModelConfig()).items() if name not in taken}
