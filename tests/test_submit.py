"""What is given to sbatch: the start file with its lines filled in, held against golden files."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from dsmemvp.cli import main as cli
from dsmemvp.config.reading import read_recipe
from dsmemvp.submit import START_FILES, Allocation, sbatch_text

GOLDEN = Path(__file__).parent / "golden"
RECIPE = "recipes/scienceqa-13b.yaml"


@pytest.fixture
def submit(monkeypatch, capsys, repository):
    """Runs `dsmemvp submit` in the repository, as users do, and returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(repository)

    def submit(*arguments):
        code = cli.main(["submit", *arguments])
        return code, *capsys.readouterr()

    return submit


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A program in its place that keeps what it is given."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncat > {tmp_path}/given; echo "$#" > {tmp_path}/count; echo Submitted batch job 7\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def test_two_nodes_of_eight_gpus(submit):
    code, out, _ = submit(RECIPE, "--nodes", "2", "--gpus-per-node", "8", "training.micro_batch=2", "--print")
    assert code == 0 and out == (GOLDEN / "two-nodes.sbatch").read_text()


def test_every_option_there_is(submit):
    arguments = ["--cpu-ranks-per-node", "4", "--cpus-per-gpu", "12", "--time", "1-00:00:00", "--partition", "long"]
    arguments += ["--account", "vision", "--sbatch=--mail-type=END", "--sbatch=--exclusive", "--evaluate-only"]
    code, out, _ = submit(RECIPE, "data.train=[a b, c]", *arguments, "--print")
    assert code == 0 and out == (GOLDEN / "evaluate-on-cpus.sbatch").read_text()


def test_what_is_printed_is_what_is_submitted(submit, sbatch, tmp_path):
    arguments = (RECIPE, "--nodes", "1", "--gpus-per-node", "8")
    printed = submit(*arguments, "--print")[1]
    assert not (tmp_path / "given").exists()
    assert submit(*arguments) == (0, "Submitted batch job 7\n", "")
    assert (tmp_path / "given").read_text() == printed and (tmp_path / "count").read_text() == "0\n"


def test_beside_its_options_the_text_is_the_start_file(repository):
    file = (repository / "slurm" / "train.sbatch").read_text()
    text = sbatch_text("run", ["r.yaml"], Allocation(3, 4))
    changed = set(file.splitlines()) ^ set(text.splitlines())
    assert {line for line in changed if not line.startswith("#SBATCH --")} == {"set -- r.yaml"}


@pytest.mark.parametrize("name", ["train.sbatch", "evaluate.sbatch", "search.sbatch", "compare.sbatch"])
def test_an_installed_package_has_the_files_of_the_repository(repository, name):
    assert (START_FILES / name).resolve() == repository / "slurm" / name


