"""Full disks, damaged checkpoints, numbers that are not finite, errors of one rank, requests: on two ranks."""

import contextlib
import json
import os
import re
import shutil
import signal

import pytest
import torch
from faulty import Ranks, numbers, rows, run, steps
from mounting import tmpfs
from safetensors.torch import load_file, save_file

MIB = 1 << 20


def _fill(folder):
    """A file that takes all the room there is."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    return folder / "filler"


@pytest.mark.faults
def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_no_line(small_run, uninterrupted, tmp_path):
    with tmpfs(tmp_path / "full", 8) as folder:
        slow = ["train", *small_run, f"output={folder}"]
        # it waits in step 6 and in step 9, until it is continued
        with Ranks(slow, tmp_path / "logs", fault="reading:STOP:6,reading:STOP:9", on=1) as ranks:
            ranks.until_said(1, "fault: STOP")
            ranks.until_said(0, "step 4: saved")
            filler = _fill(folder)
            os.kill(ranks.processes[1].pid, signal.SIGCONT)
            ranks.until_said(0, "step 8: no checkpoint, the one before stays")
            ranks.until_said(1, "fault: STOP\nfault: STOP")
            filler.unlink()
            os.kill(ranks.processes[1].pid, signal.SIGCONT)
            ended = ranks.ended()
        assert ended.codes == [0, 0], ended.text
        assert "continuing without the last checkpoint: " in ended.said[0] and "No space left" in ended.said[0]
        run_folder = folder / "demo"
        assert steps(run_folder) == [4, 10, 12]
        assert numbers(run_folder) == numbers(uninterrupted)
        assert rows(run_folder, "order") == rows(uninterrupted, "order")


@pytest.mark.faults
def test_a_disk_that_stays_full_ends_the_run_which_goes_on_when_there_is_room(small_run, uninterrupted, tmp_path):
    with tmpfs(tmp_path / "full", 8) as folder:
        arguments = ["train", *small_run, f"output={folder}"]
        with Ranks(arguments, tmp_path / "logs", fault="reading:STOP:6", on=1) as ranks:
            ranks.until_said(1, "fault: STOP")
            ranks.until_said(0, "step 4: saved")
            filler = _fill(folder)
            os.kill(ranks.processes[1].pid, signal.SIGCONT)
            ended = ranks.ended()
        assert ended.codes == [70, 70], ended.text
        assert re.search(r"rank 0 on \S+ \(after step 12, saving .*failed: .*No space left", ended.text), ended.text
        assert steps(folder / "demo") == [2, 4]
        filler.unlink()
        ended = run(arguments, tmp_path / "logs")
        assert ended.codes == [0, 0] and "resuming after step 4" in ended.said[0], ended.text
        assert numbers(folder / "demo") == numbers(uninterrupted)


def _damaged(path, how):
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        content[:middle] + (bytes([content[middle] ^ 4]) + content[middle + 1 :] if how == "flipped" else b"")
    )


@pytest.mark.faults
def test_the_one_before_a_damaged_checkpoint_is_taken_and_it_is_said(small_run, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "demo")
    saved = tmp_path / "demo" / "checkpoints"
    _damaged(saved / "step-00000012" / "optimizer.safetensors", "flipped")
    _damaged(saved / "step-00000010" / "trained.safetensors", "cut")
    ended = run(["train", *small_run, f"output={tmp_path}"], tmp_path / "logs")
    assert ended.codes == [0, 0] and "resuming after step 8" in ended.said[0], ended.text
    assert re.search(
        r"step-00000012/optimizer\.safetensors is damaged.*the checkpoint before it is taken", ended.said[0]
    )
    assert re.search(r"step-00000010/trained\.safetensors is damaged.*the checkpoint before it is taken", ended.said[0])
    assert numbers(tmp_path / "demo") == numbers(uninterrupted)
    assert rows(tmp_path / "demo", "order") == rows(uninterrupted, "order")


@pytest.mark.faults
def test_another_base_is_refused(small_run, uninterrupted, tiny_models, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "demo")
    shutil.rmtree(tmp_path / "demo" / "checkpoints" / "step-00000012")
    shutil.copytree(tiny_models / "language_model", tmp_path / "other")
    (path,) = (tmp_path / "other").glob("*.safetensors")
    tensors = {name: tensor + 1e-3 for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    for command in ("train", "evaluate"):
        arguments = [command, *small_run, f"output={tmp_path}", f"model.language_model={tmp_path / 'other'}"]
        ended = run(arguments, tmp_path / "logs")
        assert ended.codes == [1, 1], ended.text
        assert re.search(r"error: model\.language_model: .*step-00000010 was trained on another one", ended.said[0])
        assert "Traceback" not in ended.text


@pytest.mark.faults
def test_a_touched_file_asks_for_a_checkpoint_and_quit_for_stack_traces(small_run, uninterrupted, tmp_path):
    arguments = ["train", *small_run, f"output={tmp_path}", "training.checkpoint_steps=0"]
    with Ranks(arguments, tmp_path / "logs", fault="reading:STOP:4", on=0) as ranks:
        ranks.until_said(0, "fault: STOP")
        (tmp_path / "demo" / "save").touch()
        os.kill(ranks.processes[1].pid, signal.SIGQUIT)
        ranks.until_said(1, "most recent call first")
        os.kill(ranks.processes[0].pid, signal.SIGCONT)
        ended = ranks.ended()
    assert ended.codes == [0, 0], ended.text
    assert "step 3: saved" in ended.said[0] and steps(tmp_path / "demo") == [3, 6, 12]
    assert not (tmp_path / "demo" / "save").exists()
    assert re.search(
        r'Current thread .*\n(  File .*\n)*  File ".*dsmemvp/training/loop\.py", line \d+ in ', ended.said[1]
    )
    assert numbers(tmp_path / "demo") == numbers(uninterrupted)


@pytest.mark.faults
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_loss_that_is_not_finite_on_one_rank_is_left_out_by_all(small_run, tmp_path, number):
    """Rank 1's second micro-step of step 4, in a run of one piece and in one that is interrupted after it."""
    once, parts = tmp_path / "once", tmp_path / "parts"
    ended = run(["train", *small_run, f"output={once}"], once / "logs", f"loss:{number}:8")
    assert ended.codes == [0, 0], ended.text
    said = "; nothing was updated (1 of 3 such steps that a run may have)"
    assert f"step 4: the loss is {number}{said}" in ended.said[0]
    losses = numbers(once / "demo")
    assert list(losses) == [1, 2, 3, *range(5, 13)] and all(map(torch.isfinite, map(torch.tensor, losses.values())))
    state = json.loads((once / "demo" / "checkpoints" / "step-00000012" / "state.json").read_text())
    assert (state["step"], state["updates"], state["not_finite"]) == (12, 11, 1)
    before, after = (
        load_file(once / "demo" / "checkpoints" / f"step-{n:08d}" / "trained.safetensors") for n in (8, 12)
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)

    ended = run(
        ["train", *small_run, f"output={parts}"], parts / "logs", f"loss:{number}:8,forward and backward:USR2:12"
    )
    assert ended.codes == [75, 75], ended.text
    ended = run(["train", *small_run, f"output={parts}"], parts / "logs")
    assert ended.codes == [0, 0] and "resuming after step 5" in ended.said[0], ended.text
    assert numbers(parts / "demo") == losses
    assert numbers(parts / "demo", "training/not_finite")[12] == 1.0


