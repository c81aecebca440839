"""Causal convolutions over video [B, T, h, w, C], and what they remember from one chunk of a clip to the next.

An output frame depends on its own and earlier input frames. Before the first frame of a clip stand zeros, before a
later chunk the last frames of the one before it, which the caller hands over explicitly (`Past`). So a clip in one
piece and the same clip chunk by chunk give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

BACKENDS = ("taps", "conv3d")
"""`taps`: one 2-D convolution for every frame of the kernel, summed; at a clip's start those that would see zeros alone
are skipped. `conv3d`: one 3-D convolution, for devices whose library is good at it (XLA's on CPUs is not)."""


class Past:
    """The last frames that every causal layer has seen, in the order in which a forward pass meets the layers.

    Args:
      frames: `kept` of the chunk before; None where the clip starts.
    """

    def __init__(self, frames: Iterable[Array] | None = None):
        self.starts = frames is None
        """Is the first frame of this chunk the first of the clip?"""
        self.kept: list[Array] = []
        self._frames = iter(frames or ())

    def before(self, x: Array, count: int) -> Array | None:
        """The `count` frames before x, or None where the clip starts; keeps the last `count` for the next chunk."""
        past = None if self.starts else next(self._frames)
        seen = x if past is None else jnp.concatenate([past, x], axis=1)
        missing = max(0, count - seen.shape[1])
        self.kept.append(jnp.pad(seen, ((0, 0), (missing, 0), *[(0, 0)] * 3))[:, -count:])
        return past


def frame_conv(x: Array, kernel: Array, *, stride: int = 1, padding: tuple[int, int] = (1, 1)) -> Array:
    """A 2-D convolution of every frame: [B, T, h, w, C] with [kh, kw, C, D] -> [B, T, h', w', D].

    `padding` is (before, after), for rows and for columns.
    """
    if kernel.shape[:2] == (1, 1):
        return x @ kernel[0, 0]
    frames = x.reshape(-1, *x.shape[2:])
    y = lax.conv_general_dilated(
        frames, kernel, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.reshape(*x.shape[:2], *y.shape[1:])


def causal_conv(x: Array, kernel: Array, before: Array | None, *, backend: str) -> Array:
    """[B, T, h, w, C] with a kernel [kt, k, k, C, D], k odd -> [B, T, h, w, D]: T and the image keep their size.

    Args:
      x: frames.
      kernel: weights; the last of kt sees the frame itself.
      before: the kt - 1 frames before x; None where the clip starts: zeros.
      backend: one of `BACKENDS`.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown convolution {backend!r}; choose from {', '.join(BACKENDS)}")
    kt, k = kernel.shape[:2]
    T, around = x.shape[1], (k // 2, k // 2)
    if backend == "conv3d":
        frames = x if before is None else jnp.concatenate([before, x], axis=1)
        missing = kt - 1 if before is None else 0
        return lax.conv_general_dilated(
            frames, kernel, (1, 1, 1), ((missing, 0), around, around), dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
    y = frame_conv(x, kernel[-1], padding=around)
    if before is not None:
        frames = jnp.concatenate([before, x], axis=1)
        for tap in range(kt - 1):
            y = y + frame_conv(frames[:, tap : tap + T], kernel[tap], padding=around)
        return y
    for lag in range(1, min(kt, T)):
        earlier = frame_conv(x[:, : T - lag], kernel[-1 - lag], padding=around)
        y = y + jnp.pad(earlier, ((0, 0), (lag, 0), *[(0, 0)] * 3))
    return y


def halving_conv(x: Array, kernel: Array, before: Array) -> Array:
    """Every second output of a convolution over time alone: [B, 2 n, h, w, C] with [3, 1, 1, C, D] -> [B, n, h, w, D].

    Output i sees the frames 2 i - 1, 2 i and 2 i + 1; `before` [B, 1, h, w, C] is frame -1.
    """
    frames = jnp.concatenate([before, x], axis=1)
    n = x.shape[1] // 2
    first, second, third = (frames[:, k : k + 2 * n - 1 : 2] @ kernel[k, 0, 0] for k in range(3))
    return first + second + third


class Conv(nnx.Module):
    """Weights of a convolution in float32, kernel [*window, in, out]; computes in `dtype`."""

    def __init__(self, window: tuple[int, ...], c_in: int, c_out: int, *, rngs: nnx.Rngs, dtype):
        init = nnx.initializers.lecun_normal(in_axis=-2, out_axis=-1)
        self.kernel = nnx.Param(init(rngs.params(), (*window, c_in, c_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((c_out,), jnp.float32))
        self.dtype = dtype

    def weights(self) -> tuple[Array, Array]:
        return self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)


class FrameConv(Conv):
    """3 x 3 on every frame; with stride 2 the padding is one row and one column at the end (as in Wan)."""

    def __init__(self, c_in: int, c_out: int, *, rngs: nnx.Rngs, dtype, stride: int = 1):
        super().__init__((3, 3), c_in, c_out, rngs=rngs, dtype=dtype)
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        kernel, bias = self.weights()
        padding = (1, 1) if self.stride == 1 else (0, 1)
        return frame_conv(x.astype(self.dtype), kernel, stride=self.stride, padding=padding) + bias


class CausalConv(Conv):
    """Three frames deep, `space` x `space` wide."""

    def __init__(self, c_in: int, c_out: int, *, rngs: nnx.Rngs, dtype, backend: str, space: int = 3):
        super().__init__((3, space, space), c_in, c_out, rngs=rngs, dtype=dtype)
        self.backend = backend

    def __call__(self, x: Array, past: Past) -> Array:
        kernel, bias = self.weights()
        x = x.astype(self.dtype)
        return causal_conv(x, kernel, past.before(x, 2), backend=self.backend) + bias
