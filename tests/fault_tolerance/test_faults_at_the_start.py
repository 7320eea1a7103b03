"""Bad days before the first step: signals while ranks start, and strangers at the port of the heartbeat server."""

import itertools
import os
import re
import signal
import time

import pytest
from faulty import Ranks, numbers, run
from strangers import KINDS, closed, intrude

STRANGERS = 1000


@pytest.mark.ranks
def test_a_rank_that_waits_for_another_prints_stacks_and_ends_when_it_is_asked(small_run, tmp_path):
    with Ranks(["train", *small_run, f"output={tmp_path}"], tmp_path / "logs", fault="join:STOP:1", on=1) as ranks:
        ranks.until_said(1, "fault: STOP")
        for _ in range(100):
            os.kill(ranks.processes[0].pid, signal.SIGQUIT)
            time.sleep(0.2)
            if "dsmemvp/distributed/rendezvous.py" in ranks.said(0):
                break
        os.kill(ranks.processes[0].pid, signal.SIGTERM)
        ranks.until_said(0, "TERM: nothing to save yet, ending all ranks", limit=5)
        os.kill(ranks.processes[1].pid, signal.SIGCONT)
        ended = ranks.ended()
    assert ended.codes == [75, 75], ended.text
    assert "most recent call first" in ended.said[0] and "Traceback" not in ended.text


@pytest.mark.faults
@pytest.mark.parametrize("asked", [0, 1])
def test_asked_while_a_rank_loads_for_long_all_end_soon(small_run, tmp_path, asked):
    with Ranks(["train", *small_run, f"output={tmp_path}"], tmp_path / "logs", fault="loading:hang:1", on=1) as ranks:
        ranks.until_said(1, "fault: hang")
        os.kill(ranks.processes[asked].pid, signal.SIGTERM)
        began = time.monotonic()
        ended = ranks.ended()
    assert ended.codes == [75, 75] and time.monotonic() - began < 30, ended.text
    assert "TERM: nothing to save yet, ending all ranks" in ended.said[asked]
    for said in ended.said:
        assert re.search(rf"rank {asked} on \S+ was asked to end, with nothing to save yet", said)


@pytest.mark.faults
def test_quit_while_a_rank_starts_prints_stacks_and_the_run_goes_on(small_run, tmp_path):
    arguments = ["train", *small_run, f"output={tmp_path}", "training.stop_at_step=1"]
    ended = run(arguments, tmp_path / "logs", "import:QUIT:1", fresh=True)
    assert ended.codes == [0, 0], ended.text
    assert "most recent call first" in ended.said[1] and list(numbers(tmp_path / "demo")) == [1]


@pytest.mark.faults
def test_a_thousand_strangers_of_every_kind_change_nothing(small_run, uninterrupted, tmp_path):
    """They come while rank 0 waits for rank 1 at its heartbeat server, and stay."""
    with Ranks(["train", *small_run, f"output={tmp_path}"], tmp_path / "logs", fault="connect:STOP:1", on=1) as ranks:
        ranks.until_said(1, "fault: STOP")
        address, port = re.search(r"heartbeat server: (\S+) (\d+)", ranks.said(1)).groups()
        kinds = itertools.islice(itertools.cycle(KINDS), STRANGERS)
        strangers = [intrude((address, int(port)), kind) for kind in kinds]
        os.kill(ranks.processes[1].pid, signal.SIGCONT)
        refused = False
        while not refused and len(strangers) < 2 * STRANGERS:
            try:
                strangers.append(intrude((address, int(port)), "silent"))
                time.sleep(0.01)
            except ConnectionRefusedError:
                refused = True
        ended = ranks.ended()
    assert refused and all(map(closed, strangers))
    assert ended.codes == [0, 0] and "Traceback" not in ended.text, ended.text
    for name in ("train/loss", "validation/loss"):
        assert numbers(tmp_path / "demo", name) == numbers(uninterrupted, name)
