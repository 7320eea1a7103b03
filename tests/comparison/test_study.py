"""What a study file may say, and what ends it in one line before any training."""

import json
from functools import partial

import pytest
import torch

from dsmemvp.cli import main as cli
from dsmemvp.comparison import running
from dsmemvp.comparison.results import collect
from dsmemvp.comparison.running import recipe_for, write_study
from dsmemvp.comparison.study import read_study, study_of_recipes
from dsmemvp.comparison.study_file import is_study
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.errors import UserError
from dsmemvp.progress import Progress
from dsmemvp.training.health import Diverged

TWO = "contenders:\n  memvp: {}\n  none: {method: {name: none}}\n"


@pytest.fixture
def read(recipe_path, demo_shards, tmp_path):
    def made(text, *overrides):
        path = tmp_path / "study.yaml"
        path.write_text(f"recipe: {recipe_path}\n{text}")
        return read_study(path, tmp_path / "out", overrides)

    return made


def test_contenders_change_the_recipe_and_nothing_else(read, tmp_path):
    study = read("contenders:\n  small: {method: {hidden: 8}}\n  space: {method: {name: input_space, lora_rank: 2}}\n")
    small, space = study.contenders
    assert (small.recipe.method.name, small.recipe.method.hidden) == ("memvp", 8)
    assert (space.recipe.method.name, space.recipe.method.lora_rank) == ("input_space", 2)
    assert small.recipe.output == space.recipe.output == str(tmp_path / "out" / "runs")
    made = recipe_for(small, "small-seed-2", 2, ("training.learning_rate=0.5",))
    assert (made.name, made.seed, made.training.learning_rate) == ("small-seed-2", 2, 0.5)


def test_a_setting_that_is_searched_for_is_no_value_of_the_recipe(read, demo_shards):
    dvp = "{method: {name: dvp, layer: search, width: 8, heads: 2}}"
    study = read(f"contenders:\n  a: {dvp}\n  b: {{}}\n", f"data.search={demo_shards}")
    a, b = study.contenders
    assert (a.searched, a.recipe.method.layer, b.searched) == ("method.layer", 0, "")
    assert study.as_dict()["contenders"]["a"]["searched"] == "method.layer"
    for method, data, said in (
        (dvp, "", "contender a: data.search: give the folder"),
        ("{method: {slots: search}}", "x", "memvp has no setting to search for"),
        (dvp.replace("layer: search", "prompts: search"), "x", "method.prompts: a search finds method.layer"),
    ):
        with pytest.raises(UserError, match=said):
            read(f"contenders:\n  a: {method}\n  b: {{}}\n", f"data.search={data}")


def test_one_contender_may_look_at_pictures_where_the_others_train_on_features(read):
    a, b = read(
        "contenders:\n  a: {vision: {adapter_dim: 0, cache_features: features}}\n  b: {}\n", "vision.adapter_dim=0"
    ).contenders
    assert (a.recipe.vision.cache_features, b.recipe.vision.cache_features) == ("features", "")


def test_set_is_for_all_and_a_contender_s_own_comes_after_it(read):
    text = "set: {training: {epochs: 5, micro_batch: 4}, seed: 3}\n"
    text += "contenders:\n  a: {training: {micro_batch: 8}}\n  b: {}\n"
    a, b = (contender.recipe for contender in read(text).contenders)
    assert (a.training.epochs, b.training.epochs, a.seed, b.seed) == (5, 5, 3, 3)
    assert (a.training.micro_batch, b.training.micro_batch) == (8, 4)


