"""A sentencepiece tokenizer with LLaMA's conventions (BPE, byte fallback, unk 0, BOS 1, EOS 2), trained on texts.

    python -m data_prep.tokenizer --data data/mine/train --out data/mine/tokenizer.model --vocabulary 8000

trains one on the texts of shards, prompts and targets as a model sees them. A published LLaMA brings its own; this is
for models made from scratch.
"""

import argparse
import io
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from data_prep.progress import say
from dsmemvp.errors import UserError


class VocabularyTooLarge(UserError):
    """The texts give fewer pieces: `most`."""

    def __init__(self, vocabulary: int, most: int):
        super().__init__(f"a vocabulary of {vocabulary} pieces is too large for these texts: they give {most} at most")
        self.most = most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of shards")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--vocabulary", type=int, required=True, help="number of pieces; 259 are taken from the start")
    given = parser.parse_args()
    try:
        train_tokenizer(texts_of(given.data), given.out, given.vocabulary)
    except (ValueError, OSError) as error:
        say("tokenizer", f"error: {error}", error=True)
        return 1
    print(f"{given.vocabulary} pieces -> {given.out}")
    return 0


def texts_of(folders: Iterable[Path]) -> Iterator[str]:
    """The text of every sample. Raises SampleError at the first bad one."""
    from dsmemvp.data.manifest import read_manifest
    from dsmemvp.data.sample import BadSample, read_sample
    from dsmemvp.data.stream import read_all
    from dsmemvp.data.text import prompt_text, target_text

    for folder in folders:
        for entry in read_all(read_manifest(folder)):
            if isinstance(entry, BadSample):
                raise entry.error
            sample = read_sample(entry)
            yield prompt_text(sample, captions=True) + target_text(sample)


def train_tokenizer(texts: Iterable[str], path: Path, vocabulary: int) -> None:
    """Write `path`. Raises UserError if the vocabulary does not fit the texts, VocabularyTooLarge if they give
    fewer pieces."""
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
        raise _explained(str(error), vocabulary) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


def _explained(message: str, vocabulary: int) -> ValueError:
    """sentencepiece's words, which name a line of its source, in ours."""
    if most := re.search(r"set it to a value <= (\d+)", message):
        return VocabularyTooLarge(vocabulary, int(most[1]))
    if least := re.search(r"smaller than required_chars\. -?\d+ vs (\d+)", message):
        return ValueError(
            f"a vocabulary of {vocabulary} pieces is too small for these texts: bytes, marks and their characters take"
            f" {least[1]}"
        )
    if "sentences_.empty()" in message:
        return ValueError("there are no texts to train a tokenizer on")
    return ValueError(f"the tokenizer cannot be trained ({message})")


if __name__ == "__main__":
    sys.exit(main())
