"""MITP: decoding with a cache, and what the slots may depend on."""

import pytest
import torch
from mitp_recording import SAMPLES, MitpRecording

from dsmemvp.backbones.key_value_cache import KeyValueCache
from dsmemvp.data.batch import Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.generation.decoder import Decoder
from dsmemvp.generation.generate import Sampling, generate
from dsmemvp.model import Decoding

STEPS, NO_END = 5, 64  # a token beyond the vocabulary


@pytest.fixture(scope="module")
def recording(shared, tmp_path_factory) -> MitpRecording:
    made = MitpRecording(shared, tmp_path_factory.mktemp("mitp"))
    made.write()
    return made


def _prompts(recording, samples=SAMPLES):
    return make_batch(recording.items(samples, answers=False), 28, [recording.reserved], last_only=True)


def test_greedy_decoding_with_a_cache_gives_the_recorded_tokens_and_logits(recording):
    model, logits = recording.model(), []

    def forward(batch, decoding):
        found, state = model(batch, decoding)
        logits.append(found)
        return found, state

    decoder = Decoder(model.language.config, forward, torch.device("cpu"), NO_END, in_step=False)
    tokens = generate(decoder, _prompts(recording), Sampling(max_new_tokens=STEPS))
    assert torch.equal(torch.tensor(tokens), recording.tensors["out.greedy_tokens"])
    recorded = recording.tensors["out.greedy_logits"]
    assert (torch.stack(logits, dim=1) - recorded).abs().max() < 1e-4


@torch.no_grad()
def test_decoding_with_a_cache_is_decoding_without(recording):
    """Each sample by itself, its text computed again for every token."""
    model = recording.model()
    decoder = Decoder(model.language.config, lambda *given: model(*given), torch.device("cpu"), NO_END, in_step=False)
    with_cache = generate(decoder, _prompts(recording), Sampling(max_new_tokens=STEPS))
    for item, found in zip(recording.items(answers=False), with_cache, strict=True):
        new: list[int] = []
        while len(new) < STEPS:
            text = EncodedText([*item.text.tokens, *new, 0], item.text.prompt, False, cue=item.text.cue)
            batch = make_batch([Item(item.index, text, item.image)], 28, [recording.reserved]).batch
            new.append(int(model(batch)[0][len(new)].argmax()))
        assert new == found


@torch.no_grad()
def test_later_steps_run_neither_the_vision_tower_nor_the_hub(recording):
    model, calls = recording.model(), []
    for name, module in (("hub", model.method.hub.to_rank_text), ("vision", model.vision.layers[0])):
        module.register_forward_hook(lambda _, given, out, name=name: calls.append(name))
    decoder = Decoder(model.language.config, lambda *given: model(*given), torch.device("cpu"), NO_END, in_step=False)
    generate(decoder, _prompts(recording), Sampling(max_new_tokens=STEPS))
    assert sorted(calls) == ["hub"] * 3 + ["vision"]  # the first vision prompt, and two hubs


@torch.no_grad()
def test_changing_the_answer_changes_no_slot(recording):
    """Bit for bit: keys and values of the slots in every block, and what the hub makes of them."""
    model = recording.model()
    found = []
    for change in (0, 1):
        items = recording.items()
        for i, item in enumerate(items):
            tokens, prompt = list(item.text.tokens), item.text.prompt
            tokens[prompt:] = [(token + change) % 60 for token in tokens[prompt:]]
            items[i] = Item(item.index, EncodedText(tokens, prompt, False, cue=item.text.cue), item.image)
        batch = make_batch(items, 28, [recording.reserved]).batch
        cache = KeyValueCache()
        logits, _ = model(batch, Decoding(cache))
        _, state = model._walk(batch, model.method.begin(batch), model.schedule())
        places = [int(place) - batch.bounds[b][0] for b in SAMPLES for place in batch.places["prompts"].view(4, -1)[b]]
        rows = torch.tensor(SAMPLES).repeat_interleave(3)
        slots = [layer[rows, :, places] for at in sorted(cache.layers) for layer in cache.layers[at]]
        found.append((logits, [*slots, *(state[name] for name in ("text", "similarity_0", "similarity_1"))]))
    (before, own), (after, other) = found
    assert not torch.equal(before, after)
    assert all(torch.equal(*pair) for pair in zip(own, other, strict=True))
