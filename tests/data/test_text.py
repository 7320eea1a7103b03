"""Prompts and targets, letter by letter, and how they are made to fit."""

from dataclasses import replace

import pytest
import sentencepiece
from making import sample

from dsmemvp.data.sample import SampleError
from dsmemvp.data.text import (
    Tokenizer,
    encode_for_answer,
    encode_for_training,
    lead_in,
    prompt_text,
    target_text,
)
from dsmemvp.errors import UserError

COLOURS = {"question": "What colour is the star?", "choices": ("red", "blue", "green"), "answer": 1}


# the literals follow MemVP's util/base_prompt.py:106-150 (QCM-A), as facts/memvp.md 2.3 cites it


def test_the_published_prompt_of_a_sample_with_a_hint():
    text = prompt_text(sample(**COLOURS, context="Look at the picture."), captions=False)
    assert text == (
        "Question: What colour is the star?\nContext: Look at the picture.\n"
        "Options: (A) red (B) blue (C) green\nResponse:"
    )


def test_the_published_prompt_of_a_sample_without_a_hint():
    text = prompt_text(sample(**COLOURS), captions=False)
    assert text == "Question: What colour is the star?\nContext: N/A\nOptions: (A) red (B) blue (C) green\nResponse:"


def test_a_caption_follows_the_hint_where_captions_are_wanted_and_only_there():
    both = sample(**COLOURS, context="A hint.", caption="a blue star.")
    alone = sample(**COLOURS, caption="a blue star.")
    assert "\nContext: A hint. a blue star.\nOptions" in prompt_text(both, captions=True)
    assert "\nContext: a blue star.\nOptions" in prompt_text(alone, captions=True)
    assert "\nContext: A hint.\nOptions" in prompt_text(both, captions=False)
    assert "\nContext: N/A\nOptions" in prompt_text(alone, captions=False)


def test_the_target_follows_without_a_space():
    one = sample(**COLOURS)
    assert target_text(one) == "The answer is B."
    assert (prompt_text(one, False) + target_text(one)).endswith("\nResponse:The answer is B.")


def test_an_open_question_has_neither_options_nor_an_empty_context():
    one = sample(question="What is it?", choices=(), answer="a red star")
    assert prompt_text(one, captions=False) == "Question: What is it?\nResponse:"
    assert target_text(one) == "The answer is a red star."
    hinted = sample(question="What is it?", choices=(), answer="x", context="A hint.", caption="a star.")
    assert prompt_text(hinted, captions=False) == "Question: What is it?\nContext: A hint.\nResponse:"
    assert prompt_text(hinted, captions=True) == "Question: What is it?\nContext: A hint. a star.\nResponse:"


FREE = {"question": "Describe the image.", "choices": (), "answer": " a red star. "}


@pytest.mark.parametrize("task", ["caption", "conversation"])
def test_a_free_answer_stands_by_itself_without_lead_in_and_full_stop(tokenizer, task):
    one = sample(**FREE, scores={"task": task})
    assert prompt_text(one, captions=False) == "Question: Describe the image.\nResponse:"
    assert target_text(one) == "a red star." and lead_in(one) == ""
    trained = encode_for_training(tokenizer, one, captions=False, most=512)
    asked = encode_for_answer(tokenizer, one, captions=False, most=512)
    assert tokenizer.decode(asked.tokens) == "Question: Describe the image.\nResponse:"
    assert trained.tokens[: trained.prompt] == asked.tokens and trained.tokens[-1] == tokenizer.eos
    assert tokenizer.decode(trained.tokens[trained.prompt :]) == "a red star."


@pytest.mark.parametrize("scores", [{}, {"task": "vqa"}, {"task": "open"}])
def test_any_other_answer_has_the_lead_in_and_a_full_stop(scores):
    assert lead_in(sample(**COLOURS, scores=scores)) == "The answer is"
    one = sample(question="What?", choices=(), answer="a star", scores=scores)
    assert lead_in(one) == "The answer is" and target_text(one) == "The answer is a star."


