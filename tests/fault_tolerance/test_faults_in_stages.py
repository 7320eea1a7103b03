"""A run of several stages, of different towers, trainables and losses, whose ranks are killed once in every stage and
between two: it gets to its end as if nothing had been."""

import re
from pathlib import Path

import pytest
from faulty import Ended, Ranks, rows

KILLED = -9
STAGES = ("text", "align", "generate", "finetune")
ENDS = (3, 6, 9, 15)
"""The last steps of the stages."""
DAY = [
    ("update:KILL:6", 1, 2, "text"),  # between the two parts of the third update
    ("loading:KILL:2", 0, 3, "align"),  # while the model of the next stage is being built
    ("update:KILL:6", 0, 4, "align"),
    ("forward:KILL:6", 1, 8, "generate"),  # of the sixth: by the teacher, before step 9
    ("backward:KILL:4", 0, 10, "finetune"),
]
"""(fault, rank, the last step that is saved when it happens, the stage that it happens in)"""


@pytest.mark.faults
def test_killed_in_every_stage_a_run_has_all_losses_of_one_that_was_not(pformer_run, tmp_path):
    arguments = ["train", *pformer_run, "training.checkpoint_steps=2", "data.record_order=true"]
    done = _run([*arguments, f"output={tmp_path / 'whole'}"], tmp_path / "logs-whole")
    assert done.codes == [0, 0], done.text
    whole, parts = tmp_path / "whole" / "pformer", tmp_path / "parts" / "pformer"
    lines = rows(whole, "metrics")
    trained = {row["step"]: row["stage"] for row in lines if "loss/train" in row}
    assert list(trained) == list(range(1, ENDS[-1] + 1))
    assert [trained[end] for end in ENDS] == [*STAGES] and [trained[end + 1] for end in ENDS[:-1]] == [*STAGES[1:]]

    saved = 0
    for fault, rank, last, stage in DAY:
        ended = _run([*arguments, f"output={parts.parent}"], tmp_path / "logs", fault, rank)
        assert ended.codes == ([KILLED, 70] if rank == 0 else [70, KILLED]), f"{fault}\n{ended.text}"
        found = re.search(r"resuming after step (\d+)", ended.said[0])
        assert (int(found[1]) if found else 0) == saved, ended.text
        if "loading" not in fault:
            assert re.findall(r"stage (\w+): steps", ended.said[0])[-1] == stage, ended.text
        saved = last
    ended = _run([*arguments, f"output={parts.parent}"], tmp_path / "logs")
    assert ended.codes == [0, 0] and f"resuming after step {saved}" in ended.said[0], ended.text
    assert "stage generate" not in ended.said[0]

    assert _of_training(rows(parts, "metrics")) == _of_training(lines)
    assert rows(parts, "order") == rows(whole, "order")
    for end in ENDS:
        name = f"checkpoints/step-{end:08d}/trained.safetensors"
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), end


def _run(arguments: list[str], folder: Path, fault: str = "", on: int = 1) -> Ended:
    with Ranks(arguments, folder, fault, on) as ranks:
        return ranks.ended(600)  # four models are built, one after another


def _of_training(lines: list[dict]) -> list[dict]:
    """What has nothing to do with time and memory."""
    return [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in lines]
