"""Padding tokens and bad tokenizer files."""

import json

import pytest

from tests.encoders.tiny_tokenizers import train_json, train_sentencepiece
from wam.encoders.tokenizer import TextTokenizer


def test_the_padding_token_comes_from_beside_the_file(tmp_path):
    file = train_json(tmp_path, pad=False)
    with pytest.raises(ValueError, match=r"tokenizer.json names no padding token, and there is no tokenizer_config"):
        TextTokenizer(tmp_path, 8)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "</s>"}}))
    ids, mask = TextTokenizer(file, 12)(["open"])
    end = ids[0][mask[0]][-1]
    assert (ids[0][~mask[0]] == end).all() and not mask.all()
    assert TextTokenizer(file, 12)([])[0].shape == (0, 12)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", "{", "tokenizer.json is no tokenizer of the library `tokenizers`"),
        ("tokenizer.json", '{"model": 1}', "tokenizer.json is no tokenizer of the library `tokenizers`"),
        ("spiece.model", "{}", "spiece.model is no sentencepiece model"),
        ("spiece.model", "", "spiece.model is no sentencepiece model"),
        ("vocab.txt", "a\nb", "holds no tokenizer: expected tokenizer.json"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        TextTokenizer(tmp_path, 8)
    assert len(str(error.value).splitlines()) == 1


def test_other_bad_input_is_named(tmp_path):
    (tmp_path / "vocab.txt").write_text("a")
    with pytest.raises(ValueError, match=r"vocab.txt is no tokenizer: expected a .json"):
        TextTokenizer(tmp_path / "vocab.txt", 8)
    with pytest.raises(FileNotFoundError, match="there is no tokenizer"):
        TextTokenizer(tmp_path / "absent", 8)
    with pytest.raises(ValueError, match="leave no room beside the 2 special ones"):
        TextTokenizer(train_json(tmp_path), 2)
    with pytest.raises(ValueError, match=r"spiece.model has no padding token"):
        TextTokenizer(train_sentencepiece(tmp_path, pad_id=-1, eos_id=0, unk_id=1), 8)
