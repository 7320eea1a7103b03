"""The demo's tiny models, made from shards in a few steps: they load as what they claim to be."""

import math
import subprocess
import sys

import pytest
import torch
from making import fields, picture
from making import sample as made
from prepared import here
from transformers import CLIPVisionModel, LlamaForCausalLM

from data_prep import tiny_models as program
from data_prep.shards import Row, write_shards
from data_prep.tiny_score import Score
from data_prep.tiny_texts import in_words, picture_words
from data_prep.tiny_vision import PATCH, RESOLUTION, collages, cross_entropy, flat, tower_features
from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.building import build_frozen
from dsmemvp.config.recipe import Recipe


def _program(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "data_prep.tiny_models", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


def test_the_folders_load_in_transformers_and_here_and_it_is_said_what_was_learned(demo_shards, tmp_path):
    """In two steps nothing can be."""
    steps = ["--language-steps", 2, "--vision-steps", 2]
    done = _program("--data", demo_shards.parent, "--out", tmp_path, *steps)
    assert done.returncode == 0, done.stderr
    for line in ("language model: step 2, ", "vision tower: step 2, "):
        (said,) = (said for said in done.stdout.splitlines() if line in said)
        assert " right 0." in said and " (guessing: 0." in said
    for part in ("language model: held-out answers", "vision tower: held-out words"):
        assert f"data_prep.tiny_models: warning: {part} right 0." in done.stderr

    recipe = Recipe(name="x")
    recipe.model.language_model = str(tmp_path / "language_model")
    recipe.model.vision_tower = str(tmp_path / "vision_tower")
    model = build_frozen(recipe, read_configs(recipe))
    Base(recipe).load(model)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "language_model")
    assert torch.equal(theirs.model.layers[1].mlp.up_proj.weight, model.language.layers[1].mlp.up_proj.weight)
    pixels = torch.randn(1, 3, 64, 64)
    tower = CLIPVisionModel.from_pretrained(tmp_path / "vision_tower").eval()
    with torch.no_grad():
        expected = tower.post_layernorm(tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])
        torch.testing.assert_close(tower_features(model.vision, pixels), expected, atol=1e-5, rtol=1e-5)


def test_a_word_is_told_when_one_patch_tells_it():
    targets = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    each_its_own = torch.tensor([[[20.0, 0, 0, 0], [0, 20.0, 0, 0]]])
    # two words that share the probability cost ln 2 at least; asked of every patch these would cost about 10
    assert cross_entropy(each_its_own, targets).item() == pytest.approx(math.log(2), abs=1e-4)
    # logsumexp over two equal patches adds ln 2 to every score, which changes nothing
    one_patch = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    total = sum(math.exp(n) for n in (1, 2, 3, 4))
    expected = pytest.approx(-(math.log(math.exp(1) / total) + math.log(math.exp(2) / total)) / 2, rel=1e-5)
    assert cross_entropy(one_patch, targets).item() == expected
    assert cross_entropy(one_patch.repeat(1, 2, 1), targets).item() == expected


def test_a_collage_keeps_a_pictures_own_patches_and_takes_the_others_from_the_one_before():
    torch.manual_seed(0)
    pixels = torch.arange(8.0)[:, None, None, None].expand(8, 3, RESOLUTION, RESOLUTION)
    mixed, own = collages(pixels)
    assert 0 < own.float().mean() < 1
    for n in range(8):
        patches = (
            mixed[n].unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
        )
        expected = torch.where(own[n], float(n), float((n - 1) % 8))
        assert torch.equal(patches, expected[:, None].expand_as(patches))


def test_a_patch_of_one_colour_is_flat_in_whatever_channel_it_would_differ():
    side = RESOLUTION // PATCH
    pixels = torch.rand(1, 3, 1, 1).expand(2, 3, RESOLUTION, RESOLUTION).clone()
    pixels[0] += torch.linspace(0, 0.15, RESOLUTION)  # faint shading within a patch
    pixels[1, 2, PATCH + 3, 2 * PATCH - 1] += 0.5
    found = flat(pixels)
    assert found[0].all() and not found[1, side + 1] and found[1].sum() == side * side - 1


