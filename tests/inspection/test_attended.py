"""DVP looked into, scored and exported: where its query looks, by the command and in TensorBoard; and the exported
folder says what the run says."""

import re

import numpy as np
import pytest
import torch
import yaml
from launch import run_on_ranks
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsmemvp.checkpoints.loading import load_run
from dsmemvp.inspection.heat_map import of_patches
from dsmemvp.inspection.look import open_model

MODULE = ["--module", "dsmemvp"]


@pytest.fixture
def recipe(recipe_path, repository):
    recipe = yaml.safe_load(recipe_path.read_text())
    recipe["method"] = {"name": "dvp", "layer": 1, "width": 16, "heads": 4, "prompts": 2, "class_token": True}
    recipe["method"] |= {"feature_layer": -1, "adapter_ratio": 8, "train_norms": True}
    recipe["training"] |= {"epochs": 1, "warmup_epochs": 0}
    recipe["training"]["deepspeed"] = str(repository / "ds_configs" / "replicated.json")
    recipe_path.write_text(yaml.safe_dump(recipe))
    return recipe_path


@pytest.mark.ranks
def test_a_run_is_looked_into_scored_and_exported(recipe, tmp_path, one_rank):
    run, out = tmp_path / "runs" / "tiny", tmp_path / "exported"
    run_on_ranks(MODULE, 1, "train", str(recipe))
    run_on_ranks(MODULE, 1, "evaluate", str(recipe), "evaluation.captions=[false]")
    said = (run / "predictions-captions-off.jsonl").read_bytes()
    board = EventAccumulator(str(run)).Reload()
    assert any(tag.startswith("attention/sample ") for tag in board.Tags()["images"])

    said_by_inspect = run_on_ranks(MODULE, 1, "inspect", "--run", str(run), "--sample", "0", "--test")
    assert "attention of 4 heads; even: entropy 2.833" in said_by_inspect  # log 17: 16 patches and the class token
    assert "model: " in said_by_inspect and "right: " in said_by_inspect
    pixels = np.asarray(Image.open(run / "inspect" / "attention.png")).astype(int)
    assert (np.abs(pixels[..., 0] - pixels[..., 2]) > 5).any()

    run_on_ranks(MODULE, 1, "export", "--run", str(run), "--out", str(out))
    card = (out / "README.md").read_text()
    assert "dynamic visual prompting" in card and "2 prompt tokens after BOS, from layer 1 on" in card
    assert re.search(r"norms of the language model *\| trained", card)
    run_on_ranks(
        MODULE, 1, "evaluate", str(recipe), "name=other", "evaluation.captions=[false]", "--checkpoint", str(out)
    )
    (from_export,) = (tmp_path / "runs" / "other").glob("predictions-*-captions-off.jsonl")
    assert from_export.read_bytes() == said

    opened = open_model(load_run(run), one_rank)
    seen = opened.attend(opened.sample(0, test=True))
    assert seen.weights_HkN.shape == (4, 2, 17) and of_patches(seen.weights_HkN).shape[-1] == 16
    torch.testing.assert_close(seen.weights_HkN.sum(-1), torch.ones(4, 2))
    assert len(seen.table()) == 4 + 4
