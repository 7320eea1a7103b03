"""From a batch to answers: limits, ends, and what other ranks need, with a decoder that writes what it is told."""

import pytest
import torch
from making import sample

from dsmemvp.config.recipe import Evaluation
from dsmemvp.data.batch import Item, MicroBatch
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.evaluation.answering import Answering
from dsmemvp.generation.generate import Continuation

OPEN = sample(choices=(), answer="red")
CAPTION = sample(choices=(), answer="A cat.", scores={"task": "caption"})
CHOICE = sample()


class Others(Ranks):
    """Another rank that needs `more` tokens, and has choices where `choices` is true."""

    more, choices = 0, False

    def table(self, *numbers):
        return [list(numbers), [self.more] * len(numbers)]

    def any(self, own):
        return own or self.choices

    def together(self, task):
        return task()


@pytest.fixture
def answer(tokenizer):
    def answer(samples, written, more=0, choices=False, forward=None, **settings):
        """`written`: what the model writes after each sample. Returns texts, and the number of tokens asked for."""
        ranks = Others(0, 2, torch.device("cpu"))
        object.__setattr__(ranks, "more", more)
        object.__setattr__(ranks, "choices", choices)
        asked = []

        def decode(batch: MicroBatch, steps, over):
            asked.append(steps)
            if not batch.samples:
                asked.append("nothing")
                return []
            tokens = [tokenizer.encode(text)[1:] + [tokenizer.eos] * 30 for text in written]
            logs = [-float(2**i) for i in range(steps)]
            asked.append([next(n for n in range(1, 99) if over(b, own[:n])) for b, own in enumerate(tokens)])
            return [Continuation(own[:steps], logs) for own in tokens]

        items = [Item(i, EncodedText([1, 2], 2, False), None, s) for i, s in enumerate(samples)]
        answering = Answering(Evaluation(**settings), ranks, tokenizer, forward, decode, ())
        return answering(make_batch(items, 2, last_only=True)), asked

    return answer


def test_each_kind_has_its_limit_whatever_others_need(answer, tokenizer):
    long = "a red circle and a blue square and a green circle and a red square"
    tokens = tokenizer.encode(long)[1:]
    for more in (0, 60):
        answers, asked = answer([OPEN, CAPTION, CHOICE], [long] * 3, more, max_new_tokens=3, caption_tokens=8)
        assert [a.text for a in answers] == [tokenizer.decode(tokens[:n]) for n in (3, 8, 1)]
        assert asked == [max(8, more), [3, 8, 1]]
        assert all(a.log_likelihoods is None for a in answers)


def test_which_way_a_batch_is_computed_does_not_depend_on_other_ranks(answer, tokenizer):
    """A single token has a way of its own; all ranks go both ways where any goes the other one."""
    letter = [len(tokenizer.encode("B")[1:])]
    assert letter == [1]
    assert answer([CHOICE], ["B"])[1] == [1, [1]]
    assert answer([CHOICE], ["B"], more=60)[1] == [1, [1], 60, "nothing"]
    assert answer([OPEN], ["red"], more=1, max_new_tokens=5)[1][:3] == [1, "nothing", 5]
    assert answer([], [], more=1)[1] == [1, "nothing"] and answer([], [], more=7)[1] == [7, "nothing"]
    assert answer([], [])[1] == []


def test_an_open_answer_ends_behind_its_full_stop_and_a_caption_at_its_end(answer, tokenizer):
    text = "a red circle. The answer is blue. The answer"
    answers, asked = answer([OPEN, CAPTION, OPEN], [text, text, "red."], max_new_tokens=90, caption_tokens=90)
    assert answers[0].text.startswith("a red circle. ") and len(answers[0].text) < len("a red circle. The answer")
    assert answers[1].text == text and answers[2].text == "red."
    # how probable: every token up to the one behind the stop, or to the end of the text
    ends = [len(tokenizer.encode(t)[1:]) + 1 for t in ("a red circle.", text, "red.")]
    assert [a.log_probability for a in answers] == [1 - 2.0**end for end in ends]
    # what stands behind the stop tells that it was one; the end of the text counts as a token
    assert asked[1][1:] == [len(tokenizer.encode(text)[1:]) + 1, len(tokenizer.encode("red.")[1:]) + 1]


def test_a_letter_of_several_tokens_is_decoded_whole_and_no_further(answer, tokenizer):
    """This tokenizer has " A" and " B", but writes " C" in two tokens."""
    assert [len(tokenizer.encode(letter)[1:]) for letter in "ABC"] == [1, 1, 2]
    three = sample(choices=("one", "two", "three"), answer=2)
    for letter, needed in (("C", 2), ("A", 1)):
        answers, asked = answer([three], [f"{letter} and more"])
        assert asked == [2, [needed]] and answers[0].text.strip() == letter and not answers[0].cut
    # beside it, a sample with letters of one token takes one
    answers, asked = answer([three, CHOICE], ["no letter", "no letter"])
    assert asked == [2, [2, 1]] and answers[1].text == tokenizer.decode(tokenizer.encode("no letter")[1:2])


def test_answers_that_reach_their_limit_are_marked_as_cut(answer, tokenizer):
    text = "a red circle and a blue square."
    whole = len(tokenizer.encode(text)) - 1

    def cut(written, **limits):
        answers, _ = answer([OPEN, CAPTION], [written, written], **limits)
        return [a.cut for a in answers]

    few = {"max_new_tokens": whole - 1, "caption_tokens": whole - 2}
    assert cut(text, **few) == [f"evaluation.{key}={limit}" for key, limit in few.items()]
    # an open answer is whole with its full stop, a caption with the end of the text
    assert cut(text, max_new_tokens=whole, caption_tokens=whole) == ["", f"evaluation.caption_tokens={whole}"]
    assert cut(text, max_new_tokens=whole + 1, caption_tokens=whole + 1) == ["", ""]
    assert cut("red", max_new_tokens=1, caption_tokens=9)[1] == ""


def test_by_likelihood_choices_are_not_decoded_and_open_questions_are(answer, tokenizer):
    calls = []

    def forward(batch):
        calls.append(batch.size)
        logits = torch.zeros(batch.supervised.numel(), tokenizer.vocabulary)
        logits[:, tokenizer.encode("The answer is B")[-1]] = 3.0
        return logits, {}

    likelihood = {"protocol": "likelihood", "forward": forward}
    (choice, other), asked = answer([CHOICE, OPEN], ["no", "red"], max_new_tokens=5, **likelihood)
    assert choice.text == "B" and len(choice.log_likelihoods) == 2 and other.text == "red"
    assert asked[0] == 5 and len(calls) == 1
    # no step of decoding where no rank has an open question, and a forward where only another rank has choices
    assert answer([CHOICE], ["no"], **likelihood)[1] == [] and len(calls) == 2
    assert answer([], [], more=0, choices=True, **likelihood) == ([], []) and len(calls) == 3
    assert answer([OPEN], ["red"], **likelihood)[0][0].text == "red" and len(calls) == 3
