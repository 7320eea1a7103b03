"""Master weights and moments, set and gathered on several ranks under every ZeRO stage."""

from pathlib import Path

import pytest
from launch import run_on_ranks, written

PROGRAM = Path(__file__).parent.parent / "programs" / "gathered.py"


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 3])
def test_what_is_gathered_is_what_was_set_and_trained(tmp_path, ranks):
    run_on_ranks(PROGRAM, ranks, str(tmp_path / "findings.json"))
    findings = written(tmp_path / "findings.json")
    assert len(findings) == 6
    for which, found in findings.items():
        assert found["updates"] == 7 and found["trained"] == 5, which
        assert found["values_differ_on"] == found["gathered_differ"] == found["from_deepspeeds_differ"] == 0, which
        assert found.get("moved", 0) == 0, which  # the same buffers each time
