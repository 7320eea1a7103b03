"""The command as a whole, on this machine and as rank of a job."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from making import as_json, fields, manifest_of, write_tar

from dsmemvp.config.reading import read_recipe
from dsmemvp.doctor.finding import Here
from dsmemvp.doctor.needs import of_recipe
from dsmemvp.doctor.report import slurm


def doctor(repository, *arguments, **variables) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "WORLD", "LOCAL_"))}
    environment = {
        **kept,
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(repository),
        **variables,
    }
    command = [sys.executable, "-m", "dsmemvp", "doctor", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def levels(done) -> dict[str, str]:
    """What was looked at -> ok, warning or FAIL."""
    return {_what(line): line.split()[1] for line in done.stdout.splitlines()}


def _what(line: str) -> str:
    return line.split(maxsplit=2)[2].partition("  ")[0]


def test_a_recipe_that_would_run_here(repository, recipe_path):
    done = doctor(repository, recipe_path)
    assert done.returncode == 0 and done.stderr == "" and "FAIL" not in done.stdout
    found = levels(done)
    for what in ("versions", "GPUs", "network", "Slurm", "rendezvous", "CPU cores", "shared memory"):
        assert what in found
    for what in ("weights", "tokenizer", "training data", "test data", "batch", "loggers", "run folder"):
        assert found[what] in ("ok", "warning"), done.stdout
    assert "48 samples and 6 steps per epoch" in done.stdout
    assert "8 samples over 1 rank, in 4 micro-steps of 2 samples" in done.stdout


def test_the_machine_alone(repository):
    done = doctor(repository)
    assert done.returncode == 0 and "weights" not in levels(done)


def test_all_that_a_recipe_lacks_is_said_at_once(repository, recipe_path, tmp_path, tiny_models):
    weights = shutil.copytree(tiny_models / "language_model", tmp_path / "language_model")
    (weights / "model.safetensors").unlink()
    lacking = [f"model.language_model={weights}", "data.train=nowhere", "data.test=", f"output={recipe_path}"]
    done = doctor(repository, recipe_path, *lacking, PATH=str(tmp_path))
    assert done.returncode == 1
    failed = {what for what, level in levels(done).items() if level == "FAIL"}
    assert failed == {"run folder", "weights", "training data", "test data"}
    assert "has neither model.safetensors nor" in done.stdout and "nowhere/dataset.json does not exist" in done.stdout
    assert done.stderr.startswith("dsmemvp doctor: error: a run would fail here: run folder, weights")


@pytest.mark.parametrize(
    ("override", "what", "part"),
    [
        ("model.tokenizer=none.model", "tokenizer", "model.tokenizer: none.model does not exist"),
        ("training.global_batch=4000", "training data", "4000 is more than the 48 samples"),
        ("training.deepspeed=none.json", "batch", "none.json does not exist"),
        ("method.name=dvp", "method", "there is no layer 4 in the language model"),
        ("data.search=nowhere", "search data", "nowhere/dataset.json does not exist"),
        ("model.vision_tower=", "weights", "model.vision_shape: give a folder of weights"),
    ],
)
def test_a_recipe_s_faults(recipe_path, override, what, part):
    findings = of_recipe(read_recipe(recipe_path, [override]), Here())
    failed = [f for f in findings if f.level == "FAIL"]
    assert [f.what for f in failed] == [what] and part in failed[0].found


def test_a_batch_of_fewer_samples_than_ranks_would_fail(recipe_path):
    findings = {f.what: f for f in of_recipe(read_recipe(recipe_path), Here(world=1000, local_world=1000))}
    assert findings["batch"].level == "FAIL" and "cannot be shared by 1000 ranks" in findings["batch"].found


STEP = {
    "SLURM_JOB_ID": "4321",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_STEP_NODELIST": "localhost",
}


def test_under_srun_the_first_rank_of_a_node_speaks(repository):
    first = doctor(repository, **STEP)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "job 4321 on 1 node" in first.stdout and "2 CPU ranks" in first.stdout
    second = doctor(repository, **{**STEP, "SLURM_PROCID": "1", "SLURM_LOCALID": "1"})
    assert (second.returncode, second.stdout) == (0, "")


def test_outside_of_srun_a_job_sees_its_first_node_only():
    assert [f.level for f in slurm({})] == ["ok"] and [f.level for f in slurm(STEP)] == ["ok"]
    (found,) = slurm({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"})
    assert found.level == "warning" and "srun" in found.todo


@pytest.fixture
def too_long(tmp_path):
    """Samples with long contexts, which are cut, and two whose questions alone are longer than 160 tokens."""
    words = " ".join(f"word{i}" for i in range(80))
    rows = [fields(i, context=words if i % 2 else "") for i in range(12)]
    rows[4], rows[8] = fields(4, question=words), fields(8, question=words[:400])
    members = [(f"s{i}.json", as_json(row)) for i, row in enumerate(rows)]
    manifest_of(
        write_tar(tmp_path / "long" / "0.tar", members[:6]), write_tar(tmp_path / "long" / "1.tar", members[6:])
    )
    return tmp_path / "long"


@pytest.mark.parametrize("which", ["train", "test", "validation"])
def test_samples_that_a_run_would_die_on_are_found(recipe_path, too_long, which):
    what = {"train": "training data"}.get(which, f"{which} data")

    def found(*more):
        recipe = read_recipe(recipe_path, [f"data.{which}={too_long}", *more])
        return {finding.what: finding for finding in of_recipe(recipe, Here())}[what]

    failed = found()
    assert failed.level == "FAIL" and "0.tar, sample s4: is longer than data.max_length = 160" in failed.found
    assert "(and 1 more sample)" in failed.found
    needed = int(re.search(r"data\.max_length=(\d+) takes those that are too long", failed.todo)[1])
    assert f"it needs data.max_length={needed}" in failed.found  # the first is the longest
    assert found(f"data.max_length={needed}").level == "ok" and found(f"data.max_length={needed - 1}").level == "FAIL"
    assert "the 12 longest texts of 12 tokenised" in found(f"data.max_length={needed}").found
    skipped = found("data.on_bad_sample=skip")
    assert skipped.level == "warning" and "they are skipped" in skipped.todo


def test_samples_that_the_index_knows_to_be_unusable_are_found(recipe_path, tmp_path):
    members = [("a.json", as_json(fields())), ("b.json", b"{"), ("c.json", as_json(fields(1)))]
    manifest_of(write_tar(tmp_path / "bad" / "0.tar", members))
    recipe = read_recipe(recipe_path, [f"data.train={tmp_path / 'bad'}", "training.global_batch=2"])
    (found,) = [finding for finding in of_recipe(recipe, Here()) if finding.what == "training data"]
    assert found.level == "FAIL" and "sample b: json member cannot be read" in found.found


def test_every_stage_is_looked_at(recipe_path, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red"]) + "\n")
    method = ["method.name=pformer", "method.stages=[align, finetune]", "method.text_shape=bert-tiny"]
    method += ["method.schedule=full", f"method.text_tokenizer={tmp_path / 'vocab.txt'}", "method.text_length=8"]

    def levels(*more):
        found = of_recipe(read_recipe(recipe_path, [*method, *more]), Here())
        return {finding.what: finding.level for finding in found if ", stage" in finding.what}

    named = {f"{what}, stage {stage}" for what in ("training data", "batch") for stage in ("align", "finetune")}
    assert levels() == dict.fromkeys(named, "ok")
    missing = ["stages.align.data.train=nowhere", "stages.align.training.deepspeed=none_such.json"]
    failed = {what for what, level in levels(*missing).items() if level == "FAIL"}
    assert failed == {"training data, stage align", "batch, stage align"}
