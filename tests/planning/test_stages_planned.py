"""What a plan counts of a stage that has its own parts."""

from pathlib import Path

import pytest
import small

import dsmemvp.prompts
from dsmemvp.config.methods import method_settings
from dsmemvp.planning.trace import trace
from dsmemvp.stages import stages_of

PROGRAMS = Path(__file__).parents[1] / "programs"


@pytest.fixture
def recipe():
    places = dsmemvp.prompts.__path__
    places.append(str(PROGRAMS / "methods"))
    found = small.recipe("memvp")
    found.method = method_settings("toy", pieces="vocab.txt")
    found.training.micro_batch = 2
    yield found
    places.remove(str(PROGRAMS / "methods"))


def test_a_stage_counts_its_own_parts_and_what_stands_beside_them(recipe):
    configs = small.configs()
    language = configs.language
    width, own = language.hidden_size, language.hidden_size**2 + language.hidden_size
    traces = {stage.name: trace(recipe, configs, 20, "none", stage=stage) for stage in stages_of(recipe, configs)}
    counts = {name: sum(p.numel for p in found.parameters) for name, found in traces.items()}
    assert {
        name: sum(p.numel for p in found.parameters if p.trained) for name, found in traces.items()
    } == dict.fromkeys(traces, own)
    assert counts["match"] == own and counts["words"] == counts["write"] > language.vocab_size * width
    # a teacher of as many numbers as `first`, and the embeddings
    item = traces["match"].item
    assert {name: found.beside for name, found in traces.items()} == {
        "words": language.vocab_size * width * item,
        "match": own * item,
        "write": 0,
    }
    # of the toy's only product: forward, once for the teacher, and backward to the weight alone, of two samples
    assert traces["match"].flops == 3 * 2 * 2 * width**2
