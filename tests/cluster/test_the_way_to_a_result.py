"""The commands of docs/cluster.md from a new account to a result, on small stand-ins of the same formats."""

import json
import re
import shlex
import shutil
import time
from pathlib import Path

import pytest
from documents import CLUSTER, run_by
from stand_ins import openai_tensors, write_meta, write_scienceqa, write_torchscript
from transformers import CLIPVisionModel, LlamaForCausalLM

pytestmark = pytest.mark.cluster

PAGE = "docs/cluster.md"
ON_CPUS = (
    # the stand-in has two nodes with one rank each and no GPU
    ("sbatch slurm/prepare.sbatch", "sbatch --nodes=2 --ntasks=2 slurm/prepare.sbatch"),
    ("--ntasks-per-node=1 --gpus-per-node=8 python", "--ntasks-per-node=1 python"),
    ("--nodes 2 --gpus-per-node 8 --time", "--nodes 2 --cpu-ranks-per-node 1 --cpus-per-gpu 1 --time"),
    (
        "sbatch slurm/evaluate.sbatch",
        "sbatch --nodes=2 --gpus-per-node=0 --ntasks-per-node=1 --cpus-per-task=1 slurm/evaluate.sbatch",
    ),
    ("sbatch slurm/tensorboard.sbatch", "sbatch --cpus-per-task=1 slurm/tensorboard.sbatch"),
    ("srun --gpus=1 dsmemvp", "srun dsmemvp"),
)
"""What is written -> what is run; nothing else of the commands is changed."""


@pytest.fixture
def place(repository, tiny_models, tokenizer_path, tmp_path) -> Path:
    """A folder as the page wants it, with small models and few questions."""
    for name in ("slurm", "ds_configs"):
        (tmp_path / name).symlink_to(repository / name)
    language = LlamaForCausalLM.from_pretrained(tiny_models / "language_model")
    write_meta(language, tmp_path / "raw" / "llama" / "13B", pieces=2)
    shutil.copy(tokenizer_path, tmp_path / "raw" / "llama" / "tokenizer.model")
    vision = CLIPVisionModel.from_pretrained(tiny_models / "vision_tower")
    write_torchscript(openai_tensors(vision), tmp_path / "raw" / "ViT-L-14.pt")
    raw = write_scienceqa(tmp_path / "raw" / "scienceqa", 32)
    splits = json.loads((raw / "pid_splits.json").read_text())
    (raw / "pid_splits.json").write_text(json.dumps(splits | {"test": splits["train"][:12]}))
    (tmp_path / "cat.png").write_bytes((raw / "images" / "train" / "1" / "image.png").read_bytes())
    recipe = (repository / "recipes" / "scienceqa-13b.yaml").read_text()
    for line in ("  language_shape: llama-13b\n", "  vision_shape: clip-vit-l-14\n"):
        assert line in recipe
        recipe = recipe.replace(line, "")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "scienceqa-13b.yaml").write_text(recipe)
    return tmp_path


def test_every_command_on_the_way_to_a_result_does_what_it_says(slurm, repository, place):
    pages = run_by(repository, CLUSTER)
    assert set(pages) == {PAGE}
    written = [line for block in pages[PAGE] for line in block.commands()]
    assert len(written) >= 12
    for before, _ in ON_CPUS:
        assert any(before in command for command in written), before
    said = {command: _run(slurm, place, command) for command in written}
    run = place / "runs" / "scienceqa-13b"
    results = json.loads((run / "evaluation.json").read_text())
    assert results["epoch"] == 20 and set(results["accuracy"]) == {"captions off", "captions on"}
    assert (run / "evaluation-blind.json").exists()
    scored = next(text for command, text in said.items() if " score " in command)
    assert f"{results['accuracy']['captions off']['Avg']:.2f}" in scored
    assert list((place / "inside").glob("*.png"))
    assert next(text for command, text in said.items() if " generate " in command).strip()
    exported = {path.name for path in (place / "scienceqa-13b-memvp").iterdir()}
    assert "README.md" in exported and any(name.endswith(".safetensors") for name in exported)


def _run(slurm, place: Path, command: str) -> str:
    """What the command says; a job that it submits is waited for."""
    for written, run in ON_CPUS:
        command = command.replace(written, run)
    said = slurm.run("sh", "-c", f"cd {shlex.quote(str(place))} && exec {command}", timeout=300)
    if found := re.search(r"[Ss]ubmitted batch job (\d+)", said):
        return _until_over(slurm, place, found[1], endless="tensorboard" in command)
    return said


def _until_over(slurm, place: Path, job: str, endless: bool) -> str:
    """The log of a job that has done its work."""
    if endless:
        slurm.wait_for(job, "RUNNING", 60)
        end = time.monotonic() + 60
        while "localhost:6006" not in (text := _log(place, job)):
            assert time.monotonic() < end, text
            time.sleep(0.2)
        slurm.run("scancel", job)
        return text
    try:
        slurm.wait_for(job, "COMPLETED", 300)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{_log(place, job)}") from None
    return _log(place, job)


def _log(place: Path, job: str) -> str:
    return "\n".join(path.read_text(errors="replace") for path in place.glob(f"*-{job}.log"))
