"""Decoding with a key/value cache against decoding without, and against transformers' own model."""

import copy

import pytest
import small
import torch
from transformers import (
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dsmemvp.backbones.configs import Configs
from dsmemvp.data.packing import make_batch
from dsmemvp.errors import UserError
from dsmemvp.generation.generate import Sampling, generate, greedy
from dsmemvp.model import VisualLanguageModel

STEPS = Sampling(max_new_tokens=12)
GROUPED = {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}


@pytest.mark.parametrize("shape", [{}, GROUPED], ids=["llama-1", "grouped queries"])
@pytest.mark.parametrize("method", small.METHODS)
def test_with_a_cache_the_tokens_are_those_without(method, shape):
    model = small.model(method, **shape)
    images = small.PICTURES if method != "none" else (False,) * 4
    wanted = small.without_cache(model, STEPS.max_new_tokens, images=images)
    assert generate(small.decoder(model), small.prompts(model, images=images), STEPS) == wanted
    assert len({tuple(tokens) for tokens in wanted}) >= 3 and any(len(set(tokens)) >= 3 for tokens in wanted)
    if method != "none":  # what is in the pictures counts
        others = [small.pictures(9)[-1] if image else None for image in images]
        assert small.without_cache(model, STEPS.max_new_tokens, images=others) != wanted


@pytest.mark.parametrize("method", small.METHODS)
def test_a_sample_s_company_changes_nothing(method):
    """The shortest sample by itself and beside the longer ones: the same tokens, and nearly the same logits; in
    float64, since these weights blow rounding up."""
    model = small.model(method).double()
    decoder, logits, positions = small.decoder(model), [], []
    with_image = method != "none"

    def run(batch, decoding):
        output = model(batch, decoding)
        logits.append(output[0][0])
        positions.append(batch.positions[: batch.lengths[0]].tolist())
        return output

    decoder._run = run

    image = small.pictures(1)[0] if with_image else None
    few = Sampling(max_new_tokens=5)
    alone = generate(decoder, small.prompts(model, [[1, 8, 4]], [image]), few)
    places = len([1, 8, 4]) + (sum(r.count for r in model.method.reserved()) if with_image else 0)
    assert positions == [list(range(places)), [places], [places + 1], [places + 2], [places + 3]]
    own, own_positions, logits[:], positions[:] = list(logits), list(positions), [], []
    beside = generate(decoder, small.prompts(model, [[1, 8, 4], [1, *range(3, 50)]], [image, None]), few)
    assert beside[0] == alone[0] and len(own) == len(logits) == 5
    # rotary embeddings tell distances only, so that tokens alone would not show where a text begins
    assert positions == own_positions
    for one, other in zip(own, logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_without_a_method_the_texts_are_transformers_own():
    ours = small.model("none", **GROUPED)
    config = copy.deepcopy(ours.language.config)
    config._attn_implementation = "sdpa"  # ours wants packed samples
    theirs = LlamaForCausalLM(config).eval()
    theirs.load_state_dict({n if "lm_head" in n else f"model.{n}": t for n, t in ours.language.state_dict().items()})
    longest = max(map(len, small.TEXTS))
    ids = torch.tensor([[0] * (longest - len(text)) + text for text in small.TEXTS])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in small.TEXTS])
    stock = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=small.EOS, pad_token_id=small.EOS
    )
    wanted = [row[longest:].tolist() for row in stock]
    wanted = [row[: row.index(small.EOS)] if small.EOS in row else row for row in wanted]
    assert generate(small.decoder(ours), small.prompts(ours, images=(False,) * 4), STEPS) == wanted


WINDOW = {"sliding_window": 8}
SOME_LAYERS = WINDOW | {"use_sliding_window": True, "max_window_layers": 1}
FAMILIES = {
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "mistral, texts grow beyond the window": (MistralConfig, MistralForCausalLM, WINDOW),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen2, beyond the window of some layers": (Qwen2Config, Qwen2ForCausalLM, SOME_LAYERS),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    "qwen3, beyond the window of some layers": (Qwen3Config, Qwen3ForCausalLM, SOME_LAYERS),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_s_texts_are_transformers_own(family):
    """Packed, with our cache, against each text by itself with theirs."""
    kind, stock, changes = FAMILIES[family]
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64, "num_attention_heads": 4}
    sizes |= {"vocab_size": small.VOCABULARY, "num_key_value_heads": 2}
    torch.manual_seed(0)
    theirs = stock(kind(**sizes | changes))
    small.enliven(theirs)
    theirs = theirs.double().eval()
    # its table of rotary frequencies is not to be rounded otherwise than ours
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
    ours = VisualLanguageModel(Configs(kind(**sizes | changes), None), sees_images=False).double().eval()
    ours.language.load_state_dict({name.removeprefix("model."): t for name, t in theirs.state_dict().items()})
    wanted = []
    for text in small.TEXTS:
        ids = torch.tensor([text])
        row = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=2
        )[0, len(text) :].tolist()
        wanted.append(row[: row.index(2)] if 2 in row else row)
    prompts = small.prompts(ours, images=(False,) * 4)
    assert generate(small.decoder(ours), prompts, Sampling(max_new_tokens=24)) == wanted
    assert max(map(len, wanted)) == 24 and any(len(set(tokens)) >= 3 for tokens in wanted)


