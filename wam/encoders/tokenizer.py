"""Text to token ids, by the file a released text encoder comes with: `tokenizer.json`, or a sentencepiece `.model`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILES = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
"""What is looked for in a directory, in this order."""


Encode = Callable[[list[str]], tuple[Any, Any]]
"""texts -> (ids, mask), of arrays or lists"""


def tokenizer_file(path: str | Path) -> Path:
    """The tokenizer's file: `path` itself, or one of `FILES` in it. FileNotFoundError if there is none."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"there is no tokenizer {path}")
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"{path} holds no tokenizer: expected {', '.join(FILES[:-1])} or {FILES[-1]}")


class TextTokenizer:
    """Ids and mask of texts, cut to `length` (special tokens stay) and padded on the right; `size` ids are known.

    Args:
      path: the file, or a directory that holds it.
      length: ids a text.
      pad: the padding token, where the files do not name one.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no tokenizer, or names no padding token.
    """

    def __init__(self, path: str | Path, length: int, *, pad: str = ""):
        self.file, self.length = tokenizer_file(path), length
        if self.file.suffix == ".json":
            self._encode, self.size = _from_json(self.file, length, pad)
        elif self.file.suffix == ".model":
            self._encode, self.size = _from_sentencepiece(self.file, length)
        else:
            raise ValueError(f"{self.file} is no tokenizer: expected a .json of `tokenizers` or a sentencepiece .model")

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids [n, length] int32, mask [n, length] bool)."""
        if not texts:
            return np.zeros((0, self.length), np.int32), np.zeros((0, self.length), np.bool_)
        ids, mask = self._encode(list(texts))
        return np.asarray(ids, np.int32), np.asarray(mask, np.bool_)


def _from_json(file: Path, length: int, pad: str) -> tuple[Encode, int]:
    import tokenizers

    try:
        facts = json.loads(file.read_text())
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(facts))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{file} is no tokenizer of the library `tokenizers`: {_first_line(error)}") from None
    pad = pad or _padding_token(file, facts)
    pad_id = tokenizer.token_to_id(pad)
    if pad_id is None:
        raise ValueError(f"{file} has no token {pad!r} to pad with; name one of its tokens")
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if length <= special:
        raise ValueError(f"texts of {length} tokens leave no room beside the {special} special ones of {file}")
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=pad_id, pad_token=pad)

    def encode(texts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
        found = tokenizer.encode_batch(texts)
        return [x.ids for x in found], [x.attention_mask for x in found]

    return encode, tokenizer.get_vocab_size()


def _padding_token(file: Path, facts: dict[str, Any]) -> str:
    """What `tokenizer_config.json` beside the file says, else the file itself, else a token of the usual name."""
    beside = file.with_name("tokenizer_config.json")
    if beside.is_file():
        try:
            token = json.loads(beside.read_text()).get("pad_token")
        except (ValueError, AttributeError):
            raise ValueError(f"{beside} is no JSON object") from None
        if token:
            return token["content"] if isinstance(token, dict) else token
    if facts.get("padding"):
        return facts["padding"]["pad_token"]
    known = {token["content"] for token in facts.get("added_tokens", ())}
    for token in ("<pad>", "[PAD]", "<|endoftext|>"):
        if token in known:
            return token
    raise ValueError(f"{file} names no padding token, and there is no tokenizer_config.json beside it that does")


def _from_sentencepiece(file: Path, length: int) -> tuple[Encode, int]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(file.read_bytes())
    except RuntimeError as error:
        raise ValueError(f"{file} is no sentencepiece model: {_first_line(error)}") from None
    pad, eos = processor.pad_id(), processor.eos_id()
    if pad < 0 or eos < 0:
        raise ValueError(f"{file} has no {'padding' if pad < 0 else 'end-of-text'} token: use a tokenizer.json instead")

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = np.full((len(texts), length), pad, np.int32), np.zeros((len(texts), length), np.bool_)
        for row, pieces in enumerate(processor.Encode(texts)):
            found = [*pieces[: length - 1], eos]
            ids[row, : len(found)], mask[row, : len(found)] = found, True
        return ids, mask

    return encode, processor.GetPieceSize()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
