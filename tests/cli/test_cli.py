"""The commands: what a user can mend ends in one line on stderr and exit code 1, without a traceback."""

import json
import os
import subprocess
import sys

import pytest

from dsmemvp.cli import main as cli
from dsmemvp.config.json_schema import recipe_schema
from dsmemvp.config.reading import read_recipe
from dsmemvp.errors import UserError


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command in this process, as its only rank, and returns (exit code, stdout, stderr)."""
    import torch

    from dsmemvp.distributed import ranks
    from dsmemvp.training import loop  # noqa: F401

    monkeypatch.setattr(ranks, "join_ranks", lambda seconds, stop: ranks.Ranks(0, 1, torch.device("cpu")))
    monkeypatch.delenv("DSMEMVP_TRACEBACK", raising=False)
    monkeypatch.delenv("RANK", raising=False)

    def command(*arguments):
        capsys.readouterr()
        code = cli.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return command


def is_one_line(result, name, *parts) -> bool:
    code, out, err = result
    assert code == 1 and out == ""
    assert err.startswith(f"dsmemvp {name}: error: ") and err.endswith("\n") and err.count("\n") == 1
    for part in parts:
        assert part in err
    return True


@pytest.mark.parametrize("name", ["train", "evaluate", "count"])
def test_a_missing_recipe_ends_in_one_line(command, tmp_path, name):
    assert is_one_line(command(name, tmp_path / "none.yaml"), name, "none.yaml does not exist")


@pytest.mark.parametrize("name", ["train", "evaluate", "count"])
def test_an_unknown_key_ends_in_one_line(command, recipe_path, name):
    recipe_path.write_text(recipe_path.read_text() + "trainin:\n  epochs: 3\n")
    line = recipe_path.read_text().splitlines().index("trainin:") + 2
    wanted = (f"tiny.yaml, line {line}", "unknown key 'trainin.epochs'", "did you mean 'training.epochs'?")
    assert is_one_line(command(name, recipe_path), name, *wanted)


def test_a_recipe_that_is_not_yaml_ends_in_one_line(command, tmp_path):
    (tmp_path / "r.yaml").write_text("name: [\n")
    assert is_one_line(command("count", tmp_path / "r.yaml"), "count", "r.yaml is not YAML")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.train=", "data.train: "),
        ("data.train=nowhere", "nowhere/dataset.json does not exist"),
        ("model.language_model=nowhere", "model.language_model: folder nowhere does not exist in /"),
        ("model.vision_tower=nowhere", "model.vision_tower: folder nowhere does not exist in /"),
        ("model.tokenizer=nowhere.model", "nowhere.model does not exist"),
        ("training.global_batch=4000", "training.global_batch: 4000 is more than the 48 samples"),
        ("training.epochs=x", "training.epochs: must be a number"),
        ("training.epochs", "write key=value"),
    ],
)
def test_what_training_lacks_ends_in_one_line(command, recipe_path, override, part):
    assert is_one_line(command("train", recipe_path, override), "train", part)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.test=", "data.test: "),
        ("data.test=nowhere", "nowhere/dataset.json does not exist"),
        ("model.language_model=nowhere", "model.language_model: folder nowhere does not exist in /"),
        ("seed=0", "checkpoints holds no checkpoint"),
    ],
)
def test_what_evaluation_lacks_ends_in_one_line(command, recipe_path, override, part):
    assert is_one_line(command("evaluate", recipe_path, override), "evaluate", part)


def test_the_validation_split_and_the_best_checkpoint_must_be_there(command, recipe_path, demo_shards, capsys):
    assert is_one_line(command("evaluate", recipe_path, "--split", "validation"), "evaluate", "data.validation: give")
    given = [f"data.validation={demo_shards}", "--split", "validation", "--best"]
    assert is_one_line(command("evaluate", recipe_path, *given), "evaluate", "no checkpoint with a loss on")
    with pytest.raises(SystemExit) as caught:
        command("evaluate", recipe_path, "--best", "--checkpoint", "x")
    assert caught.value.code == 2 and "not allowed with argument" in capsys.readouterr().err


def test_a_damaged_shard_is_told_before_training(command, recipe_path, tmp_path, demo_shards):
    import shutil

    copy = shutil.copytree(demo_shards, tmp_path / "copy")
    (copy / "000002.tar").write_bytes((copy / "000002.tar").read_bytes()[:-512])
    assert is_one_line(command("train", recipe_path, f"data.train={copy}"), "train", "000002.tar has ", "bytes")


def test_the_traceback_is_there_for_who_asks(command, tmp_path, monkeypatch):
    monkeypatch.setenv("DSMEMVP_TRACEBACK", "1")
    with pytest.raises(UserError):
        command("count", tmp_path / "none.yaml")


@pytest.mark.parametrize("arguments", [[], ["dance"], ["train"], ["import", "x"]])
def test_a_wrong_command_line_is_explained_with_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and "usage: dsmemvp" in capsys.readouterr().err


def test_a_process_that_cannot_train_writes_one_line_and_leaves_with_exit_code_1(recipe_path):
    """The real thing, up to where ranks would be joined (which may build DeepSpeed's extension for a minute)."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "DSMEMVP_TRACEBACK")}
    environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dsmemvp", "train", recipe_path, "training.epoch=3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert is_one_line((done.returncode, done.stdout, done.stderr), "train", "unknown key 'training.epoch'")


ALL_OF_A_RECIPE = [
    *([name, "RECIPE", "training.epoch=3"] for name in ("train", "evaluate", "count", "submit", "doctor")),
    ["plan", "RECIPE", "training.epoch=3", "--gpus", "8"],
    ["data", "show", "RECIPE", "training.epoch=3"],
    ["data", "check", "RECIPE", "training.epoch=3"],
    ["generate", "--run", "runs/x", "--set", "training.epoch=3", "What?"],
    ["inspect", "--run", "runs/x", "--set", "training.epoch=3", "--sample", "0"],
    ["export", "--recipe", "RECIPE", "--set", "training.epoch=3", "--checkpoint", "x", "--out", "y"],
]
ASKED_OF_ALL = """
import json, sys
from dsmemvp.cli import main as cli
for arguments in json.loads(sys.argv[1]):
    assert cli.main(arguments) == 1, arguments
slow = {"torch", "deepspeed", "transformers", "numpy", "PIL"} & sys.modules.keys()
assert not slow, slow
"""


def test_a_mistake_in_a_key_is_answered_before_anything_slow_is_imported(recipe_path):
    commands = [[str(recipe_path) if part == "RECIPE" else part for part in command] for command in ALL_OF_A_RECIPE]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "DSMEMVP_TRACEBACK")}
    program = [sys.executable, "-c", ASKED_OF_ALL, json.dumps(commands)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(commands) and all("did you mean 'training.epochs'?" in line for line in said), said


NOWHERE = [
    ("model.language_model=nowhere", "model.language_model: folder nowhere does not exist in /"),
    ("model.vision_tower=nowhere", "model.vision_tower: folder nowhere does not exist in /"),
    ("model.tokenizer=nowhere.model", "model.tokenizer: nowhere.model does not exist"),
    ("data.train=nowhere", "nowhere/dataset.json does not exist"),
    ("data.validation=nowhere", "nowhere/dataset.json does not exist"),
    ("training.deepspeed=nowhere.json", "training.deepspeed: nowhere.json does not exist"),
]
ASKED_ONCE = """
import json, sys
from dsmemvp.cli import main as cli
assert cli.main(["train", *json.loads(sys.argv[1])]) == 1
assert "deepspeed" not in sys.modules and "dsmemvp.distributed.ranks" not in sys.modules
"""


@pytest.mark.parametrize(("override", "part"), NOWHERE)
def test_a_path_that_is_not_there_is_answered_before_ranks_join(recipe_path, override, part):
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "DSMEMVP_TRACEBACK")}
    program = [sys.executable, "-c", ASKED_ONCE, json.dumps([str(recipe_path), override])]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and part in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_evaluation_looks_for_its_own_split_alone(command, recipe_path):
    given = ["data.train=nowhere", "data.validation=nowhere"]
    assert "nowhere" not in command("evaluate", recipe_path, *given)[2]
    assert is_one_line(
        command("evaluate", recipe_path, "--split", "validation", *given), "evaluate", "nowhere/dataset.json"
    )


