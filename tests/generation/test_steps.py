"""Steps of decoding that are recorded and replayed: on a CPU by a stand-in for a CUDA graph."""

import logging

import pytest
import small
import torch

from dsmemvp.backbones.key_value_cache import GROW
from dsmemvp.generation.decoder import Decoder
from dsmemvp.generation.generate import Sampling, generate
from dsmemvp.generation.steps import UNRECORDED

NEVER = 10**6
"""An EOS that is no token: no answer ends early."""


class Recorder:
    """Records as a CUDA graph does: once with and once without an effect, into one tensor; a replay runs none of the
    Python around the model, so that it leaves lengths on the host as they are."""

    def __init__(self, cache_of, wrong: str = ""):
        self.made, self.replayed, self._cache_of, self._wrong = 0, 0, cache_of, wrong

    def __call__(self, forward):
        if self._wrong:
            forward()
            raise RuntimeError(self._wrong)
        self.made += 1
        forward()
        cache = self._cache_of()
        before = [id(t) for both in cache.layers.values() for t in both]
        cache.lengths_B -= 1  # the second run is recorded, and not done
        logits = forward().clone()
        # a recording that makes the cache's tensors would make them anew in each replay
        assert [id(t) for both in cache.layers.values() for t in both] == before

        def replay():
            self.replayed += 1
            lengths = self._cache_of().lengths
            logits.copy_(forward())
            self._cache_of().lengths = lengths

        return replay, logits


def answers(method: str, steps: int, record: bool = False, wrong: str = "", change=None, texts=small.TEXTS):
    model = small.model(method)
    images = small.PICTURES if method != "none" else (False,) * 4
    caches = []

    def run(batch, decoding):
        caches[:] = [decoding.cache]
        logits, state = model(batch, decoding)
        return logits, change(state) if change else state

    recorder = Recorder(lambda: caches[0], wrong) if record else None
    decoder = Decoder(model.language.config, run, torch.device("cpu"), NEVER, False, recorder)
    found = generate(decoder, small.prompts(model, texts, images), Sampling(steps))
    assert caches[0].lengths == caches[0].lengths_B.tolist()
    return found, recorder


@pytest.mark.parametrize("method", small.METHODS)
def test_replayed_steps_write_the_same_tokens(method):
    """Also when the cache grows, for which the step is recorded anew."""
    steps = GROW + 10
    plain, _ = answers(method, steps)
    found, recorder = answers(method, steps, record=True)
    assert found == plain and len({tuple(row) for row in plain}) >= 3
    assert recorder.made == 2
    assert recorder.replayed == steps - 1 - UNRECORDED  # the first token comes from the prompts


def test_a_step_that_fills_the_cache_is_recorded_in_it():
    """To record runs it twice, of which the second must not find that the first one has taken the last place."""
    longest = [1, *[5 + i % 40 for i in range(GROW - 2 - UNRECORDED)]]
    texts = [longest, *small.TEXTS[1:]]
    plain, _ = answers("none", 12, texts=texts)
    found, recorder = answers("none", 12, record=True, texts=texts)
    assert found == plain and recorder.made == 2


def test_short_answers_are_not_recorded():
    assert answers("memvp", 1 + UNRECORDED, record=True)[1].made == 0


def test_what_cannot_be_recorded_is_said_once_and_run(caplog):
    with caplog.at_level(logging.WARNING):
        found, _ = answers("memvp", 12, record=True, wrong="operation not permitted when stream is capturing\nmore")
    assert found == answers("memvp", 12)[0]
    (said,) = caplog.messages
    assert said.endswith("not recorded as a CUDA graph: operation not permitted when stream is capturing")


def test_a_state_that_changes_from_step_to_step_is_not_recorded():
    found, recorder = answers("memvp", 12, record=True, change=dict)
    assert recorder.made == 0 and found == answers("memvp", 12)[0]
