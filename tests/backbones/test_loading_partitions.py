"""What ranks hold after loading, gathered again, equals the files bit for bit; each has read its own bytes only, and
nothing was sent."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from launch import run_on_ranks, written
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

PROGRAM = Path(__file__).parent.parent / "programs" / "loaded_partitions.py"
CONFIGS = Path(__file__).parent.parent.parent / "ds_configs"
# sizes that 3 or 4 ranks do not divide; grouped-query attention
SIZES = {"vocab_size": 4001, "hidden_size": 170, "intermediate_size": 301, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 5, "num_key_value_heads": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """The same model stored in several types, split over files; one with tied embeddings; one that is cut short."""
    folder = tmp_path_factory.mktemp("stored")
    for name, kind, tied in (
        ("bf16", torch.bfloat16, False),
        ("fp16", torch.float16, False),
        ("fp32", torch.float32, True),
    ):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=tied, **SIZES)).to(kind)
        model.save_pretrained(folder / name, max_shard_size="1MB")
    torch.manual_seed(0)
    even = {**SIZES, "hidden_size": 192, "intermediate_size": 320, "num_attention_heads": 3}
    LlamaForCausalLM(LlamaConfig(**even)).to(torch.float32).save_pretrained(folder / "even")
    qwen = Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **SIZES)).to(torch.bfloat16)
    qwen.save_pretrained(folder / "qwen2", max_shard_size="1MB")
    sizes = {"hidden_size": 34, "intermediate_size": 61, "num_hidden_layers": 3, "num_attention_heads": 2}
    tower = SiglipVisionModel(SiglipVisionConfig(image_size=32, patch_size=8, **sizes))
    tower.save_pretrained(folder / "siglip")
    shutil.copytree(folder / "bf16", folder / "cut")
    path = next((folder / "cut").glob("*-00002-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    return folder


def _sharding(folder: Path, shipped: str, **zero) -> str:
    settings = json.loads((CONFIGS / f"{shipped}.json").read_text())
    settings["zero_optimization"] |= zero
    path = folder / f"{shipped}.json"
    path.write_text(json.dumps(settings))
    return f"training.deepspeed={path}"


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_gathered_parameters_are_the_files(folders, recipe_path, tmp_path, ranks):
    batch = f"training.global_batch={2 * ranks}"
    on_node = 2 if ranks == 4 else ranks  # as on two nodes of two, or on one node
    sharding = {
        "flat": _sharding(tmp_path, "zero3"),
        "hpz": _sharding(tmp_path, "zero3_hpz", zero_hpz_partition_size=on_node),
        "offload": _sharding(tmp_path, "zero3_offload"),
        "replicated": _sharding(tmp_path, "replicated"),
    }
    cases = {
        name: [batch, settings, f"model.language_model={folders / 'bf16'}", "model.dtype=bf16"]
        for name, settings in sharding.items()
    }
    cases["fp16 to bf16"] = [*cases["flat"], f"model.language_model={folders / 'fp16'}"]
    cases["fp32 to bf16, tied"] = [*cases["flat"], f"model.language_model={folders / 'fp32'}"]
    others = [f"model.language_model={folders / 'qwen2'}", f"model.vision_tower={folders / 'siglip'}"]
    cases["qwen2 and siglip"] = [*cases["flat"], *others]
    cases["bf16 to fp32"] = [*cases["flat"], "model.dtype=fp32"]
    (tmp_path / "given.json").write_text(json.dumps({"recipe": str(recipe_path), "cases": cases}))
    run_on_ranks(PROGRAM, ranks, str(tmp_path / "given.json"), str(tmp_path / "found.json"))

    everyone = written(tmp_path / "found.json")
    assert len(everyone) == ranks
    for case in cases:
        found = [each[case] for each in everyone]
        assert not isinstance(found[0], str), found[0]
        copies = ranks if case == "replicated" else 1
        assert all(each["wrong"] == [] and each["compared"] > 50 for each in found), found
        assert all(each["sent"] <= 8 for each in found), case  # whether all have loaded
        positions = 16 if "siglip" in case else 17  # CLIP has a class token
        assert all(each["buffers"] == {"vision.embeddings.position_ids": [list(range(positions))]} for each in found)
        padded = found[0]["elements"] * copies + ranks * found[0]["compared"]
        assert found[0]["elements"] * copies <= sum(each["held"] for each in found) <= padded
        if ranks < 4 or "hpz" not in case:
            assert sum(each["read"] for each in found) == found[0]["bytes"] * copies
        else:  # half for the own node; of the own quarter for all nodes, what is not in that half
            assert [round(each["read"] / each["bytes"], 2) for each in found] == [0.5, 0.75, 0.75, 0.5]
        assert all(0 <= each["read_by_the_process"] - each["read"] < 100_000 for each in found), found
        # a linear layer that keeps its gathered weight for the backward pass would undo ZeRO-3
        assert all(each["linear"] == ["dsmemvp.backbones.linear"] for each in found)


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_rank_quantises_its_own_part(folders, recipe_path, tmp_path, ranks):
    """int8 with sizes that nothing divides; nf4 from another type. A rank reads what its part comes from, and at most a
    row of each tensor beside it."""
    cases = {}
    for shipped in ("zero3", "zero3_hpz", "zero3_offload", "replicated"):
        more = {"zero_hpz_partition_size": ranks} if shipped == "zero3_hpz" else {}
        shared = [f"training.global_batch={2 * ranks}", _sharding(tmp_path, shipped, **more), "model.dtype=bf16"]
        for form, name in (("nf4", "even"), ("int8", "bf16"), ("int8", "qwen2")):
            if shipped == "zero3_hpz" and form == "int8":
                continue  # DeepSpeed makes hpZ's groups once in a process
            language = [f"model.language_model={folders / name}", f"model.quantize={form}"]
            cases[f"{shipped} {form} {name}"] = [*shared, *language]
    (tmp_path / "given.json").write_text(json.dumps({"recipe": str(recipe_path), "cases": cases}))
    run_on_ranks(PROGRAM, ranks, str(tmp_path / "given.json"), str(tmp_path / "found.json"))

    everyone = written(tmp_path / "found.json")
    for case in cases:
        found = [each[case] for each in everyone]
        assert not isinstance(found[0], str), found[0]
        copies = ranks if case.startswith("replicated") else 1
        assert all(each["wrong"] == [] and each["quantised"] == 14 for each in found), found
        assert all(each["sent"] <= 8 for each in found), case
        padded = found[0]["elements"] * copies + ranks * found[0]["compared"]
        assert found[0]["elements"] * copies <= sum(each["held"] for each in found) <= padded
        once, item = found[0]["bytes"] * copies, 4 if "even" in case else 2
        if copies == ranks:
            assert [each["read"] for each in found] == [found[0]["bytes"]] * ranks
        elif "hpz" not in case:  # which has all of them in the node
            rows = 2 * ranks * 14 * 320 * item
            assert once <= sum(each["read"] for each in found) <= once + rows
            assert max(each["read"] for each in found) <= found[0]["bytes"] / ranks + rows
        assert all(0 <= each["read_by_the_process"] - each["read"] < 100_000 for each in found), found


@pytest.mark.ranks
def test_all_ranks_hear_of_what_is_wrong_on_one(folders, recipe_path, tmp_path):
    for rank, name in enumerate(("bf16", "cut")):
        (tmp_path / f"local-{rank}").symlink_to(folders / name)
    sharding = _sharding(tmp_path, "zero3")
    overrides = ["training.global_batch=4", sharding, f"model.language_model={tmp_path}/local-RANK"]
    (tmp_path / "given.json").write_text(json.dumps({"recipe": str(recipe_path), "cases": {"one": overrides}}))
    run_on_ranks(PROGRAM, 2, str(tmp_path / "given.json"), str(tmp_path / "found.json"))
    first, second = written(tmp_path / "found.json")
    assert first["one"] == second["one"]
    assert "model-00002-of-" in first["one"] and "is not a readable safetensors file" in first["one"]
