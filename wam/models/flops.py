"""FLOPs of `JointDiT` by formula: what utilisation is measured with, and what a plan is made of.

Convention (that of model FLOPs utilisation, Chowdhery et al. 2022, arXiv:2204.02311): matrix products alone, two FLOPs
a multiply-add; a training step is three forward passes, since each product has two in the backward pass. What a program
computes beyond the model is not counted: recomputation (remat, the backward pass of flash attention), keys that a
mask switches off, the pairwise swap of rotary embeddings, one-hot gathers. XLA counts the body of a scan once, so
nothing measured on a scanned model can stand in for the formula; `tests/models/test_flops.py` compares it with XLA's
count of an unrolled one.

The last layer of the context gives its keys and values only: nothing reads its output.
"""

from __future__ import annotations

import dataclasses

from wam.config import ModelConfig, ObjectiveConfig
from wam.models.visibility import TABLE


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one sample's forward pass, by where they are spent."""

    history: int
    """Projections and MLPs of the observed frames and the state."""
    video: int
    """Projections and MLPs of the noisy video."""
    action: int
    """Projections and MLPs of the noisy actions and of their further draws, and of the value query."""
    attention: int
    """Products of queries with keys and of weights with values, over the blocks that the visibility table shows."""
    text: int
    """Text cross-attention, with its projections."""
    paths: int
    """The direct paths between actions and video."""
    heads: int
    modulation: int
    """Sigma embedding and its six-way projection, the pooled instruction."""

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens of one sample in each stream; a stream that is absent has none."""

    history: int
    state: int
    video: int
    action: int
    draw: int
    value: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def stream_tokens(config: ModelConfig, objective: ObjectiveConfig | None = None) -> Tokens:
    """Tokens of each stream in a training step, or (without an objective) where an answer imagines and acts."""
    M, f, P = config.chunks, config.frames_per_chunk, config.patches
    with_video = objective is None or objective.with_video
    draws = objective.policy_draws if objective else 0
    return Tokens(
        history=config.views * P * (1 + (M - 1) * f),
        state=M,
        video=M * f * len(config.target_views) * P if with_video else 0,
        action=M * config.action_tokens,
        draw=M * draws * config.action_tokens,
        value=M if config.value_bins and objective else 0,
    )


def tokens_per_sample(config: ModelConfig, objective: ObjectiveConfig | None = None) -> int:
    """Tokens that go through the layers for one sample; the instruction's are not among them."""
    return stream_tokens(config, objective).total