@pytest.mark.faults
def test_one_step_too_many_that_is_not_finite_ends_the_run_for_good(small_run, tmp_path):
    settings = [f"output={tmp_path}", "training.most_not_finite=1"]
    ended = run(["train", *small_run, *settings], tmp_path / "logs", "loss:nan:6,loss:nan:10")
    assert ended.codes == [1, 1] and "Traceback" not in ended.text, ended.text
    assert "step 5: the loss is nan; nothing was updated. 2 such steps are more than" in ended.said[0]
    assert steps(tmp_path / "demo") == [2, 4]


@pytest.mark.ranks
def test_an_error_of_one_rank_ends_all_and_says_whose_it_is(small_run, tmp_path):
    arguments = ["train", *small_run, f"output={tmp_path}"]
    ended = run(arguments, tmp_path / "logs", "backward:RuntimeError:6", 1)
    assert ended.codes == [70, 70], ended.text
    named = r"rank 1 on \S+ \(after step 2, forward and backward .*\) failed: RuntimeError: out of memory\n  rank 0: "
    assert re.search(named + "forward and backward at training/engine.py", ended.said[0]), ended.text
    assert "Traceback" in ended.said[1] and "Traceback" not in ended.said[0], ended.text
    for rank in (0, 1):
        ended = run(arguments, tmp_path / "logs", f"update:UserError:{2 + rank}", rank)
        assert ended.codes == [1, 1] and "error: this sample is odd" in ended.said[0], ended.text
        assert "Traceback" not in ended.text, ended.text


@pytest.mark.faults
def test_an_evaluation_is_watched_and_stopped_like_training(small_run, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "demo")
    arguments = ["evaluate", *small_run, f"output={tmp_path}"]
    died = r"rank 1 on \S+ \(after step 12, evaluating at .*\) died\n  rank 0: evaluating"
    for fault, on, codes, words in (
        ("evaluation:KILL:2", 1, [70, -9], died),
        ("evaluation:KILL:2", 0, [-9, 70], "rank 0 has died, or ended without a word\n  ending rank 1"),
        ("evaluation:USR2:2", 1, [75, 75], "USR2: ending after this batch"),
        ("loading:TERM:1", 0, [75, 75], "TERM: nothing to save yet"),
    ):
        ended = run(arguments, tmp_path / f"logs-{on}", fault, on)
        assert ended.codes == codes and re.search(words, ended.text), ended.text
        assert not (tmp_path / "demo" / "evaluation.json").exists()
    ended = run(arguments, tmp_path / "logs")
    assert ended.codes == [0, 0], ended.text
    assert json.loads((tmp_path / "demo" / "evaluation.json").read_text())["samples"] == 48


@pytest.mark.faults
def test_an_error_of_one_rank_in_a_validation_ends_all_and_keeps_what_was_trained(small_run, tmp_path):
    arguments = ["train", *small_run, f"output={tmp_path}", "training.keep_best=1", "training.best_by=score"]
    ended = run(arguments, tmp_path / "logs", fault="limit:UserError:1", on=1)
    assert ended.codes == [1, 1] and "error: this sample is odd" in ended.said[1], ended.text
    assert steps(tmp_path / "demo")[-1] == 6
