"""Answers from a run's folder, in Python and from the command line."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from launch import run_on_ranks
from PIL import Image

import dsmemvp
from dsmemvp.cli import main as cli
from dsmemvp.data.batch import Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.errors import UserError

QUESTIONS = ["What colour is the star?", "Is there a star?", "How many?"]


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `dsmemvp generate ...` in this process and returns (exit code, stdout, stderr)."""
    for name in ("DSMEMVP_TRACEBACK", "RANK"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments):
        capsys.readouterr()
        code = cli.main(["generate", *map(str, arguments)])
        return code, *capsys.readouterr()

    return command


def plainly(model, text: str, pixels, steps: int) -> str:
    """The text that follows `text`, by the forward of training for every token."""
    new: list[int] = []
    tokens = model._tokenizer.encode(text)
    while len(new) < steps:
        item = Item(0, EncodedText([*tokens, *new], len(tokens), False), pixels)
        batch = make_batch([item], 32, model._model.method.reserved(), last_only=True).batch
        with torch.no_grad():
            token = int(model._model(batch)[0].argmax())
        if token == model._tokenizer.eos:
            break
        new.append(token)
    return model._tokenizer.decode(new).strip()


def test_answers_follow_the_prompt_of_training(run_folder, picture_path):
    model = dsmemvp.load(run_folder)
    seen = model.see(picture_path)
    short, free = (
        plainly(model, f"Question: {QUESTIONS[0]}\n{more}", seen.pixels, 8)
        for more in ("Context: A hint.\nResponse:The answer is", "Response:")
    )
    assert model.answer(QUESTIONS[0], seen, context="A hint.", max_new_tokens=8) == short.removesuffix(".")
    assert model.answer(QUESTIONS[0], seen, free=True, max_new_tokens=8) == free
    assert model.answer(QUESTIONS[0], free=True, max_new_tokens=8) != free


def test_a_picture_is_looked_at_once_for_all_questions(run_folder, picture_path):
    model = dsmemvp.load(run_folder)
    looked = []
    model._model.vision.embeddings.register_forward_hook(lambda *_: looked.append(1))
    seen = model.see(picture_path)
    one_by_one = [model.answer(question, seen, max_new_tokens=6) for question in QUESTIONS]
    assert model.answer(QUESTIONS, seen, max_new_tokens=6) == one_by_one and len(set(one_by_one)) > 1
    assert len(looked) == 1


def test_a_picture_may_be_a_file_bytes_or_pillow_s(run_folder, picture_path):
    model = dsmemvp.load(run_folder)
    file = model.see(str(picture_path))
    for other in (picture_path, picture_path.read_bytes(), Image.open(picture_path)):
        assert torch.equal(model.see(other).pixels, file.pixels)


def test_a_choice_is_one_of_those_given(run_folder, picture_path, monkeypatch):
    model = dsmemvp.load(run_folder)
    given = {"choices": ("red", "blue"), "context": "A hint."}
    prompt = f"Question: {QUESTIONS[0]}\nContext: A hint.\nOptions: (A) red (B) blue\nResponse:The answer is"
    asked = []
    encode = model._tokenizer.encode_spans
    monkeypatch.setattr(model._tokenizer, "encode_spans", lambda text: asked.append(text) or encode(text))
    assert model.answer(QUESTIONS[0], model.see(picture_path), **given) in ("red", "blue", "")
    assert prompt in asked
    for text, wanted in ((" B.", "blue"), ("A", "red"), (" C.", ""), ("b", "")):
        monkeypatch.setattr(model._tokenizer, "decode", lambda tokens, text=text: text)
        assert model.answer(QUESTIONS[0], **given, max_new_tokens=4) == wanted


