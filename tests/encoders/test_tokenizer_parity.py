"""Token ids and masks equal to those of transformers' fast tokenizers on the same files; bad files named."""

import json

import numpy as np
import pytest

from tests.encoders.tiny_tokenizers import HARD, SENTENCES, train_json, train_sentencepiece
from wam.encoders.tokenizer import TextTokenizer

TEXTS = [*SENTENCES, *HARD]


def check_equal(name, ours, reference, length):
    ids, mask = ours(TEXTS)
    wanted = reference(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="np")
    np.testing.assert_array_equal(ids, wanted["input_ids"])
    np.testing.assert_array_equal(mask, wanted["attention_mask"])
    assert (ids.dtype, mask.dtype, ids.shape) == (np.int32, np.bool_, (len(TEXTS), length))
    assert mask[:, -1].any() and not mask[:, -1].all(), "some texts are cut and some are padded"
    print(f"parity {name}: {int(mask.sum())} ids of {len(TEXTS)} texts, equal")


@pytest.mark.parametrize("length", [12, 16])
def test_json_parity(tmp_path, length):
    from transformers import PreTrainedTokenizerFast

    file = train_json(tmp_path)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token="<pad>")
    check_equal("tokenizer.json", TextTokenizer(tmp_path, length), reference, length)


@pytest.mark.parametrize("length", [12, 16])
def test_sentencepiece_parity(tmp_path, length):
    from transformers import T5Tokenizer

    train_sentencepiece(tmp_path)
    reference = T5Tokenizer.from_pretrained(tmp_path, extra_ids=0)
    check_equal("spiece.model", TextTokenizer(tmp_path, length), reference, length)


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
