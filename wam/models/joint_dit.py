"""`JointDiT`: one transformer that denoises future video latents and action chunks together. Read this file first.

Tokens come in streams (`visibility.TABLE` says who sees whom); streams map to experts with their own weights, joined
by one attention per layer (`trunk.through_layers`). There are two kinds of streams, and so two parts of a forward pass:

1. `context`: the observed frames and the state, which never see a noisy token. Computed once per observation.
2. `denoise`: noisy video, noisy actions and further noise draws of the actions, given the context's keys and values.
   The state is among them where it has the sigma of the actions (`state_sigma`).

Inference runs them one after the other; training calls the model, which takes all streams through the layers at once.

Tokens are [B, G, n, D]: groups of n tokens, a latent frame of one view or an action chunk. A group has one noise level,
but for the frozen prefix of a chunk; modes differ in sigmas and visibility bits alone. The patches of a frame keep an
axis of their own because a mesh may split it.

Letters: B batch, M chunks, V views, v target views, f latent frames per chunk, P patches, C channels, G groups,
n tokens of a group, D width, N heads, H head dim, K action horizon, A action dim, S state dim, R draws.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from wam.config import ModelConfig
from wam.models.blocks import ExpertBlock, OutputHead
from wam.models.conditions import ImageInput, TextInput
from wam.models.dynamics_paths import Constant, Embodiments, ForwardPath, InversePath, accumulate
from wam.models.history import Ring, recall
from wam.models.layers import EmbodimentBank, Linear, SigmaEmbedder
from wam.models.placement import place_tokens
from wam.models.registers import EmbodimentMLP, TimedEmbodimentMLP
from wam.models.rotary import frame_angles, step_angles
from wam.models.streams import Context, Given, LayerKeys, Noisy, Observation, Outputs, Stream
from wam.models.trunk import experts, through_layers
from wam.models.value import ValueQuery


class JointDiT(nnx.Module):
    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        self.expert_of = experts(config)
        widths = {"video": (config.video_width, config.video_mlp), "action": (config.action_width, config.action_mlp)}
        names = tuple(dict.fromkeys(self.expert_of.values()))

        @nnx.split_rngs(splits=config.depth)
        @nnx.vmap(in_axes=(None, None, 0), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stack(width_mlp: tuple[int, int], image: bool, rngs: nnx.Rngs) -> ExpertBlock:
            return ExpertBlock(*width_mlp, config.heads, config.head_dim, rngs=rngs, text=config.text_attention,
                               text_norm=config.text_norm, image=image, dtype=dtype)  # fmt: skip

        self.blocks: nnx.Dict | nnx.List = nnx.Dict(
            {n: stack(widths[n], n == "video" and config.image_dim > 0, rngs) for n in names}
        )
        self.sigma = nnx.Dict({n: SigmaEmbedder(config.time_width, widths[n][0], rngs=rngs) for n in names})
        read_text = names if config.text_attention else ()
        linear: dict[str, Any] = {"rngs": rngs, "axes": (None, "embed"), "dtype": dtype}

        def text_input(width: int) -> Linear | TextInput:
            if config.text_input == "mlp":
                return TextInput(config.text_dim, width, rngs=rngs, dtype=dtype)
            return Linear(config.text_dim, width, **linear)

        self.text_in = nnx.Dict({n: text_input(widths[n][0]) for n in read_text})
        # The pooled instruction joins the sigma's condition: tiny trunks learn language much faster through modulation
        # than through cross-attention. Zero-initialised, hence a no-op for a trunk pretrained without it.
        self.text_condition = nnx.Dict(
            {n: Linear(config.text_dim, widths[n][0], rngs=rngs, axes=(None, "embed"), zero=True)
             for n in (names if config.pooled_text else ())}
        )  # fmt: skip
        C, Dv, Da = config.latent_channels, config.video_width, config.action_width
        self.image_in = ImageInput(config.image_dim, Dv, rngs=rngs, dtype=dtype) if config.image_dim else None
        normal = nnx.with_partitioning(nnx.initializers.normal(0.02), (None, None, "embed"))
        self.context_gain = Constant(jnp.ones((2, C)))  # per channel, for the first frame and for later ones
        apart, guide = config.video_input == "apart", config.guide_channels
        self.history_in = Linear(C + guide, Dv, **linear) if apart else None
        self.video_in = Linear((2 * C if apart else C) + guide, Dv, **linear)

        def place(*shape: int) -> Any:
            return nnx.Param(normal(rngs.params(), shape, jnp.float32)) if config.places == "learned" else None

        self.view_embedding = place(config.cameras, config.patches, Dv)
        self.frame_embedding = place(config.frames_per_chunk, 1, Dv)
        k, A = config.steps_per_token, config.action_dim
        E, mlp = 1 if config.shared_codecs else config.embodiments, config.codecs == "mlp"

        def codec(d_in: int, d_out: int, **options: Any) -> EmbodimentBank | EmbodimentMLP:
            if mlp:
                return EmbodimentMLP(E, d_in, config.code_width, d_out, rngs=rngs, **options)
            return EmbodimentBank(E, d_in, d_out, rngs=rngs, **options)

        self.action_in = (TimedEmbodimentMLP if mlp else EmbodimentBank)(E, k * A, Da, rngs=rngs, dtype=dtype)
        placed = config.action_places == "time"
        places = nnx.Param(normal(rngs.params(), (1, config.action_tokens, Da), jnp.float32)) if placed else None
        self.action_embedding = places
        self.state_in = codec(config.state_dim, Da, dtype=dtype)
        # Not zeros: a norm's derivative at a zero vector is 1 / sqrt(eps), and dropped inputs would blow up gradients.
        null = nnx.with_partitioning(nnx.initializers.normal(1.0), ("embed",))
        self.null_text = nnx.Param(null(rngs.params(), (config.text_dim,), jnp.float32))
        self.null_state = nnx.Param(null(rngs.params(), (Da,), jnp.float32))
        self.null_history = nnx.Param(null(rngs.params(), (Dv,), jnp.float32))
        self.video_head = OutputHead(Dv, C, rngs=rngs)
        self.action_norm = None if mlp else OutputHead(Da, 0, rngs=rngs)
        self.action_out = codec(Da, k * A, zero=True)
        self.embodiments = Embodiments(config)
        self.forward_path = ForwardPath(config, rngs=rngs) if config.lead_width else None
        self.inverse_path = InversePath(config, rngs=rngs) if config.inverse_width else None
        self.value = ValueQuery(config, rngs=rngs) if config.value_bins else None

    # ------------------------------------------------------------------- parts

    def context(self, obs: Observation, ring: Ring | None = None) -> Context:
        """The observation as `denoise` reads it: in inference once, for all steps.

        With a `ring` it is the newest chunk of a session, which also sees what the ring holds.
        """
        given, streams, read = self._observed(obs)
        past = None
        if ring is not None:
            chunk = (
                obs.video_time[:, self.config.frames_per_chunk * self.config.frames_per_latent] - obs.video_time[:, 0]
            )
            past, seen = recall(ring, self.config, chunk)
            given = given._replace(masks=given.masks | {"history": jnp.concatenate([seen, given.masks["history"]], 1)})
        _, keys = self._layers(given, streams, **read, past=past, keep=True)
        return Context(given, keys)

    def denoise(self, context: Context, noisy: Noisy) -> Outputs:
        """Network outputs for all noisy streams that are present."""
        streams = self._noisy(context.given, noisy)
        xs, _ = self._layers(context.given, streams, noisy=noisy, kept=context.keys)
        return self._outputs(context.given, noisy, streams, xs)

    def __call__(self, obs: Observation, noisy: Noisy) -> tuple[Given, Outputs]:
        """`context` and `denoise` in one pass over the layers, as in training."""
        given, observed, read = self._observed(obs)
        streams = self._noisy(given, noisy)
        xs, _ = self._layers(given, observed | streams, noisy=noisy, **read)
        return given, self._outputs(given, noisy, streams, xs)

    def _layers(self, given: Given, streams: dict[str, Stream], **options: Any) -> tuple[dict[str, Array], LayerKeys]:
        return through_layers(self.blocks, self.config, self.expert_of, given, streams, **options)

    # ---------------------------------------------------------------- observed

    def _observed(self, obs: Observation) -> tuple[Given, dict[str, Stream], dict[str, dict[str, Array]]]:
        """(what is read directly, the streams `history` and `state`, the tokens of text and image by expert).

        Without `state` where that has the sigma of the actions.
        """
        cfg = self.config
        V, F = obs.latents.shape[1:3]
        text = jnp.where(obs.drop_text[:, None, None], self.null_text[...], obs.text)
        # A dropped or empty instruction leaves one null token, so that the softmax always has a key.
        empty = obs.drop_text | ~obs.text_mask.any(-1)
        text_mask = jnp.where(empty[:, None], jnp.arange(text.shape[1]) == 0, obs.text_mask)
        text = jnp.where(empty[:, None, None], self.null_text[...], text)
        if cfg.text_padding == "zeros":
            text, text_mask = text * text_mask[..., None], jnp.ones_like(text_mask)
        share = text_mask / text_mask.sum(-1, keepdims=True)
        pooled = jnp.einsum("BL,BLD->BD", share, text)
        seen = jnp.tile(obs.view_mask, (1, F))
        if obs.seconds is None:
            last = np.arange(1 + (F - 1) // cfg.frames_per_chunk) * cfg.frames_per_chunk  # of each clean chunk
            is_first, seconds = jnp.arange(F)[None] == 0, self._latent_time(obs.video_time)[:, :F]
        else:
            assert obs.seen is not None
            assert obs.opens is not None
            last, is_first, seconds = np.array([F - 1]), jnp.repeat(obs.opens[:, None], F, axis=1), obs.seconds
            seen = seen & rearrange(obs.seen, "B F V -> B (F V)")
        current = obs.latents[:, np.array(cfg.target_views)][:, :, last]
        given = Given(
            observation=obs,
            instruction=dict.fromkeys(self.sigma, jnp.zeros((1, 1, 1, 1)))
            | {name: linear(pooled)[:, None, None] for name, linear in self.text_condition.items()},
            current=rearrange(current, "B v M P C -> B M v P C"),
            masks={
                "history": seen[..., None],
                "video": jnp.tile(obs.view_mask[:, np.array(cfg.target_views)], (1, cfg.latent_frames - 1))[..., None],
                "state": obs.state_mask.any(-1)[..., None],
            },
            text_mask=text_mask,
        )
        gain = jnp.where(is_first[..., None, None], self.context_gain[...][0], self.context_gain[...][1])
        frames = [obs.latents * gain[:, None]]  # [B or 1, 1, F, 1, C]
        if obs.guide is not None:
            frames.append(obs.guide[:, :, :F])
        x = (self.history_in or self.video_in)(jnp.concatenate(frames, -1))
        dropped = obs.drop_history[:, None, None, None, None]
        x = jnp.where(dropped, self.null_history[...].astype(x.dtype), x)
        if cfg.places == "learned":
            x = x + self._view(obs.camera, x.dtype)[:, :, None]
        x = place_tokens(rearrange(x, "B V F P D -> B (F V) P D"), patches=True)
        angles = frame_angles(self.config, seconds, range(V))
        clean = jnp.zeros((x.shape[0], 1, 1))
        streams = {"history": self._stream("history", given, x, angles, clean)}
        if cfg.state_sigma == "clean":
            streams["state"] = self._state_stream(given, clean)
        read = {"text": {name: text_in(text) for name, text_in in self.text_in.items()}}
        if self.image_in is not None:
            assert obs.image is not None, "this trunk attends to an image: the batch has none"
            read["image"] = {self.expert_of["video"]: self.image_in(obs.image)}
        return given, streams, read

    def _state_stream(self, given: Given, sigma_BGn: Array) -> Stream:
        obs = given.observation
        x = self.state_in(obs.state * obs.state_mask, self._codec(obs))
        x = jnp.where(obs.drop_state[:, None, None], self.null_state[...].astype(x.dtype), x)[:, :, None]
        return self._stream("state", given, x, step_angles(self.config, obs.action_time[:, :, :1]), sigma_BGn)

    def _stream(self, name: str, given: Given, x_BGnD: Array, angles: Array, sigma_BGn: Array) -> Stream:
        embedder, instruction = self.sigma[self.expert_of[name]], given.instruction[self.expert_of[name]]
        condition = embedder.condition(sigma_BGn) + instruction
        return Stream(x_BGnD, condition, embedder.modulation(condition), angles)

    def _codec(self, obs: Observation) -> Array:
        """[B]: which of the encoders and decoders of states and actions."""
        return jnp.zeros_like(obs.embodiment) if self.config.shared_codecs else obs.embodiment

    def _latent_time(self, video_time_BT: Array) -> Array:
        """[B, F] seconds of each latent frame: the first alone, then the last frame of each group of r."""
        return video_time_BT[:, :: self.config.frames_per_latent]

    def _view(self, camera_BV: Array, dtype) -> Array:
        """[B, V, P, D]: which camera, and where in its image."""
        onehot = jax.nn.one_hot(camera_BV, self.config.cameras, dtype=dtype)
        return jnp.einsum("BVc,cPD->BVPD", onehot, self.view_embedding[...].astype(dtype))

    # ------------------------------------------------------------------- noisy

    def _noisy(self, given: Given, noisy: Noisy) -> dict[str, Stream]:
        """The streams `video`, `action`, `draw` and `value`, as far as they are present, and a `state` with a sigma."""
        streams = {}
        if self.config.state_sigma == "action":
            if noisy.draws is not None:
                raise ValueError(
                    "model.state_sigma 'action' gives the state one sigma, which further draws do not have: set "
                    "objective.policy_draws to 0"
                )
            streams["state"] = self._state_stream(given, noisy.sigma_action[..., None])
        if noisy.video is not None:
            streams["video"] = self._video_stream(given, noisy)
        if noisy.action is not None:
            streams["action"] = self._action_stream(given, noisy)
        if noisy.draws is not None:
            streams["draw"] = self._draw_stream(given, noisy)
        if noisy.value_sees_video is not None:
            streams["value"] = self._value_stream(given)
        return streams

    def _outputs(self, given: Given, noisy: Noisy, streams: dict[str, Stream], xs: dict[str, Array]) -> Outputs:
        M, f, v = noisy.sigma_action.shape[1], self.config.frames_per_chunk, len(self.config.target_views)
        video = action = policy = value = None
        if "video" in streams:
            out = self.video_head(xs["video"], streams["video"].condition)
            video = rearrange(out, "B (M f v) P C -> B M f v P C", M=M, f=f, v=v)
        if "action" in streams:
            action = self._decode_actions(xs["action"], given, streams["action"])
        if "draw" in streams:
            policy = self._decode_actions(xs["draw"], given, streams["draw"])
            policy = rearrange(policy, "B (M R) K A -> B M R K A", M=M)
        if self.value is not None and "value" in streams:
            value = self.value(xs["value"], streams["value"].condition)
        return Outputs(video, action, policy, value)

    def _video_stream(self, given: Given, noisy: Noisy) -> Stream:
        assert noisy.video is not None
        cfg, obs = self.config, given.observation
        v = len(cfg.target_views)
        frames = [noisy.video]
        if cfg.video_input == "apart":
            seen = given.current * ~obs.drop_history[:, None, None, None, None]
            frames.append(jnp.broadcast_to(seen[:, :, None], noisy.video.shape))
        if obs.guide is not None:
            guide = obs.guide[:, np.array(cfg.target_views), 1:]
            frames.append(rearrange(guide, "B v (M f) P C -> B M f v P C", f=noisy.video.shape[2]))
        x = self.video_in(jnp.concatenate(frames, -1))  # [B, M, f, v, P, D]
        if cfg.places == "learned":
            view = self._view(obs.camera[:, np.array(cfg.target_views)], x.dtype)
            x = x + view[:, None, None] + self.frame_embedding[...].astype(x.dtype)[:, None]
        embedder = self.sigma[self.expert_of["video"]]
        condition = embedder.condition(noisy.sigma_video) + given.instruction[self.expert_of["video"]]
        if self.forward_path is not None and noisy.action is not None:
            tokens, shift = self.forward_path(self._lead_code(obs, noisy))
            x = x + rearrange(tokens, "B M f (v P) D -> B M f v P D", v=v).astype(x.dtype)
            condition = condition + shift
        x = place_tokens(rearrange(x, "B M f v P D -> B (M f v) P D"), patches=True)
        condition = rearrange(condition, "B M f D -> B (M f) 1 D")
        modulation = embedder.modulation(condition)
        condition, modulation = (jnp.repeat(c, v, axis=1) for c in (condition, modulation))
        angles = frame_angles(self.config, self._latent_time(obs.video_time)[:, 1:], cfg.target_views)
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

    def _action_stream(self, given: Given, noisy: Noisy) -> Stream:
        assert noisy.action is not None
        known, sigma = None, noisy.sigma_action[..., None]
        if noisy.prefix is not None:
            known = jnp.arange(self.config.action_tokens) < noisy.prefix[..., None]  # [B, M, Ka]
            sigma = jnp.where(known, 0.0, sigma)
        x = self._encode_actions(noisy.action * noisy.action_mask, sigma, given)
        if self.inverse_path is not None and noisy.video is not None:
            read = self.inverse_path.frozen()
            estimate = self.direct_inverse(given, noisy.video, noisy.frame_mask, read) * noisy.action_mask
            gate = noisy.action_sees_video[:, None] * (1 - noisy.sigma_video.max(-1))
            x = x + self.inverse_path(estimate, gate).astype(x.dtype)
        return self._action_tokens(x, noisy.sigma_action, given, None if known is None else known[..., None])

    def _draw_stream(self, given: Given, noisy: Noisy) -> Stream:
        assert noisy.draws is not None
        assert noisy.sigma_draws is not None
        known, sigma = None, noisy.sigma_draws[..., None]
        if noisy.prefix_draws is not None:
            known = jnp.arange(self.config.action_tokens) < noisy.prefix_draws[..., None]  # [B, M, R, Ka]
            sigma, known = jnp.where(known, 0.0, sigma), rearrange(known, "B M R Ka -> B (M R) Ka 1")
        x = self._encode_actions(noisy.draws * noisy.action_mask[:, :, None], sigma, given)
        x, sigma = rearrange(x, "B M R Ka D -> B (M R) Ka D"), rearrange(noisy.sigma_draws, "B M R -> B (M R)")
        return self._action_tokens(x, sigma, given, known)

    def _value_stream(self, given: Given) -> Stream:
        assert self.value is not None, "model.value_bins is 0: this network has no value query"
        (B, M, _), time = given.observation.state.shape, given.observation.action_time[:, :, -1:]
        x = place_tokens(self.value.tokens(B, M, jnp.dtype(self.config.dtype)), patches=False)
        return self._stream("value", given, x, step_angles(self.config, time), jnp.zeros((B, 1, 1)))

    def _encode_actions(self, action: Array, sigma: Array, given: Given) -> Array:
        """[B, ..., K, A] with sigma [B, ..., 1 or Ka] -> [B, ..., Ka, D]."""
        tokens = rearrange(action, "B ... (Ka k) A -> B ... Ka (k A)", k=self.config.steps_per_token)
        codec = self._codec(given.observation)
        if isinstance(self.action_in, TimedEmbodimentMLP):
            x = self.action_in(tokens, sigma, codec)
        else:
            x = self.action_in(tokens, codec)
        return x if self.action_embedding is None else x + self.action_embedding[...][0].astype(x.dtype)

    def _action_tokens(self, x: Array, sigma_BG: Array, given: Given, known: Array | None = None) -> Stream:
        """Tokens [B, G, Ka, D] of G action chunks; those that are `known` [B, G, Ka, 1] have sigma 0."""
        expert, obs = self.expert_of["action"], given.observation
        embedder = self.sigma[expert]
        condition = embedder.condition(sigma_BG[..., None]) + given.instruction[expert]
        modulation = embedder.modulation(condition)
        if known is not None:
            clean = embedder.condition(jnp.zeros_like(sigma_BG)[..., None]) + given.instruction[expert]
            condition = jnp.where(known, clean, condition)
            modulation = jnp.where(known[..., None], embedder.modulation(clean), modulation)
        time = rearrange(obs.action_time, "B M (Ka k) -> B M Ka k", k=self.config.steps_per_token).mean(-1)
        angles = jnp.repeat(step_angles(self.config, time), x.shape[1] // time.shape[1], axis=1)
        return Stream(place_tokens(x, patches=False), condition, modulation, angles)

    def _decode_actions(self, x: Array, given: Given, stream: Stream) -> Array:
        """[B, G, Ka, D] -> [B, G, K, A]."""
        h = x if self.action_norm is None else self.action_norm.norm(x, stream.condition)
        out = self.action_out(h, self._codec(given.observation))
        return rearrange(out, "B G Ka (k A) -> B G (Ka k) A", k=self.config.steps_per_token)

    # ---------------------------------------------------------- inverse path

    def direct_inverse(self, given: Given, video: Array, frame_mask: Array, path: InversePath | None = None) -> Array:
        """Normalised actions [B, M, K, A] regressed from future latents [B, M, f, v, P, C] by the path alone."""
        path = path or self.inverse_path
        assert path is not None, "inverse_width is 0"
        obs = given.observation
        state = obs.state * obs.state_mask * ~obs.drop_state[:, None, None]
        seen = given.current * ~obs.drop_history[:, None, None, None, None]
        future = rearrange(video, "B M f v P C -> B M f (v P) C")
        there = jnp.repeat(obs.view_mask[:, np.array(self.config.target_views)], self.config.patches, axis=1)
        mask = frame_mask[..., None] * there[:, None, None]
        return path.estimate(future, rearrange(seen, "B M v P C -> B M (v P) C"), mask, state)


def create(config: ModelConfig, seed: int = 0) -> JointDiT:
    """A freshly initialised model. Its kernels carry logical axis names; placing them is `training.sharding`'s work."""
    with nnx.use_eager_sharding(False):
        return JointDiT(config, rngs=nnx.Rngs(seed))
