"""What P-Former's keys make: counts of every stage at true sizes, and what is refused."""

import pytest
import torch

from dsmemvp.backbones.weights import configs_of_shapes
from dsmemvp.cli.main import main
from dsmemvp.config.methods import method_settings
from dsmemvp.config.reading import read_recipe
from dsmemvp.errors import UserError
from dsmemvp.prompts.interface import Sizes
from dsmemvp.prompts.pformer import Method
from dsmemvp.stages import stage_counts

COUNTS = {  # (width of the vision tower, of the language model) -> stages, and `align` without alignment
    (1024, 4096): {"text": 131_727_873, "align": 186_315_582, "generate": 104_775_168, "alone": 183_165_758},
    (1024, 5120): {"text": 132_515_329, "align": 187_103_038, "generate": 105_562_624, "alone": 183_165_758},
    (1408, 2560): {"text": 130_546_689, "align": 188_674_110, "generate": 107_133_696, "alone": 186_705_470},
}


@pytest.mark.parametrize("widths", COUNTS, ids=str)
def test_trained_parameters_are_the_authors(widths):
    """The authors' logs at their widths; with CLIP ViT-L/14 and LLaMA they are computed by their modules."""
    for weight, names in ((None, ("text", "align", "generate")), (0.0, ("alone",))):
        with torch.device("meta"):
            method = Method.build(method_settings("pformer", align_weight=weight), Sizes(257, *widths))
        sizes = {f"method.{name}": p.numel() for name, p in method.named_parameters()}
        found = {s.name: sum(n for name, n in sizes.items() if name.startswith(s.trains)) for s in method.stages()}
        for name in names:
            assert found["align" if name == "alone" else name] == COUNTS[widths][name]


def test_the_recipe_s_stages_are_those_of_the_method(repository):
    recipe = read_recipe(repository / "recipes" / "pformer-13b-stages.yaml", [])
    assert recipe.method.stages == ["text", "align", "generate", "finetune"]
    assert recipe.stages.keys() == {"text", "align", "finetune"}
    counts = stage_counts(recipe, configs_of_shapes(recipe))
    assert counts["align"] == COUNTS[1024, 5120]["align"] and counts["finetune"] == counts["generate"]


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_count_says_what_each_stage_trains(size, repository, capsys):
    recipe = str(repository / "recipes" / f"scienceqa-{size}.yaml")
    assert main(["count", recipe, "method.name=pformer", "vision.adapter_dim=0"]) == 0
    said = capsys.readouterr().out
    for name in ("text", "align", "generate"):
        assert f"{COUNTS[1024, 4096 if size == '7b' else 5120][name]:,} trained in stage {name}\n" in said


def test_a_folder_that_is_not_there_is_enough_to_count_and_not_to_build():
    settings = method_settings("pformer", text_encoder="nowhere", text_shape="bert-tiny")
    with torch.device("meta"):
        Method.build(settings, Sizes(4, 8, 8))
    with pytest.raises(UserError, match=r"method\.text_encoder: nowhere has neither"):
        Method.build(settings, Sizes(4, 8, 8))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["stages=[align,text]"], "method.stages: must be of text, align, generate, finetune"),
        (["stages=[]"], "method.stages: must be of text"),
        (["text_shape=llama-7b"], "method.text_shape: llama-7b is the shape of a 'llama' model, not of a BERT"),
        (["text_length=513"], "method.text_length: 513 tokens are more than the 512 positions of the text encoder"),
        (["text_encoder=/"], "method.text_encoder: /config.json does not exist"),
        (["views=3"], "method.views"),
        (["masked=1"], "method.masked"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(repository, capsys, monkeypatch, settings, part):
    monkeypatch.delenv("DSMEMVP_TRACEBACK", raising=False)
    recipe = str(repository / "recipes" / "scienceqa-13b.yaml")
    assert main(["count", recipe, "method.name=pformer", *(f"method.{setting}" for setting in settings)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and part in err
