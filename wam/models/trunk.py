"""The layers of the network: experts with their own weights, joined by one attention per layer.

What a query block sees is `visibility.TABLE`'s matter.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from wam.config import ModelConfig
from wam.models.attention import Keys, attend
from wam.models.layers import PRODUCT
from wam.models.placement import gathered
from wam.models.streams import Given, LayerKeys, Noisy, Stream, groups, side_by_side
from wam.models.visibility import TABLE

LANES = (("history",), ("video",), ("state", "value"), ("action", "draw"))
"""Streams that go through their expert side by side: one product for streams of few tokens."""

FRAMES = ("history", "video")
"""Streams whose groups are latent frames."""


def experts(config: ModelConfig) -> dict[str, str]:
    """Which expert each stream goes through."""
    if config.topology == "shared":
        return dict.fromkeys(TABLE, "video")
    return {name: "video" if name in FRAMES else "action" for name in TABLE}


def through_layers(
    blocks: nnx.Dict | nnx.List,
    config: ModelConfig,
    expert_of: dict[str, str],
    given: Given,
    streams: dict[str, Stream],
    *,
    noisy: Noisy | None = None,
    text: dict[str, Array] | None = None,
    image: dict[str, Array] | None = None,
    kept: LayerKeys | None = None,
    past: tuple[Array, Array] | None = None,
    keep: bool = False,
) -> tuple[dict[str, Array], LayerKeys]:
    """Tokens of `streams` after all layers; with `keep` also their keys and values, and the text's, in every layer.

    Args:
      blocks: expert -> its stacked blocks, or such a dictionary for every layer (`unstack`).
      config: shape of the network.
      expert_of: stream -> expert.
      given: masks of the observed streams and of the text.
      streams: what goes through the layers.
      noisy: the noisy streams' visibility bits; None where none of them is present.
      text: expert -> tokens [B, Lt, D] that every layer makes the text's keys of.
      image: likewise, of an image [B, Li, D].
      kept: keys and values of the observed streams and of the text, in place of them.
      past: keys and values [layers, B, G, P, N, H] of earlier history, which stand before those of `streams`.
      keep: whether keys and values are wanted.
    """
    M, draws = given.observation.state.shape[1], 1
    gates: dict[str, Array] = {}
    if noisy is not None:
        gates = {"video_sees_action": noisy.video_sees_action, "action_sees_video": noisy.action_sees_video}
        draws = 1 if noisy.draws is None else noisy.draws.shape[2]
        if (sees := noisy.value_sees_video) is not None:
            gates |= {"value_sees_video": sees, "value_sees_action": 1 - sees}
    lanes = [side_by_side({n: streams[n] for n in names if n in streams}) for names in LANES if {*names} & {*streams}]

    def span(name: str, size: int, chunk: int) -> tuple[int, int]:
        """[start, stop) among the `size` groups of a stream that belong to a chunk; the first frame is chunk 0's."""
        if name != "history" or M == 1:
            return chunk * size // M, (chunk + 1) * size // M
        views = given.observation.latents.shape[1]
        frame = chunk * config.frames_per_chunk
        return views * max(0, 1 + frame - config.frames_per_chunk), views * (1 + frame)

    def layer(blocks: nnx.Dict, xs: list[Array], extra: Any) -> tuple[list[Array], LayerKeys | None]:
        kept, past = extra
        texts = {n: blocks[n].text_keys(x) for n, x in (text or {}).items()} if kept is None else kept.text
        images = {n: blocks[n].image_keys(x) for n, x in (image or {}).items()} if kept is None else kept.image
        found = {} if kept is None else dict(kept.streams)
        queries, mods = [], []
        for lane, x in zip(lanes, xs, strict=True):
            block = blocks[expert_of[lane.names[0]]]
            mods.append(block.modulation(lane.joined.modulation))
            q, k, v = block.qkv(x, *mods[-1][:2], lane.joined.angles)
            queries.append(q)
            found |= {name: lane.stream((k, v), name) for name in lane.names}
        if past is not None:
            found["history"] = jax.tree.map(lambda *x: jnp.concatenate(x, 1), past, found["history"])
        whole = jax.tree.map(gathered, found)

        def visible(query: str, chunk: int) -> list[Keys]:
            """Keys of one query block, by the table; absent streams are left out."""
            seen_keys = []
            for seen in TABLE[query]:
                if seen.stream in whole:
                    size = whole[seen.stream][0].shape[1]
                    start, stop = span(seen.stream, size, chunk)
                    if seen.chunks != "same":
                        start, _ = span(seen.stream, size, max(0, chunk + 1 - config.window))
                    mask = given.masks[seen.stream][:, start:stop] if seen.stream in given.masks else None
                    if seen.gate is not None:
                        gate = gates[seen.gate][:, None, None] > 0
                        mask = gate if mask is None else gate & mask
                    seen_keys.append(Keys(*groups(whole[seen.stream], start, stop))._replace(mask=mask))
            return seen_keys

        def attended(lane_q: Array, name: str, chunk: int) -> Array:
            q = groups(lane_q, *span(name, lane_q.shape[1], chunk))
            return attend(q, visible(name, chunk), backend=config.attention, chunk=config.attention_chunk,
                          diagonal=draws if name == "draw" else 1, patches=name in FRAMES)  # fmt: skip

        new = []
        for lane, x, q, mod in zip(lanes, xs, queries, mods, strict=True):
            expert = expert_of[lane.names[0]]
            parts = [attended(lane.stream(q, name), name, chunk) for name in lane.names for chunk in range(M)]
            instruction = None
            if expert in texts:
                instruction = Keys(*texts[expert])._replace(mask=given.text_mask[:, None])
            looked_at = Keys(*images[expert]) if expert in images else None
            new.append(blocks[expert].finish(x, jnp.concatenate(parts, 1), mod, instruction, config.attention,
                                             patches=lane.names[0] in FRAMES, image=looked_at))  # fmt: skip
        return new, LayerKeys(found, texts, images) if keep else None

    xs, keys = run_layers(layer, blocks, config, [lane.joined.x for lane in lanes], (kept, past))
    return {name: lane.stream(x, name) for lane, x in zip(lanes, xs, strict=True) for name in lane.names}, keys


