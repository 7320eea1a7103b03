"""How an error in the data reaches all ranks, and what a start needs."""

import json
from collections.abc import Iterator

import pytest
import torch
from faulty import run

from dsmemvp.data.balancing import imbalance
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.errors import UserError


class Beside(Ranks):
    """This rank beside another one, which has no error or the given one at the second item."""

    other = ""

    def sums(self, *numbers: float) -> list[float]:
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        return [number + bool(self.other and self.calls == 2) for number in numbers]

    def gather(self, texts: list[str]) -> list[str]:
        return [*json.loads(json.dumps(texts)), self.other]


def _breaks_off(error: Exception | None) -> Iterator[int]:
    yield 1
    if error:
        raise error
    yield 2


@pytest.mark.parametrize("error", [UserError("bad sample"), FileNotFoundError("x.tar is gone"), OSError("disk error")])
def test_an_error_of_this_rank_is_told_to_all_before_it_ends_this_one(error):
    ranks, seen = Beside(0, 2, torch.device("cpu")), []
    with pytest.raises(type(error) if type(error) is UserError else OSError, match=str(error)):
        for item in ranks.in_step(_breaks_off(error)):
            seen.append(item)
    assert seen == [1] and ranks.calls == 2


def test_an_error_of_another_rank_ends_this_one_at_the_same_item():
    ranks, seen = Beside(0, 2, torch.device("cpu")), []
    ranks.__dict__["other"] = json.dumps([True, 28, "the other's disk error"])
    with pytest.raises(OSError, match=r"^the other's disk error$") as raised:
        for item in ranks.in_step(_breaks_off(None)):
            seen.append(item)
    assert seen == [1] and raised.value.errno == 28


def test_the_imbalance_is_what_the_slowest_of_each_micro_step_costs_over_the_mean():
    assert imbalance([[4, 2], [4, 2]]) == 1
    # the first micro-step takes 6, the second 3, where 5 and 2.5 would do
    assert imbalance([[6, 2], [4, 3]]) == pytest.approx(9 / 7.5)


@pytest.mark.ranks
def test_a_start_needs_no_compiler_and_no_lock_of_a_build_holds_it_up(small_run, tmp_path):
    """DeepSpeed would compile an operator that training does not use, and a process that was killed while it did so
    leaves torch's lock to all later starts."""
    lock = tmp_path / "extensions" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    places = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"), "PATH": str(tmp_path)}
    settings = [f"output={tmp_path}", "training.stop_at_step=1", "data.record_order=false"]
    done = run(["train", *small_run, *settings], tmp_path / "logs", **places)
    assert done.codes == [0, 0], done.text
    assert [path for path in (tmp_path / "extensions").rglob("*") if path.is_file()] == [lock]
