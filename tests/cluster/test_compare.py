"""`dsmemvp compare STUDY --submit`: an array with a task for each contender, on both nodes at once."""

import json

import pytest
import yaml

pytestmark = pytest.mark.cluster


def test_an_array_of_contenders_ends_in_one_report(slurm, demo, demo_shards, tmp_path):
    overrides = dict(setting.partition("=")[::2] for setting in demo[2:])
    contenders = {name: {"method": {"name": name}} for name in ("memvp", "dvp", "none")}
    contenders["dvp"]["method"]["layer"] = 1
    study = {"recipe": demo[1], "contenders": contenders, "seeds": [0], "leaks": "report"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    overrides |= {"data.test": str(demo_shards), "training.epochs": "1", "training.warmup_epochs": "0"}
    overrides.pop("output")
    settings = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    asked = ["--cpu-ranks-per-node", "1", "--cpus-per-gpu", "1", f"--sbatch=--output={tmp_path}/log-%a"]
    given = ["python", "-m", "dsmemvp", "compare", tmp_path / "study.yaml", "--out", tmp_path / "out", *settings]
    number = slurm.run(*given, "--submit", *asked).split()[-1]
    for task in range(3):
        slurm.wait_for(f"{number}_{task}", "COMPLETED", 240)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["scores"]) == ["memvp", "dvp", "none"] and report["samples"] == 48
    assert len(report["differences"]) == 3
    said = [(tmp_path / f"log-{task}").read_text() for task in range(3)]
    assert sum("## Differences" in text for text in said) >= 1  # the last one has written it
