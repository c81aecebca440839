"""Token ids and masks equal to those of transformers' fast tokenizers on the same files."""

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
