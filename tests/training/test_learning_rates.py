"""Tensors with a learning rate of their own, in a trainer: Adam's first step moves every element by the rate."""

from pathlib import Path

import pytest
from launch import run_on_ranks, written
from programs.learning_rates import RATES, STARTS

PROGRAM = Path(__file__).parents[1] / "programs" / "learning_rates.py"


@pytest.mark.ranks
def test_scaled_tensors_move_by_their_own_rate_and_a_name_of_none_is_refused(tmp_path):
    run_on_ranks(PROGRAM, 1, str(tmp_path / "found.json"))
    found = written(tmp_path / "found.json")
    assert "training.scaled_tensors: no trained tensor's name begins with 'method.nothing'" in found["refused"]
    for rate, moved in zip(RATES, found["moved"], strict=True):
        wanted = {name: rate * (0.5 if name.startswith(tuple(STARTS)) else 1.0) for name in moved}
        assert all(0.9 * wanted[name] < moved[name] < 1.1 * wanted[name] for name in moved), (moved, wanted)
        assert len(set(wanted.values())) == 2