def test_overrides_are_keys_of_the_recipe(run_folder, tmp_path):
    with pytest.raises(UserError, match=r"model\.tokenizer: nowhere"):
        dsmemvp.load(run_folder, **{"model.tokenizer": "nowhere"})
    with pytest.raises(UserError, match=r"method\.output_scale: is 2\.0"):
        dsmemvp.load(run_folder, **{"method.output_scale": 2})


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, dsmemvp; sys.exit(bool({'torch', 'transformers', 'deepspeed'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_prints_what_python_answers(command, run_folder, picture_path):
    model = dsmemvp.load(run_folder)
    drawn = {"temperature": 2.0, "top_p": 0.9, "seed": 3, "max_new_tokens": 5}
    options = [part for key, value in drawn.items() for part in (f"--{key.replace('_', '-')}", value)]
    wanted = model.answer(QUESTIONS, model.see(picture_path), free=True, **drawn)
    code, out, err = command("--run", run_folder, "--image", picture_path, "--free", *options, *QUESTIONS)
    assert (code, out, err) == (0, "\n".join(wanted) + "\n", "")
    code, out, _ = command("--run", run_folder, "--max-new-tokens", 5, QUESTIONS[0])
    assert (code, out) == (0, model.answer(QUESTIONS[0], max_new_tokens=5) + "\n")


def test_what_is_wrong_ends_in_one_line(command, run_folder, picture_path, tmp_path, tokenizer_path):
    (tmp_path / "odd.jpg").write_bytes(picture_path.read_bytes()[:40])
    (tmp_path / "other.model").write_bytes(tokenizer_path.read_bytes() + b"\x0a\x00")
    (tmp_path / "untrained").mkdir()
    (tmp_path / "untrained" / "recipe.json").write_text((run_folder / "recipe.json").read_text())
    damaged = shutil.copytree(run_folder, tmp_path / "damaged")
    (damaged / "checkpoints" / "step-00000003" / "trained.safetensors").write_bytes(b"odd")
    run = ["--run", run_folder]
    for arguments, part in (
        (["--run", tmp_path / "none"], "none does not exist; give the folder that a training run has written"),
        (["--run", tmp_path], "has no recipe.json; give the folder"),
        (["--run", tmp_path / "untrained"], "untrained/checkpoints holds no intact checkpoint"),
        (["--run", damaged], "trained.safetensors is damaged: its checksum is not the one it was written with)"),
        ([*run, "--checkpoint", tmp_path / "gone"], "gone/state.json does not exist"),
        ([*run, "--image", tmp_path / "no.png"], "no.png does not exist"),
        ([*run, "--image", tmp_path / "odd.jpg"], "odd.jpg: image cannot be decoded"),
        ([*run, "--set", f"model.tokenizer={tmp_path / 'other.model'}"], "model.tokenizer: "),
        ([*run, "--set", "method.slot=3"], "did you mean 'method.slots'?"),
        ([*run, "--temperature", "-1"], "temperature: must be 0 (greedy) or a positive number"),
        ([*run, "--free", "--choice", "red"], "exclude each other"),
    ):
        code, out, err = command(*arguments, "What?")
        assert code == 1 and out == "" and err.count("\n") == 1, err
        assert err.startswith("dsmemvp generate: error: ") and part in err


@pytest.mark.ranks
def test_ranks_that_share_the_weights_answer_as_one_process(run_folder, picture_path):
    model = dsmemvp.load(run_folder)
    wanted = model.answer(QUESTIONS, model.see(picture_path), max_new_tokens=6)
    arguments = ["generate", "--run", run_folder, "--image", picture_path, "--max-new-tokens", 6, *QUESTIONS]
    out = run_on_ranks(["--module", "dsmemvp"], 2, *map(str, arguments))
    assert "\n".join(wanted) + "\n" in out


def test_a_base_whose_configuration_forbids_a_cache_decodes_the_same(run_folder, picture_path, tmp_path):
    before = dsmemvp.load(run_folder).answer(QUESTIONS, picture_path, max_new_tokens=6)
    recipe = json.loads((run_folder / "recipe.json").read_text())
    folder = shutil.copytree(recipe["model"]["language_model"], tmp_path / "language")
    config = json.loads((folder / "config.json").read_text())
    for setting in ({"use_cache": False}, {"cache_implementation": "static"}, {"is_encoder_decoder": True}):
        (folder / "config.json").write_text(json.dumps(config | setting))
        model = dsmemvp.load(run_folder, language_model=folder)
        assert model.answer(QUESTIONS, picture_path, max_new_tokens=6) == before, setting


def test_a_picture_of_pillows_is_seen_as_its_file_is(run_folder, tmp_path):
    model = dsmemvp.load(run_folder)
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: to be turned by 90 degrees
    gradient = Image.linear_gradient("L").resize((40, 30))
    image = Image.merge("RGB", (gradient, gradient.transpose(Image.Transpose.ROTATE_180), gradient))
    for name, mode in (("turned.jpg", "RGB"), ("four.jpg", "CMYK"), ("grey.png", "L"), ("clear.png", "RGBA")):
        image.convert(mode).save(tmp_path / name, exif=turned)
        one, other = model.see(tmp_path / name), model.see(Image.open(tmp_path / name))
        torch.testing.assert_close(one.pixels, other.pixels, atol=0.06, rtol=0)  # CMYK passes through other arithmetic
        assert mode == "CMYK" or torch.equal(one.pixels, other.pixels), name


def test_what_is_no_picture_question_or_list_of_choices_is_told(run_folder, picture_path):
    model = dsmemvp.load(run_folder)
    assert model.answer("What?", picture_path) == model.answer("What?", model.see(picture_path))
    for arguments, error, part in (
        ({"choices": "red"}, ValueError, "choices: give a list of texts"),
        ({"choices": ["x"] * 27}, ValueError, "at most 26 have letters"),
        ({"context": "\ud800"}, ValueError, "is not text that UTF-8 can write"),
        ({"seed": -1}, ValueError, "seed: must be at least 0"),
        ({"picture": picture_path.parent}, UserError, "is a folder; give a file"),
        ({"picture": np.zeros((3, 8, 8))}, TypeError, "a picture is a path, an encoded image or one of Pillow's"),
    ):
        with pytest.raises(error, match=part):
            model.answer("What?", **arguments)


def test_an_answer_that_names_no_choice_is_said(command, run_folder):
    model = dsmemvp.load(run_folder)
    asked = [f"What {word}?" for word in ("is it", "was it", "colour", "shape")]
    wanted = [model.answer(question, choices=["red"]) for question in asked]
    assert "" in wanted
    code, out, err = command("--run", run_folder, "--choice", "red", *asked)
    assert (code, out.split("\n")[:-1]) == (0, wanted)
    unanswered = [question for question, answer in zip(asked, wanted, strict=True) if not answer]
    assert err == "".join(f"dsmemvp: the answer to {each!r} names none of the choices\n" for each in unanswered)
