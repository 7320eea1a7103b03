"""`dsmemvp evaluate` as a whole, of models that write what they are told, and `dsmemvp score` of what it leaves."""

import json
import logging
import shutil

import pytest
import torch
from bigram import write_bigram_model
from making import fields

from data_prep.shards import Row, write_shards
from data_prep.tokenizer import train_tokenizer
from dsmemvp.cli import main as cli
from dsmemvp.data.tokenizer import Tokenizer

OPEN = {"choices": None, "answer": "red", "subject": None, "grade": None}


@pytest.fixture
def small_letters(tmp_path):
    """A tokenizer without capital letters among its pieces: it writes them in bytes."""
    texts = (f"question: which one is {i}? the answer is {i}. red green blue" for i in range(200))
    train_tokenizer(texts, tmp_path / "small.model", vocabulary=310)
    return tmp_path / "small.model"


@pytest.fixture
def evaluate(tmp_path, recipe_path, repository, monkeypatch, capfd):
    """Evaluates, in this process, a language model that writes `text`; returns what is printed."""
    from dsmemvp.distributed import ranks

    monkeypatch.setattr(ranks, "join_ranks", lambda seconds, stop: ranks.Ranks(0, 1, torch.device("cpu")))
    monkeypatch.delenv("RANK", raising=False)

    def evaluate(tokenizer, text, rows, *more):
        write_shards((Row(f"r{i}", row, None) for i, row in enumerate(rows)), tmp_path / "test", "test", per_shard=4)
        model = write_bigram_model(tmp_path / "bigram", Tokenizer(tokenizer), text)
        settings = [f"model.language_model={model}", f"model.tokenizer={tokenizer}", "method.name=none"]
        settings += [f"data.test={tmp_path / 'test'}", "data.max_length=400", "model.dtype=fp32"]
        settings.append(f"training.deepspeed={repository / 'ds_configs' / 'replicated.json'}")
        capfd.readouterr()
        code = cli.main(["evaluate", str(recipe_path), *settings, *more])
        out, err = capfd.readouterr()
        assert code == 0, err
        return out, err

    evaluate.run = tmp_path / "runs" / "tiny"
    return evaluate


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_letters_of_several_tokens_are_decoded_whole(evaluate, small_letters):
    """A model that always writes the right letter has 100 %, by either protocol, each in files of its own."""
    rows = [fields(i, choices=["x", "y", "z"][: 2 + i % 2], answer=1) for i in range(5)]
    out, err = evaluate(small_letters, " B.", rows)
    assert err == "" and out.count(" 100.00 ±0.00 |") == 2 and "name none of their choices" not in out
    before = {path.name: path.read_bytes() for path in evaluate.run.glob("*.json*")}
    assert set(before) == {"evaluation.json", "predictions.jsonl"}
    assert {row["text"] for row in rows_of(evaluate.run / "predictions.jsonl")} == {"B"}
    out, _ = evaluate(small_letters, " B.", rows, "evaluation.protocol=likelihood")
    assert out.count(" 100.00 ±0.00 |") == 2
    assert "written: evaluation-likelihood.json and predictions-likelihood.jsonl in " in out
    after = {path.name: path.read_bytes() for path in evaluate.run.glob("*.json*")}
    assert set(after) - set(before) == {"evaluation-likelihood.json", "predictions-likelihood.jsonl"}
    assert before.items() <= after.items()


def test_answers_that_name_no_choice_are_counted_beside_the_score(evaluate, small_letters, capfd):
    out, _ = evaluate(small_letters, " red.", [fields(i) for i in range(4)], "evaluation.captions=[false]")
    assert "captions off: 4 of 4 answers name none of their choices" in out
    assert json.loads((evaluate.run / "evaluation-captions-off.json").read_text())["unread"] == {"captions off": 4}


def test_answers_that_were_cut_are_marked_and_counted(evaluate, small_letters, capfd):
    long = {**OPEN, "answer": "red green blue"}
    rows = [fields(0), fields(1, **long), fields(2, **long, task="conversation")]
    out, _ = evaluate(small_letters, " dbgk", rows, "evaluation.max_new_tokens=1", "evaluation.captions=[false]")
    said = "captions off: 1 of 2 answers were cut at evaluation.max_new_tokens=1"
    assert said in out.splitlines()
    path = evaluate.run / "predictions-captions-off.jsonl"
    choice, cut, free = rows_of(path)
    assert cut["cut"] == "evaluation.max_new_tokens=1" and "cut" not in choice and "cut" not in free
    assert json.loads((evaluate.run / "evaluation-captions-off.json").read_text())["cut"] == {"captions off": 1}
    assert cli.main(["score", str(path)]) == 0
    assert said in capfd.readouterr().out.splitlines()

    out, _ = evaluate(small_letters, " dbgk", rows, "evaluation.max_new_tokens=6", "evaluation.captions=[false]")
    assert "were cut" not in out and not any("cut" in row for row in rows_of(path))


def test_libraries_do_not_print_into_what_is_said(evaluate, small_letters):
    """transformers would, of a text that is longer than the positions in the model's configuration."""
    said = []
    handler = logging.Handler()
    handler.emit = said.append
    logging.getLogger("transformers").addHandler(handler)
    try:
        rows = [fields(0, **OPEN, context="a b c d e " * 120)]
        out, err = evaluate(small_letters, " dbgk", rows, "data.max_length=900", "--blind")
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert said == [] and err == "" and "captions off, blind" in out


def test_other_data_do_not_take_the_place_of_what_was_scored(evaluate, tokenizer_path):
    rows = [fields(i, choices=["x", "y"], answer=1) for i in range(6)]
    evaluate(tokenizer_path, " B.", rows)
    (evaluate.run.parent.parent / "test" / "dataset.json").unlink()
    before = {path.name: path.read_bytes() for path in evaluate.run.glob("*.json*")}
    out, _ = evaluate(tokenizer_path, " B.", rows[:3])
    assert {name: (evaluate.run / name).read_bytes() for name in before} == before
    (other,) = evaluate.run.glob("evaluation-data-*.json")
    assert json.loads(other.read_text())["samples"] == 3 and f"written: {other.name}" in out
    evaluate(tokenizer_path, " B.", rows[:3])  # the same again, in the same files
    assert len(list(evaluate.run.glob("evaluation*.json"))) == 2


def test_a_model_that_has_diverged_is_told_and_no_answer_of_it_is_kept(evaluate, small_letters, tmp_path):
    from safetensors.torch import load_file, save_file

    rows = [fields(i, **OPEN) for i in range(3)]
    evaluate(small_letters, " red.", rows)
    tensors = load_file(tmp_path / "bigram" / "model.safetensors")
    poisoned = shutil.copytree(tmp_path / "bigram", tmp_path / "poisoned")
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, poisoned / "model.safetensors")
    with pytest.raises(AssertionError, match=r"the model's outputs are not finite; its training has diverged"):
        evaluate(small_letters, " red.", rows, f"model.language_model={poisoned}", "name=poisoned")
    assert not list((tmp_path / "runs" / "poisoned").glob("predictions*"))