def test_a_recipe_is_printed_with_all_its_keys_and_reads_back_the_same(command, recipe_path, tmp_path):
    code, out, _ = command("recipe", recipe_path, "training.epochs=7")
    (tmp_path / "whole.yaml").write_text(out)
    assert code == 0 and read_recipe(tmp_path / "whole.yaml") == read_recipe(recipe_path, ["training.epochs=7"])
    assert {"epochs: 7.0", "slots: 24", "max_pixels: 50000000"} <= {line.strip() for line in out.splitlines()}
    assert "lora_rank" not in out
    assert is_one_line(command("recipe", recipe_path, "method.slot=7"), "recipe", "did you mean 'method.slots'?")


def test_the_schema_of_recipes_is_printed(command, recipe_path):
    code, out, _ = command("recipe", "--schema")
    assert code == 0 and json.loads(out) == recipe_schema()
    for arguments in (["recipe"], ["recipe", recipe_path, "--schema"]):
        assert is_one_line(command(*arguments), "recipe", "give either a recipe's file or --schema")


def test_overrides_may_stand_before_and_behind_an_option(command, recipe_path):
    wanted = ("override 'method.slot=3'", "did you mean 'method.slots'?")
    assert is_one_line(command("evaluate", recipe_path, "seed=1", "--blind", "method.slot=3"), "evaluate", *wanted)
    with pytest.raises(SystemExit):
        command("evaluate", recipe_path, "--blind", "--no-such-option")


