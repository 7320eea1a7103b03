"""What gradient checkpointing computes again changes no loss: 20 steps with dropout on two ranks, under every policy
and every way of sharding; and a run that was killed goes on under another policy."""

from itertools import pairwise
from pathlib import Path

import pytest
from faulty import numbers, run
from launch import run_on_ranks, written

from dsmemvp.backbones.recompute import KEPT

pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).parent.parent / "programs" / "every_policy.py"


@pytest.fixture(scope="module")
def losses(tmp_path_factory) -> dict[str, dict[str, list[float]]]:
    out = tmp_path_factory.mktemp("policies") / "losses.json"
    run_on_ranks(PROGRAM, 2, str(out))
    return written(out)


@pytest.mark.ranks
@pytest.mark.parametrize("sharding", ["replicated", "zero3", "zero3_hpz"])
def test_losses_are_the_same_under_every_policy(losses, sharding):
    found = dict(losses[sharding])
    none = found.pop("none")
    assert {*KEPT} < {*found} and all(len(each) == 20 for each in found.values())
    assert all(one == other for one, other in pairwise(found.values()))  # to the last bit
    # transformers' own operations round otherwise, and training carries that on
    assert found["elementwise"] == pytest.approx(none, rel=1e-6)
    assert sum(none[-5:]) < 0.95 * sum(none[:5])  # it learns, so equality says something


@pytest.mark.ranks
def test_ranks_may_not_choose_by_themselves_where_parts_of_layers_are_gathered(losses):
    assert losses["auto"].startswith("training.recompute: auto chooses on every rank by itself, and under ZeRO-3")


@pytest.mark.ranks
def test_losses_are_the_same_under_every_sharding(losses):
    """hpZ's as zero3's to the last bit; a replicated base sums gradients in another order."""
    assert losses["zero3_hpz"] == losses["zero3"]
    assert losses["replicated"]["full"] == pytest.approx(losses["zero3"]["full"], rel=1e-6)


@pytest.mark.ranks
def test_separable_scores_train_alike_under_every_sharding(losses):
    found = [losses[f"separable, {sharding}"] for sharding in ("replicated", "zero3")]
    assert all(each["elementwise"] == each["full"] for each in found)
    assert found[0]["full"] == pytest.approx(found[1]["full"], rel=1e-6)
    assert sum(found[0]["full"][-5:]) < 0.95 * sum(found[0]["full"][:5])


@pytest.mark.ranks
def test_a_killed_run_goes_on_under_another_policy(small_run, uninterrupted, tmp_path):
    arguments = ["train", *small_run, f"output={tmp_path}"]
    ended = run([*arguments, "training.recompute=qkv"], tmp_path / "logs", fault="update:KILL:14", on=1)
    assert -9 in ended.codes, ended.text
    ended = run([*arguments, "training.recompute=full"], tmp_path / "logs")
    assert ended.codes == [0, 0] and "resuming after step 6" in ended.said[0], ended.text
    assert numbers(tmp_path / "demo") == numbers(uninterrupted)
