"""The video autoencoder of Wan 2.1 and Wan 2.2, one network with switches (Wan Team 2025, arXiv:2503.20314).

Pixels [B, T, h, w, 3] in [-1, 1] <-> normalised latents [B, F, rows, columns, C], T = 1 + r (F - 1). Every layer is
causal in time: with `past` a clip is encoded or decoded chunk by chunk and gives what it gives in one piece. The first
frame is treated apart, as the released weights demand: where time is halved it passes alone, where time is doubled it
stays one frame and the frames after it do not see it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from wam.models.layers import Linear
from wam.tokenizers.causal_conv import CausalConv, Conv, FrameConv, Past, halving_conv
from wam.tokenizers.wan_vae_config import WanVAEConfig

Cache = tuple[Array, ...]
"""The frames that the causal layers of an encoder or a decoder remember, see `Past`."""


class ChannelNorm(nnx.Module):
    """x / |x| sqrt(C) scale over the channels, in float32."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        y = x.astype(jnp.float32)
        square = jnp.maximum(jnp.sum(y * y, axis=-1, keepdims=True), 1e-24)
        return (y * jax.lax.rsqrt(square) * (self.scale[...] * np.sqrt(x.shape[-1]))).astype(x.dtype)


class Layers:
    """Makes the layers of one network: they share random numbers, compute dtype and convolution backend."""

    def __init__(self, config: WanVAEConfig, rngs: nnx.Rngs):
        self.rngs, self.dtype, self.backend = rngs, jnp.dtype(config.dtype), config.convolution

    def linear(self, c_in: int, c_out: int) -> Linear:
        return Linear(c_in, c_out, rngs=self.rngs, axes=(None, None), dtype=self.dtype)

    def causal(self, c_in: int, c_out: int, space: int = 3) -> CausalConv:
        return CausalConv(c_in, c_out, rngs=self.rngs, dtype=self.dtype, backend=self.backend, space=space)

    def frame(self, c_in: int, c_out: int, stride: int = 1) -> FrameConv:
        return FrameConv(c_in, c_out, rngs=self.rngs, dtype=self.dtype, stride=stride)


class ResidualBlock(nnx.Module):
    def __init__(self, c_in: int, c_out: int, make: Layers):
        self.norm1, self.conv1 = ChannelNorm(c_in), make.causal(c_in, c_out)
        self.norm2, self.conv2 = ChannelNorm(c_out), make.causal(c_out, c_out)
        self.shortcut = make.linear(c_in, c_out) if c_in != c_out else None

    def __call__(self, x: Array, past: Past) -> Array:
        y = self.conv1(jax.nn.silu(self.norm1(x)), past)
        y = self.conv2(jax.nn.silu(self.norm2(y)), past)
        return y + (x if self.shortcut is None else self.shortcut(x))


class FrameAttention(nnx.Module):
    """One head over the positions of a frame; softmax in float32."""

    def __init__(self, channels: int, make: Layers):
        self.norm = ChannelNorm(channels)
        self.qkv, self.out = make.linear(channels, 3 * channels), make.linear(channels, channels)

    def __call__(self, x: Array) -> Array:
        B, T, h, w, C = x.shape
        q, k, v = jnp.split(self.qkv(self.norm(x)).reshape(B * T, h * w, 3 * C), 3, axis=-1)
        scores = jnp.einsum("fic,fjc->fij", q, k, preferred_element_type=jnp.float32) / np.sqrt(C)
        y = jnp.einsum("fij,fjc->fic", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)
        return x + self.out(y.reshape(x.shape))


class Middle(nnx.Module):
    def __init__(self, channels: int, make: Layers):
        self.block1, self.block2 = (ResidualBlock(channels, channels, make) for _ in range(2))
        self.attention = FrameAttention(channels, make)

    def __call__(self, x: Array, past: Past) -> Array:
        return self.block2(self.attention(self.block1(x, past)), past)