def test_an_error_is_left_where_the_batch_script_looks_for_it(command, tmp_path, monkeypatch):
    monkeypatch.setenv("DSMEMVP_ERROR_FILE", str(tmp_path / "error"))
    code, _, err = command("count", tmp_path / "none.yaml")
    assert code == 1 and (tmp_path / "error").read_text() == err.removeprefix("dsmemvp count: error: ")


def test_a_missing_package_is_an_error_of_the_users(monkeypatch, capsys, tmp_path):
    """The environment was forgotten: a batch script that started the job again would find the same."""

    def run(given):
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr("dsmemvp.cli.cluster._count", run)
    monkeypatch.setenv("DSMEMVP_ERROR_FILE", str(tmp_path / "error"))
    code = cli.main(["count", "x.yaml"])
    err = capsys.readouterr().err
    assert code == 1 and err.count("\n") == 1 and "No module named 'torch'" in err and "make install" in err
    assert (tmp_path / "error").exists()


def test_parameters_are_counted_from_folders_where_no_shape_is_named(command, recipe_path):
    code, out, _ = command("count", recipe_path)
    assert code == 0 and "3,120 trainable parameters" in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["data", "check", "RECIPE", "--ranks", "0"], "--ranks: must be at least 1, is 0"),
        (["data", "show", "RECIPE", "--samples", "-3"], "--samples: must be at least 1, is -3"),
        (["plan", "RECIPE", "--gpus", "8", "--gpu-memory", "80"], "--gpu-memory: '80' is no size"),
    ],
)
def test_numbers_that_cannot_be_are_told(command, recipe_path, arguments, part):
    arguments = [str(recipe_path) if each == "RECIPE" else each for each in arguments]
    name = " ".join(arguments[:2]) if arguments[0] == "data" else arguments[0]
    assert is_one_line(command(*arguments), name, part)


def test_a_folder_in_the_place_of_a_file_is_told(command, recipe_path, tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    assert is_one_line(command("train", tmp_path), "train", "is a folder; give a file, such as ", "recipe.json")
    assert is_one_line(command("train", recipe_path, f"model.tokenizer={tmp_path}"), "train", "is a folder; give")


def test_our_own_warnings_are_one_line(monkeypatch, capsys, tmp_path):
    def run(given):
        import warnings

        from dsmemvp.checkpoints.loading import __file__ as place

        warnings.warn_explicit("the newest one is damaged", UserWarning, place, 1)

    monkeypatch.setattr("dsmemvp.cli.cluster._count", run)
    assert cli.main(["count", "x.yaml"]) == 0
    assert capsys.readouterr().err == "dsmemvp: warning: the newest one is damaged\n"
