"""DVP that classifies: what its head reads is what the authors' classes give, and a run goes from labels to scores."""

import json

import pytest
import torch
import yaml
from dvp_recording import Recording, walk
from launch import launch, run_on_ranks
from making import picture
from transformers import LlamaConfig, LlamaForCausalLM

from data_prep.shards import Row, write_shards
from dsmemvp.cli.main import main

MODULE = ["--module", "dsmemvp"]
COLOURS = ("red", "green", "blue")


@pytest.mark.parametrize("more", [0, 2])
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_head_reads_the_authors_hidden_state_behind_the_question(shared, layer, adapters, more):
    """Its own formula, in float64, on what they have recorded."""
    recording = Recording(shared)
    model = recording.model(layer, adapters, classes=5)
    found = walk(recording, model, recording.batch(model, more))
    recorded = recording.tensors[f"out.{'adapter' if adapters else 'plain'}.K{layer}.classify"]
    asking = torch.tensor([0, 1 + more])
    torch.testing.assert_close(found["classify"][asking], recorded, atol=1e-5, rtol=0)
    weights = {name: p.detach().double() for name, p in model.method.classifier.named_parameters()}
    assert [tuple(w.shape) for w in weights.values()] == [(16, 128), (16,), (16,), (16,), (5, 16), (5,)]
    into, bias, scale, shift, out, end = weights.values()
    hidden = recorded.double() @ into.T + bias
    centred = hidden - hidden.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale + shift
    active = normed * 0.5 * (1 + torch.erf(normed / 2**0.5))
    torch.testing.assert_close(found["logits"][asking].double(), active @ out.T + end, atol=1e-4, rtol=0)


TOTALS = {  # golden numbers of dvp_reference.json, with adapters and norms
    ("7b", 3129): 42_777_145,
    ("13b", 3129): 77_687_097,
    ("7b", 1843): 42_117_427,
    ("13b", 1843): 76_862_771,
    ("7b", 3): 41_173_507,
    ("13b", 3): 75_683_331,
}


@pytest.mark.parametrize(("size", "classes"), TOTALS)
def test_trainable_parameters_are_the_authors(size, classes, repository, capsys):
    given = [str(repository / "recipes" / f"scienceqa-{size}.yaml"), "method.name=dvp", "vision.adapter_dim=0"]
    given += ["model.vision_shape=clip-vit-b-16", "method.adapter_ratio=64", "method.train_norms=true"]
    assert main(["count", *given, f"method.classes={classes}"]) == 0
    assert f"{TOTALS[size, classes]:,} trainable parameters" in capsys.readouterr().out


def _shards(folder, number: int, label) -> str:
    rows = []
    for i in range(number):
        shade = [0, 0, 0]
        shade[i % 3] = 200 + i
        fields = {"id": f"s{i}", "question": "Which colour is this" + " thing" * (i % 4) + "?", **label(i)}
        rows.append(Row(f"s{i:03d}", fields, picture(colour=tuple(shade))))
    write_shards(rows, folder, "train", per_shard=8)
    return str(folder)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory, tokenizer) -> str:
    """With weights so large that a token of a picture changes what stands behind it."""
    sizes = {"hidden_size": 64, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    folder = tmp_path_factory.mktemp("language")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=tokenizer.vocabulary, initializer_range=0.2, **sizes, **ends)
        LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def recipe(recipe_path, language_model, tmp_path):
    """Whose pictures alone tell the class."""
    data = _shards(tmp_path / "data", 24, lambda i: {"label": i % 3})
    content = yaml.safe_load(recipe_path.read_text())
    content["method"] = {"name": "dvp", "layer": 1, "width": 16, "heads": 2, "dropout": 0.0, "classes": 3}
    content["method"] |= {"adapter_ratio": 4, "train_norms": True}
    content["model"]["language_model"] = language_model
    content["data"] |= {"train": data, "validation": data, "test": data}
    content["training"] |= {"epochs": 12, "checkpoint_epochs": 12, "best_by": "score", "learning_rate": 1e-2}
    content["evaluation"]["captions"] = [False]
    recipe_path.write_text(yaml.safe_dump(content))
    return recipe_path


@pytest.mark.ranks
def test_it_learns_classes_on_two_ranks_and_is_scored_inspected_and_exported(recipe, tmp_path):
    run_on_ranks(MODULE, 2, "train", str(recipe))
    run = tmp_path / "runs" / "tiny"
    run_on_ranks(MODULE, 2, "evaluate", str(recipe))
    (scores,) = json.loads((run / "evaluation-captions-off.json").read_text())["accuracy"].values()
    assert scores["Accuracy"] > 80 and scores.keys() == {"Accuracy", "F1-micro", "F1-macro"}
    said = run_on_ranks(MODULE, 1, "inspect", "--run", str(run), "--sample", "1")
    assert "model: class " in said and (run / "inspect" / "attention.png").is_file()
    (tmp_path / "a.png").write_bytes(picture())
    for command in ("inspect", "generate"):
        refused = launch(MODULE, 1, command, "--run", str(run), "--image", str(tmp_path / "a.png"), "Which colour?")
        assert refused.returncode == 1 and "dvp classifies" in refused.stdout
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "classify with a frozen LLaMA and a frozen CLIP vision tower" in card and "F1-macro" in card
    assert "dsmemvp.load" not in card and "| classes | 3 |" in card


@pytest.mark.ranks
def test_several_classes_are_learned_and_searched_with(recipe, tmp_path):
    data = _shards(tmp_path / "several", 24, lambda i: {"labels": [i % 3] if i % 3 else [0, 2]})
    other = _shards(tmp_path / "search", 8, lambda i: {"labels": [i % 3]})
    settings = ["method.loss=multi_label", *(f"data.{split}={data}" for split in ("train", "validation", "test"))]
    settings += ["training.checkpoint_epochs=1", f"data.search={other}", "search.epochs=1", "search.draws=2"]
    run_on_ranks(MODULE, 1, "search", str(recipe), *settings, "search.score=accuracy")
    state = tmp_path / "runs" / "tiny-search" / "checkpoints" / "step-00000003" / "state.json"
    assert sum(json.loads(state.read_text())["callbacks"][-1]["scored"]) == 6


def test_data_are_shown_and_the_run_is_planned(recipe, capsys):
    assert main(["data", "show", str(recipe), "--numbers", "0", "--sheet", str(recipe.parent / "sheet.png")]) == 0
    assert "<s>[1 place of the picture]Which colour is this?</s> -> class 0" in capsys.readouterr().out
    assert main(["plan", str(recipe), "--gpus", "2"]) == 0


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["method.classes=2"], "label 2 is outside of the 2 classes of method.classes"),
        (["method.classes=1"], "method.classes: 1 leaves nothing to choose"),
        (["method.classes=0"], "has a class (label or labels), but the method writes answers"),
    ],
)
def test_what_does_not_go_together_is_told_in_one_line(recipe, capsys, monkeypatch, settings, part):
    monkeypatch.delenv("DSMEMVP_TRACEBACK", raising=False)
    assert main(["data", "check", str(recipe), *settings]) == 1
    out, err = capsys.readouterr()
    assert part in out + err and err.count("\n") == 1
