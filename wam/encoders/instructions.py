"""`PretrainedText`: instructions through a released text encoder, each encoded once and then read from disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from wam.encoders.config import TextEncoderConfig
from wam.encoders.embedding_cache import EmbeddingCache
from wam.encoders.text import TextTransformer
from wam.encoders.tokenizer import TextTokenizer
from wam.encoders.transformer import frozen, structure

BATCH = 8
SHORTEST = 16

Encode = Callable[[np.ndarray, np.ndarray], Array]
"""(ids [BATCH, L], mask [BATCH, L]) -> tokens [BATCH, L, D]"""


def compile_encoder(config: TextEncoderConfig, params: Any) -> Encode:
    """The encoder as a function of ids and mask, its parameters on the device in the dtype it computes in."""
    graph, _ = structure(TextTransformer, config)
    params = frozen(params, config)

    @jax.jit
    def encode(params: Any, ids_BL: Array, mask_BL: Array) -> Array:
        # SigLIP was trained on texts padded to full length, and reads the padding.
        seen = None if config.family == "siglip" else mask_BL
        return nnx.merge(graph, params)(ids_BL, seen).tokens.astype(jnp.float32)

    return lambda ids_BL, mask_BL: encode(params, ids_BL, mask_BL)


class PretrainedText:
    """A `TextEncoder`: (tokens [Lt, Dt] float32, mask [Lt] bool), zeros behind the end of the text.

    White space is collapsed first. Weights are loaded when a text is not in the cache, and only then.

    Args:
      load: gives the encoder; called again after `release`.
      tokenizer: to `tokens` ids.
      dim: width of the encoder.
      identity: of weights, tokenizer and dtype; part of the data pipeline's identity and the key of the cache.
      cache: where embeddings are kept.
      full_length: texts are always encoded at full length, because the encoder reads its padding.
    """

    def __init__(self, load: Callable[[], Encode], tokenizer: TextTokenizer, dim: int, *, identity: str,
                 cache: EmbeddingCache, full_length: bool = False):  # fmt: skip
        self.name = f"pretrained-1 {identity} tokens={tokenizer.length} dim={dim}"
        self._load, self._tokenizer, self._dim, self._cache = load, tokenizer, dim, cache
        self._full_length = full_length
        self._encode: Encode | None = None
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, instruction: str) -> tuple[np.ndarray, np.ndarray]:
        (found,) = self.encode([instruction])
        return found

    def null(self) -> tuple[np.ndarray, np.ndarray]:
        """The encoding of the empty text, which released trunks take for dropped text."""
        return self("")

    def prepare(self, instructions: Iterable[str]) -> None:
        """Encodes what is not in the cache yet, in batches, and frees the weights: training then reads alone."""
        self.encode(sorted({"", *instructions}))
        self.release()

    def release(self) -> None:
        """Frees the encoder's weights; they are loaded again when a new text comes."""
        self._encode = None

    def encode(self, instructions: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(tokens, mask) of each instruction; those that are new go through the encoder, `BATCH` at a time."""
        texts = [" ".join(instruction.split()) for instruction in instructions]
        missing = []
        for text in dict.fromkeys(texts):
            if text not in self._known:
                tokens = self._cache.read(text)
                if tokens is not None and tokens.ndim == 2 and tokens.shape[1] == self._dim:
                    self._known[text] = self._padded(tokens)
                else:
                    missing.append(text)
        if missing:
            self._encode_new(missing)
        return [self._known[text] for text in texts]

    def _encode_new(self, texts: list[str]) -> None:
        self._encode = self._encode or self._load()
        ids, mask = self._tokenizer(texts)
        lengths = mask.sum(axis=1)
        # A text's length alone decides how far it is padded, and not its neighbours: they must not change its value.
        shortest = self._tokenizer.length if self._full_length else SHORTEST
        padded_to = np.minimum(np.maximum(shortest, 2 ** np.ceil(np.log2(np.maximum(lengths, 1)))), ids.shape[1])
        for length in np.unique(padded_to.astype(int)):
            rows = np.flatnonzero(padded_to == length)
            for start in range(0, len(rows), BATCH):
                some = rows[start : start + BATCH]
                filled = np.resize(some, BATCH)  # repeats rows: one program a length
                out = np.asarray(self._encode(ids[filled, :length], mask[filled, :length]))
                for row, tokens in zip(some, out, strict=False):
                    kept = tokens[: lengths[row]]
                    self._cache.write(texts[row], kept)
                    self._known[texts[row]] = self._padded(kept)

    def _padded(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        out = np.zeros((self._tokenizer.length, self._dim), np.float32)
        out[: len(tokens)] = tokens
        return out, np.arange(self._tokenizer.length) < len(tokens)
