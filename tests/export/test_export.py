"""What a run has trained, handed on: onto any copy of its base and no other, and back into the published layout."""

import json
import shutil

import pytest
import torch
from reference import Recording
from safetensors.torch import load_file, save_file
from saved_runs import built, saved

from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.backbones.weights import Base
from dsmemvp.checkpoints.checkpoint import read_checkpoint
from dsmemvp.checkpoints.loading import load_run
from dsmemvp.checkpoints.state_file import own_sum
from dsmemvp.config.reading import as_dict
from dsmemvp.config.recipe import Recipe
from dsmemvp.convert.convert import convert
from dsmemvp.errors import UserError
from dsmemvp.export.export import export, export_file


def _saved_as(run, recipe: Recipe, folder):
    """A run of this recipe with the trained tensors of a checkpoint."""
    saved(run, recipe, load_file(folder / "trained.safetensors"))
    return run


def _base(recipe: Recipe) -> dict[str, str]:
    return {key: getattr(recipe.model, key) for key in ("language_model", "vision_tower", "tokenizer")}


def _named(base: dict) -> list[str]:
    return [f"model.{key}={place}" for key, place in base.items()]


def test_an_exported_folder_is_opened_onto_a_copy_of_the_base(run, recipe, trained, tmp_path):
    export(run, tmp_path / "out")
    for part, place in _base(recipe).items():
        copy = shutil.copytree if part != "tokenizer" else shutil.copyfile
        copy(place, tmp_path / f"copy of {part}")
    copies = {part: tmp_path / f"copy of {part}" for part in _base(recipe)}
    opened, checkpoint, _ = load_run(tmp_path / "out", _named(copies))
    assert _base(opened) == {part: str(place) for part, place in copies.items()}
    assert (opened.method, opened.vision, opened.name) == (recipe.method, recipe.vision, "tiny")
    assert (opened.data.max_length, opened.model.dtype) == (160, "fp32")
    found = checkpoint.values({name: tuple(t.shape) for name, t in trained.items()})
    assert all(torch.equal(found[name], t) and found[name].dtype == t.dtype for name, t in trained.items())


def test_it_is_a_checkpoint_for_the_recipe_it_was_trained_with(run, recipe, tmp_path):
    export(run, tmp_path / "out")
    found = read_checkpoint(tmp_path / "out")
    assert (found.state.epoch, found.state.step, found.state.validation_loss) == (2, 12, 0.25)
    found.check_method(as_dict(recipe))
    recipe.method.visual_scale = 0.2
    with pytest.raises(UserError, match=r"^method\.visual_scale: is 0\.2, but .*out was trained with 0\.1"):
        found.check_method(as_dict(recipe))