def test_a_choice_has_the_lead_in_whatever_its_task_is_called():
    one = sample(**COLOURS, scores={"task": "caption"})
    assert (lead_in(one), target_text(one)) == ("The answer is", "The answer is B.")


def test_double_spaces_collapse_and_ends_are_stripped_but_lines_stay():
    one = sample(question="  a   b\n\nc", choices=("x  y", "z"), context="  h  ")
    assert prompt_text(one, False) == "Question: a b\n\nc\nContext: h\nOptions: (A) x y (B) z\nResponse:"


def test_training_tokens_are_bos_prompt_target_eos(tokenizer):
    one = sample(**COLOURS, context="Look at the picture.")
    text = encode_for_training(tokenizer, one, captions=False, most=512)
    assert text.tokens[0] == tokenizer.bos == 1 and text.tokens[-1] == tokenizer.eos == 2
    assert text.tokens[1:-1].count(1) == text.tokens[1:-1].count(2) == 0
    assert tokenizer.decode(text.tokens) == prompt_text(one, False) + "The answer is B."
    assert tokenizer.decode(text.tokens[: text.prompt]) == prompt_text(one, False)
    assert tokenizer.decode(text.tokens[text.prompt :]) == "The answer is B."
    assert not text.cut and text.bos == 1


def test_the_prompt_for_an_answer_begins_the_text_of_training(tokenizer):
    for one in (sample(**COLOURS, context="A hint."), sample(choices=(), answer="red", caption="a star.")):
        trained = encode_for_training(tokenizer, one, captions=True, most=512)
        asked = encode_for_answer(tokenizer, one, captions=True, most=512)
        assert asked.prompt == trained.prompt and not asked.cut
        assert trained.tokens[: len(asked.tokens)] == asked.tokens
        assert tokenizer.decode(asked.tokens) == prompt_text(one, True) + "The answer is"


class Joining:
    """A tokenizer that makes one piece of the prompt's last mark and the target's first letter."""

    bos, eos, front = 1, 2, (1,)

    def encode(self, text):
        return [self.bos, *(10 + ord(c) for c in text.replace(":T", "\u2020"))]

    def encode_spans(self, text):
        spans = [(i, i + 1 + (text[i : i + 2] == ":T")) for i in range(len(text)) if text[i - 1 : i + 1] != ":T"]
        return self.encode(text), [(0, 0), *spans]

    def decode(self, tokens):
        return (
            "".join(chr(token - 10) for token in tokens if token != self.bos).replace("\u2020", ":T").replace(":", ": ")
        )


def test_a_tokenizer_that_joins_prompt_and_target_is_refused():
    with pytest.raises(SampleError, match=r"file\.tar, sample s0: the tokenizer joins the end of the prompt"):
        encode_for_training(Joining(), sample(**COLOURS), captions=False, most=512)


@pytest.mark.parametrize("encode", [encode_for_training, encode_for_answer])
def test_a_long_context_is_cut_from_its_end_and_the_rest_stays(tokenizer, encode):
    words = [*(f"word{i}" for i in range(100)), "a", "blue", "star."]
    one = sample(**COLOURS, context=" ".join(words[:-3]), caption=" ".join(words[-3:]))
    whole = encode(tokenizer, one, captions=True, most=10_000)
    for most in (80, 200, len(whole.tokens) - 1):
        text = encode(tokenizer, one, captions=True, most=most)
        assert text.cut and len(text.tokens) <= most
        decoded = tokenizer.decode(text.tokens)
        kept = decoded.partition("\nContext: ")[2].partition("\nOptions")[0].split(" ")
        assert kept == words[: len(kept)] and 0 < len(kept) < len(words)
        assert "\nOptions: (A) red (B) blue (C) green\nResponse:The answer is" in decoded
        assert decoded.startswith("Question: What colour is the star?\n")
        more = encode(tokenizer, sample(**COLOURS, context=" ".join(words[: len(kept) + 1])), False, 10_000)
        assert len(more.tokens) > most  # as many words as fit
    assert not whole.cut and encode(tokenizer, one, True, len(whole.tokens)) == whole


