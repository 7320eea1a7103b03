"""A run with P-Former through all of its stages, on two ranks with ZeRO-3, and what an evaluation of it has."""

import json

import pytest
import yaml
from launch import run_on_ranks
from making import picture
from safetensors import safe_open

from data_prep.shards import Row, write_shards
from dsmemvp.checkpoints.choosing import newest_checkpoint
from dsmemvp.cli.main import main

MODULE = ["--module", "dsmemvp"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (20, 40, 230), "white": (240, 240, 240)}
THINGS = ("house", "ball", "road", "sky", "wall", "boat")
STAGES = ("text", "align", "generate", "finetune")


def _rows(pictures: bool):
    for i in range(24):
        colour, thing = list(COLOURS)[i % 4], THINGS[i % 6]
        fields = {"question": "Describe the image.", "answer": f"a {colour} {thing}", "task": "caption"}
        yield Row(f"c{i:02d}", fields, picture(colour=COLOURS[colour]) if pictures else None)


@pytest.fixture
def recipe(recipe_path, tmp_path):
    """Three steps of each stage."""
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "a", *COLOURS, *THINGS]) + "\n")
    for name, pictures in (("captions", False), ("pairs", True)):
        write_shards(_rows(pictures), tmp_path / name, "train", per_shard=8)
    recipe = yaml.safe_load(recipe_path.read_text())
    recipe["vision"] = {"adapter_dim": 0}
    recipe["method"] = {"name": "pformer", "stages": list(STAGES), "prompts": 4, "text_shape": "bert-tiny"}
    recipe["method"] |= {"text_tokenizer": str(tmp_path / "vocab.txt"), "text_length": 8, "features": 16}
    recipe["training"] |= {"epochs": 1, "warmup_epochs": 0, "learning_rate": 1e-3, "micro_batch": 4}
    pairs = {"data": {"train": str(tmp_path / "pairs")}}
    recipe["stages"] = {"text": {"data": {"train": str(tmp_path / "captions")}}, "align": pairs, "generate": pairs}
    recipe["stages"]["finetune"] = {"training": {"learning_rate": 1e-4}}
    recipe_path.write_text(yaml.safe_dump(recipe))
    return recipe_path


def _losses(run) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key.split("/")[0] in ("step", "loss", "measure")}
        for line in lines
        if "loss/train" in line
    ]


@pytest.mark.ranks
def test_all_stages_on_two_ranks_stopped_in_each_and_answered(recipe, tmp_path, capsys):
    said = run_on_ranks(MODULE, 2, "train", str(recipe))
    whole = _losses(tmp_path / "runs" / "tiny")
    assert len(whole) == 3 + 3 + 3 + 6, said
    steps = {"text": whole[:3], "align": whole[3:6], "generate": whole[6:9], "finetune": whole[9:]}
    for name, keys in {
        "text": {"loss/contrast", "loss/vocabulary", "loss/language", "measure/variance", "measure/accuracy"},
        "align": {"loss/itc", "loss/itm", "loss/itg", "loss/align", "measure/cosine"},
        "generate": {"loss/align", "loss/language", "measure/cosine"},
        "finetune": set(),
    }.items():
        assert all(keys <= line.keys() for line in steps[name]), (name, steps[name][0].keys())

    for step in (2, 5, 8, 11, 0):
        run_on_ranks(MODULE, 2, "train", str(recipe), "name=stopped", f"training.stop_at_step={step}")
    assert _losses(tmp_path / "runs" / "stopped") == whole

    last, _ = newest_checkpoint(tmp_path / "runs" / "tiny")
    with safe_open(last.trained, "pt") as file:
        assert {name.split(".")[1] for name in file.keys()} == {"qformer", "projection"}  # noqa: SIM118, it is no dict
    assert main(["evaluate", str(recipe), "evaluation.captions=[false]"]) == 0
    assert "captions off" in capsys.readouterr().out
