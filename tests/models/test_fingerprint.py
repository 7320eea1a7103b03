"""What a frozen base is known by."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsmemvp.models.fingerprint import base_fingerprint
from dsmemvp.recipe_file import read_recipe

KEYS = ("model.language_model", "model.vision_tower", "model.tokenizer")


@pytest.fixture
def recipe(recipe_path, tiny_models, tmp_path):
    """On a copy of the models, to be changed."""
    recipe = read_recipe(recipe_path)
    folders = {name: str(tmp_path / name) for name in ("language_model", "vision_tower")}
    for name, folder in folders.items():
        shutil.copytree(tiny_models / name, folder)
    shutil.copy(recipe.model.tokenizer, tmp_path / "tokenizer.model")
    return replace(recipe, model=replace(recipe.model, **folders, tokenizer=str(tmp_path / "tokenizer.model")))


def _file(tmp_path, name="language_model"):
    (path,) = (tmp_path / name).glob("*.safetensors")
    return path


def _differ(recipe, before):
    now = base_fingerprint(recipe)
    assert now.keys() == before.keys() == set(KEYS)
    return [key for key in KEYS if now[key] != before[key]]


def test_a_base_is_known_by_what_it_was_known_by_before(recipe, tmp_path):
    """Checkpoints hold this digest: it was recorded with the first release of the code and must never change."""
    folder = tmp_path / "fixed"
    folder.mkdir()
    tensors = {"a.weight": torch.arange(30000, dtype=torch.float32).view(100, 300)}
    tensors |= {"b": torch.arange(7), "c": torch.ones(3, dtype=torch.bfloat16)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = base_fingerprint(replace(recipe, model=replace(recipe.model, language_model=str(folder))))
    assert found[KEYS[0]] == "cf14e6c692e50015991298ea77665acc3f214b5064952ff73ebf6e20fdcbc482"


def test_how_tensors_are_spread_over_files_does_not_count(recipe, tmp_path):
    before = base_fingerprint(recipe)
    path = _file(tmp_path)
    tensors = sorted(load_file(path).items(), reverse=True)
    path.unlink()
    for part in range(3):
        save_file(dict(tensors[part::3]), path.with_name(f"part-{part}.safetensors"), metadata={"format": "pt"})
    assert _differ(recipe, before) == []


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("number", [0, 5, -1])
def test_one_number_at_an_end_of_any_tensor_counts(recipe, tmp_path, number, place):
    before = base_fingerprint(recipe)
    tensors = load_file(_file(tmp_path))
    tensors[sorted(tensors)[number]].view(-1)[place] += 1e-3
    save_file(tensors, _file(tmp_path))
    assert _differ(recipe, before) == ["model.language_model"]


def test_names_types_and_shapes_count(recipe, tmp_path):
    before = base_fingerprint(recipe)
    tensors = load_file(_file(tmp_path))
    name = max(tensors, key=lambda each: tensors[each].numel())
    rows, columns = tensors[name].shape
    same = tensors[name].view(torch.int32)
    for changed in ({name: tensors[name].view(columns, rows)}, {name: same}, {"other": tensors[name]}):
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        save_file(rest | changed, _file(tmp_path))
        assert _differ(recipe, before) == ["model.language_model"]


def test_tower_and_tokenizer_have_their_own_keys(recipe, tmp_path):
    before = base_fingerprint(recipe)
    tensors = load_file(_file(tmp_path, "vision_tower"))
    save_file({**tensors, "more": torch.zeros(1)}, _file(tmp_path, "vision_tower"))
    assert _differ(recipe, before) == ["model.vision_tower"]
    with (tmp_path / "tokenizer.model").open("ab") as file:
        file.write(b"x")
    assert _differ(recipe, before) == ["model.vision_tower", "model.tokenizer"]


def test_a_tower_that_is_not_looked_through_does_not_count(recipe, tmp_path):
    shutil.rmtree(tmp_path / "vision_tower")
    found = base_fingerprint(replace(recipe, method=replace(recipe.method, name="none")))
    assert sorted(found) == ["model.language_model", "model.tokenizer"]
    with pytest.raises(FileNotFoundError, match=r"model\.vision_tower: .*holds no safetensors files"):
        base_fingerprint(recipe)


def _with_header(header):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:4],
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content + b"x",
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"x" + content[9:],
        lambda content: _with_header([]),
        lambda content: _with_header(5),
        lambda content: _with_header({"a": {}}),
        lambda content: _with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": []}}),
        lambda content: _with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}),
    ],
)
def test_a_damaged_file_is_refused_by_key_and_name(recipe, tmp_path, damage):
    path = _file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"^model\.language_model: {path} is not a readable safetensors file"):
        base_fingerprint(recipe)
