"""Letters of choices as tokens, with tokenizers that write them whole, in pieces, or not at all."""

import pytest

from data_prep.tokenizer import train_tokenizer
from dsmemvp.data.letters import letter_tokens, longest_letter
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.errors import UserError


class Odd:
    """Knows some texts; every other one is [1, 2, 0, 4]."""

    def __init__(self, **encoded):
        self.encoded = {"The answer is": encoded["lead"], "The answer is A.": encoded.get("a", [1, 2, 0, 4])}

    def encode(self, text):
        return self.encoded.get(text, [1, 2, 0, 4])

    def decode(self, tokens):
        return "".join({0: "?", 4: ".", 5: "", 6: "is A"}[t] for t in tokens)


def test_letters_of_one_token(tokenizer):
    for name in "AB":
        (token,) = letter_tokens(tokenizer, name)
        assert tokenizer.decode([token]).strip() == name
    assert longest_letter(tokenizer, 2) == 1


def test_letters_in_bytes(tmp_path):
    """As a sentencepiece model writes them that was trained on texts without capital letters."""
    texts = (f"question: which one is {i}? the answer is {i}." for i in range(200))
    train_tokenizer(texts, tmp_path / "small.model", vocabulary=300)
    small = Tokenizer(tmp_path / "small.model")
    assert longest_letter(small, 3) == 2 and len(set(letter_tokens(small, "B"))) == 2
    assert [*small.encode("The answer is"), *letter_tokens(small, "B")] == small.encode("The answer is B")


def test_a_tokenizer_that_cannot_write_letters_apart_is_refused():
    with pytest.raises(UserError, match=r"model\.tokenizer: cannot write the letter B"):
        letter_tokens(Odd(lead=[1, 2]), "B")
    with pytest.raises(UserError, match=r"model\.tokenizer: cannot write the letter B"):
        longest_letter(Odd(lead=[1, 2], a=[1, 2, 5, 5, 6, 4]), 2)
    assert longest_letter(Odd(lead=[1, 2], a=[1, 2, 5, 5, 5, 5, 6, 4]), 1) == 5


def test_a_letter_joined_with_the_words_before_it_can_be_written_but_not_compared():
    joined = Odd(lead=[1, 2, 3], a=[1, 2, 6, 4])
    assert longest_letter(joined, 1) == 1
    with pytest.raises(UserError, match=r"evaluation\.protocol: the tokenizer joins 'The answer is'"):
        letter_tokens(joined, "A")
