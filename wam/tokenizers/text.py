"""Text encoders: an instruction to tokens [Lt, Dt] and a mask [Lt]. The embedded default needs no weights.

Pretrained ones are `wam.encoders.instructions.PretrainedText`; `wam.pretrained.instructions` opens either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from wam.config import TextConfig


class TextEncoder(Protocol):
    """What training and policies call. Implementations are deterministic and cheap to cache per instruction."""

    name: str
    """Identity of what it gives; part of the data pipeline's."""

    def __call__(self, instruction: str) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [Lt, Dt] float32, mask [Lt] bool)."""
        ...

    def prepare(self, instructions: Iterable[str]) -> None:
        """Hears once what will be asked, before training."""


class HashedNgrams:
    """One token for the whole sentence, then one a word: hashed character n-grams, signed and normalised.

    The hashing trick (Weinberger et al. 2009, arXiv:0902.2206) with a fixed hash: any language, no vocabulary, similar
    words get similar vectors. Words beyond the last token are seen by the sentence token alone.
    """

    def __init__(self, config: TextConfig):
        self.config = config
        # Part of the data pipeline's identity: it names what this encoder reads of the configuration.
        self.name = f"hashed_ngrams-1 TextConfig(tokens={config.tokens}, dim={config.dim}, ngram={config.ngram})"

    def __call__(self, instruction: str) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.zeros((self.config.tokens, self.config.dim), np.float32)
        mask = np.zeros(self.config.tokens, np.bool_)
        words = instruction.lower().split()
        if not words:
            return tokens, mask
        pieces = [self._ngrams(word) for word in words]
        vectors = [[gram for piece in pieces for gram in piece], *pieces]
        for i, grams in enumerate(vectors[: self.config.tokens]):
            tokens[i], mask[i] = self._hash(grams), True
        return tokens, mask

    def prepare(self, instructions: Iterable[str]) -> None:
        """Nothing to prepare: hashing is as fast as looking up."""

    def _ngrams(self, word: str) -> list[str]:
        marked = f"<{word}>"
        low, high = self.config.ngram
        return [marked] + [marked[i : i + n] for n in range(low, high + 1) for i in range(len(marked) - n + 1)]

    def _hash(self, grams: list[str]) -> np.ndarray:
        vector = np.zeros(self.config.dim, np.float32)
        for gram in grams:
            digest = int.from_bytes(hashlib.blake2s(gram.encode(), digest_size=8).digest(), "little")
            vector[(digest >> 1) % self.config.dim] += 1.0 if digest & 1 else -1.0
        return vector * (np.sqrt(self.config.dim) / max(1e-6, float(np.linalg.norm(vector))))
