"""Likelihoods of letters against transformers' LlamaForCausalLM in float64, one choice at a time."""

import copy
import math

import pytest
import small
import torch
from making import sample
from transformers import CLIPVisionConfig, LlamaForCausalLM

from dsmemvp.backbones.configs import Configs
from dsmemvp.data.batch import Item
from dsmemvp.data.collator import Collator
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.layout import Reserved
from dsmemvp.data.letters import letter_tokens
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText, encode_for_answer, encode_for_training, prompt_text
from dsmemvp.evaluation.likelihood import likeliest, log_likelihoods
from dsmemvp.model import VisualLanguageModel

CHOICES = ("red", "a blue circle", "green", "the yellow one", "none")


@pytest.fixture(scope="module")
def models(tiny_models):
    """Ours in float32, theirs in float64."""
    theirs = LlamaForCausalLM.from_pretrained(tiny_models / "language_model", dtype=torch.float32).eval()
    vision = CLIPVisionConfig.from_pretrained(tiny_models / "vision_tower")
    ours = VisualLanguageModel(Configs(copy.deepcopy(theirs.config), vision), sees_images=False).eval()
    ours.language.load_state_dict({name.removeprefix("model."): t for name, t in theirs.state_dict().items()})
    return ours, theirs.double()


@pytest.fixture(scope="module")
def samples():
    questions = ["Which colour is it?", "What is it, then, that stands on the left side?", "Why?"]
    return [sample(question=q, choices=CHOICES[: 2 + i], answer=i % 2, index=i) for i, q in enumerate(questions)]


def _batch(tokenizer_path, tokenizer, samples):
    collator = Collator(str(tokenizer_path), ImageTransform(4, 100), False, 300, False, answers=True)
    return make_batch([collator.item(tokenizer, s) for s in samples], 4, last_only=True).batch


