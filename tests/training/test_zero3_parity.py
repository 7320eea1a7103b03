"""The recorded gradients again, with the model partitioned by ZeRO-3 over one and two ranks."""

import json
from pathlib import Path

import pytest
from launch import run_on_ranks, written
from mitp_encoders_recording import EncodersRecording
from mitp_recording import MitpRecording
from reference import Recording

from dsmemvp.backbones.recompute import KEPT

PROGRAM = Path(__file__).parent.parent / "programs" / "zero3_parity.py"
ZERO3 = Path(__file__).parent.parent.parent / "ds_configs" / "zero3.json"


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_under_zero3_are_the_recorded_ones(shared, tmp_path, ranks):
    recording = Recording(shared, tmp_path)
    recording.write(shared)
    mitp = MitpRecording(shared, tmp_path / "mitp")
    mitp.write()
    encoders = EncodersRecording(shared, tmp_path / "encoders")
    encoders.write()
    settings = json.loads(ZERO3.read_text())
    # nothing stays resident: every parameter is gathered for use and released
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "zero3.json").write_text(json.dumps(settings))
    out = tmp_path / "findings.json"
    run_on_ranks(PROGRAM, ranks, str(tmp_path), str(shared), str(tmp_path / "zero3.json"), str(out))
    found = written(out)

    assert found["values_kept"]
    assert found["whole"] / ranks <= found["held"] < found["whole"] / ranks + 500  # padding
    assert 0 < found["features_error"] < 1e-5
    assert 0 < found["logits_error"] < 1e-5
    for name in ("none", *KEPT):
        assert abs(found[f"{name}_loss"] - recording.tensors["out.loss"].item()) < 1e-5
        assert len(found[f"{name}_errors"]) == 10
        assert max(found[f"{name}_errors"].values()) < 1e-4, found[f"{name}_errors"]
    for norm, name in zip(found["norm"], ("none", *KEPT), strict=True):
        assert norm == pytest.approx(found[f"{name}_recorded_norm"], rel=1e-4)
    # no policy gathers a weight of the decoder more often than another: once for the forward and at most once more for
    # the backward; `full` runs the vision tower's blocks again, which are not gathered as one since they train adapters
    none, *others, full = found["gathered"]
    assert others == [none] * len(others) and none <= full <= 1.1 * none
    assert ranks == 1 or found["whole"] < none <= 2 * found["whole"] + 500, none / found["whole"]
    without = found["without_images"]
    assert without["method.value_positions"] > 0
    for name, largest in without.items():
        if name.startswith(("vision.", "method.projector.")):
            assert largest == 0, name
    check_mitp(found["mitp"], mitp)
    check_encoders(found["encoders"], encoders)


def check_mitp(found: dict, recording: MitpRecording) -> None:
    assert 0 < found["logits_error"] < 1e-4
    for name in ("none", *KEPT):
        assert abs(found[f"{name}_loss"] - recording.tensors["out.loss"].item()) < 1e-5
        assert len(found[f"{name}_errors"]) == 11
        assert max(found[f"{name}_errors"].values()) < 1e-4, found[f"{name}_errors"]
    # no rank has an image: the hub's gradients are there, and zero, not the last ones
    assert {name for name, largest in found["without_images"].items() if largest} == {"method.text_prompt"}
    assert found["decoded"]


def check_encoders(found: dict, recording: EncodersRecording) -> None:
    assert abs(found["loss"] - recording.tensors["out.cross_entropy"].item()) < 1e-5
    assert found["errors"].keys() == recording.gradients().keys()
    assert max(found["errors"].values()) < 1e-4, found["errors"]
    # without images what they alone bring has a gradient of zero, not the last one
    still = {name for name, largest in found["without_images"].items() if largest}
    assert still == {"method.text_prompt", "method.classifier.head.weight", "method.classifier.head.bias"}