def attention_pairs(config: ModelConfig, objective: ObjectiveConfig | None = None) -> dict[str, int]:
    """Pairs of a query and a key it may see, of one sample and layer, by the stream of the query.

    A block behind a per-sample bit counts as seen; a draw sees itself and not the other draws.
    """
    tokens = dataclasses.asdict(stream_tokens(config, objective))
    M, f, frame = config.chunks, config.frames_per_chunk, config.views * config.patches
    per_chunk = {name: count // M for name, count in tokens.items()}
    own = {**per_chunk, "draw": config.action_tokens if tokens["draw"] else 0}
    pairs = dict.fromkeys(tokens, 0)
    for name, seen in TABLE.items():
        if name == "state":  # sees itself alone: its value, and no product
            continue
        for chunk in range(M):
            past = frame * (1 + chunk * f)  # the first frame and the clean chunks before
            keys = sum(past if block.stream == "history" else own[block.stream] for block in seen)
            queries = per_chunk[name] if name != "history" else frame * (f if chunk else 1)
            pairs[name] += queries * keys
    return pairs


def forward_flops(config: ModelConfig, *, objective: ObjectiveConfig | None = None, text_tokens: int = 0) -> Flops:
    """One sample's forward pass: of a training step under `objective`, or of one sampler step with its context.

    `text_tokens` is the padded length of the instruction; 0 leaves out the products that grow with it.
    """
    tokens = stream_tokens(config, objective)
    pairs = attention_pairs(config, objective)
    layers, before_last, inner = config.depth, config.depth - 1, config.heads * config.head_dim
    M, f, r, C = config.chunks, config.frames_per_chunk, config.frames_per_latent, config.latent_channels
    A, S, k = config.action_dim, config.state_dim, config.steps_per_token
    Dv, Da, hidden = config.video_width, config.action_width, config.code_width
    mlp = config.codecs == "mlp"
    noisy_actions = tokens.action + tokens.draw

    def after_attention(width: int, mlp: int) -> int:
        return _product(inner, width) + 2 * _product(width, mlp)

    def layer(width: int, mlp: int) -> int:
        return 3 * _product(width, inner) + after_attention(width, mlp)

    keys_and_values = 2 * _product(Dv, inner)
    frame, apart = C + config.guide_channels, config.video_input == "apart"
    history = tokens.history * (_product(frame, Dv) + layers * keys_and_values)
    history += before_last * tokens.history * (layer(Dv, config.video_mlp) - keys_and_values)
    # A state token attends to itself alone, so it needs no query.
    state_in = _product(S, hidden) + _product(hidden, Da) if mlp else _product(S, Da)
    history += M * (state_in + layers * 2 * _product(Da, inner))
    history += before_last * M * after_attention(Da, config.action_mlp)
    video = tokens.video * (_product(frame + C if apart else frame, Dv) + layers * layer(Dv, config.video_mlp))
    action_in = _product(k * A, Da) + (_product(2 * Da, Da) + _product(Da, Da) if mlp else 0)
    action = noisy_actions * (action_in + layers * layer(Da, config.action_mlp))
    action += tokens.value * layers * layer(Da, config.action_mlp)
    action_out = _product(Da, hidden) + _product(hidden, k * A) if mlp else _product(Da, k * A)
    attended = before_last * pairs["history"] + layers * sum(pairs[n] for n in ("video", "action", "draw", "value"))
    widths = (Dv,) if config.topology == "shared" else (Dv, Da)

    text = 0
    if config.text_attention:
        text += text_tokens * sum(_product(config.text_dim, D) + layers * 2 * _product(D, inner) for D in widths)
        wide = before_last * tokens.history + layers * tokens.video
        narrow = before_last * M + layers * (noisy_actions + tokens.value)
        text += 2 * (wide * _product(Dv, inner) + narrow * _product(Da, inner))
        text += 2 * (wide + narrow) * _product(text_tokens, inner)
        if config.text_input == "mlp":
            text += text_tokens * sum(_product(D, D) for D in widths)
        if config.image_dim:
            made = _product(config.image_dim, config.image_dim) + _product(config.image_dim, Dv)
            readers = wide + narrow if config.topology == "shared" else wide
            text += config.image_tokens * (made + layers * 2 * _product(Dv, inner))
            text += 2 * readers * _product(config.image_tokens, inner)

    paths = 0
    if config.lead_width and tokens.video:
        H, fourier = config.lead_width, config.lead_fourier
        paths += M * f * r * _product(S, fourier)
        paths += M * f * _product(r * (A + S + 2 * fourier) + S, H)
        paths += tokens.video * _product(H, Dv) + M * f * 2 * _product(H, Dv)
    if config.inverse_width and tokens.video:
        W, c = config.inverse_width, config.inverse_channels
        estimate = (tokens.video + tokens.video // f) * _product(C, c)
        estimate += M * (_product(tokens.video // M * c + S, W) + _product(W, config.action_horizon * A))
        # In training once more, from the clean video, for the path's own loss.
        paths += estimate * (2 if objective else 1) + tokens.action * _product(k * A, Da)

    def embedder(width: int) -> int:
        return _product(config.time_width, width) + _product(width, width) + _product(width, 6 * width)

    # Of sigma 0, by each expert that observes. A state at the sigma of the actions shares theirs.
    modulation = sum(map(embedder, widths if config.state_sigma == "clean" else (Dv,)))
    if config.pooled_text:
        modulation += _product(text_tokens, config.text_dim) + sum(_product(config.text_dim, D) for D in widths)
    modulation += embedder(Da) if tokens.value else 0
    modulation += (M * f * embedder(Dv) if tokens.video else 0) + noisy_actions // config.action_tokens * embedder(Da)
    return Flops(
        history=history,
        video=video,
        action=action,
        attention=2 * attended * _product(inner, 1),
        text=text,
        paths=paths,
        heads=tokens.video * _product(Dv, C)
        + noisy_actions * action_out
        + tokens.value * _product(Da, config.value_bins),
        modulation=modulation,
    )


def train_step_flops(config: ModelConfig, objective: ObjectiveConfig, batch_size: int, *, text_tokens: int = 0) -> int:
    """FLOPs of one training step on `batch_size` samples: three forward passes, nothing recomputed."""
    return 3 * batch_size * forward_flops(config, objective=objective, text_tokens=text_tokens).total


def _product(d_in: int, d_out: int) -> int:
    """FLOPs of a vector times a matrix [d_in, d_out]."""
    return 2 * d_in * d_out
