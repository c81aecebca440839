"""What a released Wan transformer computes, by the parts of ours: one bidirectional sequence of noisy video.

`JointDiT` is another arrangement of the same blocks: observed frames stand at sigma 0 and never see a noisy token, so
that their keys and values can be kept, while Wan lets all frames see one another. No call of `JointDiT` is therefore a
plain call of Wan; `wan_forward` is, with the very same modules, and this is where parity of the trunk is exact:

- text to video: all frames at one sigma;
- image to video (Wan 2.1): the same with `guide` and `image`;
- TI2V (Wan 2.2): sigma 0 for the first frame's tokens, whose latents are clean.

What `JointDiT` computes of the noisy video, given one observed frame and nothing else, equals the last form with one
change: the first frame's queries see the first frame alone. Both are tested against the reference.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from einops import rearrange
from jax import Array

from wam.models.attention import Keys, attend
from wam.models.joint_dit import JointDiT
from wam.models.placement import gathered
from wam.models.rotary import frame_positions, rope_angles
from wam.models.trunk import run_layers


def patches(video_BFhwC: Array, patch: tuple[int, int, int]) -> Array:
    """Latent video -> [B, F, P, C]: the numbers of a patch by frame, row, column, channel."""
    return rearrange(video_BFhwC, "B (F f) (h p) (w q) C -> B F (h w) (f p q C)", f=patch[0], p=patch[1], q=patch[2])


def unpatched(x_BFPC: Array, patch: tuple[int, int, int], grid: tuple[int, int]) -> Array:
    """The inverse of `patches` for frames of (rows, columns) patches."""
    return rearrange(x_BFPC, "B F (h w) (f p q C) -> B (F f) (h p) (w q) C",
                     f=patch[0], p=patch[1], q=patch[2], h=grid[0], w=grid[1])  # fmt: skip


def wan_forward(model: JointDiT, video_BFPC: Array, sigma: Array, text_BLd: Array, text_mask_BL: Array,
                grid: tuple[int, int], *, image_BLd: Array | None = None, guide_BFPC: Array | None = None
                ) -> Array:  # fmt: skip
    """Velocity [B, F, P, C] of noisy patches, all frames seeing one another.

    Args:
      model: with the switches of `wan_trunk.SWITCHES`; its video expert alone is used.
      video_BFPC: noisy patches, see `patches`.
      sigma: noise levels [B], [B, F] or one a token, [B, F, P].
      text_BLd: tokens of the text encoder.
      text_mask_BL: which of them are attended to; released trunks attend to all, zeros stand behind the end of a text.
      grid: patches of a frame, (rows, columns); any, positions are rotary.
      image_BLd: tokens of the image encoder.
      guide_BFPC: further channels of every patch.
    """
    cfg, B, F = model.config, *video_BFPC.shape[:2]
    given = [video_BFPC] if guide_BFPC is None else [video_BFPC, guide_BFPC]
    x = model.video_in(jnp.concatenate(given, -1))
    sigma = sigma.reshape(*sigma.shape, *(1,) * (3 - sigma.ndim))
    condition = jnp.broadcast_to(model.sigma["video"].condition(sigma), (B, F, sigma.shape[2], cfg.video_width))
    modulation = model.sigma["video"].modulation(condition)
    frames = jnp.broadcast_to(jnp.arange(F, dtype=jnp.float32), (B, F))
    angles = rope_angles(frame_positions(frames, grid), cfg.head_dim)
    text = model.text_in["video"](text_BLd)
    image: Any = model.image_in
    image = None if image_BLd is None else image(image_BLd)

    def layer(blocks, x, _):
        block = blocks["video"]
        mod = block.modulation(modulation)
        q, k, v = block.qkv(x, *mod[:2], angles)
        seen = Keys(gathered(k), gathered(v))
        attended = attend(q, [seen], backend=cfg.attention, chunk=cfg.attention_chunk, patches=True)
        read = Keys(*block.text_keys(text))._replace(mask=text_mask_BL[:, None])
        looked_at = None if image is None else Keys(*block.image_keys(image))
        return block.finish(x, attended, mod, read, cfg.attention, patches=True, image=looked_at), None

    x, _ = run_layers(layer, model.blocks, cfg, x, None)
    return model.video_head(x, condition)
