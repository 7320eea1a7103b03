"""Names on the Hugging Face hub, without a network: a folder laid out as huggingface_hub lays out its cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dsmemvp.config.hub import local
from dsmemvp.errors import UserError

COMMITS = {"main": "1" * 40, "v1": "2" * 40}
NAMES = {"language_model": "language_model", "vision_tower": "vision_tower", "tokenizer": "language_model"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory, tiny_models, tokenizer_path) -> Path:
    """Two revisions of each model; the second one's configuration differs."""
    cache = tmp_path_factory.mktemp("hub")
    for name in ("language_model", "vision_tower"):
        repository = cache / f"models--acme--{name}"
        (repository / "refs").mkdir(parents=True)
        for revision, commit in COMMITS.items():
            (repository / "refs" / revision).write_text(commit)
            folder = repository / "snapshots" / commit
            shutil.copytree(tiny_models / name, folder)
            if name == "language_model":
                shutil.copy(tokenizer_path, folder / "tokenizer.model")
        config = repository / "snapshots" / COMMITS["v1"] / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-3, "layer_norm_eps": 1e-3}))
    return cache


def _run(cache: Path, recipe: Path, *overrides: str, command: str = "train", **environment: str):
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    settings = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "dsmemvp", command, str(recipe), *overrides],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _named(revision: str = "") -> list[str]:
    return [f"model.{key}=hf://acme/{name}{revision}" for key, name in NAMES.items()]


def test_a_run_records_the_commit_of_what_it_was_trained_on(cache, recipe_path, tmp_path):
    output = [f"output={tmp_path}", "name=run", "training.stop_at_step=1"]
    done = _run(cache, recipe_path, *_named(), *output)
    assert done.returncode == 0, done.stderr
    (state,) = (tmp_path / "run" / "checkpoints").glob("*/state.json")
    for path in (state, tmp_path / "run" / "recipe.json"):
        content = json.loads(path.read_text())
        model = content.get("recipe", content)["model"]
        assert {key: model[key] for key in NAMES} == {
            key: f"hf://acme/{name}@{COMMITS['main']}" for key, name in NAMES.items()
        }
    # another revision of it is another base, the same one by another name is not
    other = _run(cache, recipe_path, *_named("@v1"), *output)
    assert other.returncode == 1 and "model.language_model: " in other.stderr
    assert "was trained on another one" in other.stderr
    same = _run(cache, recipe_path, *_named(f"@{COMMITS['main']}"), *output)
    assert same.returncode == 0, same.stderr


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        ("hf://acme/missing", {}, "hf://acme/missing: it is not in the cache {cache}, and the hub cannot be reached;"),
        (
            "hf://acme/missing@v3",
            {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"},
            "it is not in the cache {cache}, and the hub cannot be reached; where there is a network, run:"
            " hf download acme/missing --revision v3",
        ),
        ("hf://acme", {}, "'hf://acme' is not of the form hf://org/name or hf://org/name@REVISION"),
        ("hf://acme/a/b", {}, "'hf://acme/a/b' is not of the form"),
        ("hf://acme/model.git", {}, "'hf://acme/model.git' cannot be a name on the hub: Repo_id cannot end by '.git'"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(cache, recipe_path, tmp_path, name, environment, message):
    done = _run(cache, recipe_path, f"model.language_model={name}", f"output={tmp_path}", **environment)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()
    assert said[-1].startswith("dsmemvp train: error: model.language_model: ")
    assert message.format(cache=cache) in said[-1]
    assert not any("Traceback" in line for line in said)


def test_counting_looks_in_the_cache_only(cache, recipe_path):
    done = _run(cache, recipe_path, *_named(), command="count")
    assert done.returncode == 0, done.stderr
    done = _run(cache, recipe_path, "model.language_model=hf://acme/missing", command="count")
    assert done.returncode == 1 and f"it is not in the cache {cache}; where there is a network" in done.stderr


def test_a_tokenizer_s_file_is_found_or_named(cache):
    folder = cache / "models--acme--language_model" / "snapshots" / COMMITS["v1"]
    program = "from dsmemvp.config.hub import local; print(local(*__import__('sys').argv[1:]))"
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    for name in ("hf://acme/language_model@v1", "hf://acme/language_model@v1/tokenizer.model"):
        command = [sys.executable, "-c", program, name, "model.tokenizer"]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
        assert found == str(folder / "tokenizer.model")
    assert local("some/folder", "model.language_model") == "some/folder"
    with pytest.raises(UserError, match=r"model\.vision_tower: .* is not of the form"):
        local("hf://acme/vision_tower/config.json", "model.vision_tower")
