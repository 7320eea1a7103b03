"""What a frozen base is known by."""

import hashlib
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.backbones.weights import Base
from dsmemvp.config.methods import method_settings
from dsmemvp.config.reading import read_recipe
from dsmemvp.errors import UserError

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
    now = fingerprint(Base(recipe))
    assert now.keys() == before.keys() == set(KEYS)
    return [key for key in KEYS if now[key] != before[key]]


def test_a_base_is_known_by_what_it_was_known_by_before(recipe, tmp_path):
    """Checkpoints hold this digest, so it must never change: worked out here by the rule, and recorded."""
    folder = tmp_path / "fixed"
    folder.mkdir()
    tensors = {"model.norm.weight": torch.arange(30000, dtype=torch.float32).view(100, 300)}
    tensors |= {"lm_head.weight": torch.ones(3, dtype=torch.bfloat16)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"hidden_act": "silu", "rms_norm_eps": 1e-06, "tie_word_embeddings": False, "head_dim": 4}
    settings |= {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 500000}
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 3}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **settings, **sizes}))

    # four blocks of 2048 elements: at the first, at thirds of the way, at the last; as float32
    flat = tensors["model.norm.weight"].view(-1)
    blocks = b"".join(flat[start : start + 2048].numpy().tobytes() for start in (0, 27952 // 3, 2 * 27952 // 3, 27952))
    del settings["rope_theta"]
    known = {
        "settings": {**{k: v if isinstance(v, str) else float(v) for k, v in settings.items()}, "rope_parameters": {}},
        "tensors": {
            "lm_head.weight": [[3], hashlib.sha256(torch.ones(3).numpy().tobytes() * 4).hexdigest()],
            "norm.weight": [[100, 300], hashlib.sha256(blocks).hexdigest()],
        },
    }
    known["settings"]["rope_parameters"] = {"rope_theta": 500000.0, "rope_type": "default"}
    found = fingerprint(Base(replace(recipe, model=replace(recipe.model, language_model=str(folder)))))[KEYS[0]]
    assert found == hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    assert found == "58ba6f25c88d29163136877c3a85a2cce3ed2f2e6d63b49305a1db93ace85ea7"


def test_a_clip_tower_is_known_by_what_it_was_known_by_before(recipe, tmp_path):
    """As recorded with the code that knew no other family."""
    folder = tmp_path / "fixed"
    folder.mkdir()
    shapes = {"embeddings.class_embedding": [4], "embeddings.patch_embedding.weight": [4, 3, 8, 8]}
    shapes |= {"embeddings.position_embedding.weight": [5, 4]}
    shapes |= {f"{norm}.{kind}": [4] for norm in ("pre_layrnorm", "post_layernorm") for kind in ("weight", "bias")}
    for layer in ("encoder.layers.0.", "encoder.layers.1."):
        for name in ("q", "k", "v", "out"):
            shapes |= {f"{layer}self_attn.{name}_proj.weight": [4, 4], f"{layer}self_attn.{name}_proj.bias": [4]}
        shapes |= {f"{layer}layer_norm{n}.{kind}": [4] for n in (1, 2) for kind in ("weight", "bias")}
        shapes |= {f"{layer}mlp.fc1.weight": [8, 4], f"{layer}mlp.fc1.bias": [8]}
        shapes |= {f"{layer}mlp.fc2.weight": [4, 8], f"{layer}mlp.fc2.bias": [4]}
    tensors = {
        f"vision_model.{name}": (torch.arange(math.prod(shapes[name]), dtype=torch.float32) / 8 + i).view(shapes[name])
        for i, name in enumerate(sorted(shapes))
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"model_type": "clip_vision_model", "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    settings |= {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps({**settings, "image_size": 16, "patch_size": 8}))
    found = fingerprint(Base(replace(recipe, model=replace(recipe.model, vision_tower=str(folder)))))[KEYS[1]]
    assert found == "b9cabd27ff8736bd45bec72eb969bb5baab11be3308d92a0d7b2f9be97869ad5"


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LANGUAGE = SIZES | {"vocab_size": 40, "num_key_value_heads": 2}
VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
LATER = {
    "mistral": ("language_model", lambda: MistralForCausalLM(MistralConfig(**LANGUAGE)), {"sliding_window": 999}),
    "qwen2": (
        "language_model",
        lambda: Qwen2ForCausalLM(Qwen2Config(**LANGUAGE)),
        {"use_sliding_window": True, "sliding_window": 999},
    ),
    "qwen3": (
        "language_model",
        lambda: Qwen3ForCausalLM(Qwen3Config(**LANGUAGE, head_dim=8)),
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    ),
    "siglip": (
        "vision_tower",
        lambda: SiglipVisionModel(SiglipVisionConfig(**VISION, intermediate_size=32)),
        {"hidden_act": "gelu"},
    ),
    "dinov2": ("vision_tower", lambda: Dinov2Model(Dinov2Config(**VISION)), {"layer_norm_eps": 1e-3}),
}


@pytest.mark.parametrize("family", LATER)
def test_later_families_are_known_by_their_settings_and_tensors(recipe, tmp_path, family):
    part, make, setting = LATER[family]
    shutil.rmtree(tmp_path / part)
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / part)
    before = fingerprint(Base(recipe))
    path = tmp_path / part / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | setting))
    assert _differ(recipe, before) == [f"model.{part}"]
    path.write_text(json.dumps(content | {"use_cache": False, "torch_dtype": "float16"}))
    assert _differ(recipe, before) == []
    tensors = load_file(_file(tmp_path, part))
    own = {"mistral": "o_proj.weight", "qwen2": "q_proj.bias", "qwen3": "q_norm.weight", "dinov2": "query.bias"}
    name = next(name for name in sorted(tensors) if name.endswith(own.get(family, "q_proj.bias")))
    tensors[name].view(-1)[-1] += 1e-3
    save_file(tensors, _file(tmp_path, part))
    assert _differ(recipe, before) == [f"model.{part}"]


