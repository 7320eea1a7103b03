"""Worker processes of the loader end with the rank, and tell of their bugs."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil


def test_workers_do_not_outlive_a_rank_that_is_killed(shards, collator, tmp_path):
    program = f"""
import time
from pathlib import Path
from dsmemvp.data.layout import Reserved
from dsmemvp.data.collator import Collator
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.token_counts import count_tokens
from dsmemvp.data.loader import Balancing, Share, evaluation_steps
from dsmemvp.data.manifest import read_manifest
if __name__ == "__main__":
    collator = {collator!r}
    steps = evaluation_steps(read_manifest(Path({str(shards.location)!r})), collator, Share(0, 1, 1), 2)
    next(steps)
    print("reading", flush=True)
    time.sleep(60)
"""
    (tmp_path / "rank.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OF_THIS_TEST": str(tmp_path)}
    command = [sys.executable, str(tmp_path / "rank.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout.readline() == "reading\n"
        assert len(_processes(tmp_path)) >= 4  # with the server and two workers
        rank.kill()
    end = time.monotonic() + 20
    while _processes(tmp_path):
        assert time.monotonic() < end, _processes(tmp_path)
        time.sleep(0.1)


def _processes(mark: Path) -> list[str]:
    """The processes that have it in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("OF_THIS_TEST") == str(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def test_a_bug_in_a_worker_ends_the_run_with_its_traceback(demo_shards, tokenizer_path):
    """Python waits for its workers at exit, and these ignore SIGTERM; the traceback keeps their loader alive."""
    script = Path(__file__).with_name("buggy.py")
    command = [sys.executable, str(script), str(demo_shards), str(tokenizer_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "'Buggy' object has no attribute 'misspelt'" in ended.stderr
    assert 'buggy.py", line 19, in batch' in ended.stderr
