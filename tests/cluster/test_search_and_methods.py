"""The other methods as Slurm jobs on two nodes: a search, a training run of what it has found, and one of MITP."""

import json
import random
import re
from pathlib import Path

import pytest

from data_prep.demo import sample
from data_prep.shards import write_shards

pytestmark = pytest.mark.cluster


@pytest.fixture
def submit(slurm, demo_shards, tmp_path):
    """`dsmemvp submit` of a recipe with settings, for one rank on each of two nodes -> the job's number."""

    def submit(recipe: str | Path, *settings: str) -> str:
        on_cpus = ["--nodes=2", "--cpu-ranks-per-node=1", "--cpus-per-gpu=1", f"--sbatch=--output={tmp_path / '%j'}"]
        short = [f"data.test={demo_shards}", "training.epochs=1", "training.warmup_epochs=0"]
        said = slurm.run("python", "-m", "dsmemvp", "submit", str(recipe), *short, *settings, *on_cpus)
        (number,) = re.findall(r"\d+", said)
        return number

    return submit


def _losses(run: Path) -> list[int]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if "loss/train" in row]


def test_a_search_and_training_runs_of_dvp_and_mitp(slurm, submit, demo, tmp_path):
    rng = random.Random("a split of its own for the search")
    write_shards((sample(rng, f"s{i}", with_picture=True) for i in range(8)), tmp_path / "search", "search", 8)
    runs, (recipe, *settings) = tmp_path / "runs", demo[1:]
    dvp = ["method.name=dvp", "method.layer=1", "method.width=16", "method.heads=4", "search.epochs=1"]
    search = submit(recipe, *settings, *dvp, "search.draws=2", f"data.search={tmp_path / 'search'}", "--search")
    mitp = submit(recipe, *settings, "name=mitp", "method.name=mitp", "method.rank=8", "vision.adapter_dim=0")
    slurm.wait_for(search, "COMPLETED", 180)
    assert "2 ranks on cpu" in (tmp_path / search).read_text()
    assert _losses(runs / "demo-search") == [1, 2, 3, 4, 5, 6]
    found = sorted((runs / "demo-search" / "recipes").iterdir())
    assert [path.name for path in found] == ["demo-layer-0.yaml", "demo-layer-1.yaml"]

    trained = submit(found[1])
    for number, run in ((mitp, runs / "mitp"), (trained, runs / "demo-layer-1")):
        slurm.wait_for(number, "COMPLETED", 180)
        assert "2 ranks on cpu" in (tmp_path / number).read_text()
        assert _losses(run) == [1, 2, 3, 4, 5, 6]
        assert json.loads((run / "evaluation.json").read_text())["epoch"] == 1
