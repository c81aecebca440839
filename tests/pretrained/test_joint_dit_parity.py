"""`JointDiT` on imported weights against the reference with the one mask that our arrangement amounts to.

Observed: one frame. Nothing else is seen by the noisy video, and the frame sees itself alone. Two views are, to the
trunk, one canvas with both side by side.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from tests.pretrained.test_wan_trunk_parity import TEXT, largest, report
from tests.pretrained.wan_reference import CASES, gradients, ours, reference
from wam.models.streams import Noisy, Observation
from wam.pretrained import wan_trunk
from wam.pretrained.mapping import to_theirs
from wam.pretrained.wan_forward import patches

B, FRAMES, GRID = 2, 3, (2, 3)


class FirstFrameAlone(WanAttnProcessor):
    """The reference's self-attention, in which the first frame's queries see the first frame."""

    def __init__(self, tokens: int):
        super().__init__()
        self.tokens = tokens

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        first = torch.arange(hidden_states.shape[1]) < self.tokens
        mask = ~first[:, None] | first[None, :]
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, rotary_emb)


@pytest.mark.parametrize(("name", "views"), [("ti2v", 1), ("t2v", 2), ("i2v", 2)])
def test_noisy_video_beside_an_observed_frame_equals_the_masked_reference(name, views):
    config = CASES[name]
    model = reference(config)
    tokens = GRID[0] * GRID[1] * views
    for block in model.blocks:
        block.attn1.set_processor(FirstFrameAlone(tokens))
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    p, q = config.patch_size[1:]
    canvas = normal(B, FRAMES, GRID[0] * p, views * GRID[1] * q, config.in_channels)
    text, lengths = normal(B, TEXT if config.image_dim else 7, config.text_dim), np.array([5, 2])
    text_mask = np.arange(text.shape[1]) < lengths[:, None]
    image = normal(B, 5, config.image_dim) if config.image_dim else None
    time = np.array([700.0, 250.0], np.float32)

    per_token = np.repeat(time[:, None], FRAMES * tokens, axis=1)
    per_token[:, :tokens] = 0
    out = model(
        torch.from_numpy(np.ascontiguousarray(np.moveaxis(canvas, -1, 1))), torch.from_numpy(per_token),
        torch.from_numpy(text * text_mask[..., None]), None if image is None else torch.from_numpy(image),
    ).sample  # fmt: skip
    out = torch.movedim(out, 1, -1)[:, 1:]
    cotangent = normal(*out.shape) / np.sqrt(out.numel())
    (out * torch.from_numpy(cotangent)).sum().backward()

    apply, params = ours(config, model, grid=GRID, latent_frames=FRAMES, frames_per_latent=1, latent_rate=1.0,
                         views=views, target_views=tuple(range(views)))  # fmt: skip
    cut = lambda x: jnp.stack([patches(v, config.patch_size) for v in jnp.split(x, views, axis=-2)], 1)  # noqa: E731
    latents, guide = map(cut, np.split(canvas, [config.out_channels], axis=-1))  # [B, V, F, P, C]
    cfg = apply.model(params).config
    never, M = jnp.zeros(B, bool), 1
    seen = Observation(
        latents=latents[:, :, :1], view_mask=jnp.ones((B, views), bool), camera=jnp.zeros((B, views), int),
        video_time=jnp.tile(jnp.arange(FRAMES, dtype=jnp.float32), (B, 1)),
        action_time=jnp.zeros((B, M, cfg.action_horizon)), state=jnp.zeros((B, M, cfg.state_dim)),
        state_mask=jnp.zeros((B, M, cfg.state_dim), bool), text=text, text_mask=text_mask, embodiment=jnp.zeros(B, int),
        drop_text=never, drop_state=never, drop_history=never, guide=guide if guide.size else None, image=image,
    )  # fmt: skip
    noisy = Noisy(
        video=jnp.moveaxis(latents[:, :, 1:], 1, 2)[:, None],
        sigma_video=jnp.tile(time[:, None, None] / 1000, (1, 1, 2)),
        frame_mask=jnp.ones((B, M, 2), bool), action=None, action_mask=jnp.zeros((B, M, 1, 1), bool),
        sigma_action=jnp.ones((B, M)), action_sees_video=jnp.zeros(B), video_sees_action=jnp.zeros(B),
    )  # fmt: skip
    wanted = jnp.moveaxis(cut(out.detach().numpy()), 1, 2)[:, None]  # [B, M, f, v, P, C]
    weights = jnp.moveaxis(cut(cotangent), 1, 2)[:, None]

    @jax.jit
    def forward(params):
        video = apply.model(params)(seen, noisy)[1].video
        return jnp.sum(video * weights), video

    (_, got), grads = jax.value_and_grad(forward, has_aux=True)(params)
    report(f"joint dit, {name}, {views} views", largest([got], [wanted]))
    mapped, theirs = to_theirs(wan_trunk.entries(config), grads), gradients(model)
    report(f"joint dit, {name}, {views} views, gradients", largest(map(mapped.get, theirs), theirs.values()))

    @jax.jit
    def in_two_parts(params):
        dit = apply.model(params)
        return dit.denoise(dit.context(seen), noisy).video

    report(f"joint dit, {name}, {views} views, kept keys", largest([in_two_parts(params)], [wanted]))
