"""`JointDiT`: one transformer that denoises future video latents and action chunks together. Read this file first.

Tokens come in streams (`visibility.TABLE` says who sees whom); streams map to experts with their own weights, joined
by one attention per layer. A forward pass has two parts, in training and in inference alike:

1. `context`: the observed frames and the state, which never see a noisy token. Computed once per observation.
2. `denoise`: noisy video, noisy actions and further noise draws of the actions, given the context's keys and values.

Tokens are [B, G, n, D]: groups of n tokens, a latent frame of one view or an action chunk. A group has one noise level,
but for the frozen prefix of a chunk; modes differ in sigmas and visibility bits alone. The patches of a frame keep an
axis of their own because a mesh may split it.

Letters: B batch, M chunks, V views, v target views, f latent frames per chunk, P patches, C channels, G groups,
n tokens of a group, D width, N heads, H head dim, K action horizon, A action dim, S state dim, R draws.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from wam.config import ModelConfig
from wam.models.attention import Keys, attend
from wam.models.blocks import ExpertBlock, OutputHead
from wam.models.dynamics_paths import Constant, Embodiments, ForwardPath, InversePath, accumulate
from wam.models.layers import PRODUCT, EmbodimentBank, Linear, SigmaEmbedder
from wam.models.placement import gathered, place_tokens
from wam.models.rotary import frame_positions, rope_angles, step_positions
from wam.models.streams import Context, Noisy, Observation, Outputs, Stream, side_by_side
from wam.models.visibility import TABLE

LANES = {"video": ("video",), "action": ("action", "draw")}
"""Streams whose tokens are of one kind; a lane belongs to the expert of its first stream."""


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
            policies = {"full": None, "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT)}
            layer = jax.checkpoint(layer, prevent_cse=not self.config.scan_layers, policy=policies[self.config.remat])
        if self.config.scan_layers:
            return jax.lax.scan(layer, carry, (stacked, extra))
        outs = []
        for i in range(self.config.depth):
            carry, out = layer(carry, jax.tree.map(operator.itemgetter(i), (stacked, extra)))
            outs.append(out)
        return carry, jax.tree.map(lambda *layers: jnp.stack(layers), *outs)

    def _attend(self, q: Array, blocks: list[Keys], *, patches: bool, diagonal: int = 1) -> Array:
        cfg = self.config
        return attend(q, blocks, backend=cfg.attention, chunk=cfg.attention_chunk, diagonal=diagonal, patches=patches)

    def _frame_angles(self, seconds_BG: Array) -> Array:
        cfg = self.config
        return rope_angles(frame_positions(seconds_BG * cfg.latent_rate, cfg.grid), cfg.head_dim)

    def _step_angles(self, seconds_BGn: Array) -> Array:
        return rope_angles(step_positions(seconds_BGn * self.config.latent_rate), self.config.head_dim)

    def _latent_time(self, video_time_BT: Array) -> Array:
        """[B, F] seconds of each latent frame: the first alone, then the last frame of each group of r."""
        return video_time_BT[:, :: self.config.frames_per_latent]

    def _view(self, camera_BV: Array, dtype) -> Array:
        """[B, V, P, D]: which camera, and where in its image."""
        onehot = jax.nn.one_hot(camera_BV, self.config.cameras, dtype=dtype)
        return jnp.einsum("BVc,cPD->BVPD", onehot, self.view_embedding[...].astype(dtype))

    # ----------------------------------------------------------------- context

    def context(self, obs: Observation) -> Context:
        """Keys and values of the observed frames, the state and the text. See `Context`."""
        cfg = self.config
        B, V, F, *_ = obs.latents.shape
        f, first = cfg.frames_per_chunk, jnp.arange(F) == 0
        gain = jnp.where(first[:, None], self.context_gain[...][0], self.context_gain[...][1])
        x = self.history_in(obs.latents * gain[:, None])
        dropped = obs.drop_history[:, None, None, None, None]
        x = jnp.where(dropped, self.null_history[...].astype(x.dtype), x) + self._view(obs.camera, x.dtype)[:, :, None]
        history = place_tokens(rearrange(x, "B V F P D -> B (F V) P D"), patches=True)
        history_angles = self._frame_angles(jnp.repeat(self._latent_time(obs.video_time)[:, :F], V, axis=1))
        view_mask = jnp.tile(obs.view_mask, (1, F))[..., None]

        has_state = obs.state_mask.any(-1)[..., None]
        state = self.state_in(obs.state * obs.state_mask, obs.embodiment)
        state = jnp.where(obs.drop_state[:, None, None], self.null_state[...].astype(state.dtype), state)[:, :, None]
        state_angles = self._step_angles(obs.action_time[:, :, :1])

        text = jnp.where(obs.drop_text[:, None, None], self.null_text[...], obs.text)
        only_first = jnp.arange(text.shape[1]) == 0
        # A dropped or empty instruction leaves one null token, so that the softmax always has a key.
        empty = obs.drop_text | ~obs.text_mask.any(-1)
        text_mask = jnp.where(empty[:, None], only_first, obs.text_mask)
        text = jnp.where(empty[:, None, None], self.null_text[...], text)
        text_in = {name: linear(text) for name, linear in self.text_in.items()}

        share = text_mask / text_mask.sum(-1, keepdims=True)
        pooled = jnp.einsum("BL,BLD->BD", share, text)
        instruction = {name: linear(pooled)[:, None, None] for name, linear in self.text_condition.items()}
        clean = jnp.zeros((B, 1, 1))
        conditions = {n: e.modulation(e.condition(clean) + instruction[n]) for n, e in self.sigma.items()}
        video, action = self.expert_of["history"], self.expert_of["state"]
        ends = [V * (1 + i * f) for i in range(1 + (F - 1) // f)]  # groups up to and including chunk i

        def body(blocks, carry, _):
            history, state = carry
            texts = {n: blocks[n].text_keys(x, text_mask) for n, x in text_in.items()}
            mod = blocks[video].modulation(conditions[video])
            q, k, v = blocks[video].qkv(history, mod[0], mod[1], history_angles)
            seen = Keys(gathered(k), gathered(v), view_mask)
            out, start = [], 0
            for end in ends:
                out.append(self._attend(q[:, start:end], [_groups(seen, 0, end)], patches=True))
                start = end
            attended = jnp.concatenate(out, 1)
            history = blocks[video].finish(history, attended, mod, texts.get(video), cfg.attention, patches=True)
            mod = blocks[action].modulation(conditions[action])
            own = blocks[action].qkv(state, mod[0], mod[1], state_angles)
            # A state token sees itself alone: the softmax over one key is the value.
            state = blocks[action].finish(state, own.v, mod, texts.get(action), cfg.attention, patches=False)
            return (history, state), (k, v, own.k, own.v, {n: (t.k, t.v) for n, t in texts.items()})

        _, (hk, hv, sk, sv, texts) = self._run(body, (history, state))
        last = np.array([i * f for i in range(1 + (F - 1) // f)])  # last latent frame of each clean chunk
        current = rearrange(obs.latents[:, np.array(cfg.target_views)][:, :, last], "B v M P C -> B M v P C")
        text_keys = {n: Keys(k, v, text_mask[:, None]) for n, (k, v) in texts.items()}
        return Context(Keys(hk, hv, view_mask), Keys(sk, sv, has_state), text_keys, instruction, current, obs)

    # ----------------------------------------------------------------- denoise

    def denoise(self, context: Context, noisy: Noisy) -> Outputs:
        """Network outputs for all noisy streams that are present."""
        cfg, V = self.config, context.observation.latents.shape[1]
        M, f, v = noisy.sigma_action.shape[1], cfg.frames_per_chunk, len(cfg.target_views)
        streams: dict[str, Stream] = {}
        if noisy.video is not None:
            streams["video"] = self._video_stream(context, noisy)
        if noisy.action is not None:
            streams["action"] = self._action_stream(context, noisy)
        if noisy.draws is not None:
            streams["draw"] = self._draw_stream(context, noisy)
        bits = {"video_sees_action": noisy.video_sees_action, "action_sees_video": noisy.action_sees_video}
        per_chunk = {name: stream.x.shape[1] // M for name, stream in streams.items()}
        draws = 1 if noisy.draws is None else noisy.draws.shape[2]

        # Streams with tokens of one kind go through their expert side by side: one product instead of two.
        lanes = {lane: [n for n in names if n in streams] for lane, names in LANES.items()}
        lanes = {lane: names for lane, names in lanes.items() if names}
        lane_of = {name: lane for lane, names in lanes.items() for name in names}
        start_of = {
            name: sum(per_chunk[other] * M for other in names[: names.index(name)])
            for names in lanes.values()
            for name in names
        }
        joined = {lane: side_by_side([streams[n] for n in names]) for lane, names in lanes.items()}

        def part(tokens: dict[str, Any], name: str, chunk: int) -> Any:
            """The groups of one chunk of one stream, out of its lane's."""
            start = start_of[name] + chunk * per_chunk[name]
            return _groups(tokens[lane_of[name]], start, start + per_chunk[name])

        def body(blocks, xs, layer_keys):
            (hk, hv, sk, sv), texts = layer_keys
            history = Keys(gathered(hk), gathered(hv), context.history.mask)
            state = Keys(sk, sv, context.state.mask)
            q, keys, mods = {}, {}, {}
            for lane, stream in joined.items():
                block = blocks[self.expert_of[lane]]
                mods[lane] = block.modulation(stream.modulation)
                q[lane], k, v = block.qkv(xs[lane], *mods[lane][:2], stream.angles)
                keys[lane] = Keys(gathered(k), gathered(v))

            def visible(query: str, chunk: int) -> list[Keys]:
                """Keys of one query block, by the table; absent streams are left out."""
                seen_blocks = []
                for seen in TABLE[query]:
                    if seen.stream == "history":
                        seen_blocks.append(_groups(history, 0, V * (1 + chunk * f)))
                    elif seen.stream == "state":
                        seen_blocks.append(_groups(state, chunk, chunk + 1))
                    elif seen.stream in streams:
                        block = part(keys, seen.stream, chunk)
                        if seen.gate is not None:
                            block = block._replace(mask=bits[seen.gate][:, None, None] > 0)
                        seen_blocks.append(block)
                return seen_blocks

            new = {}
            for lane, names in lanes.items():
                expert, patches = self.expert_of[lane], lane == "video"
                attended = [
                    self._attend(part(q, name, chunk), visible(name, chunk), patches=patches,
                                 diagonal=draws if name == "draw" else 1)
                    for name in names
                    for chunk in range(M)
                ]  # fmt: skip
                text = None
                if expert in texts:
                    text_k, text_v = texts[expert]
                    text = Keys(text_k, text_v, context.text[expert].mask)
                out = jnp.concatenate(attended, axis=1)
                new[lane] = blocks[expert].finish(xs[lane], out, mods[lane], text, cfg.attention, patches=patches)
            return new, None

        layer_keys = (
            (context.history.k, context.history.v, context.state.k, context.state.v),
            {n: (t.k, t.v) for n, t in context.text.items()},
        )
        xs, _ = self._run(body, {lane: stream.x for lane, stream in joined.items()}, layer_keys)

        def tokens(name: str) -> Array:
            return jnp.concatenate([part(xs, name, chunk) for chunk in range(M)], axis=1)

        video = action = policy = None
        if "video" in streams:
            out = self.video_head(tokens("video"), streams["video"].condition)
            video = rearrange(out, "B (M f v) P C -> B M f v P C", M=M, f=f, v=v)
        if "action" in streams:
            action = self._decode_actions(tokens("action"), context, streams["action"])
        if "draw" in streams:
            policy = self._decode_actions(tokens("draw"), context, streams["draw"])
            policy = rearrange(policy, "B (M R) K A -> B M R K A", M=M, R=draws)
        return Outputs(video, action, policy)

    # ----------------------------------------------------------------- streams

    def _video_stream(self, context: Context, noisy: Noisy) -> Stream:
        assert noisy.video is not None
        cfg, obs = self.config, context.observation
        v = len(cfg.target_views)
        seen = context.current * ~obs.drop_history[:, None, None, None, None]
        both = [noisy.video, jnp.broadcast_to(seen[:, :, None], noisy.video.shape)]
        x = self.video_in(jnp.concatenate(both, -1))  # [B, M, f, v, P, D]
        view = self._view(obs.camera[:, np.array(cfg.target_views)], x.dtype)
        x = x + view[:, None, None] + self.frame_embedding[...].astype(x.dtype)[:, None]
        embedder = self.sigma[self.expert_of["video"]]
        condition = embedder.condition(noisy.sigma_video) + context.instruction[self.expert_of["video"]]
        if self.forward_path is not None and noisy.action is not None:
            tokens, shift = self.forward_path(self._lead_code(obs, noisy))
            x = x + rearrange(tokens, "B M f (v P) D -> B M f v P D", v=v).astype(x.dtype)
            condition = condition + shift
        x = place_tokens(rearrange(x, "B M f v P D -> B (M f v) P D"), patches=True)
        condition = rearrange(condition, "B M f D -> B (M f) 1 D")
        modulation = embedder.modulation(condition)
        condition, modulation = (jnp.repeat(c, v, axis=1) for c in (condition, modulation))
        angles = self._frame_angles(jnp.repeat(self._latent_time(obs.video_time)[:, 1:], v, axis=1))
        return Stream(x, condition, modulation, angles)

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
        x = self._encode_actions(noisy.action * noisy.action_mask, context.observation.embodiment)
        if self.inverse_path is not None and noisy.video is not None:
            read = self.inverse_path.frozen()
            estimate = self.direct_inverse(context, noisy.video, noisy.frame_mask, read) * noisy.action_mask
            gate = noisy.action_sees_video[:, None] * (1 - noisy.sigma_video.max(-1))
            x = x + self.inverse_path(estimate, gate).astype(x.dtype)
        given = None
        if noisy.prefix is not None:
            given = (jnp.arange(x.shape[2]) < noisy.prefix[..., None])[..., None]  # [B, M, Ka, 1]
        return self._action_tokens(x, noisy.sigma_action, context, given)

    def _draw_stream(self, context: Context, noisy: Noisy) -> Stream:
        assert noisy.draws is not None
        assert noisy.sigma_draws is not None
        x = self._encode_actions(noisy.draws * noisy.action_mask[:, :, None], context.observation.embodiment)
        sigma = rearrange(noisy.sigma_draws, "B M R -> B (M R)")
        return self._action_tokens(rearrange(x, "B M R Ka D -> B (M R) Ka D"), sigma, context)

    def _encode_actions(self, action: Array, embodiment: Array) -> Array:
        """[B, ..., K, A] -> [B, ..., Ka, D]."""
        tokens = rearrange(action, "B ... (Ka k) A -> B ... Ka (k A)", k=self.config.steps_per_token)
        x = self.action_in(tokens, embodiment)
        return x + self.action_embedding[...][0].astype(x.dtype)

    def _action_tokens(self, x: Array, sigma_BG: Array, context: Context, given: Array | None = None) -> Stream:
        """Tokens [B, G, Ka, D] of G action chunks; those that are `given` [B, G, Ka, 1] have sigma 0."""
        expert, obs = self.expert_of["action"], context.observation
        embedder = self.sigma[expert]
        condition = embedder.condition(sigma_BG[..., None]) + context.instruction[expert]
        modulation = embedder.modulation(condition)
        if given is not None:
            clean = embedder.condition(jnp.zeros_like(sigma_BG)[..., None]) + context.instruction[expert]
            condition = jnp.where(given, clean, condition)
            modulation = jnp.where(given[..., None], embedder.modulation(clean), modulation)
        time = rearrange(obs.action_time, "B M (Ka k) -> B M Ka k", k=self.config.steps_per_token).mean(-1)
        angles = self._step_angles(jnp.repeat(time, x.shape[1] // time.shape[1], axis=1))
        return Stream(place_tokens(x, patches=False), condition, modulation, angles)

    def _decode_actions(self, x: Array, context: Context, stream: Stream) -> Array:
        """[B, G, Ka, D] -> [B, G, K, A]."""
        out = self.action_out(self.action_norm.norm(x, stream.condition), context.observation.embodiment)
        return rearrange(out, "B G Ka (k A) -> B G (Ka k) A", k=self.config.steps_per_token)

    # ---------------------------------------------------------- inverse path

    def direct_inverse(
        self, context: Context, video: Array, frame_mask: Array, path: InversePath | None = None
    ) -> Array:
        """Normalised actions [B, M, K, A] regressed from future latents [B, M, f, v, P, C] by the path alone."""
        path = path or self.inverse_path
        assert path is not None, "inverse_width is 0"
        obs = context.observation
        state = obs.state * obs.state_mask * ~obs.drop_state[:, None, None]
        seen = context.current * ~obs.drop_history[:, None, None, None, None]
        future = rearrange(video, "B M f v P C -> B M f (v P) C")
        return path.estimate(future, rearrange(seen, "B M v P C -> B M (v P) C"), frame_mask, state)


def _groups(tokens: Any, start: int, stop: int) -> Any:
    """Groups [start, stop) of every array of a tree; the group axis is the second."""
    return jax.tree.map(lambda x: x[:, start:stop], tokens)


def create(config: ModelConfig, seed: int = 0) -> JointDiT:
    """A freshly initialised model. Its kernels carry logical axis names; placing them is `training.sharding`'s work."""
    with nnx.use_eager_sharding(False):
        return JointDiT(config, rngs=nnx.Rngs(seed))
