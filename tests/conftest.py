"""What many tests share: a tiny tokenizer, shards, random models and a recipe that joins them."""

import os
import random
from pathlib import Path

import pytest
import torch
import yaml
from making import picture

from data_prep.demo import sample
from data_prep.shards import Row, write_shards
from data_prep.tokenizer import train_tokenizer
from dsmemvp.data.sample import sample_from_row
from dsmemvp.data.text import prompt_text, target_text
from dsmemvp.data.tokenizer import Tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _same_environment():
    """A command that joins ranks in this process leaves where they met in the environment; those that a later test
    starts must not read it."""
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of facts and recordings beside the repository."""
    folder = Path(os.environ.get("DSMEMVP_SHARED") or REPOSITORY.parent / "shared")
    if not folder.is_dir():
        message = f"{folder} does not exist; give the folder with the published recordings in DSMEMVP_SHARED"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory) -> Path:
    """A tiny sentencepiece model, trained on the texts of drawn questions."""
    rng = random.Random("tokenizer of the tests")
    rows = (sample(rng, f"t{i}", with_picture=i % 2 == 0, draw=False) for i in range(300))
    samples = [sample_from_row(row.fields, None, row.key) for row in rows]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer((prompt_text(s, captions=True) + target_text(s) for s in samples), path, vocabulary=400)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path) -> Tokenizer:
    return Tokenizer(tokenizer_path)


@pytest.fixture(scope="session")
def demo_shards(tmp_path_factory) -> Path:
    """48 drawn questions in 4 shards; every second one has a picture. Do not write into it."""
    rng = random.Random("shards of the tests")
    rows = (sample(rng, f"d{i:03d}", with_picture=i % 2 == 0) for i in range(48))
    folder = tmp_path_factory.mktemp("demo") / "train"
    write_shards(rows, folder, "train", per_shard=12)
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory, tokenizer) -> Path:
    """A folder with random language_model/ and vision_tower/, written by transformers. Do not write into it."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models")
    language = LlamaConfig(
        vocab_size=tokenizer.vocabulary,
        hidden_size=32,
        intermediate_size=88,
        num_hidden_layers=2,
        num_attention_heads=2,
        rms_norm_eps=1e-6,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        hidden_act="quick_gelu",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(language).save_pretrained(folder / "language_model")
        CLIPVisionModel(vision).save_pretrained(folder / "vision_tower")
    return folder


@pytest.fixture
def recipe_path(tmp_path, tokenizer_path, demo_shards, tiny_models) -> Path:
    """A recipe of all these; its runs go below the test's own folder. Training and test shards are the same."""
    recipe = {
        "name": "tiny",
        "output": str(tmp_path / "runs"),
        "model": {
            "language_model": str(tiny_models / "language_model"),
            "vision_tower": str(tiny_models / "vision_tower"),
            "tokenizer": str(tokenizer_path),
            "dtype": "fp32",
        },
        "vision": {"adapter_dim": 4},
        "method": {"name": "memvp", "slots": 24, "hidden": 16, "visual_scale": 0.1, "output_scale": 1.0},
        "data": {"train": str(demo_shards), "test": str(demo_shards), "max_length": 160, "workers": 0},
        "training": {
            "epochs": 2,
            "warmup_epochs": 1,
            "learning_rate": 1e-2,
            "global_batch": 8,
            "micro_batch": 2,
            "log_every": 1,
            "deepspeed": str(REPOSITORY / "ds_configs" / "zero3.json"),
        },
        "evaluation": {"batch": 8},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pformer_run(repository, tokenizer_path, demo_shards, tiny_models, tmp_path_factory) -> list[str]:
    """A recipe of P-Former and settings, as arguments without an output: three steps of each of its first three stages,
    six of the last, from captions, pairs and questions. Its runs are called "pformer"."""
    folder = tmp_path_factory.mktemp("pformer")
    colours = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (20, 40, 230), "white": (240, 240, 240)}
    things = ("house", "ball", "road", "sky", "wall", "boat")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", *colours, *things]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    for name in ("captions", "pairs"):
        rows = []
        for i in range(24):
            colour = list(colours)[i % 4]
            image = picture(colour=colours[colour]) if name == "pairs" else None
            rows.append(Row(f"c{i:02d}", {"caption": f"a {colour} {things[i % 6]}"}, image))
        write_shards(rows, folder / name, "train", per_shard=8)
    (folder / "recipe.yaml").write_text((repository / "recipes" / "pformer-demo.yaml").read_text())
    settings = ["name=pformer", f"model.language_model={tiny_models / 'language_model'}"]
    settings += [f"model.vision_tower={tiny_models / 'vision_tower'}", f"model.tokenizer={tokenizer_path}"]
    settings += ["method.prompts=4", "method.features=16", f"method.text_tokenizer={folder / 'vocab.txt'}"]
    settings += ["method.text_length=8", "method.dropout=0.1", "method.reference_steps=2"]
    settings += [f"data.train={folder / 'pairs'}", f"stages.text.data.train={folder / 'captions'}"]
    settings += [f"stages.finetune.data.train={demo_shards}", f"data.test={demo_shards}", "data.max_length=160"]
    settings += ["data.workers=0", "training.epochs=1", "training.warmup_epochs=0", "training.global_batch=8"]
    settings += ["training.micro_batch=4", "training.log_every=1", "stages.text.training.epochs=1"]
    settings += ["stages.text.training.warmup_epochs=0", "stages.finetune.training.epochs=1", "evaluation.batch=8"]
    settings += ["stages.finetune.training.global_batch=8", "stages.finetune.training.micro_batch=4"]
    settings += ["stages.text.training.checkpoint_epochs=1", "vision.cache_features=''"]
    settings += [f"training.deepspeed={repository / 'ds_configs' / 'zero3.json'}"]
    return [str(folder / "recipe.yaml"), *settings]


@pytest.fixture(scope="session")
def small_run(repository, tokenizer_path, demo_shards, tiny_models) -> list[str]:
    """`train recipes/demo.yaml` on the tests' own data and models, as arguments without an output: 2 epochs of 6 steps,
    2 micro-steps each on 2 ranks, with dropout and validation."""
    settings = [f"model.language_model={tiny_models / 'language_model'}", f"model.tokenizer={tokenizer_path}"]
    settings += [f"model.vision_tower={tiny_models / 'vision_tower'}", f"data.train={demo_shards}"]
    settings += [f"data.test={demo_shards}", f"data.validation={demo_shards}", "data.max_length=160", "data.workers=0"]
    settings += ["data.record_order=true", "training.global_batch=8", "training.micro_batch=2", "training.log_every=1"]
    settings += [
        "training.epochs=2",
        "training.learning_rate=1e-3",
        "training.checkpoint_steps=2",
        "method.dropout=0.1",
        "vision.adapter_dim=8",
    ]
    settings += ["evaluation.batch=8", f"training.deepspeed={repository / 'ds_configs' / 'zero3.json'}"]
    return [str(repository / "recipes" / "demo.yaml"), *settings]


@pytest.fixture(scope="session")
def uninterrupted(small_run, tmp_path_factory) -> Path:
    """The folder of that run, trained to its end in one go on two ranks. Do not write into it."""
    from faulty import run

    folder = tmp_path_factory.mktemp("uninterrupted")
    done = run(["train", *small_run, f"output={folder}"], folder / "logs")
    assert done.codes == [0, 0], done.text
    return folder / "demo"
