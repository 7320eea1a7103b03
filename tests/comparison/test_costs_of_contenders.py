"""What a contender costs is that of the training which it had."""

import json
from dataclasses import replace

import pytest

from dsmemvp.comparison.costs import Cost, cost_of
from dsmemvp.comparison.study import Contender
from dsmemvp.config.reading import read_recipe

TOKENS = 40


@pytest.fixture
def cost(recipe_path):
    def found(*settings: str) -> Cost:
        return cost_of(Contender("a", read_recipe(recipe_path, settings), ()), TOKENS)

    return found


def test_a_batch_smaller_than_the_cluster_and_files_that_plan_does_not_know(cost, repository, tmp_path):
    assert cost("training.global_batch=4", "training.micro_batch=2").sent
    known = cost()
    settings = json.loads((repository / "ds_configs" / "zero3.json").read_text())
    for changed in ({"zero_optimization": {"stage": 2}}, {"communication_data_type": "bf16"}):
        (tmp_path / "own.json").write_text(json.dumps(settings | changed))
        assert cost(f"training.deepspeed={tmp_path / 'own.json'}") == replace(known, sent=None)


def test_pictures_are_looked_at_also_where_training_reads_features(cost):
    assert cost("vision.adapter_dim=0") == cost("vision.adapter_dim=0", "vision.cache_features=features")


def test_micro_batches_by_tokens_send_for_their_own_number_of_steps(cost, repository):
    """Under ZeRO-3 every micro-step gathers the weights: with 2 samples in each there are as many as with 2 of 100."""
    sharded = f"training.deepspeed={repository / 'ds_configs' / 'zero3.json'}"
    given = [sharded, "training.global_batch=64"]
    by_tokens = cost(*given, "training.micro_tokens=100", "training.micro_batch=8")
    assert by_tokens.sent == cost(*given, "training.micro_batch=2").sent
    assert by_tokens.sent > cost(*given, "training.micro_batch=8").sent
