"""Frozen weights from Hugging Face folders: all of them, in their shapes, or an error that lists what is wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from dsmemvp.backbones.partitioned import element_range, fill
from dsmemvp.backbones.reading import Reader
from dsmemvp.backbones.safetensors_file import folder_tensors
from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.building import build_frozen
from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError


def _load(recipe: Recipe):
    model = build_frozen(recipe, read_configs(recipe))
    Base(recipe).load(model)
    return model


def test_every_frozen_tensor_is_the_files(recipe, tmp_path):
    model = _load(recipe)
    stored = load_file(tmp_path / "language" / "model.safetensors")
    ours = model.language.state_dict()
    assert len(ours) == len(stored)
    assert all(torch.equal(ours[name.removeprefix("model.")], t) for name, t in stored.items())
    stored = load_file(tmp_path / "vision" / "model.safetensors")
    for name, parameter in model.vision.named_parameters():
        theirs = name.replace("layers.", "encoder.layers.") if name.startswith("layers.") else name
        assert torch.equal(parameter, stored[f"vision_model.{theirs}"]), name


def test_a_folder_in_several_files_is_read(recipe, tmp_path):
    whole = _load(recipe).language.state_dict()
    model = LlamaForCausalLM.from_pretrained(tmp_path / "language")
    (tmp_path / "language" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "language", max_shard_size="8KB")
    assert (tmp_path / "language" / "model.safetensors.index.json").exists()
    again = _load(recipe).language.state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_tied_embeddings_are_one_tensor(recipe, small_sizes, tmp_path):
    config = LlamaConfig(vocab_size=40, tie_word_embeddings=True, **small_sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "language")
    model = _load(recipe)
    assert model.language.lm_head.weight is model.language.embed_tokens.weight


def _rewrite(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_and_left_over_tensors_are_listed(recipe, tmp_path):
    def change(tensors):
        tensors["model.layers.9.extra"] = tensors.pop("model.norm.weight")

    _rewrite(tmp_path / "language", change)
    with pytest.raises(UserError, match=r"missing: norm\.weight; left over: layers\.9\.extra"):
        _load(recipe)


def test_a_misshapen_tensor_is_named(recipe, tmp_path):
    _rewrite(tmp_path / "language", lambda t: t.update({"model.norm.weight": torch.ones(17)}))
    with pytest.raises(UserError, match=r"of another shape: norm\.weight \(17,\) instead of \(16,\)"):
        _load(recipe)


def test_a_truncated_file_and_a_missing_one_are_named(recipe, tmp_path):
    path = tmp_path / "language" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.language_model: .* is not a readable safetensors file"):
        _load(recipe)
    path.unlink()
    with pytest.raises(UserError, match=r"has neither model\.safetensors nor"):
        _load(recipe)


def test_all_that_does_not_fit_is_listed_at_once_but_not_endlessly(recipe, tmp_path):
    def change(tensors):
        tensors["model.norm.weight"] = torch.ones(17)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)
        for number in range(7):
            tensors[f"model.new.{number}"] = torch.zeros(1)
        del tensors["model.embed_tokens.weight"]

    _rewrite(tmp_path / "language", change)
    with pytest.raises(UserError) as raised:
        _load(recipe)
    said = str(raised.value)
    assert "missing: embed_tokens.weight; left over: new.0, new.1, new.2, new.3, new.4 and 2 more;" in said
    assert "of another shape: norm.weight (17,) instead of (16,); " in said
    assert said.endswith("of a type other than F16, BF16, F32, F64: lm_head.weight (F8_E4M3)")


def test_a_configuration_of_another_depth_is_refused(recipe, tmp_path):
    path = tmp_path / "language" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"does not fit its config\.json; missing: layers\.2\..* and 4 more$"):
        _load(recipe)


def _split(folder):
    """-> the index of the same model in several files."""
    model = LlamaForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    return folder / "model.safetensors.index.json"


def test_a_missing_file_of_several_is_named(recipe, tmp_path):
    folder = tmp_path / "language"
    index = json.loads(_split(folder).read_text())["weight_map"]
    gone = index["model.norm.weight"]
    (folder / gone).unlink()
    with pytest.raises(UserError, match=rf"^model\.language_model: .*/{gone} named in model.* but not there"):
        _load(recipe)


@pytest.mark.parametrize("wrong", ["elsewhere", "../model.safetensors", None, 5])
def test_an_index_that_does_not_fit_is_refused(recipe, tmp_path, wrong):
    path = _split(tmp_path / "language")
    content = json.loads(path.read_text())
    files = sorted(set(content["weight_map"].values()))
    here = content["weight_map"]["model.norm.weight"]
    content["weight_map"]["model.norm.weight"] = next(f for f in files if f != here) if wrong == "elsewhere" else wrong
    path.write_text(json.dumps(content))
    expected = (
        "does not fit its files; not where it says: model.norm.weight"
        if wrong == "elsewhere"
        else "is not a readable index"
    )
    with pytest.raises(UserError, match=expected):
        _load(recipe)


def test_a_file_that_shrinks_while_it_is_read_is_named(recipe, tmp_path):
    tensors = folder_tensors(tmp_path / "language", "key")
    stored = tensors["lm_head.weight"]
    with stored.path.open("rb+") as file:
        file.truncate(stored.stop - 1)
    with (
        Reader(0, tell=False) as reader,
        pytest.raises(UserError, match=r"model\.safetensors ended while it was read"),
    ):
        reader.read(stored, 0, torch.empty(40 * 16))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_any_run_of_elements_is_read_in_small_pieces(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("dsmemvp.backbones.reading.BUFFER", 24)
    values = torch.randn(11, 9).to(kind)
    save_file({"before": torch.ones(3, dtype=torch.uint8), "x": values}, tmp_path / "model.safetensors")
    stored = folder_tensors(tmp_path, "key")["x"]
    for first, number in ((0, 99), (0, 0), (98, 1), (5, 50), (99, 0)):
        for into in (torch.float32, torch.bfloat16):
            with Reader(0, tell=False) as reader:
                read = torch.empty(number, dtype=into)
                reader.read(stored, first, read)
                assert torch.equal(read, values.view(-1)[first : first + number].to(into))
                assert reader.count == number * kind.itemsize


def test_what_takes_long_is_told_in_a_log(tmp_path, monkeypatch, capsys):
    save_file({"x": torch.ones(250_000_000 // 100)}, tmp_path / "model.safetensors")
    stored = folder_tensors(tmp_path, "key")["x"]
    for every, lines in ((0.0, 2), (1000.0, 0)):
        monkeypatch.setattr("dsmemvp.progress.Progress.every", every)
        with Reader(20_000_000, tell=True) as reader:
            reader.read(stored, 0, torch.empty(2_500_000))
        said = capsys.readouterr().out.splitlines()
        assert len(said) == lines
        assert all("weights of this rank: 0.01 of 0.02 GB, " in line and " GB/s, " in line for line in said)


def test_a_plain_parameter_is_filled_whole():
    parameter = nn.Parameter(torch.zeros(2, 3, dtype=torch.bfloat16))
    assert element_range(parameter) == (0, 6)
    fill(parameter, torch.arange(6.0))
    assert torch.equal(parameter.detach().float(), torch.arange(6.0).view(2, 3))


def test_a_single_file_goes_before_an_index_as_in_transformers(recipe, tmp_path):
    folder = tmp_path / "language"
    single = load_file(folder / "model.safetensors")
    other = {name: t + 1 for name, t in single.items()}
    save_file(other, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(other, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    theirs = LlamaForCausalLM.from_pretrained(folder).model.norm.weight
    assert torch.equal(_load(recipe).language.norm.weight, theirs) and torch.equal(theirs, single["model.norm.weight"])


def test_a_tied_head_may_be_stored_but_not_be_another_tensor(recipe, tmp_path):
    folder = tmp_path / "language"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(UserError, match=r"^model\.language_model: .* but lm_head\.weight is another tensor"):
        _load(recipe)
    _rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    model = _load(recipe)
    assert model.language.lm_head.weight is model.language.embed_tokens.weight


def test_a_tensor_that_stands_there_with_and_without_its_prefix_is_refused(recipe, tmp_path):
    _rewrite(tmp_path / "language", lambda t: t.update({"norm.weight": t["model.norm.weight"] * 2}))
    with pytest.raises(UserError, match=r"^model\.language_model: .* holds norm\.weight twice"):
        _load(recipe)


def test_older_files_are_sent_to_convert(recipe, tmp_path):
    folder = tmp_path / "language"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"become safetensors with: dsmemvp convert {folder} --out FOLDER"):
        _load(recipe)
