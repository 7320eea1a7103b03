"""Random faults, one after another, for minutes here and for hours with `make soak HOURS=n`."""

import os
import random
import time

import pytest
from soak import Soak

LEAST, MINUTES = 30, 3.5


@pytest.mark.faults
def test_runs_end_as_if_nothing_had_been(small_run, uninterrupted, tmp_path):
    seed = os.environ.get("SOAK_SEED") or f"{time.time_ns()}"
    hours = float(os.environ.get("SOAK_HOURS") or 0)
    limit = time.monotonic() + (hours * 3600 or MINUTES * 60)
    print(f"seed {seed}: repeat with `make soak SEED={seed}`")
    soak = Soak(["train", *small_run], uninterrupted, tmp_path, random.Random(seed))
    # the shorter of both here; with hours given, all of them
    soak.until(lambda s: time.monotonic() > limit or (not hours and s.faults.total() >= LEAST))
    print(f"{soak.faults.total()} faults in {soak.runs} runs: {dict(sorted(soak.faults.items()))}")
    assert soak.faults.total() >= LEAST
