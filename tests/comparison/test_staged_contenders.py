"""A contender that is trained in stages: the last one is what all learn, those before it are its own."""

import json
from dataclasses import replace

import pytest
import yaml
from faulty import Ranks
from making import picture

from data_prep.shards import Row, write_shards
from dsmemvp.comparison.budget import spans, with_budget
from dsmemvp.comparison.costs import cost_of
from dsmemvp.comparison.guards import check_study
from dsmemvp.comparison.study import read_study
from dsmemvp.config.reading import as_dict, recipe_of
from dsmemvp.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "house"]


@pytest.fixture
def read(recipe_path, tmp_path):
    """`stages` of P-Former beside MemVP."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    fields = {"question": "Describe the image.", "answer": "a red house", "task": "caption"}
    rows = [Row(f"c{i:02d}", fields, picture(colour=(200, i, 0))) for i in range(16)]
    write_shards(iter(rows), tmp_path / "pairs", "train", per_shard=8)
    pformer = {"name": "pformer", "stages": ["align", "finetune"], "schedule": "full", "prompts": 4, "align_weight": 0}
    pformer |= {"text_shape": "bert-tiny", "text_tokenizer": str(tmp_path / "vocab.txt"), "text_length": 8}

    def made(stages, **study):
        align = {"data": {"train": str(tmp_path / "pairs")}, "training": {"epochs": 3, "warmup_epochs": 0}}
        own = {"method": pformer, "stages": {"align": align, **stages}}
        content = {"recipe": str(recipe_path), "leaks": "report", "contenders": {"memvp": {}, "pformer": own}}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content | study))
        return read_study(path, tmp_path / "out")

    return made


def test_the_budget_is_the_last_stage_s_and_what_comes_before_is_said(read, tmp_path):
    study = with_budget(read({"finetune": {"training": {"learning_rate": 1e-4}}}, budget={"steps": 4}))
    of_memvp, of_pformer = (spans(contender.recipe) for contender in study.contenders)
    assert [span.last - span.first for span in of_memvp] == [4]
    assert [(span.name, span.last - span.first) for span in of_pformer] == [("align", 6), ("finetune", 4)]
    checked = check_study(study, tmp_path / "out")
    assert checked.remarks[-1] == "pformer is trained before, in stages of its own: align (48 samples)"
    assert "of 24 in the test data" in checked.remarks[1]


def test_the_budget_leaves_the_schedule_of_stages_before_as_the_recipe_has_it(read, tmp_path):
    """They have 3 epochs, of which 1 is warm-up, as the recipe says of 2."""
    own = {"data": {"train": str(tmp_path / "pairs")}, "training": {"epochs": 3}}
    for steps in (40, 2):
        contender = with_budget(read({"align": own}, budget={"steps": steps})).contenders[1]
        align, last = (span.recipe.training for span in spans(contender.recipe))
        assert align.warmup_epochs == 1 and last.warmup_epochs == pytest.approx(steps / 6 / 2)


def test_what_it_costs_is_its_last_stage(read):
    own, given = {"recompute": "full", "micro_batch": 8}, ["training.recompute=full", "training.micro_batch=8"]
    staged, plain = read({"finetune": {"training": own}}).contenders[1], read({}).contenders[1]
    whole = replace(plain, recipe=recipe_of(as_dict(plain.recipe), "whole", given))
    assert cost_of(staged, 40) == cost_of(whole, 40) != cost_of(plain, 40)


def test_captions_have_no_points_to_compare(read, tmp_path):
    study = read({}, set={"data.test": str(tmp_path / "pairs")})
    with pytest.raises(UserError, match=r"^data.test: captions and several classes have no score per sample"):
        check_study(study, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.ranks
def test_it_is_trained_in_its_stages_and_stands_beside_the_others(read, tmp_path):
    read({}, budget={"steps": 3}, seeds=[0], blind=False)
    command = ["compare", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    with Ranks(command, tmp_path / "logs", ranks=1) as started:
        ended = started.ended()
    assert ended.codes == [0], ended.text
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["scores"]) == ["memvp", "pformer"] and report["steps"] == {"memvp": 3, "pformer": 3}
    assert all([step for step, _ in curve] == [1, 2, 3] for (curve,) in report["curves"].values())
    assert "pformer is trained before, in stages of its own: align (48 samples)" in report["remarks"]


def test_the_last_stage_learns_what_all_learn(read, tmp_path):
    study = read({"finetune": {"training": {"epochs": 9}}})
    with pytest.raises(UserError, match=r"contender pformer: stages.finetune.training.epochs: the last stage learns"):
        check_study(study, tmp_path / "out")


def test_a_stage_before_without_a_length_is_refused(read, tmp_path):
    study = read({"align": {"data": {"train": str(tmp_path / "pairs")}}}, budget={"steps": 4})
    with pytest.raises(UserError, match=r"contender pformer: give stages.align.training.epochs; .* finetune"):
        with_budget(study)


def test_a_stage_does_not_take_the_place_of_what_is_tuned(read, tmp_path):
    tune = {"tune": {"training.learning_rate": [1e-3, 3e-3]}, "set": {"data.validation": str(tmp_path / "pairs")}}
    study = read({"finetune": {"training": {"learning_rate": 1e-5}}}, **tune)
    with pytest.raises(UserError, match=r"\.finetune\.training\.learning_rate: takes the place of what the study"):
        check_study(study, tmp_path / "out")
