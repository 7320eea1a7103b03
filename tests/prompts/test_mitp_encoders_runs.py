"""A run that classifies, from shards to the model card: a small BERT and ViT, and pictures whose colour and text whose
words tell the class."""

import json

import pytest
import tokenizers
import torch
import yaml
from launch import run_on_ranks
from making import picture
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from data_prep.shards import Row, write_shards
from dsmemvp.cli.main import main
from dsmemvp.config.reading import read_recipe
from dsmemvp.doctor.finding import Here
from dsmemvp.doctor.needs import of_recipe

MODULE = ["--module", "dsmemvp"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "blue", "a", "thing", "that", "is"]
COLOURS = ("red", "green", "blue")
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}


def _shards(folder, number: int, label) -> str:
    """`label(i)`: a row's label or labels."""
    rows = []
    for i in range(number):
        shade = [0, 0, 0]
        shade[i % 3] = 200 + i
        fields = {"id": f"s{i}", "question": f"a thing that is {COLOURS[i % 3]}" + " thing" * (i % 5), **label(i)}
        rows.append(Row(f"s{i:03d}", fields, picture(colour=tuple(shade)) if i % 4 else None))
    write_shards(rows, folder, "train", per_shard=8)
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with text/, vision/ and tokenizer.json."""
    folder = tmp_path_factory.mktemp("base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(BertConfig(**SIZES, vocab_size=len(WORDS), max_position_embeddings=40)).save_pretrained(
            folder / "text"
        )
        ViTModel(ViTConfig(**SIZES, image_size=32, patch_size=16)).save_pretrained(folder / "vision")
    model = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    model.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def recipe(base, repository, tmp_path):
    data = _shards(tmp_path / "data", 24, lambda i: {"label": i % 3})
    content = {
        "name": "classes",
        "output": str(tmp_path / "runs"),
        "model": {
            "language_model": str(base / "text"),
            "vision_tower": str(base / "vision"),
            "tokenizer": str(base / "tokenizer.json"),
            "dtype": "bf16",
        },
        "vision": {"adapter_dim": 0, "statistics": "auto"},
        "method": {"name": "mitp_encoders", "classes": 3, "prompt_std": 0.5},
        "data": {"train": data, "validation": data, "test": data, "max_length": 32, "workers": 0},
        "training": {
            **{"epochs": 12, "warmup_epochs": 1, "learning_rate": 2e-2, "global_batch": 8, "micro_batch": 2},
            **{"log_every": 1, "keep_best": 1, "best_by": "score", "checkpoint_epochs": 12},
            "deepspeed": str(repository / "ds_configs" / "zero3.json"),
        },
        "evaluation": {"batch": 8, "captions": [False]},
    }
    path = tmp_path / "classes.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.ranks
def test_it_learns_classes_on_two_ranks_and_is_scored_inspected_and_exported(recipe, tmp_path, capsys):
    run_on_ranks(MODULE, 2, "train", str(recipe))
    run = tmp_path / "runs" / "classes"
    said = run_on_ranks(MODULE, 2, "evaluate", str(recipe))
    assert "Accuracy" in said and "F1-micro" in said and "F1-macro" in said
    found = json.loads((run / "evaluation-captions-off.json").read_text())
    (scores,), (intervals,) = found["accuracy"].values(), found["interval"].values()
    assert scores["Accuracy"] > 80 and scores["F1-micro"] == pytest.approx(scores["Accuracy"])
    assert all(low <= scores[name] <= high for name, (low, high) in intervals.items())
    assert main(["score", str(run / "predictions-captions-off.jsonl")]) == 0
    assert "F1-macro" in capsys.readouterr().out
    assert main(["inspect", "--run", str(run), "--sample", "1"]) == 0
    said = capsys.readouterr().out
    assert "|  cosine |" in said and "model: class " in said
    assert main(["inspect", "--run", str(run), "--sample", "1", "--what", "activation"]) == 1
    assert "--what: is for a feed-forward memory, which mitp_encoders has not" in capsys.readouterr().err
    (tmp_path / "a.png").write_bytes(picture())
    assert main(["inspect", "--run", str(run), "--image", str(tmp_path / "a.png"), "a thing"]) == 1
    assert "--image: mitp_encoders classifies samples of the data; give --sample N" in capsys.readouterr().err
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "that classify with a frozen text encoder" in card and "dsmemvp.load" not in card and "F1-macro" in card


def test_doctor_finds_a_class_that_is_not_there(recipe, tmp_path):
    findings = {f.what: f for f in of_recipe(read_recipe(recipe), Here())}
    assert {f.level for f in findings.values()} == {"ok"}, findings
    outside = _shards(tmp_path / "outside", 8, lambda i: {"label": i})
    findings = {f.what: f for f in of_recipe(read_recipe(recipe, [f"data.train={outside}"]), Here())}
    assert findings["training data"].level == "FAIL" and "outside of the 3 classes" in findings["training data"].found


@pytest.mark.ranks
def test_several_classes_on_one_rank(recipe, tmp_path):
    data = _shards(tmp_path / "several", 24, lambda i: {"labels": [i % 3] if i % 3 else [0, 2]})
    settings = ["method.loss=multi_label", *(f"data.{split}={data}" for split in ("train", "validation", "test"))]
    settings += ["training.epochs=6", "training.checkpoint_epochs=6", "training.recompute=full", "name=several"]
    run_on_ranks(MODULE, 1, "train", str(recipe), *settings)
    run_on_ranks(MODULE, 1, "evaluate", str(recipe), *settings)
    found = json.loads((tmp_path / "runs" / "several" / "evaluation-captions-off.json").read_text())
    (scores,) = found["accuracy"].values()
    assert scores.keys() == {"F1-micro", "F1-macro"} and scores["F1-micro"] > 60


def test_data_are_shown_and_checked_and_the_run_is_planned(recipe, capsys):
    assert main(["data", "show", str(recipe), "--samples", "2", "--sheet", str(recipe.parent / "sheet.png")]) == 0
    assert "[4 places of the method]<s>a thing that is" in (said := capsys.readouterr().out) and "-> class " in said
    assert main(["data", "check", str(recipe)]) == 0
    assert "24 class" in capsys.readouterr().out
    assert main(["plan", str(recipe), "--gpus", "2"]) == 0
    assert "No gradient passes below block 2 of the language model's 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["method.classes=2"], "label 2 is outside of the 2 classes of method.classes"),
        (["data.max_length=64"], "data.max_length: 64 tokens are more than the 40 positions of the text encoder"),
        (["evaluation.protocol=likelihood"], "evaluation.protocol: likelihood is for answers in words; mitp_encoders"),
        (["method.name=memvp", "data.max_length=64"], "method.name: memvp needs a decoder in model.language_model"),
        (["method.name=memvp"], "method.name: memvp needs a decoder in model.language_model"),
        (["method.points=[1,4]"], "method.points: the towers have no block 4; they run from 0 to 3"),
        (["method.points=[2,1]"], "method.points: must be increasing, not 2, 1"),
    ],
)
def test_what_does_not_go_together_is_told_in_one_line(recipe, capsys, monkeypatch, settings, part):
    monkeypatch.delenv("DSMEMVP_TRACEBACK", raising=False)
    assert main(["data", "check", str(recipe), *settings]) == 1
    out, err = capsys.readouterr()
    assert part in out + err and err.count("\n") == 1


def test_a_decoder_is_refused_and_text_is_not_written(recipe, recipe_path, tmp_path, capsys):
    given = ["method.name=mitp_encoders", "vision.adapter_dim=0"]
    text = recipe_path.read_text()
    method = "method: {name: mitp_encoders}\n"
    recipe_path.write_text(text[: text.index("method:")] + method + text[text.index("data:") :])
    assert main(["count", str(recipe_path), *given]) == 1
    assert "mitp_encoders needs a text encoder (BERT) in model.language_model" in capsys.readouterr().err
    answered = _shards(tmp_path / "x", 8, lambda i: {"answer": "x"})
    assert main(["data", "check", str(recipe), f"data.test={answered}"]) == 1
    assert "has no class (label or labels), which the method learns" in capsys.readouterr().out