def test_a_search_is_submitted_with_its_own_start_file(submit):
    given = ["recipes/scienceqa-13b-dvp.yaml", "data.search=data/scienceqa/val", "--gpus-per-node", "8"]
    code, out, _ = submit(*given, "--search", "--print")
    assert code == 0 and '\nstep search "$@"\n' in out and "step train" not in out


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (RECIPE, "method.name: memvp has no setting to search for"),
        ("recipes/scienceqa-13b-dvp.yaml", "data.search: give the folder of shards to score on"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_it_waits_in_a_queue(submit, recipe, message):
    code, out, err = submit(recipe, "--gpus-per-node", "8", "--search", "--print")
    assert code == 1 and not out and message in err and err.count("\n") == 1


def test_one_stage_is_submitted_and_not_evaluated(submit):
    given = ["recipes/pformer-13b-stages.yaml", "--gpus-per-node", "8"]
    code, out, _ = submit(*given, "training.micro_batch=2", "--stage", "align", "--print")
    assert code == 0 and "\nset -- recipes/pformer-13b-stages.yaml training.micro_batch=2 --stage align\n" in out
    for stage, hint in (("algn", "did you mean 'align'?"), ("1", "its stages are text, align, generate, finetune")):
        code, out, err = submit(*given, "--stage", stage, "--print")
        assert (code, out) == (1, "") and f"--stage: the method has no stage {stage!r}; {hint}" in err
    code, _, err = submit(*given, "stages.finetune.training.global_batch=4", "stages.finetune.training.micro_batch=4")
    assert code == 1 and "training.global_batch: 4 samples cannot be shared by 8 ranks" in err
    with pytest.raises(SystemExit):
        submit(*given, "--stage", "align", "--evaluate-only")


def test_the_arguments_arrive_as_they_were_given(tmp_path):
    given = ["my recipes/a.yaml", "data.train=[a, b]", "name=it's", "seed=$HOME", "*"]
    text = sbatch_text("run", given, Allocation(1, 1))
    start = text[: text.index("stop=no")] + 'printf "%s\\n" "$@"\n'
    assert subprocess.run(["bash", "-c", start], capture_output=True, text=True).stdout.splitlines() == given


def test_a_batch_that_the_ranks_cannot_share_is_refused_before_the_queue(submit, sbatch, tmp_path):
    code, out, err = submit(RECIPE, "--nodes", "5", "--gpus-per-node", "8")
    assert (code, out) == (1, "") and not (tmp_path / "given").exists()
    assert "training.global_batch: 32 samples cannot be shared by 40 ranks" in err


@pytest.mark.parametrize("recipe", ["scienceqa-7b", "scienceqa-13b"])
def test_the_start_file_as_it_stands_runs_the_published_recipes(repository, recipe):
    text = (repository / "slurm" / "train.sbatch").read_text()
    nodes, tasks = (int(re.search(rf"--{key}=(\d+)", text)[1]) for key in ("nodes", "ntasks-per-node"))
    read_recipe(repository / "recipes" / f"{recipe}.yaml").training.micro_steps(nodes * tasks)


def test_the_batch_rule_is_that_of_training():
    from dsmemvp.config.recipe import Recipe, Training
    from dsmemvp.planning.deepspeed_settings import deepspeed_settings

    for ranks in (*range(1, 13), 48, 49, 100):
        recipe = Recipe(name="r", training=Training(global_batch=48, micro_batch=4))
        messages = set()
        for check in (lambda recipe, ranks: recipe.training.micro_steps(ranks), deepspeed_settings):
            try:
                check(recipe, ranks)
                messages.add("")
            except ValueError as error:
                messages.add(str(error))
        assert len(messages) == 1 and ("" in messages) == (ranks <= 48), ranks


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["none.yaml", "--gpus-per-node", "8"], "none.yaml does not exist"),
        ([RECIPE], "--gpus-per-node: give a positive number"),
        ([RECIPE, "--gpus-per-node", "-1"], "--gpus-per-node: give a positive number"),
        ([RECIPE, "--gpus-per-node", "8", "--cpu-ranks-per-node", "2"], "leave out --gpus-per-node"),
        ([RECIPE, "--gpus-per-node", "8", "--nodes", "0"], "--nodes: must be positive"),
        ([RECIPE, "--gpus-per-node", "8", "--cpus-per-gpu", "0"], "--cpus-per-gpu: must be positive"),
        ([RECIPE, "--gpus-per-node", "8", "--partition", "a\n#SBATCH --x"], "--partition: "),
        ([RECIPE, "--gpus-per-node", "8", "--sbatch", "END"], "--sbatch: 'END' is not an option of sbatch"),
        ([RECIPE, "--gpus-per-node", "8", "--sbatch=--a\nrm x"], "is not an option of sbatch"),
        ([RECIPE, "--gpus-per-node", "8", "training.epoch=3"], "did you mean 'training.epochs'?"),
    ],
)
def test_what_cannot_be_submitted_is_said_in_one_line(submit, sbatch, tmp_path, arguments, part):
    code, out, err = submit(*arguments)
    assert (code, out) == (1, "") and part in err and err.count("\n") == 1
    assert not (tmp_path / "given").exists()


def test_sbatch_s_own_refusal_is_passed_on(submit, sbatch):
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2; exit 1\n")
    code, _, err = submit(RECIPE, "--gpus-per-node", "8")
    assert code == 1 and "sbatch refuses the job: sbatch: error: invalid partition specified: gpu" in err


def test_without_slurm_there_is_still_the_text(submit, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = submit(RECIPE, "--gpus-per-node", "8")
    assert code == 1 and "there is no sbatch here; `--print` shows" in err
