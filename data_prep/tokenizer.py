"""A sentencepiece tokenizer with LLaMA's conventions (BPE, byte fallback, unk 0, BOS 1, EOS 2), trained on texts."""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece


def train_tokenizer(texts: Iterable[str], path: Path, vocabulary: int) -> None:
    """Write `path`. Raises ValueError where the texts are too few for the vocabulary."""
    model = io.BytesIO()  # the file is only made when there is a model to put into it
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary,
            byte_fallback=True,
            split_digits=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            # a piece never spans these marks, so that "Response:" + "The answer is" meet at a piece's edge
            user_defined_symbols=["\n", ":", "(", ")", "."],
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"the tokenizer cannot be trained ({error})") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