def unstack(blocks: nnx.Dict, depth: int) -> nnx.List:
    """The layers one by one, for serving: from stacked ones every denoising step would copy its weights anew."""
    graph, stacked = nnx.split(blocks)
    return nnx.List(nnx.merge(graph, jax.tree.map(operator.itemgetter(i), stacked)) for i in range(depth))


def run_layers(layer: Any, blocks: nnx.Dict | nnx.List, config: ModelConfig, carry: Any, extra: Any
               ) -> tuple[Any, Any]:  # fmt: skip
    """Runs `layer(blocks, carry, extra of the layer) -> (carry, out)` over the layers, scanned or unrolled."""
    if isinstance(blocks, nnx.List):
        outs = []
        for i, block in enumerate(blocks):
            carry, out = layer(block, carry, jax.tree.map(operator.itemgetter(i), extra))
            outs.append(out)
        return carry, jax.tree.map(lambda *layers: jnp.stack(layers), *outs)
    graph, stacked = nnx.split(blocks)

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        state, extra_layer = inputs
        return layer(nnx.merge(graph, state), carry, extra_layer)

    if config.remat != "none":
        policies = {"full": None, "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT)}
        step = jax.checkpoint(step, prevent_cse=not config.scan_layers, policy=policies[config.remat])
    if config.scan_layers:
        return jax.lax.scan(step, carry, (stacked, extra))
    outs = []
    for i in range(config.depth):
        carry, out = step(carry, jax.tree.map(operator.itemgetter(i), (stacked, extra)))
        outs.append(out)
    return carry, jax.tree.map(lambda *layers: jnp.stack(layers), *outs)