class Downsample(nnx.Module):
    """Halves the image, and with `time` the frames after the clip's first."""

    def __init__(self, channels: int, time: bool, make: Layers):
        self.space = make.frame(channels, channels, stride=2)
        self.time = Conv((3, 1, 1), channels, channels, rngs=make.rngs, dtype=make.dtype) if time else None

    def __call__(self, x: Array, past: Past) -> Array:
        x = self.space(x)
        if self.time is None:
            return x
        kernel, bias = self.time.weights()
        before = past.before(x, 1)
        if before is not None:
            return halving_conv(x, kernel, before) + bias
        first, rest = x[:, :1], x[:, 1:]
        return jnp.concatenate([first, halving_conv(rest, kernel, first) + bias], axis=1) if rest.shape[1] else first


class Upsample(nnx.Module):
    """Doubles the image, and with `time` the frames after the clip's first, which they do not see."""

    def __init__(self, c_in: int, c_out: int, time: bool, make: Layers):
        self.space = make.frame(c_in, c_out)
        self.time = make.causal(c_in, 2 * c_in, space=1) if time else None

    def __call__(self, x: Array, past: Past) -> Array:
        if self.time is not None:
            first = x[:, : int(past.starts)]
            doubled = rearrange(self.time(x[:, first.shape[1] :], past), "B T h w (k C) -> B (T k) h w C", k=2)
            x = jnp.concatenate([first, doubled], axis=1)
        B, T, h, w, C = x.shape
        x = jnp.broadcast_to(x[:, :, :, None, :, None], (B, T, h, 2, w, 2, C)).reshape(B, T, 2 * h, 2 * w, C)
        return self.space(x)


def average_down(x: Array, channels: int, time: int, space: int, starts: bool) -> Array:
    """Folds time x space x space pixels into channels and averages neighbouring ones: [..., C] -> [..., channels]."""
    if starts and time > 1:
        x = jnp.pad(x, ((0, 0), (time - 1, 0), *[(0, 0)] * 3))  # the first frame is folded with zeros
    x = rearrange(x, "B (T r) (h p) (w q) C -> B T h w (C r p q)", r=time, p=space, q=space)
    return x.reshape(*x.shape[:-1], channels, -1).mean(-1)


