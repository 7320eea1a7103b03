"""What torch's flight recorder says of ranks that stand still."""

import pickle
import re
from pathlib import Path

import pytest
from launch import launch

from dsmemvp.fault_tolerance.flight_recorder import dump, open_collectives

PROGRAM = Path(__file__).parent.parent / "programs" / "standing_still.py"


def entry(group: str, number: int, state: str, retired: bool = False) -> dict:
    return {
        "process_group": [group, "default_pg"],
        "collective_seq_id": number,
        "profiling_name": "nccl:_all_gather_base",
        "input_sizes": [[1024]],
        "state": state,
        "retired": retired,
    }


def test_the_first_open_collective_of_every_group_is_named():
    entries = [entry("0", 7, "completed", True), entry("0", 8, "started"), entry("0", 9, "scheduled")]
    said = open_collectives({"entries": [*entries, entry("1", 3, "completed")]})
    assert said == (
        "group 0 default_pg: 9 collectives called, waits in number 8, nccl:_all_gather_base of [[1024]], started;"
        " group 1 default_pg: 3 collectives called, all done"
    )
    assert open_collectives({}) == "no collective recorded"


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    assert dump(tmp_path / "file", 0).startswith("not written (FileExistsError")


@pytest.mark.ranks
def test_ranks_that_stand_still_say_which_collective_they_wait_in(tmp_path):
    done = launch(PROGRAM, 2, str(tmp_path))
    assert done.returncode != 0
    assert "furthest behind: rank 1 on" in done.stdout, done.stdout
    numbers = {}
    for rank in (0, 1):
        (line,) = [line for line in done.stdout.splitlines() if f"collectives of rank {rank}:" in line]
        assert str(tmp_path / "collectives" / f"rank_{rank}") in line
        numbers[rank] = int(re.search(r"group 0 default_pg: (\d+) collectives", line)[1])
        (*_, last) = pickle.loads((tmp_path / "collectives" / f"rank_{rank}").read_bytes())["entries"]
        assert last["profiling_name"] == "gloo:all_reduce"
    assert numbers[0] == numbers[1] + 1
    assert re.search(r"collectives of rank 0: .* waits in number \d+, gloo:all_reduce of \[\[5, 2\]\]", done.stdout)
    assert "waits in" not in re.search(r"collectives of rank 1:.*", done.stdout)[0]
