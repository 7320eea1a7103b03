"""A run looked into: on one and two ranks, by the command, in TensorBoard, and what users get wrong."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import run_on_ranks
from making import picture
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.checkpoints.checkpoint import State, save_checkpoint
from dsmemvp.checkpoints.loading import load_run
from dsmemvp.cli import main as cli
from dsmemvp.config.reading import as_dict, read_recipe
from dsmemvp.distributed.ranks import leave_ranks
from dsmemvp.errors import UserError
from dsmemvp.inspection.board import BoardReport
from dsmemvp.inspection.look import check_method, open_model, spread
from dsmemvp.training.event_file import EventFile

PROGRAM = Path(__file__).parent.parent / "programs" / "looked_into.py"


@pytest.fixture
def run(recipe_path) -> Path:
    """A run's folder with one checkpoint of values that let every part of the memory speak."""
    return _run(recipe_path, 0.2)


def _run(recipe_path: Path, scale: float) -> Path:
    recipe = read_recipe(recipe_path)
    configs = read_configs(recipe)
    model = build_frozen(recipe, configs)
    add_trainables(model, recipe, configs)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        values = {n: p.detach() + scale * torch.randn_like(p) for n, p in model.trainables().items()}
    folder = Path(recipe.output) / recipe.name
    save_checkpoint(folder, State(step=3, recipe=as_dict(recipe), base=fingerprint(Base(recipe))), values, {})
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))
    return folder


@pytest.fixture
def command(capsys, monkeypatch):
    monkeypatch.delenv("DSMEMVP_TRACEBACK", raising=False)

    def command(*arguments):
        capsys.readouterr()
        code = cli.main(["inspect", *map(str, arguments)])
        return code, *capsys.readouterr()

    yield command
    leave_ranks()  # an error may have ended a command before it did


@pytest.mark.ranks
def test_two_ranks_with_zero3_see_what_one_process_sees(run, repository, tmp_path):
    """Nothing is resident: every parameter is gathered for use and released."""
    settings = json.loads((repository / "ds_configs" / "zero3.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "zero3.json").write_text(json.dumps(settings))
    run_on_ranks(PROGRAM, 1, str(run), str(repository / "ds_configs" / "replicated.json"), str(tmp_path / "one"))
    run_on_ranks(PROGRAM, 2, str(run), str(tmp_path / "zero3.json"), str(tmp_path / "two"))
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        if name.startswith("image"):
            assert tensor.shape == two[name].shape and tensor.float().std() > 10
            assert (tensor.int() - two[name].int()).abs().float().mean() < 0.1
        else:
            torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
    assert one["change"].max() > 1e-3
    images = [name for name in one if name.startswith("image")]
    assert images == [
        "image visual memory/sample 0",
        "image visual memory/sample 4",
    ]  # the sample without picture is passed over
    assert "scalar visual memory ratio/layer 01" in one and "histogram visual memory activation/layer 00" in one


@pytest.mark.ranks
def test_the_command_writes_a_sheet_and_a_table(run, repository, tmp_path):
    image = tmp_path / "wide.png"
    image.write_bytes(picture(size=(80, 40)))
    arguments = ["inspect", "--run", str(run), "--image", str(image), "What colour is the circle?"]
    arguments += ["--choice", "red", "--choice", "blue", "--words", "circle", "red", "--layers", "1"]
    arguments += ["--set", f"training.deepspeed={repository / 'ds_configs' / 'replicated.json'}"]
    out = run_on_ranks(["--module", "dsmemvp"], 1, *arguments)
    assert "16 visual and 8 learned slots" in out and "What colour is the circle?\nmodel: " in out
    assert "right: " not in out  # nobody knows
    page = Image.open(run / "inspect" / "heat-map.png")
    pixels = np.asarray(page).astype(int)
    coloured = np.abs(pixels[..., 0] - pixels[..., 2]) > 5
    assert page.height > 3 * 80 and coloured.any()  # rows for both words and the answer; maps of 160 x 80


def test_a_sample_of_the_data_is_shown_with_its_right_answer(run, repository, demo_shards, one_rank):
    """On one process, from Python, as the command does."""
    opened = open_model(
        load_run(run, [f"training.deepspeed={repository / 'ds_configs' / 'replicated.json'}"]), one_rank
    )
    sample = opened.sample(0, test=True)
    look = opened.look(sample)
    assert look.right == f"{sample.letter} ({sample.choices[sample.answer]})"
    assert look.asked == f"{sample.question}\nmodel: {look.answer}    right: {look.right}"
    shown, other = look.sheet(), replace(look, right="something else").sheet()
    assert shown.size == other.size and shown != other  # it is drawn, too


def test_layers_are_spread_over_the_depth():
    assert spread(2) == [0, 1] and spread(40) == [0, 10, 20, 29, 39] and spread(32)[::4] == [0, 31]


def test_a_report_arrives_in_tensorboard(tmp_path):
    pixels = np.zeros((8, 6, 3), dtype=np.uint8)
    report = BoardReport({"memory/a": 1.5}, {"h": torch.arange(4.0)}, {"i": pixels}, {"t": "two words"})
    with EventFile(tmp_path) as board:
        report.write(board, 7)
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in read.Scalars("memory/a")] == [(7, 1.5)]
    assert read.Histograms("h")[0].histogram_value.num == 4
    assert (read.Images("i")[0].width, read.Images("i")[0].height) == (6, 8)
    assert b"two words" in read.Tensors("t/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--image", "none.png", "What?"], "--image: none.png does not exist"),
        (["--image", "none.png"], "give --image and a question about it, or --sample N"),
        (["--layers", "2", "--sample", "0"], "--layers: there is no layer 2, they run from 0 to 1"),
        (["--sample", "0", "--set", "method.name=input_space"], "method.name: is input_space, but"),
        (["--sample", "0", "--set", "method.slot=3"], "did you mean 'method.slots'?"),
    ],
)
def test_what_a_user_gets_wrong_ends_in_one_line(command, run, arguments, part):
    code, out, err = command("--run", run, *arguments)
    assert code == 1 and out == "" and part in err and err.count("\n") == 1


def test_a_folder_that_is_no_run_ends_in_one_line(command, tmp_path):
    code, out, err = command("--run", tmp_path, "--sample", "0")
    assert code == 1 and out == "" and "has no recipe.json; give the folder" in err and err.count("\n") == 1


def test_an_image_that_does_not_decode_ends_in_one_line(command, run, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    code, out, err = command("--run", run, "--image", tmp_path / "x.png", "What?")
    assert code == 1 and out == "" and "x.png: image cannot be decoded" in err and err.count("\n") == 1


def test_a_question_that_is_no_text_is_not_blamed_on_its_picture(command, run, tmp_path):
    (tmp_path / "x.png").write_bytes(picture())
    code, out, err = command("--run", run, "--image", tmp_path / "x.png", "What \udcff?")
    assert code == 1 and out == "" and "is not text that UTF-8 can write" in err and "x.png" not in err


def test_a_model_that_has_diverged_is_not_looked_into(command, recipe_path):
    code, out, err = command("--run", _run(recipe_path, float("nan")), "--sample", "0")
    assert code == 1 and out == "" and "its training has diverged" in err and "Traceback" not in err


def test_another_method_has_no_memory_to_look_into(recipe_path):
    recipe = read_recipe(recipe_path, ["method.name=input_space"])
    with pytest.raises(UserError, match=r"^method\.name: tiny was trained with input_space, which has no"):
        check_method(recipe)
