"""Scores of captions against what the official programs printed (tests/record_captions.py), and without them."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dsmemvp.errors import UserError
from dsmemvp.evaluation import captions
from dsmemvp.evaluation.captions import CAPTION_COLUMNS, bleu_formula, caption_scores, missing
from dsmemvp.evaluation.meteor import meteor_formula, meteor_sums
from dsmemvp.evaluation.ptb import split_caption
from dsmemvp.evaluation.scores import Prediction, scored

GOLDEN = Path(__file__).parent.parent / "golden"
RECORDED = json.loads((GOLDEN / "captions.json").read_text(encoding="utf-8"))
TEXTS = [image["caption"] for image in RECORDED["images"]]
REFERENCES = [image["references"] for image in RECORDED["images"]]
SPLIT = [json.loads(line) for line in (GOLDEN / "ptb.jsonl").read_text(encoding="utf-8").splitlines()]

needs_package = pytest.mark.skipif(importlib.util.find_spec("pycocoevalcap") is None, reason="needs pycocoevalcap")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")


@pytest.mark.parametrize("row", SPLIT, ids=lambda row: row["text"][:30])
def test_captions_are_split_as_the_official_tokeniser_splits_them(row):
    assert split_caption(row["text"]) == row["words"]


@needs_package
def test_scores_are_the_official_ones(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = caption_scores(TEXTS, REFERENCES)
    assert list(found) == ["CIDEr", "BLEU-4", "ROUGE-L"]
    for name, score in found.items():
        assert score.value == pytest.approx(100 * RECORDED["official"][name]), name
        assert score.low < score.value < score.high and score.samples == len(TEXTS), name


def test_meteor_is_counted_from_the_programs_counts_as_the_program_does():
    counts = np.array(RECORDED["meteor_counts"])
    whole = (counts[:, 20] == 1) & (counts[:, 21] == counts[:, 0]) & (counts[:, 22] == counts[:, 1])
    counts[whole, 20] = 0
    assert meteor_formula(counts.sum(0)) == pytest.approx(100 * RECORDED["official"]["METEOR"])


def test_meteor_worked_out_by_hand():
    """ "a man rides a wave" against "a man riding a wave on a surfboard": man and wave are content words that match, a
    and a function words, rides and riding match by stem; all in one run."""
    counts = np.array([5, 8, 2, 4, 2, 2, 2, 2, 1, 1, *[0] * 10, 1, 5, 5], dtype=float)
    matched = 0.75 * 2 + 0.25 * 2 + 0.6 * 0.75
    precision, recall = matched / (0.75 * 3 + 0.25 * 2), matched / (0.75 * 4 + 0.25 * 4)
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert meteor_formula(counts) == pytest.approx(100 * mean * (1 - 0.6 * (1 / 5) ** 0.2))
    assert meteor_formula(np.zeros(23)) == 0


@needs_package
@needs_java
def test_meteor_comes_from_the_official_program():
    found = caption_scores(TEXTS, REFERENCES)
    assert list(found) == list(CAPTION_COLUMNS)
    assert found["METEOR"].value == pytest.approx(100 * RECORDED["official"]["METEOR"])
    assert found["METEOR"].low < found["METEOR"].value < found["METEOR"].high


@needs_package
def test_texts_cannot_break_out_of_their_line_for_meteor(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\ncat > {tmp_path}/read\nfor i in 1 2; do echo {'1 ' * 23}; done\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert meteor_sums(["a ||| b\nc", ""], [["d  ", "e\u00a0f"], ["é"]]).shape == (2, 23)
    assert (tmp_path / "read").read_text(encoding="utf-8") == "SCORE ||| d ||| e f ||| a b c\nSCORE ||| é ||| \n"


@needs_package
def test_signals_to_all_processes_of_a_task_do_not_end_meteor(monkeypatch, tmp_path):
    """Slurm's scancel sends them to helpers of a rank as well, which leave them to the rank."""
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\nkill -QUIT $$; kill -USR2 $$; kill -TERM $$; kill -INT $$\necho {'1 ' * 23}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert meteor_sums(["a"], [["a"]]).shape == (1, 23)


@needs_package
def test_a_meteor_that_does_not_run_through_is_said_and_the_other_scores_come(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho Could not reserve enough space >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    said = r"exit code 1.*Could not reserve enough space"
    with pytest.raises(UserError, match=said):
        meteor_sums(["a"], [["a"]])
    with pytest.warns(UserWarning, match=said):
        assert list(caption_scores(["a"], [["a"]])) == ["CIDEr", "BLEU-4", "ROUGE-L"]


def test_bleu_worked_out_by_hand():
    """Six words for references of eight; 5, 3, 2 and 1 of the n-grams are right: exp(1 - 8/6) times the fourth root of
    5/6 * 3/5 * 2/4 * 1/3."""
    sums = np.array([6, 8, 6, 5, 4, 3, 5, 3, 2, 1], dtype=float)
    expected = np.exp(1 - 8 / 6) * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu_formula(sums) == pytest.approx(100 * expected)
    longer = np.array([9, 8, 9, 8, 7, 6, 5, 3, 2, 1], dtype=float)
    assert bleu_formula(longer) == pytest.approx(100 * (5 / 9 * 3 / 8 * 2 / 7 * 1 / 6) ** 0.25)
    assert bleu_formula(np.array([0, 8, *[0] * 8], dtype=float)) == 0


@needs_package
def test_bleu_takes_the_length_of_the_closest_reference_and_of_two_the_shorter(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    references = [["a b c d e f g h i", "a b c", "a b c d e f"], ["a b c d e f", "a b c d e f g h"]]
    found = caption_scores(["a b c d e", "a b c d e f g"], references)["BLEU-4"]
    assert found.value == pytest.approx(100)  # 12 words for references of 6 (not 3) and 6 (not 8): not too short
    found = caption_scores(["a b c d e", "a b c d e"], references)["BLEU-4"]
    assert found.value == pytest.approx(100 * np.exp(1 - 12 / 10))


@needs_package
def test_empty_captions_and_a_single_image_have_scores(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for texts in (["", ""], ["...", "a cat."]):
        for score in caption_scores(texts, [["A cat."], ["A dog.", "!"]]).values():
            assert 0 <= score.low <= score.value <= score.high
    # CIDEr weighs a word by how few images have it: of one image, all have all
    assert caption_scores(["a cat"], [["a cat"]])["CIDEr"].value == 0


def test_what_is_missing_is_said_and_the_rest_is_scored(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = missing()
    assert len(said) == 1 and "pip install 'dsmemvp[captions]'" in said[0] and "CIDEr, BLEU-4" in said[0]
    mixed = [
        Prediction(0, "0", "caption", "a cat", "a cat", ("a cat",), ()),
        Prediction(1, "1", "open", "yes", "yes", ("yes",), ("IMG",)),
    ]
    assert set(scored(mixed)) == {"IMG", "Avg"}


@needs_package
def test_java_alone_missing_is_said(monkeypatch):
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    (said,) = missing()
    assert "METEOR needs Java" in said and "default-jre-headless" in said and "CIDEr" not in said


@needs_package
@needs_java
def test_nothing_missing_is_not_spoken_of():
    assert missing() == []
