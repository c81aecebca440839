"""`JointDiT`: one transformer that denoises future video latents and action chunks together. Read this file first.

Tokens come in streams (`visibility.TABLE` says who sees whom); streams map to experts with their own weights, joined
by one attention per layer. A forward pass has two parts, in training and in inference alike:

1. `context`: the observed frames and the state, which never see a noisy token. Computed once per observation.
2. `denoise`: noisy video, noisy actions and further noise draws of the actions, given the context's keys and values.

Every token has its own noise level, by sigma groups: a latent frame, the frozen prefix of an action chunk, the rest of
it, the context. Modes differ in sigmas and visibility bits alone.

Letters: B batch, M chunks, V views, v target views, f latent frames per chunk, P patches, C channels, L tokens,
D width, N heads, H head dim, K action horizon, A action dim, S state dim, R draws.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jax import Array

from wam.config import ModelConfig
from wam.models.attention import Keys, attend, rope_angles
from wam.models.blocks import ExpertBlock, OutputHead
from wam.models.dynamics_paths import Constant, Embodiments, ForwardPath, InversePath, accumulate
from wam.models.layers import EmbodimentBank, Linear, SigmaEmbedder
from wam.models.streams import Context, Noisy, Observation, Outputs, Stream, to_tokens
from wam.models.visibility import TABLE


class JointDiT(nnx.Module):
    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        shared = config.topology == "shared"
        self.expert_of = {"history": "video", "video": "video", "state": "action", "action": "action", "draw": "action"}
        if shared:
            self.expert_of = dict.fromkeys(self.expert_of, "video")
        widths = {"video": (config.video_width, config.video_mlp), "action": (config.action_width, config.action_mlp)}
        names = ("video",) if shared else ("video", "action")

        @nnx.split_rngs(splits=config.depth)
        @nnx.vmap(in_axes=(None, 0), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stack(width_mlp: tuple[int, int], rngs: nnx.Rngs) -> ExpertBlock:
            return ExpertBlock(
                *width_mlp, config.heads, config.head_dim, rngs=rngs, text=config.text_attention, dtype=dtype
            )

        self.blocks = nnx.Dict({name: stack(widths[name], rngs) for name in names})
        self.sigma = nnx.Dict({n: SigmaEmbedder(config.time_width, widths[n][0], rngs=rngs) for n in names})
        read_text = names if config.text_attention else ()
        self.text_in = nnx.Dict(
            {n: Linear(config.text_dim, widths[n][0], rngs=rngs, axes=(None, "embed"), dtype=dtype) for n in read_text}
        )
        # The pooled instruction joins the sigma's condition: tiny trunks learn language much faster through modulation
        # than through cross-attention. Zero-initialised, hence a no-op for a trunk pretrained without it.
        self.text_condition = nnx.Dict(
            {n: Linear(config.text_dim, widths[n][0], rngs=rngs, axes=(None, "embed"), zero=True) for n in names}
        )
        C, Dv, Da = config.latent_channels, config.video_width, config.action_width
        normal = nnx.with_partitioning(nnx.initializers.normal(0.02), (None, None, "embed"))
        self.context_gain = Constant(jnp.ones((2, C)))  # per channel, for the first frame and for later ones
        self.history_in = Linear(C, Dv, rngs=rngs, axes=(None, "embed"), dtype=dtype)
        self.video_in = Linear(2 * C, Dv, rngs=rngs, axes=(None, "embed"), dtype=dtype)
        self.view_embedding = nnx.Param(normal(rngs.params(), (config.cameras, config.patches, Dv), jnp.float32))
        self.frame_embedding = nnx.Param(normal(rngs.params(), (config.frames_per_chunk, 1, Dv), jnp.float32))
        k, A = config.steps_per_token, config.action_dim
        self.action_in = EmbodimentBank(config.embodiments, k * A, Da, rngs=rngs, dtype=dtype)
        self.action_embedding = nnx.Param(normal(rngs.params(), (1, config.action_tokens, Da), jnp.float32))
        self.state_in = EmbodimentBank(config.embodiments, config.state_dim, Da, rngs=rngs, dtype=dtype)
        # Not zeros: a norm's derivative at a zero vector is 1 / sqrt(eps), and dropped inputs would blow up gradients.
        null = nnx.with_partitioning(nnx.initializers.normal(1.0), ("embed",))
        self.null_text = nnx.Param(null(rngs.params(), (config.text_dim,), jnp.float32))
        self.null_state = nnx.Param(null(rngs.params(), (Da,), jnp.float32))
        self.null_history = nnx.Param(null(rngs.params(), (Dv,), jnp.float32))
        self.video_head = OutputHead(Dv, C, rngs=rngs)
        self.action_norm = OutputHead(Da, 0, rngs=rngs)
        self.action_out = EmbodimentBank(config.embodiments, Da, k * A, rngs=rngs, zero=True)
        self.embodiments = Embodiments(config)
        self.forward_path = ForwardPath(config, rngs=rngs) if config.lead_width else None
        self.inverse_path = InversePath(config, rngs=rngs) if config.inverse_width else None

    # ------------------------------------------------------------------ layers

    def _run(self, body, carry, extra: Any = None):
        """Runs `body(blocks, carry, extra_layer) -> (carry, out)` over the layers, scanned or unrolled."""
        graph, stacked = nnx.split(self.blocks)

        def layer(carry, inputs):
            state, extra_layer = inputs
            return body(nnx.merge(graph, state), carry, extra_layer)

        if self.config.remat != "none":
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = {"full": None, "dots": dots}[self.config.remat]
            layer = jax.checkpoint(layer, prevent_cse=not self.config.scan_layers, policy=policy)
        if self.config.scan_layers:
            return jax.lax.scan(layer, carry, (stacked, extra))
        outs = []
        for i in range(self.config.depth):
            carry, out = layer(carry, jax.tree.map(operator.itemgetter(i), (stacked, extra)))
            outs.append(out)
        return carry, jax.tree.map(lambda *layers: jnp.stack(layers), *outs)

    def _attend(self, q: Array, blocks: list[Keys], diagonal: int = 1) -> Array:
        cfg = self.config
        return attend(q, blocks, backend=cfg.attention, chunk=cfg.attention_chunk, diagonal=diagonal)

    def _time(self, seconds: Array) -> Array:
        return seconds * self.config.latent_rate

    def _positions(self, time_BL: Array, grid: bool) -> Array:
        """RoPE positions [B, L, 3] or, with `grid`, [B, L * P, 3] for whole frames of patches."""
        rows, columns = self.config.grid
        if not grid:
            return jnp.stack([time_BL, jnp.zeros_like(time_BL), jnp.zeros_like(time_BL)], -1)
        row, column = (x.ravel() for x in jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"))
        time = jnp.repeat(time_BL, rows * columns, axis=1)
        tile = lambda x: jnp.broadcast_to(jnp.tile(x, time_BL.shape[1]).astype(jnp.float32), time.shape)  # noqa: E731
        return jnp.stack([time, tile(row), tile(column)], -1)

    def _latent_time(self, video_time_BT: Array) -> Array:
        """[B, F] seconds of each latent frame: the first alone, then the last frame of each group of r."""
        return video_time_BT[:, :: self.config.frames_per_latent]

    # ----------------------------------------------------------------- context

    def context(self, obs: Observation) -> Context:
        """Keys and values of the observed frames, the state and the text. See `Context`."""
        cfg = self.config
        B, V, F, P, _ = obs.latents.shape
        f, first = cfg.frames_per_chunk, jnp.arange(F) == 0
        gain = jnp.where(first[:, None], self.context_gain[...][0], self.context_gain[...][1])
        x = self.history_in(obs.latents * gain[:, None])
        camera = jax.nn.one_hot(obs.camera, cfg.cameras, dtype=x.dtype)
        view = jnp.einsum("BVc,cPD->BVPD", camera, self.view_embedding[...].astype(x.dtype))
        dropped = obs.drop_history[:, None, None, None, None]
        x = jnp.where(dropped, self.null_history[...].astype(x.dtype), x) + view[:, :, None]
        history = rearrange(x, "B V F P D -> B (F V P) D")
        time = jnp.repeat(self._time(self._latent_time(obs.video_time)[:, :F]), V, axis=1)
        history_angles = rope_angles(self._positions(time, grid=True), cfg.head_dim)
        view_mask = repeat(obs.view_mask, "B V -> B (F V P)", F=F, P=P)

        has_state = obs.state_mask.any(-1)
        state = self.state_in(obs.state * obs.state_mask, obs.embodiment)
        state = jnp.where(obs.drop_state[:, None, None], self.null_state[...].astype(state.dtype), state)
        state_angles = rope_angles(self._positions(self._time(obs.action_time[:, :, 0]), grid=False), cfg.head_dim)

        text = jnp.where(obs.drop_text[:, None, None], self.null_text[...], obs.text)
        only_first = jnp.arange(text.shape[1]) == 0
        # A dropped or empty instruction leaves one null token, so that the softmax always has a key.
        empty = obs.drop_text | ~obs.text_mask.any(-1)
        text_mask = jnp.where(empty[:, None], only_first, obs.text_mask)
        text = jnp.where(empty[:, None, None], self.null_text[...], text)
        text_in = {name: linear(text) for name, linear in self.text_in.items()}

        share = text_mask / text_mask.sum(-1, keepdims=True)
        pooled = jnp.einsum("BL,BLD->BD", share, text)
        instruction = {name: linear(pooled)[:, None] for name, linear in self.text_condition.items()}
        clean = jnp.zeros((B, 1))
        conditions = {n: e.modulation(e.condition(clean) + instruction[n]) for n, e in self.sigma.items()}
        video, action = self.expert_of["history"], self.expert_of["state"]
        ends = [V * P * (1 + i * f) for i in range(1 + (F - 1) // f)]  # tokens up to and including chunk i

        def body(blocks, carry, _):
            history, state = carry
            texts = {n: blocks[n].text_keys(x, text_mask) for n, x in text_in.items()}
            mod = blocks[video].modulation(conditions[video])
            q, k, v = blocks[video].qkv(history, mod[0], mod[1], history_angles)
            out, start = [], 0
            for end in ends:
                out.append(self._attend(q[:, start:end], [Keys(k[:, :end], v[:, :end], view_mask[:, :end])]))
                start = end
            history = blocks[video].finish(history, jnp.concatenate(out, 1), mod, texts.get(video), cfg.attention)
            mod = blocks[action].modulation(conditions[action])
            state_qkv = blocks[action].qkv(state, mod[0], mod[1], state_angles)
            # A state token sees itself alone: the softmax over one key is the value.
            state = blocks[action].finish(state, state_qkv.v, mod, texts.get(action), cfg.attention)
            kept = (k, v, state_qkv.k, state_qkv.v, {n: (t.k, t.v) for n, t in texts.items()})
            return (history, state), kept

        _, (hk, hv, sk, sv, texts) = self._run(body, (history, state))
        current = obs.latents[:, np.array(cfg.target_views)]
        last = np.array([i * f for i in range(1 + (F - 1) // f)])  # last latent frame of each clean chunk
        current = rearrange(current[:, :, last], "B v M P C -> B M (v P) C")
        text_keys = {n: Keys(k, v, text_mask) for n, (k, v) in texts.items()}
        return Context(Keys(hk, hv, view_mask), Keys(sk, sv, has_state), text_keys, instruction, current, obs)

    # ----------------------------------------------------------------- denoise

    def denoise(self, context: Context, noisy: Noisy) -> Outputs:
        """Network outputs for all noisy streams that are present."""
        cfg, obs = self.config, context.observation
        M = noisy.sigma_action.shape[1]
        P, f, v = cfg.patches, cfg.frames_per_chunk, len(cfg.target_views)
        streams: dict[str, Stream] = {}
        if noisy.video is not None:
            streams["video"] = self._video_stream(context, noisy)
        if noisy.action is not None:
            streams["action"] = self._action_stream(context, noisy)
        if noisy.draws is not None:
            streams["draw"] = self._draw_stream(context, noisy)
        bits = {"video_sees_action": noisy.video_sees_action, "action_sees_video": noisy.action_sees_video}
        per_chunk = {name: stream.x.shape[1] // M for name, stream in streams.items()}
        V = obs.latents.shape[1]
        draws = 1 if noisy.draws is None else noisy.draws.shape[2]

        # Streams of one expert share its projections and MLP: their tokens stand side by side.
        experts: dict[str, list[str]] = {}
        for name in streams:
            experts.setdefault(self.expert_of[name], []).append(name)
        joined = {e: jnp.concatenate([streams[n].x for n in names], 1) for e, names in experts.items()}
        angles = {e: jnp.concatenate([streams[n].angles for n in names], 1) for e, names in experts.items()}

        history_mask, state_mask = context.history.mask, context.state.mask
        assert history_mask is not None  # `context` gives both
        assert state_mask is not None

        def part(tokens: dict[str, Array], name: str, chunk: int) -> Array:
            """The tokens of one chunk of one stream, out of its expert's."""
            expert = self.expert_of[name]
            before = experts[expert][: experts[expert].index(name)]
            n = per_chunk[name]
            start = sum(streams[other].x.shape[1] for other in before) + chunk * n
            return tokens[expert][:, start : start + n]

        def body(blocks, xs, layer_keys):
            (hk, hv, sk, sv), texts = layer_keys
            q, k, v, mods = {}, {}, {}, {}
            for expert, names in experts.items():
                block = blocks[expert]
                each = [[to_tokens(streams[n], m) for m in block.modulation(streams[n].modulation)] for n in names]
                mods[expert] = tuple(jnp.concatenate(m, axis=1) for m in zip(*each, strict=True))
                q[expert], k[expert], v[expert] = block.qkv(xs[expert], *mods[expert][:2], angles[expert])

            def visible(query: str, chunk: int) -> list[Keys]:
                """Keys of one query block, by the table; absent streams are left out."""
                seen_blocks = []
                for seen in TABLE[query]:
                    if seen.stream == "history":
                        end = V * P * (1 + chunk * f)
                        seen_blocks.append(Keys(hk[:, :end], hv[:, :end], history_mask[:, :end]))
                    elif seen.stream == "state":
                        one = slice(chunk, chunk + 1)
                        seen_blocks.append(Keys(sk[:, one], sv[:, one], state_mask[:, one]))
                    elif seen.stream in streams:
                        keys = part(k, seen.stream, chunk)
                        mask = None
                        if seen.gate is not None:
                            mask = jnp.broadcast_to(bits[seen.gate][:, None] > 0, keys.shape[:2])
                        seen_blocks.append(Keys(keys, part(v, seen.stream, chunk), mask))
                return seen_blocks

            new = {}
            for expert, names in experts.items():
                attended = [
                    self._attend(part(q, name, chunk), visible(name, chunk), diagonal=draws if name == "draw" else 1)
                    for name in names
                    for chunk in range(M)
                ]
                text = None
                if expert in texts:
                    text_k, text_v = texts[expert]
                    text = Keys(text_k, text_v, context.text[expert].mask)
                out = jnp.concatenate(attended, axis=1)
                new[expert] = blocks[expert].finish(xs[expert], out, mods[expert], text, cfg.attention)
            return new, None

        layer_keys = (
            (context.history.k, context.history.v, context.state.k, context.state.v),
            {n: (t.k, t.v) for n, t in context.text.items()},
        )
        xs, _ = self._run(body, joined, layer_keys)

        def tokens(name: str) -> Array:
            return jnp.concatenate([part(xs, name, chunk) for chunk in range(M)], axis=1)

        video = action = policy = None
        if "video" in streams:
            out = self.video_head(tokens("video"), to_tokens(streams["video"], streams["video"].condition))
            video = rearrange(out, "B (M f v P) C -> B M f v P C", M=M, f=f, v=v)
        if "action" in streams:
            pattern = "B (M Ka) (k A) -> B M (Ka k) A"
            action = self._decode_actions(tokens("action"), streams["action"], obs.embodiment, pattern, M=M)
        if "draw" in streams:
            pattern = "B (M R Ka) (k A) -> B M R (Ka k) A"
            policy = self._decode_actions(tokens("draw"), streams["draw"], obs.embodiment, pattern, M=M, R=draws)
        return Outputs(video, action, policy)

    # ----------------------------------------------------------------- streams

    def _video_stream(self, context: Context, noisy: Noisy) -> Stream:
        assert noisy.video is not None
        cfg, obs = self.config, context.observation
        M, f = noisy.sigma_video.shape[1:]
        x = rearrange(noisy.video, "B M f v P C -> B M f (v P) C")
        seen = context.current * ~obs.drop_history[:, None, None, None]
        x = self.video_in(jnp.concatenate([x, jnp.broadcast_to(seen[:, :, None], x.shape)], -1))
        camera = jax.nn.one_hot(obs.camera[:, np.array(cfg.target_views)], cfg.cameras, dtype=x.dtype)
        view = jnp.einsum("Bvc,cPD->BvPD", camera, self.view_embedding[...].astype(x.dtype))
        x = x + rearrange(view, "B v P D -> B 1 1 (v P) D") + self.frame_embedding[...].astype(x.dtype)
        embedder = self.sigma[self.expert_of["video"]]
        instruction = context.instruction[self.expert_of["video"]]
        condition = embedder.condition(noisy.sigma_video) + instruction[:, None]
        if self.forward_path is not None and noisy.action is not None:
            tokens, shift = self.forward_path(self._lead_code(obs, noisy))
            x, condition = x + tokens.astype(x.dtype), condition + shift
        time = jnp.repeat(self._time(self._latent_time(obs.video_time)[:, 1:]), len(cfg.target_views), axis=1)
        angles = rope_angles(self._positions(time, grid=True), cfg.head_dim)
        condition = rearrange(condition, "B M f D -> B (M f) D")
        x = rearrange(x, "B M f p D -> B (M f p) D")
        return Stream(x, condition, embedder.modulation(condition), x.shape[1] // (M * f), angles)

    def _lead_code(self, obs: Observation, noisy: Noisy) -> Array:
        assert self.forward_path is not None
        assert noisy.action is not None
        state = obs.state * obs.state_mask * ~obs.drop_state[:, None, None]
        M = noisy.sigma_action.shape[1]
        frame_time = rearrange(obs.video_time[:, 1:], "B (M T) -> B M T", M=M)
        leads = accumulate(self.embodiments, noisy.action, noisy.action_mask, obs.action_time, frame_time, state,
                           obs.embodiment)  # fmt: skip
        has_action = noisy.action_mask.any((2, 3))
        gate = noisy.video_sees_action[:, None] * (1 - noisy.sigma_action) * has_action
        return self.forward_path.code(leads, state, gate)

    def _action_stream(self, context: Context, noisy: Noisy) -> Stream:
        assert noisy.action is not None
        cfg, obs = self.config, context.observation
        M, Ka = noisy.sigma_action.shape[1], cfg.action_tokens
        x = self._encode_actions(noisy.action * noisy.action_mask, obs.embodiment)
        if self.inverse_path is not None and noisy.video is not None:
            read = self.inverse_path.frozen()
            estimate = self.direct_inverse(context, noisy.video, noisy.frame_mask, read) * noisy.action_mask
            gate = noisy.action_sees_video[:, None] * (1 - noisy.sigma_video.max(-1))
            x = x + self.inverse_path(estimate, gate).astype(x.dtype)
        sigma = noisy.sigma_action
        group: Array | int = Ka
        if noisy.prefix is not None:
            # Two groups a chunk: the given prefix at sigma 0, then the rest.
            sigma = jnp.concatenate([jnp.zeros_like(sigma), sigma], axis=1)
            group = (jnp.arange(Ka) >= noisy.prefix[..., None]).astype(jnp.int32).reshape(-1, M * Ka)
        return self._action_tokens(rearrange(x, "B M Ka D -> B (M Ka) D"), sigma, group, context, repeats=1)

    def _draw_stream(self, context: Context, noisy: Noisy) -> Stream:
        assert noisy.draws is not None
        assert noisy.sigma_draws is not None
        obs, R = context.observation, noisy.draws.shape[2]
        x = self._encode_actions(noisy.draws * noisy.action_mask[:, :, None], obs.embodiment)
        sigma = rearrange(noisy.sigma_draws, "B M R -> B (M R)")
        x = rearrange(x, "B M R Ka D -> B (M R Ka) D")
        return self._action_tokens(x, sigma, self.config.action_tokens, context, repeats=R)

    def _encode_actions(self, action: Array, embodiment: Array) -> Array:
        """[B, ..., K, A] -> [B, ..., Ka, D]."""
        tokens = rearrange(action, "B ... (Ka k) A -> B ... Ka (k A)", k=self.config.steps_per_token)
        x = self.action_in(tokens, embodiment)
        return x + self.action_embedding[...][0].astype(x.dtype)

    def _action_tokens(self, x: Array, sigma: Array, group: Array | int, context: Context, repeats: int) -> Stream:
        expert, obs = self.expert_of["action"], context.observation
        embedder = self.sigma[expert]
        condition = embedder.condition(sigma) + context.instruction[expert]
        time = rearrange(obs.action_time, "B M (Ka k) -> B M Ka k", k=self.config.steps_per_token).mean(-1)
        time = repeat(time, "B M Ka -> B (M R Ka)", R=repeats)
        angles = rope_angles(self._positions(self._time(time), grid=False), self.config.head_dim)
        return Stream(x, condition, embedder.modulation(condition), group, angles)

    def _decode_actions(self, x: Array, stream: Stream, embodiment: Array, pattern: str, **sizes) -> Array:
        h = self.action_norm.norm(x, to_tokens(stream, stream.condition))
        out = self.action_out(h, embodiment)
        return rearrange(out, pattern, k=self.config.steps_per_token, **sizes)

    # ---------------------------------------------------------- inverse path

    def direct_inverse(
        self, context: Context, video: Array, frame_mask: Array, path: InversePath | None = None
    ) -> Array:
        """Normalised actions [B, M, K, A] regressed from future latents [B, M, f, v, P, C] by the path alone."""
        path = path or self.inverse_path
        assert path is not None, "inverse_width is 0"
        obs = context.observation
        state = obs.state * obs.state_mask * ~obs.drop_state[:, None, None]
        seen = context.current * ~obs.drop_history[:, None, None, None]
        future = rearrange(video, "B M f v P C -> B M f (v P) C")
        return path.estimate(future, seen, frame_mask, state)


def create(config: ModelConfig, seed: int = 0) -> JointDiT:
    """A freshly initialised model. Its kernels carry logical axis names; placing them is `training.sharding`'s work."""
    with nnx.use_eager_sharding(False):
        return JointDiT(config, rngs=nnx.Rngs(seed))