def _said(*answers: str, **changed) -> list[Row]:
    """Rows about pictures of different colours, one for each answer."""
    rows = [fields(i, choices=None, answer=answer, **changed) for i, answer in enumerate(answers)]
    return [Row(f"s{i:03d}", row, picture(colour=(i, 0, 0))) for i, row in enumerate(rows)]


def test_the_words_of_a_picture_are_those_of_its_captions_or_else_of_its_right_answers():
    samples = [
        made(image=b"1", choices=("a red cat", "a dog"), answer=0),
        made(image=b"1", choices=("yes", "no"), answer=1),
        made(image=b"2", choices=(), answer="A dog!"),
        made(image=b"3", choices=("x", "y"), answer=1, caption="a horse, red"),
    ]
    words = picture_words(samples)
    assert words == {b"1": ("cat",), b"2": ("dog",), b"3": ("horse",)}  # a and red are said of too many
    assert in_words(samples[0], words).context == "cat"


def test_a_common_word_is_kept_where_nothing_else_is_said_of_a_picture():
    samples = [made(image=bytes([n]), choices=("the cat", "the dog"), answer=int(n > 6)) for n in range(10)]
    assert set(picture_words(samples).values()) == {("cat",), ("dog",)}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([Row(f"s{i}", fields(i)) for i in range(20)], "none of its samples has a picture, so that no vision tower"),
        (_said(*["true", "false", "No", "yes", "yes"] * 4), "its 20 pictures tell nothing of what they show"),
        (
            _said(*["yes", "cat"] * 10),
            "tell nothing of what they show. At least two words must each be said of several",
        ),
        (_said(*(f"name{i}" for i in range(20))), "but not of all (none is; yes, no, true and false do not count)"),
        (_said(*["cat"] * 20), "tell nothing of what they show"),
        (_said(*["cat", "dog"] * 3), "only 6 different pictures have words; at least 10 are needed"),
    ],
)
def test_data_of_which_nothing_can_be_learned_are_refused_in_one_line(tmp_path, monkeypatch, capsys, rows, message):
    write_shards(rows, tmp_path / "train", "train")
    code, out, err = here(program, monkeypatch, capsys, "--data", tmp_path, "--out", tmp_path / "out")
    assert (code, out) == (1, "") and not (tmp_path / "out").exists()
    assert err.startswith(f"data_prep.tiny_models: error: {tmp_path / 'train'}: ") and message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokenizer-vocabulary", 5000], "a vocabulary of 5000 pieces is too large for these texts: they give 3"),
        (["--tokenizer-vocabulary", 30], "a vocabulary of 30 pieces is too small for these texts"),
        (["--vision-steps", 0], "--vision-steps: must be at least 1, is 0"),
        (["--language-width", 24], "--language-width: must be a multiple of 16, is 24"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(tmp_path, monkeypatch, capsys, options, message):
    write_shards(_said(*["cat", "dog"] * 10), tmp_path / "train", "train")
    code, out, err = here(program, monkeypatch, capsys, "--data", tmp_path, "--out", tmp_path / "out", *options)
    assert (code, out) == (1, "") and message in err and err.count("\n") == 1


def test_a_picture_that_cannot_be_decoded_ends_both_models_in_one_line(tmp_path):
    """The texts are too few for the default vocabulary, which is then made smaller."""
    rows = _said(*["cat", "dog"] * 10)
    write_shards([*rows[:-1], Row("bad", rows[-1].fields, b"no picture")], tmp_path / "train", "train")
    done = _program("--data", tmp_path, "--out", tmp_path / "out", "--language-steps", 100_000)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "image cannot be decoded" in done.stderr and "sample bad" in done.stderr
    assert "a vocabulary of 512 pieces is too large for these texts: they give 396 at most; so many" in done.stdout


def test_what_guessing_would_get_right_as_well_is_not_learned():
    assert not Score(0.25, 0.2, 40).learned and not Score(0.07, 0.2, 1000).learned and not Score(1, 1, 50).learned
    assert Score(0.25, 0.2, 1000).learned and Score(0.9, 0.2, 40).learned
