"""A word-piece tokenizer with BERT's conventions, trained on captions.

    python -m data_prep.word_pieces --data data/mine/captions --out data/mine/vocab.txt --vocabulary 8000

trains one on the captions of shards, and writes its pieces, one a line. A published BERT brings its own; this is for
text encoders made from scratch.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from data_prep.progress import say
from dsmemvp.atomic_files import replace_file
from dsmemvp.counting import counted
from dsmemvp.data.captions import SPECIAL, caption_of
from dsmemvp.data.manifest import read_manifest
from dsmemvp.data.sample import BadSample, read_sample
from dsmemvp.data.stream import read_all
from dsmemvp.errors import UserError

FIRST = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""BERT's order."""
assert set(FIRST) == set(SPECIAL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of shards")
    parser.add_argument("--out", type=Path, required=True, help="the vocab.txt to write")
    parser.add_argument("--vocabulary", type=int, default=512, help="number of pieces at most (default: 512)")
    given = parser.parse_args()
    try:
        made = train_word_pieces(captions_of(given.data), given.out, given.vocabulary)
    except (ValueError, OSError) as error:
        say("word_pieces", f"error: {error}", error=True)
        return 1
    print(f"{counted(made, 'piece')} -> {given.out}")
    return 0


def captions_of(folders: Iterable[Path]) -> Iterator[str]:
    """Of every sample that has one. Raises SampleError at the first bad sample."""
    for folder in folders:
        for entry in read_all(read_manifest(folder)):
            if isinstance(entry, BadSample):
                raise entry.error
            yield caption_of(read_sample(entry))


def train_word_pieces(texts: Iterable[str], path: Path, vocabulary: int) -> int:
    """Write `path`, and return how many pieces it has: fewer than asked for if the texts give no more. Raises
    UserError for texts without words, and for a vocabulary that their characters alone fill."""
    trained = tokenizers.Tokenizer(WordPiece())
    trained.normalizer, trained.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    words = [
        word
        for text in texts
        for word, _ in trained.pre_tokenizer.pre_tokenize_str(trained.normalizer.normalize_str(text))
    ]
    # all characters by name: else the trainer numbers them, and breaks ties between pieces, at random
    begins, follows = ({character for word in words for character in word[part]} for part in (slice(1), slice(1, None)))
    known = [*FIRST, *sorted(begins | follows), *(f"##{character}" for character in sorted(follows))]
    if not words:
        raise UserError("there are no captions to train a vocabulary on")
    if len(known) > vocabulary:
        raise UserError(f"a vocabulary of {vocabulary} pieces is too small: characters alone take {len(known)}")
    trainer = WordPieceTrainer(vocab_size=vocabulary, min_frequency=1, special_tokens=known, show_progress=False)
    trained.train_from_iterator(words, trainer)
    numbers = trained.get_vocab()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(f"{piece}\n" for piece in sorted(numbers, key=numbers.__getitem__)).encode())
    return len(numbers)


if __name__ == "__main__":
    sys.exit(main())