def _theirs(model, tokens, count):
    """The log-probability of the last `count` tokens."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return sum(logits[i - 1, tokens[i]].item() for i in range(len(tokens) - count, len(tokens)))


def test_they_are_those_of_transformers_in_float64(models, tokenizer_path, tokenizer, samples):
    ours, theirs = models
    endings = [[letter_tokens(tokenizer, "ABCDE"[c]) for c in range(len(s.choices))] for s in samples]
    with torch.no_grad():
        found = log_likelihoods(ours, _batch(tokenizer_path, tokenizer, samples), (), endings)
    for s, own, sums in zip(samples, endings, found, strict=True):
        prompt = tokenizer.encode(prompt_text(s, captions=False) + "The answer is")
        wanted = [_theirs(theirs, [*prompt, *ending], len(ending)) for ending in own]
        assert sums == pytest.approx(wanted, rel=2e-5, abs=2e-6)
        assert likeliest(sums) == wanted.index(max(wanted))


def test_endings_of_several_tokens_are_read_from_rows_that_share_what_they_can(
    models, tokenizer_path, tokenizer, samples
):
    """As with a tokenizer that writes letters in pieces."""
    ours, theirs = models
    endings = [[(7, 20), (7, 21), (9, 3, 20)], [(30,), (31, 5)], []]
    sizes = []

    def forward(batch):
        sizes.append(batch.size)
        return ours(batch)

    batch = _batch(tokenizer_path, tokenizer, samples)
    with torch.no_grad():
        found = log_likelihoods(forward, batch, (), endings)
    for b, own in enumerate(endings):
        start, stop = batch.bounds[b]
        text = batch.tokens[start:stop].tolist()
        wanted = [_theirs(theirs, [*text, *ending], len(ending)) for ending in own]
        assert found[b] == pytest.approx(wanted, rel=2e-5, abs=2e-6)
    assert sizes == [4]


def test_rows_of_a_sample_share_its_image(tokenizer):
    items = [Item(i, EncodedText([1, 5 + i, 9], 2, False), torch.full((3, 2, 2), float(i))) for i in range(2)]
    seen = []

    def forward(batch):
        seen.append(batch)
        return torch.zeros(batch.supervised.numel(), 50), {}

    places = (Reserved("a", 2), Reserved("b", 1, "after_question"))
    log_likelihoods(forward, make_batch(items, 2, places, last_only=True).batch, places, [[(3, 4), (4, 4)], [(5,)]])
    assert seen[0].image_rows == (0, 0, 1) and seen[0].images[:, 0, 0, 0].tolist() == [0.0, 1.0]
    # BOS, two places, the question, a place, the lead-in, the ending
    assert seen[0].tokens.tolist() == [1, 0, 0, 5, 0, 9, 3, 4, 1, 0, 0, 5, 0, 9, 4, 4, 1, 0, 0, 6, 0, 9, 5]


@pytest.mark.parametrize("method", ["memvp", "input_space", "dvp"])
def test_questions_that_share_their_picture_get_what_each_gets_from_its_own(method):
    model, (one, other) = small.model(method), small.pictures(2)
    for parameter in model.parameters():  # else these weights blow rounding up
        parameter.data *= 0.3
    pictures = [one, one, None, other, one, other]
    texts = [[1, 5, 9, 3, 7], [1, 5, 9, 4], [1, 8, 4], [1, 7, 7, 50, 12], [1, 6, 3], [1, 9, 9]]
    endings = [[(7,), (20,), (21,)]] * len(texts)
    rows, found = [], []
    model.vision.embeddings.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[0]))
    for own in (pictures, [p if p is None else p.clone() for p in pictures], [other, *pictures[1:]]):
        items = [Item(i, EncodedText(t, 3, False), p) for i, (t, p) in enumerate(zip(texts, own, strict=True))]
        places = model.method.reserved()
        batch = make_batch(items, small.RESOLUTION, places, last_only=True).batch
        with torch.no_grad():
            found.append(torch.tensor(log_likelihoods(model, batch, places, endings), dtype=torch.float64))
    assert rows == [2, 5, 2]
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)
    assert (found[0][0] - found[2][0]).abs().max() > 1e-4  # the picture counts


def test_places_behind_the_question_do_not_move_what_is_read(tokenizer):
    """Each logit says where it stands and which token it would like, so that a row off by one is another number."""
    items = [Item(i, EncodedText([1, 5 + i, 9], 2, False), torch.zeros(3, 2, 2)) for i in range(2)]
    places = (Reserved("b", 3, "after_question"),)

    def forward(batch):
        following = batch.tokens[batch.supervised + 1]
        assert torch.equal(following, batch.targets) or 0 in following
        logits = torch.zeros(batch.supervised.numel(), 50)
        logits[torch.arange(len(logits)), batch.targets] = batch.targets.float()
        return logits, {}

    found = log_likelihoods(forward, make_batch(items, 2, places, last_only=True).batch, places, [[(30,)], [(7, 31)]])

    def wanted(token):
        return token - math.log(math.exp(token) + 49)

    assert found[0] == pytest.approx([wanted(30)]) and found[1] == pytest.approx([wanted(7) + wanted(31)])


def test_a_batch_without_any_choice_takes_its_forward(tokenizer):
    calls = []

    def forward(batch):
        calls.append(batch.size)
        return torch.zeros(0, 50), {}

    assert log_likelihoods(forward, make_batch([], 2, last_only=True).batch, (), []) == []
    assert calls == [1]


def test_a_letter_s_tokens_are_those_that_training_puts_behind_the_lead_in(tokenizer, samples):
    for s in samples:
        trained = encode_for_training(tokenizer, s, False, 300).tokens
        asked = encode_for_answer(tokenizer, s, False, 300).tokens
        letter = letter_tokens(tokenizer, s.letter)
        assert trained[: len(asked) + len(letter)] == [*asked, *letter]
        assert tokenizer.decode(list(letter)).strip() == s.letter


def test_the_first_of_equal_ones():
    assert likeliest([-2.0, -1.0, -1.0]) == 1
