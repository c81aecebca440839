"""The text encoder that a configuration asks for, with its files checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from wam.config import TextConfig
from wam.encoders.embedding_cache import EmbeddingCache, default_directory
from wam.encoders.instructions import Encode, PretrainedText, compile_encoder
from wam.encoders.tokenizer import TextTokenizer, tokenizer_file
from wam.fingerprint import json_digest
from wam.pretrained import encoder_files
from wam.pretrained.provenance import file_digest
from wam.tokenizers.text import HashedNgrams, TextEncoder


def text_encoder(config: TextConfig) -> tuple[TextEncoder, TextConfig]:
    """The encoder, and its configuration with the digest of its files filled in.

    Raises:
      FileNotFoundError: the encoder's files are not where the configuration says.
      ValueError: they are of another encoder than it says, or damaged.
    """
    if config.kind == "hashed_ngrams":
        return HashedNgrams(config), config
    if not config.path:
        raise ValueError("text.kind 'pretrained' needs text.path: the directory of the text encoder's files")
    source = Path(config.path)
    if not source.exists():
        raise FileNotFoundError(f"text.path {source} is not there: it names the directory of the text encoder's files")
    found = encoder_files.find(source, "text")
    spec = dataclasses.replace(found.config, dtype=config.dtype)
    found = found._replace(config=spec)
    if spec.width != config.dim:
        raise ValueError(f"text.dim is {config.dim}, the encoder in {source} gives {spec.width}: set text.dim to that")
    if spec.positions and config.tokens > spec.positions:
        raise ValueError(f"text.tokens is {config.tokens}, the encoder in {source} reads up to {spec.positions}")
    tokenizer = TextTokenizer(_tokenizer_file(config, source), config.tokens)
    if tokenizer.size > spec.vocabulary:
        raise ValueError(
            f"{tokenizer.file} knows {tokenizer.size} tokens, the encoder in {source} {spec.vocabulary}: they do not "
            "belong together"
        )
    files = encoder_files.digests(found)
    weights = json_digest({"weights": files, "tokenizer": file_digest(tokenizer.file)})
    if config.weights not in ("", weights):
        raise ValueError(
            f"the text encoder in {source} is not the one that was trained with: its files have the digest "
            f"{weights[:12]}, expected {config.weights[:12]}"
        )
    cache = EmbeddingCache(config.cache or default_directory(), f"{weights} {spec.dtype} tokens={config.tokens}")

    def load() -> Encode:
        return compile_encoder(spec, encoder_files.load(found))

    encoder = PretrainedText(
        load, tokenizer, spec.width, identity=f"{weights} {spec.dtype}", cache=cache,
        full_length=spec.family == "siglip",
    )  # fmt: skip
    return encoder, dataclasses.replace(config, weights=weights)


def _tokenizer_file(config: TextConfig, source: Path) -> Path:
    if config.tokenizer:
        return tokenizer_file(config.tokenizer)
    directory = source if source.is_dir() else source.parent
    beside = directory.parent / "tokenizer"  # as releases of whole pipelines have it
    try:
        return tokenizer_file(directory)
    except FileNotFoundError:
        if beside.is_dir():
            return tokenizer_file(beside)
        raise FileNotFoundError(f"{directory} holds no tokenizer: name its file in text.tokenizer") from None
