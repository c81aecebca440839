"""Tokenizer files trained on a few sentences, in both formats."""

import io
from pathlib import Path

SENTENCES = [
    "open the drawer", "close the drawer slowly", "press the red button", "turn the faucet to the left",
    "pick up the red cube and put it on the shelf", "push the green button twice", "slide the window open",
    "pull the lever down, then up again", "reach for the blue mug", "unlock the door with the key",
]  # fmt: skip
HARD = ["", "Öffne die Schublade 42x!", "press the\tred   button", "the " * 40]


def train_json(directory: Path, *, pad: bool = True) -> Path:
    """A byte-level BPE with start and end tokens, like CLIP's."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = [*(["<pad>"] if pad else []), "<s>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


def train_sentencepiece(directory: Path, **more) -> Path:
    """A unigram model with T5's special ids."""
    import sentencepiece

    written = io.BytesIO()
    options = {"vocab_size": 50, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2, **more}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES), model_writer=written, **options)
    (directory / "spiece.model").write_bytes(written.getvalue())
    return directory / "spiece.model"