@pytest.mark.parametrize("method", ["memvp", "input_space", "dvp"])
def test_questions_about_one_picture_look_at_it_once(method):
    model = small.model(method)
    rows = []
    model.vision.embeddings.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[0]))
    picture, other = small.pictures(2)
    separate = [
        generate(small.decoder(model), small.prompts(model, [text], [image]), STEPS)[0]
        for text, image in zip(small.TEXTS, (picture, None, picture, other), strict=True)
    ]
    rows.clear()
    together = small.prompts(model, images=(picture, None, picture, other))
    assert generate(small.decoder(model), together, STEPS) == separate
    assert rows == [2] and together.batch.image_rows == (0, -1, 0, 1)


@pytest.mark.parametrize("method", ["memvp", "input_space"])
def test_a_picture_that_was_seen_is_not_looked_at_again(method):
    model = small.model(method)
    picture = small.pictures(1)[0]
    wanted = generate(small.decoder(model), small.prompts(model, images=[picture] * 4), STEPS)
    with torch.no_grad():
        seen = model.look(small.prompts(model, [[1]], [picture]).batch)
    model.vision.embeddings.register_forward_hook(lambda module, inputs, output: pytest.fail("looked again"))
    model.method.projector.register_forward_hook(lambda module, inputs, output: pytest.fail("projected again"))
    assert generate(small.decoder(model), small.prompts(model, images=[picture] * 4), STEPS, state=seen) == wanted


def test_a_text_ends_at_eos_and_where_it_is_done():
    model = small.model("memvp")
    batch = small.prompts(model)
    free = generate(small.decoder(model, eos=small.VOCABULARY), batch, STEPS)
    assert {len(tokens) for tokens in free} == {12}
    eos = free[0][5]
    wanted = [tokens[: tokens.index(eos)] if eos in tokens else tokens for tokens in free]
    assert generate(small.decoder(model, eos=eos), batch, STEPS) == wanted
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    few = generate(small.decoder(model), batch, STEPS, done=lambda b, tokens: len(tokens) == 3)
    assert few == [tokens[:3] for tokens in free] and len(calls) == 3


def test_an_empty_batch_decodes_nothing():
    model = small.model("memvp")
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    assert generate(small.decoder(model), make_batch([], small.RESOLUTION, last_only=True), STEPS) == []
    assert len(calls) == 1


def test_equal_seeds_draw_equal_texts_and_leave_torch_s_generator_alone():
    model = small.model("memvp")
    batch = small.prompts(model)

    def drawn(**settings):
        return generate(small.decoder(model), batch, Sampling(12, **{"temperature": 3.0, **settings}))

    before = torch.get_rng_state()
    first = drawn(seed=1)
    assert drawn(seed=1) == first != drawn(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    greedy = generate(small.decoder(model), batch, STEPS)
    assert first != greedy
    # with next to no mass to draw from, or next to no temperature, only the most likely token is left
    assert drawn(top_p=1e-6) == greedy and drawn(temperature=1e-4) == greedy


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_new_tokens", 0), ("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.5)],
)
def test_a_setting_out_of_range_is_named(setting, value):
    with pytest.raises(UserError, match=f"^{setting}: must be"):
        Sampling(**{setting: value})


@pytest.mark.parametrize("method", small.METHODS)
def test_how_probable_each_token_is_follows_from_a_forward_of_the_whole_text(method):
    """In float64, from logits of texts that already hold the answer; also for EOS, at which an answer ends."""
    model = small.model(method).double()
    images = small.PICTURES if method != "none" else (False,) * 4
    whole = greedy(small.decoder(model, eos=small.VOCABULARY), small.prompts(model, images=images), 6)
    eos = whole[0].tokens[3]
    found = greedy(small.decoder(model, eos=eos), small.prompts(model, images=images), 6)
    assert found[0].tokens == whole[0].tokens[: whole[0].tokens.index(eos)]
    assert len(found[0].log_probabilities) == len(found[0].tokens) + 1
    pictures = [picture if image else None for picture, image in zip(small.pictures(4), images, strict=True)]
    for text, picture, own, other in zip(small.TEXTS, pictures, whole, found, strict=True):
        for n, (token, log) in enumerate(zip(own.tokens, own.log_probabilities, strict=True)):
            with torch.no_grad():
                logits, _ = model(small.prompts(model, [[*text, *own.tokens[:n]]], [picture], n).batch)
            assert log == pytest.approx(logits[0].log_softmax(-1)[token].item(), abs=1e-5)
        logs = other.log_probabilities
        assert logs == pytest.approx(own.log_probabilities[: len(logs)], abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_has_diverged_is_told(temperature):
    model = small.model("memvp")
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.endswith("norm.weight")).fill_(float("nan"))
    with pytest.raises(UserError, match="the model's outputs are not finite"):
        generate(small.decoder(model), small.prompts(model), Sampling(max_new_tokens=4, temperature=temperature))