def test_a_context_of_which_nothing_fits_becomes_none(tokenizer):
    bare = encode_for_training(tokenizer, sample(**COLOURS), captions=False, most=512)
    one = sample(**COLOURS, context="antidisestablishmentarianism " * 3)
    text = encode_for_training(tokenizer, one, captions=False, most=len(bare.tokens))
    assert text.cut and text.tokens == bare.tokens and "\nContext: N/A\n" in tokenizer.decode(text.tokens)


def test_a_long_conversation_is_cut_from_its_beginning(tokenizer):
    words = [f"word{i}" for i in range(100)]
    one = sample(question="And now?", choices=(), answer="x", context=" ".join(words), scores={"task": "conversation"})
    text = encode_for_answer(tokenizer, one, captions=False, most=120)
    kept = tokenizer.decode(text.tokens).partition("\nContext: ")[2].partition("\nResponse:")[0].split(" ")
    assert text.cut and len(text.tokens) <= 120
    assert kept == words[-len(kept) :] and 0 < len(kept) < 100
    more = replace(one, context=" ".join(words[-len(kept) - 1 :]))
    assert len(encode_for_answer(tokenizer, more, captions=False, most=10_000).tokens) > 120


@pytest.mark.parametrize("encode", [encode_for_training, encode_for_answer])
@pytest.mark.parametrize("context", ["", "a hint"])
def test_question_and_options_that_do_not_fit_are_refused(tokenizer, encode, context):
    with pytest.raises(SampleError) as caught:
        encode(tokenizer, sample(**{**COLOURS, "question": "why " * 100}, context=context), captions=False, most=60)
    wanted = "file.tar, sample s0: question and options alone are longer than data.max_length = 60 tokens"
    assert str(caught.value) == wanted


def test_any_text_comes_back_from_its_tokens(tokenizer):
    for text in ("Ünïcode 漢字 🙂?", "a\nb\n\nc", "100 (one hundred).", "x: y"):
        tokens = tokenizer.encode(text)
        assert tokens[0] == tokenizer.bos and tokenizer.decode(tokens) == text
        assert all(0 <= t < tokenizer.vocabulary for t in tokens)


def test_decoding_leaves_out_bos_and_eos_wherever_they_stand(tokenizer):
    red = tokenizer.encode("red")
    assert tokenizer.decode([*red, tokenizer.eos, tokenizer.bos]) == "red"
    assert tokenizer.decode([tokenizer.eos]) == ""


def test_a_missing_tokenizer_is_named_with_its_key(tmp_path):
    with pytest.raises(UserError, match=r"^model\.tokenizer: .*none\.model does not exist; give"):
        Tokenizer(tmp_path / "none.model")


@pytest.mark.parametrize("content", [b"", b"no model", b"\0" * 1000])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    (tmp_path / "odd.model").write_bytes(content)
    with pytest.raises(UserError, match=r"odd\.model (is not a sentencepiece model|has no BOS)"):
        Tokenizer(tmp_path / "odd.model")


def test_a_tokenizer_without_bos_puts_nothing_in_front_and_one_without_eos_is_refused(tmp_path):
    for missing in ("bos_id", "eos_id"):
        with (tmp_path / f"{missing}.model").open("wb") as file:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=iter([prompt_text(sample(**COLOURS), False), "The answer is B."] * 20),
                model_writer=file,
                vocab_size=60,
                hard_vocab_limit=False,
                minloglevel=2,
                **{missing: -1},
            )
    plain = Tokenizer(tmp_path / "bos_id.model")
    assert plain.bos is None and plain.front == [] and plain.decode(plain.encode("a b")) == "a b"
    text = encode_for_training(plain, sample(**COLOURS), captions=False, most=512)
    assert text.bos == 0 and text.tokens[: text.prompt] == plain.encode(prompt_text(sample(**COLOURS), False))
    with pytest.raises(UserError, match=r"eos_id\.model has no EOS piece; train it with one"):
        Tokenizer(tmp_path / "eos_id.model")
