"""Words and the tokens they are made of."""

import pytest

from dsmemvp.errors import UserError
from dsmemvp.inspection.words import ANSWER, QUESTION, all_words, chosen_words

PROMPT = (
    "Question: Which shape is the red thing?\nContext: Look at the picture.\nOptions: (A) star (B) circle\nResponse:"
)


class Bytes:
    """A tokenizer of single bytes, to which half a character decodes as a sign for what is no text."""

    def decode(self, tokens):
        return bytes(tokens).decode(errors="replace")


def _joined(tokenizer, tokens, word):
    return tokenizer.decode([tokens[n] for n in word.tokens]).strip()


def test_every_words_tokens_decode_to_it(tokenizer):
    tokens = tokenizer.encode(PROMPT)
    words = all_words(tokenizer, tokens)
    assert [w.text for w in words][:7] == ["Question", "Which", "shape", "is", "the", "red", "thing"]
    assert [w.text for w in words][-5:] == ["A", "star", "B", "circle", "Response"]
    for word in words:
        assert word.text in _joined(tokenizer, tokens, word)
    inner = [n for word in words for n in word.tokens]
    assert inner == sorted(set(inner)) and 0 not in inner  # no token twice, and none is BOS


def test_a_word_of_many_bytes_has_them_all():
    tokens = list("ein größeres 字 here".encode())
    words = {word.text: bytes(tokens[n] for n in word.tokens).decode() for word in all_words(Bytes(), tokens)}
    assert words == {"ein": "ein", "größeres": "größeres", "字": "字", "here": "here"}


def test_the_questions_words_are_chosen_and_the_place_of_the_answer(tokenizer):
    tokens = tokenizer.encode(PROMPT)
    words = chosen_words(tokenizer, tokens, "Which  shape is the red thing?")
    assert [w.text for w in words] == ["Which", "shape", "is", "the", "red", "thing", QUESTION, ANSWER]
    assert words[-1].tokens == (len(tokens) - 1,)
    assert words[-2].tokens == tuple(n for word in words[:6] for n in word.tokens)


def test_wanted_words_are_taken_where_they_stand_first(tokenizer):
    tokens = tokenizer.encode(PROMPT)
    the, circle, answer = chosen_words(tokenizer, tokens, "", ["The", "circle"])
    assert the == all_words(tokenizer, tokens)[4] and "circle" in _joined(tokenizer, tokens, circle)
    assert answer.text == ANSWER
    with pytest.raises(UserError, match=r"--words: 'cat' is not in the prompt, which has: Question, Which"):
        chosen_words(tokenizer, tokens, "", ["cat"])


def test_a_long_question_is_taken_together_and_one_of_marks_alone_not_at_all(tokenizer):
    long = "Which of the many shapes in this picture is the red thing?"
    tokens = tokenizer.encode(PROMPT.replace("Which shape is the red thing?", long))
    assert [w.text for w in chosen_words(tokenizer, tokens, long)] == [QUESTION, ANSWER]
    assert [w.text for w in chosen_words(tokenizer, tokens, long, [QUESTION, "red"])] == [QUESTION, "red", ANSWER]
    tokens = tokenizer.encode(PROMPT.replace("Which shape is the red thing?", "?"))
    assert [w.text for w in chosen_words(tokenizer, tokens, "?")] == [ANSWER]