def duplicate_up(x: Array, channels: int, time: int, space: int, starts: bool) -> Array:
    """The reverse: repeats channels and unfolds them into time x space x space pixels."""
    x = jnp.repeat(x, channels * time * space * space // x.shape[-1], axis=-1)
    x = rearrange(x, "B T h w (C r p q) -> B (T r) (h p) (w q) C", r=time, p=space, q=space)
    return x[:, time - 1 :] if starts else x


class Stage(nnx.Module):
    """Residual blocks, a change of resolution and, in Wan 2.2, a shortcut without weights around both."""

    def __init__(self, c_in: int, c_out: int, blocks: int, resample: Downsample | Upsample | None, shortcut: str,
                 make: Layers):  # fmt: skip
        self.blocks = nnx.Dict({f"{i}": ResidualBlock(c_out if i else c_in, c_out, make) for i in range(blocks)})
        self.resample = resample
        self.channels, self.shortcut = c_out, shortcut

    def __call__(self, x: Array, past: Past) -> Array:
        y = x
        for i in range(len(self.blocks)):
            y = self.blocks[f"{i}"](y, past)
        time = space = 1
        if self.resample is not None:
            y = self.resample(y, past)
            time, space = 1 if self.resample.time is None else 2, 2
        if self.shortcut == "down":
            return y + average_down(x, self.channels, time, space, past.starts)
        if self.shortcut == "up":
            return y + duplicate_up(x, self.channels, time, space, past.starts)
        return y


class Encoder(nnx.Module):
    """Pixels, folded by `pixel_patch` -> mean and log variance of the latents before the last linear map."""

    def __init__(self, config: WanVAEConfig, make: Layers):
        widths = [config.encoder_width * m for m in (1, *config.multipliers)]
        last = len(config.multipliers) - 1
        self.conv_in = make.causal(3 * config.pixel_patch**2, widths[0])
        self.stages = nnx.Dict()
        for i in range(last + 1):
            resample = None if i == last else Downsample(widths[i + 1], config.halve_time[i], make)
            shortcut = "down" if config.residual else ""
            self.stages[f"{i}"] = Stage(widths[i], widths[i + 1], config.blocks, resample, shortcut, make)
        self.middle = Middle(widths[-1], make)
        self.norm_out, self.conv_out = ChannelNorm(widths[-1]), make.causal(widths[-1], 2 * config.channels)

    def __call__(self, x: Array, past: Past) -> Array:
        x = self.conv_in(x, past)
        for i in range(len(self.stages)):
            x = self.stages[f"{i}"](x, past)
        x = self.middle(x, past)
        return self.conv_out(jax.nn.silu(self.norm_out(x)), past)


class Decoder(nnx.Module):
    """Latents after the first linear map -> pixels, folded by `pixel_patch`, not clipped."""

    def __init__(self, config: WanVAEConfig, make: Layers):
        widths = [config.decoder_width * m for m in (config.multipliers[-1], *config.multipliers[::-1])]
        last = len(config.multipliers) - 1
        self.conv_in = make.causal(config.channels, widths[0])
        self.middle = Middle(widths[0], make)
        self.stages = nnx.Dict()
        for i in range(last + 1):
            c_in, c_out, resample = widths[i], widths[i + 1], None
            if i < last:
                up = c_out if config.residual else c_out // 2
                resample = Upsample(c_out, up, config.halve_time[last - 1 - i], make)
            if i and not config.residual:
                c_in //= 2  # the upsampling before halved it
            shortcut = "up" if config.residual and i < last else ""
            self.stages[f"{i}"] = Stage(c_in, c_out, config.blocks + 1, resample, shortcut, make)
        self.norm_out, self.conv_out = ChannelNorm(widths[-1]), make.causal(widths[-1], 3 * config.pixel_patch**2)

    def __call__(self, x: Array, past: Past) -> Array:
        x = self.middle(self.conv_in(x, past), past)
        for i in range(len(self.stages)):
            x = self.stages[f"{i}"](x, past)
        return self.conv_out(jax.nn.silu(self.norm_out(x)), past)


class WanVAE(nnx.Module):
    def __init__(self, config: WanVAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        make = Layers(config, rngs)
        self.encoder, self.decoder = Encoder(config, make), Decoder(config, make)
        self.moments_out = make.linear(2 * config.channels, 2 * config.channels)
        self.latents_in = make.linear(config.channels, config.channels)

    def moments(self, video: Array, cache: Cache | None = None) -> tuple[Array, Cache]:
        """Mean and log variance, [B, F, rows, columns, 2 C], not normalised; arguments as for `encode`."""
        past, p, r = Past(cache), self.config.pixel_patch, self.config.frames_per_latent
        T = video.shape[1]
        if T < 1 or (T - past.starts) % r:
            raise ValueError(f"a clip starts with 1 + {r} n frames and goes on by {r} n frames at a time, got {T}")
        x = rearrange(video, "B T (h p) (w q) c -> B T h w (c q p)", p=p, q=p)
        return self.moments_out(self.encoder(x, past)).astype(jnp.float32), tuple(past.kept)

    def encode(self, video: Array, cache: Cache | None = None) -> tuple[Array, Cache]:
        """Pixels [B, T, h, w, 3] in [-1, 1] -> normalised latents [B, F, h / cell, w / cell, C] (the mean), float32.

        Without `cache` the clip starts here, T = 1 + r (F - 1); with that of the chunk before it goes on, T = r F.
        """
        moments, kept = self.moments(video, cache)
        mean, std = (jnp.asarray(x, jnp.float32) for x in (self.config.mean, self.config.std))
        return (moments[..., : self.config.channels] - mean) / std, kept

    def decode(self, latents: Array, cache: Cache | None = None) -> tuple[Array, Cache]:
        """Normalised latents -> pixels in about [-1, 1], float32, not clipped; shapes as in `encode`, the other way."""
        mean, std = (jnp.asarray(x, jnp.float32) for x in (self.config.mean, self.config.std))
        past, p = Past(cache), self.config.pixel_patch
        y = self.decoder(self.latents_in(latents * std + mean), past).astype(jnp.float32)
        return rearrange(y, "B T h w (c q p) -> B T (h p) (w q) c", p=p, q=p), tuple(past.kept)


def create(config: WanVAEConfig, seed: int = 0) -> WanVAE:
    """A freshly initialised autoencoder."""
    with nnx.use_eager_sharding(False):
        return WanVAE(config, rngs=nnx.Rngs(seed))