def test_another_base_is_refused_by_its_key(run, recipe, tmp_path):
    export(run, tmp_path / "out")
    shutil.copytree(recipe.model.vision_tower, tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    tensors["pre_layrnorm.bias"] += 1
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    with pytest.raises(UserError, match=r"^model\.vision_tower: .*out was trained on another one"):
        load_run(tmp_path / "out", _named({**_base(recipe), "vision_tower": tmp_path / "other"}))


def _changed(content: dict, **changed) -> str:
    content |= changed
    return json.dumps({**content, "crc32": own_sum(content)})


def test_damaged_folders_and_those_of_other_versions_are_told(run, recipe, tmp_path):
    export(run, tmp_path / "out")
    path = tmp_path / "out" / "adapter.json"
    kept = path.read_text()
    for content, message in (
        (_changed(json.loads(kept), format=9), "checkpoint format 9, this version reads 1"),
        (
            _changed(json.loads(kept), prompt_format=2, dsmemvp="9.1"),
            "prompts of format 2, this version .* dsmemvp 9.1",
        ),
        (kept.replace('"slots": 24', '"slots": 25'), "adapter.json is damaged"),
        (kept[:-20], "adapter.json is not a checkpoint's state"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            load_run(tmp_path / "out", _named(_base(recipe)))
    settings = json.loads(kept)["recipe"]
    settings["method"]["gate"] = True
    path.write_text(_changed(json.loads(kept), recipe=settings))
    with pytest.raises(UserError, match=r"adapter\.json: unknown key 'method\.gate'"):
        load_run(tmp_path / "out", _named(_base(recipe)))
    path.write_text(kept)
    tensors = tmp_path / "out" / "trained.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(UserError, match=r"trained\.safetensors is damaged"):
        load_run(tmp_path / "out", _named(_base(recipe)))


def test_a_base_has_to_be_named(run, recipe, tmp_path):
    export(run, tmp_path / "out")
    with pytest.raises(UserError, match=r"^model\.tokenizer: .*out goes with a copy of its base"):
        load_run(tmp_path / "out", _named(_base(recipe))[:2])


def test_nothing_of_this_machine_stands_in_it(run, recipe, tmp_path):
    export(run, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "adapter.json", "trained.safetensors"}
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        for place in (tmp_path, *_base(recipe).values(), recipe.data.train[0], recipe.training.deepspeed):
            assert str(place).encode() not in content, path
    content = json.loads((tmp_path / "out" / "adapter.json").read_text())
    assert content["base"] == fingerprint(Base(recipe)) and content["resolution"] == 32
    assert content["base_shapes"]["language"]["hidden_size"] == 32
    assert content["recipe"]["training"]["learning_rate"] == 1e-2


def test_without_the_base_at_hand_it_is_exported_all_the_same(tmp_path, recipe, trained):
    run = tmp_path / "runs" / "far"
    folder = saved(run, recipe, trained)
    state = json.loads((folder / "state.json").read_text())
    state["recipe"]["model"] |= {"language_model": "weights/nowhere", "language_shape": "llama-7b"}
    state["recipe"]["model"] |= {"vision_tower": "weights/nowhere", "vision_shape": "clip-vit-l-14"}
    (folder / "state.json").write_text(_changed(state))
    export(run, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter.json").read_text())["base_shapes"]["language"]["hidden_size"] == 4096


def test_an_earlier_export_is_replaced_and_nothing_else(run, recipe, trained, tmp_path):
    export(run, tmp_path / "out", dtype="bf16")
    assert load_file(tmp_path / "out" / "trained.safetensors")["method.key_positions"].dtype == torch.bfloat16
    export(run, tmp_path / "out")
    assert load_file(tmp_path / "out" / "trained.safetensors")["method.key_positions"].dtype == torch.float32
    for name in ("old-out", "partial-out"):  # of the user's
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").touch()
    before = sorted(tmp_path.rglob("*"))
    export(run, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "out" / "notes.txt").touch()
    for place in (run, tmp_path / "out"):
        with pytest.raises(UserError, match="is there already and holds other things than an export"):
            export(run, place)


def test_what_cannot_be_exported_is_told(run, recipe, tmp_path):
    with pytest.raises(UserError, match="checkpoints holds no intact checkpoint"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="give --out, --published or --peft"):
        export(run, None)
    folder = next((run / "checkpoints").iterdir())
    with pytest.raises(UserError, match="does not say how and on what base it was trained"):
        export(run, tmp_path / "out", checkpoint=folder / "trained.safetensors")
    # this recipe's scale is not the one that stands in the published code
    with pytest.raises(UserError, match=r"^method\.visual_scale: is 0\.1, but 0\.01 stands in the published code"):
        export(run, None, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"--published: .* is a folder"):
        recipe.method.visual_scale = 0.01
        export(_saved_as(tmp_path / "runs" / "like published", recipe, folder), None, tmp_path)
    recipe.vision.statistics = "clip"
    with pytest.raises(UserError, match=r"^vision\.statistics: is clip, but imagenet stands in the published code"):
        export(_saved_as(tmp_path / "runs" / "other pixels", recipe, folder), None, tmp_path / "file.pth")
    (folder / "trained.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"trained\.safetensors is damaged"):
        export(run, tmp_path / "out", checkpoint=folder)
    assert not (tmp_path / "out").exists() and not (tmp_path / "file.pth").exists()


def test_published_converted_exported_and_converted_again_is_the_same(shared, tokenizer_path, tmp_path):
    """The same tensors and the same logits, and as a folder of ours too."""
    recording = Recording(shared, tmp_path / "first")
    recording.write(shared)
    recipe, first = recording.recipe(), recording.trained()
    recipe.model.tokenizer = str(tokenizer_path)
    saved(tmp_path / "run", recipe, first)
    said = export(tmp_path / "run", tmp_path / "out", tmp_path / "published" / "checkpoint-1.pth")
    assert "emb 272, hidden_proj 8" in said[0]
    content = torch.load(tmp_path / "published" / "checkpoint-1.pth", weights_only=True)
    theirs = {f"module.{n[2:]}": t.shape for n, t in recording.tensors.items() if n.startswith("w.") and "adapter" in n}
    assert {name: t.shape for name, t in content["model"].items()} == theirs and content["epoch"] == 1
    convert(tmp_path / "published" / "checkpoint-1.pth", tmp_path / "second")
    second = load_file(tmp_path / "second" / "trained.safetensors")
    assert second.keys() == first.keys() and all(torch.equal(second[name], first[name]) for name in first)
    opened, checkpoint, _ = load_run(tmp_path / "out", _named(_base(recipe)))
    third = checkpoint.values({name: tuple(t.shape) for name, t in first.items()})
    logits = []
    for settings, values in ((recipe, first), (recipe, second), (opened, third)):
        model = built(settings)
        model.load_state_dict(values, strict=False)
        with torch.no_grad():
            logits.append(model(recording.batch())[0])
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def test_a_published_checkpoint_becomes_a_folder_that_opens_onto_the_recipes_base(recipe, trained, tmp_path):
    save_file(trained, tmp_path / "imported.safetensors", metadata={"method.output_scale": "1.0", "method.slots": "24"})
    said = export_file(recipe, tmp_path / "imported.safetensors", tmp_path / "out")
    assert said.startswith("3,120 trained parameters -> ")
    opened, checkpoint, _ = load_run(tmp_path / "out", _named(_base(recipe)))
    found = checkpoint.values({name: tuple(t.shape) for name, t in trained.items()})
    assert opened.method == recipe.method and all(torch.equal(found[name], t) for name, t in trained.items())
    assert checkpoint.state.base == fingerprint(Base(recipe))
    assert "Trained elsewhere" in (tmp_path / "out" / "README.md").read_text()
    recipe.method.output_scale = 0.1
    with pytest.raises(
        ValueError, match=r"^method\.output_scale: is 0\.1, but .*imported\.safetensors was trained with"
    ):
        export_file(recipe, tmp_path / "imported.safetensors", tmp_path / "other")
    recipe.method.output_scale, recipe.vision.adapter_dim = 1.0, 5
    with pytest.raises(UserError, match=r"imported\.safetensors does not fit the recipe's model: vision\.layers\.0"):
        export_file(recipe, tmp_path / "imported.safetensors", tmp_path / "other")
    with pytest.raises(UserError, match="nowhere is no file of trained tensors"):
        export_file(recipe, tmp_path / "nowhere", tmp_path / "other")
    assert not (tmp_path / "other").exists()
