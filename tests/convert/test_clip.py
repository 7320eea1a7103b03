"""OpenAI's CLIP -> a Hugging Face folder with the same features, without running what is in the file."""

import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from stand_ins import openai_tensors, write_torchscript
from transformers import CLIPVisionConfig, CLIPVisionModel

from dsmemvp.convert.convert import Options, convert
from dsmemvp.convert.files import tensors_in
from dsmemvp.errors import UserError


@pytest.fixture(scope="module")
def model() -> CLIPVisionModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = CLIPVisionModel(CLIPVisionConfig(image_size=16, patch_size=8, hidden_act="quick_gelu", **sizes)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    return model


def _features(model: CLIPVisionModel) -> torch.Tensor:
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(pixels).last_hidden_state


def test_a_plain_file_of_tensors_gives_the_towers_features(model, tmp_path):
    torch.save({"state_dict": openai_tensors(model)}, tmp_path / "clip.pt")
    said = convert(tmp_path / "clip.pt", tmp_path / "hf")
    assert said == [f"{len(model.state_dict())} tensors of the vision tower -> {tmp_path / 'hf'}"]
    found = CLIPVisionModel.from_pretrained(tmp_path / "hf").eval()
    assert found.config.num_attention_heads == 2 and found.config.image_size == 16
    assert torch.equal(_features(found), _features(model))


def test_a_torchscript_archive_gives_the_same_folder(model, tmp_path):
    tensors = openai_tensors(model)
    torch.save(tensors, tmp_path / "plain.pt")
    write_torchscript(tensors, tmp_path / "ViT-L-14.pt")
    with pytest.raises(RuntimeError, match="TorchScript"):  # what torch itself says of it
        torch.load(tmp_path / "ViT-L-14.pt", weights_only=True)
    for name in ("plain", "ViT-L-14"):
        convert(tmp_path / f"{name}.pt", tmp_path / name, Options(dtype="fp16"))
    plain, archive = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "ViT-L-14"))
    assert plain.keys() == archive.keys() and plain["pre_layrnorm.weight"].dtype == torch.float16
    assert all(torch.equal(plain[name], archive[name]) for name in plain)


class _Harmful:
    def __reduce__(self):
        return (print, ("code ran",))


def test_an_archive_that_names_other_things_than_tensors_is_refused_and_nothing_runs(model, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        archive.writestr("bad/data.pkl", pickle.dumps({"x": _Harmful()}, protocol=2))
        archive.writestr("bad/constants.pkl", b"")
    with pytest.raises(UserError, match=r"bad\.pt is refused: it holds more than tensors, '__builtin__\.print'"):
        tensors_in(tmp_path / "bad.pt")
    assert "code ran" not in capsys.readouterr().out


def test_a_cut_off_archive_and_a_tower_of_another_kind_are_told(model, tmp_path):
    write_torchscript(openai_tensors(model), tmp_path / "clip.pt")
    (tmp_path / "clip.pt").write_bytes((tmp_path / "clip.pt").read_bytes()[:-50])
    with pytest.raises(UserError, match=r"clip\.pt cannot be read as weights: it is cut off"):
        convert(tmp_path / "clip.pt", tmp_path / "hf")
    torch.save(
        {"visual.conv1.weight": torch.ones(4, 3, 3, 3), "visual.layer1.0.bn1.bias": torch.ones(4)}, tmp_path / "rn.pt"
    )
    with pytest.raises(UserError, match="the vision tower is no CLIP ViT"):
        convert(tmp_path / "rn.pt", tmp_path / "hf")
    tensors = openai_tensors(model)
    del tensors["visual.transformer.resblocks.1.ln_2.bias"]
    torch.save(tensors, tmp_path / "less.pt")
    with pytest.raises(UserError, match=r"is not whole .*encoder\.layers\.1\.layer_norm2\.bias is missing"):
        convert(tmp_path / "less.pt", tmp_path / "hf")