def test_all_that_train_have_as_many_trials(read, demo_shards):
    text = "contenders:\n  a: {tune: {training.learning_rate: [0.3, 0.4]}}\n  b: {}\n  none: {method: {name: none}}\n"
    text += "tune:\n  training.learning_rate: [0.1, 0.2]\n  method.hidden: [4, 8]\n"
    a, b, none = read(text, f"data.validation={demo_shards}").contenders
    assert len(a.trials) == len(b.trials) == 4 and none.trials == ()
    assert a.trials[1] == ("training.learning_rate=0.3", "method.hidden=8")
    assert b.trials[2] == ("training.learning_rate=0.2", "method.hidden=4")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds: [1]\n", "contenders: name at least two"),
        ("contenders:\n  a: {}\n", "contenders: name at least two"),
        ("contender: {}\n", "line 2: unknown key 'contender'; did you mean 'contenders'"),
        (TWO + "seeds: [1, 1]\n", "seeds: need different numbers"),
        (TWO + "seeds: [0, 1000]\n", "none of them tune_seed = 1000"),
        (TWO + "seeds: [x]\n", "seeds: must be a whole number"),
        (TWO + "tune: {training.learning_rate: [1.0e-3]}\n", "needs data.validation"),
        (TWO + "tune: {training.epochs: [1, 2]}\n", "training.epochs is not a contender's own"),
        (TWO + "tune: {training.learning_rate: 3}\n", "is a list of values"),
        (TWO + "tune: {training.learning_rate: []}\n", "at least one"),
        (
            "contenders:\n  a: {}\n  b: {tune: {seed: [1]}}\ntune: {seed: [1, 2]}\n".replace(
                "seed", "training.learning_rate"
            ),
            "line 4: contender b: tune.training.learning_rate: give as many values as the study, 2",
        ),
        ("contenders:\n  a: {training: {epochs: 3}}\n  b: {}\n", "a and b differ in training.epochs: 3.0 and"),
        ("contenders:\n  a: {method: {hiden: 3}}\n  b: {}\n", "contender a: .*hiden"),
        ("contenders:\n  a/b: {}\n  b: {}\n", "a name has letters"),
        ("contenders:\n  a: 3\n  b: {}\n", "line 3: give a mapping of a recipe's keys"),
        ("contenders: [a, b]\n", "contenders is a mapping"),
        ("contenders:\n  a: {}\n  a: {}\n", "'a' is given twice"),
        ("contenders:\n  a: {tune: {method.hidden: [3]}}\n  b: {}\n", "the study itself does not tune it"),
        ("contenders:\n  a: {recipe: 3}\n  b: {}\n", "line 3: recipe: give the path of a recipe, not '3'"),
        (TWO + "tune: {method.name: [memvp, dvp]}\n", "method.name is not a contender's own"),
        ("contenders:\n  -a: {}\n  b: {}\n", "'-a-seed-2' .*begins with a dot or a hyphen"),
    ],
)
def test_a_study_s_mistakes_are_told_in_one_line(read, text, said):
    with pytest.raises(UserError, match=said):
        read(text)


def test_the_values_of_every_trial_are_checked_before_the_first_one(read, demo_shards):
    for values, said in (("[0.1, fast]", "'fast'"), ("[0.1, -1]", "-1")):
        with pytest.raises(UserError, match=f"learning_rate: .*{said}"):
            read(TWO + f"tune: {{training.learning_rate: {values}}}\n", f"data.validation={demo_shards}")


def test_a_study_that_would_stop_midway_is_refused(read):
    with pytest.raises(UserError, match=r"training\.stop_at_step: whole trainings are compared"):
        read(TWO, "training.stop_at_step=1")


def test_recipes_are_a_study_as_they_are(recipe_path, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(recipe_path.read_text().replace("name: tiny", "name: two"))
    study = study_of_recipes([recipe_path, other], 2, tmp_path / "out")
    assert [c.name for c in study.contenders] == [recipe_path.stem, "other"] and study.settings.seeds == [0, 1]
    assert not is_study(recipe_path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "utf-8"),
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("contenders: [a\n"), "is not YAML"),
    ],
)
def test_what_cannot_be_read_is_no_recipe_either(make, said, tmp_path):
    make(path := tmp_path / "study.yaml")
    assert is_study(path)
    with pytest.raises(UserError, match=f"study.yaml.*{said}"):
        read_study(path, tmp_path)


