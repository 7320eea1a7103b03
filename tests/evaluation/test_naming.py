"""Names of an evaluation's files: whatever two evaluations of a run differ by, they write to different ones."""

import itertools

import pytest

from dsmemvp.evaluation.naming import checkpoint_name, file_suffix


@pytest.fixture
def names(tmp_path):
    """What a checkpoint may be, and names of it."""
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run / "checkpoints" / "step-00000006", other / "step-00000006", other / "best", other / "blind"):
        folder.mkdir(parents=True)
    for folder in (other, other / "best"):
        (folder / "trained.safetensors").touch()
    given = [
        (None, False, "0" * 64),
        (None, True, "1" * 64),
        (run / "checkpoints" / "step-00000006", False, "2" * 64),
        (other / "step-00000006", False, "3" * 64),
        (other / "best", False, "4" * 64),
        (other / "blind", False, "5" * 64),
        (other / "trained.safetensors", False, "6" * 64),
        (other / "best" / "trained.safetensors", False, "7" * 64),
    ]
    return [checkpoint_name(run, path, best, digest) for path, best, digest in given]


def test_a_checkpoint_from_elsewhere_has_its_digest_behind_its_name(names):
    assert names[:3] == ["", "best", "step-00000006"]
    assert names[3:6] == ["step-00000006-33333333", "best-44444444", "blind-55555555"]
    assert names[6:] == ["trained-66666666", "trained-77777777"]


def test_no_two_evaluations_share_a_file(names):
    captions = ([False, True], [False], [True])
    every = list(itertools.product(names, ("test", "validation"), captions, ("generate", "likelihood"), (False, True)))
    assert len({file_suffix(*given) for given in every}) == len(every)


def test_the_plain_name_is_that_of_the_newest_on_the_test_data():
    assert file_suffix("", "test", [True, False], "generate", False) == ""
    assert file_suffix("best", "validation", [False], "likelihood", True) == (
        "-best-validation-captions-off-likelihood-blind"
    )
