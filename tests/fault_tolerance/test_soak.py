"""Random faults, one after another: some here, and for hours with `make soak HOURS=n`."""

import os
import random
import time

import pytest
from soak import Soak

LEAST = 30


@pytest.mark.faults
def test_runs_end_as_if_nothing_had_been(small_run, uninterrupted, tmp_path):
    seed = os.environ.get("SOAK_SEED") or f"{time.time_ns()}"
    hours = float(os.environ.get("SOAK_HOURS") or 0)
    limit = time.monotonic() + hours * 3600
    print(f"seed {seed}: repeat with `make soak SEED={seed}`")
    soak = Soak(["train", *small_run], uninterrupted, tmp_path, random.Random(seed))
    soak.until(lambda s: time.monotonic() > limit if hours else s.faults.total() >= LEAST)
    print(f"{soak.faults.total()} faults in {soak.runs} runs: {dict(sorted(soak.faults.items()))}")
    assert soak.faults.total() >= LEAST