@pytest.mark.parametrize("name", ["easy_vqa", "vqa_rad", "vqa_rad_known", "vqa_rad_organs"])
def test_the_studies_of_this_repository_can_be_read(name, repository, monkeypatch, tmp_path):
    monkeypatch.chdir(repository)
    study = read_study(repository / "studies" / f"{name}.yaml", tmp_path)
    assert len(study.contenders) >= 3 and len(study.settings.seeds) >= 3
    assert len({len(c.trials) for c in study.contenders if c.trains}) == 1


def test_a_folder_is_of_one_study(read, tmp_path):
    data = {"data.train": "a", "data.test": "b"}
    for _ in range(2):
        write_study(read(TWO), tmp_path / "out", data)
    with pytest.raises(UserError, match="is of other settings"):
        write_study(read(TWO + "seeds: [5]\n"), tmp_path / "out", data)
    with pytest.raises(UserError, match=r"^data\.test: holds other samples than when .*study\.json was written"):
        write_study(read(TWO), tmp_path / "out", data | {"data.test": "c"})
    for damaged in (b"\xff\xfe", b"", b"[]", b'{"data": 1}'):
        (tmp_path / "out" / "study.json").write_bytes(damaged)
        with pytest.raises(UserError, match=r"study\.json is damaged"):
            write_study(read(TWO), tmp_path / "out", data)


def test_a_trial_that_diverges_is_not_chosen(read, demo_shards, tmp_path, monkeypatch):
    text = TWO + "tune: {training.learning_rate: [1.0e-3, 100, 1.0e-2]}\n"
    study = read(text, f"data.validation={demo_shards}")
    ranks, progress = Ranks(0, 1, torch.device("cpu")), Progress("study", 3, "run", active=False)
    (tmp_path / "out").mkdir()

    def chosen(losses: dict[str, float]) -> tuple[str, ...]:
        def loss(context, ranks):
            if context.folder.name not in losses:
                raise Diverged("step 9: the loss is nan")
            return losses[context.folder.name]

        monkeypatch.setattr(running, "_trained_loss", loss)
        context_of = partial(_Context, tmp_path)
        return running.tune(study, study.contenders[0], tmp_path / "out", ranks, context_of, progress)

    assert chosen({"memvp-trial-0": 2.0, "memvp-trial-2": 1.0}) == ("training.learning_rate=0.01",)
    (noted,) = (tmp_path / "out" / "tuned").glob("*.json")
    assert [row["validation_loss"] for row in json.loads(noted.read_text())["trials"]] == [2.0, None, 1.0]
    with pytest.raises(UserError, match="contender memvp: every trial diverged; give lower learning rates"):
        chosen({})


class _Context:
    """Of a run, as far as its loss needs one."""

    def __init__(self, place, recipe):
        self.folder = place / "runs" / recipe.name


@pytest.mark.parametrize("content", ["", "{}\n", '{"evaluation": "cut'])
def test_damaged_predictions_of_a_run_are_named_with_what_to_do(read, tmp_path, content):
    study = read(TWO + "seeds: [0]\n")
    run = tmp_path / "out" / "runs" / "memvp-seed-0"
    run.mkdir(parents=True)
    (run / "predictions.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"delete .*predictions.jsonl and .*evaluation.json, and start it again"):
        collect(study)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.deepspeed=none_such.json", "contender a: training.deepspeed: none_such.json does not exist"),
        ("training.global_batch=4", "contender a: training.global_batch: 4 samples cannot be shared by 8 ranks"),
    ],
)
def test_what_no_task_of_an_array_could_run_is_not_submitted(read, tmp_path, capsys, override, said):
    read("contenders:\n  a: {method: {hidden: 8}}\n  none: {method: {name: none}}\n")
    asked = ["--submit", "--print", "--nodes", "2", "--gpus-per-node", "4"]
    given = ["compare", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), *asked]
    assert cli.main([*given, "--set", override]) == 1
    assert said in capsys.readouterr().err