def test_how_tensors_are_spread_over_files_does_not_count(recipe, tmp_path):
    before = fingerprint(Base(recipe))
    path = _file(tmp_path)
    tensors = sorted(load_file(path).items(), reverse=True)
    path.unlink()
    files = {}
    for part in range(3):
        save_file(dict(tensors[part::3]), path.with_name(f"part-{part}.safetensors"), metadata={"format": "pt"})
        files |= {name: f"part-{part}.safetensors" for name, _ in tensors[part::3]}
    path.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    save_file({"stray": torch.ones(1)}, path.with_name("adapter_model.safetensors"))
    assert _differ(recipe, before) == []


def test_what_is_not_computed_with_does_not_count(recipe, tmp_path):
    """The same base as others store it: without prefixes, with tables that are not loaded, in a wider type, with the
    text tower."""
    before = fingerprint(Base(recipe))
    tensors = {name.removeprefix("model."): t.double() for name, t in load_file(_file(tmp_path)).items()}
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, _file(tmp_path))
    tower = load_file(_file(tmp_path, "vision_tower"))
    last = max(int(name.split(".layers.")[1].split(".")[0]) for name in tower if ".layers." in name)
    changed = {f"vision_model.{name.removeprefix('vision_model.')}": t for name, t in tower.items()}
    for name in changed:
        if f".layers.{last}." in name:
            changed[name] = changed[name] + 1  # the block that is never run
    save_file({**changed, "text_model.final_layer_norm.bias": torch.ones(3)}, _file(tmp_path, "vision_tower"))
    assert _differ(recipe, before) == []


@pytest.mark.parametrize(
    ("folder", "setting"),
    [
        ("language_model", {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
        ("language_model", {"rms_norm_eps": 1e-3}),
        ("language_model", {"num_attention_heads": 8, "head_dim": 8}),
        ("vision_tower", {"hidden_act": "gelu"}),
        ("vision_tower", {"layer_norm_eps": 1e-3}),
    ],
)
def test_settings_that_change_what_is_computed_count(recipe, tmp_path, folder, setting):
    before = fingerprint(Base(recipe))
    path = tmp_path / folder / "config.json"
    content = json.loads(path.read_text())
    assert all(content.get(name) != value for name, value in setting.items())
    path.write_text(json.dumps(content | setting | {"max_position_embeddings": 999, "use_cache": False}))
    assert _differ(recipe, before) == [f"model.{folder}"]


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("number", [0, 5, -1])
def test_one_number_at_an_end_of_any_tensor_counts(recipe, tmp_path, number, place):
    before = fingerprint(Base(recipe))
    tensors = load_file(_file(tmp_path))
    tensors[sorted(tensors)[number]].view(-1)[place] += 1e-3
    save_file(tensors, _file(tmp_path))
    assert _differ(recipe, before) == ["model.language_model"]


def test_names_and_shapes_count(recipe, tmp_path):
    before = fingerprint(Base(recipe))
    tensors = load_file(_file(tmp_path))
    name = max(tensors, key=lambda each: tensors[each].numel())
    rows, columns = tensors[name].shape
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    for changed in ({name: tensors[name].view(columns, rows)}, {"other": tensors[name]}):
        save_file(rest | changed, _file(tmp_path))
        assert _differ(recipe, before) == ["model.language_model"]
    save_file(rest | {name: tensors[name].view(torch.int32)}, _file(tmp_path))
    with pytest.raises(UserError, match=r"^model\.language_model: .*of the type I32, which is not read"):
        fingerprint(Base(recipe))


def test_tower_and_tokenizer_have_their_own_keys(recipe, tmp_path):
    before = fingerprint(Base(recipe))
    tensors = load_file(_file(tmp_path, "vision_tower"))
    save_file({**tensors, "more": torch.zeros(1)}, _file(tmp_path, "vision_tower"))
    assert _differ(recipe, before) == ["model.vision_tower"]
    with (tmp_path / "tokenizer.model").open("ab") as file:
        file.write(b"x")
    assert _differ(recipe, before) == ["model.vision_tower", "model.tokenizer"]


def test_a_tower_that_is_not_looked_through_does_not_count(recipe, tmp_path):
    shutil.rmtree(tmp_path / "vision_tower")
    found = fingerprint(Base(replace(recipe, method=method_settings("none"))))
    assert sorted(found) == ["model.language_model", "model.tokenizer"]
    with pytest.raises(UserError, match=r"model\.vision_tower: folder .*vision_tower does not exist$"):
        fingerprint(Base(recipe))


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
    with pytest.raises(UserError, match=rf"^model\.language_model: {path} is not a readable safetensors file"):
        fingerprint(Base(recipe))
