"""Recipes: files and overrides in, a checked `Recipe` or an error that names key and place out."""

import dataclasses
from pathlib import Path

import pytest

from dsmemvp.config.reading import as_dict, read_recipe
from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture
def read(tmp_path):
    """Reads a recipe given as text; a name is added where there is none."""

    def read(text: str, *overrides: str) -> Recipe:
        path = tmp_path / "r.yaml"
        path.write_text(text if text.startswith("name:") else f"name: r\n{text}", encoding="utf-8")
        return read_recipe(path, overrides)

    return read


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_reads(path):
    assert read_recipe(path).name == path.stem


def test_the_published_recipes_are_shipped():
    assert {"scienceqa-7b", "scienceqa-13b", "demo"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize(("size", "slots"), [("7b", 320), ("13b", 400)])
def test_the_published_hyper_parameters_stand_in_the_scienceqa_recipes(repository, size, slots):
    # MemVP's scripts/finetuning_sqa_{7b,13b}.sh, train.py, build.py and datasets.py, as facts/memvp.md cites them
    r = read_recipe(repository / "recipes" / f"scienceqa-{size}.yaml")
    assert r.training.learning_rate == pytest.approx(9e-3 * 32 / 256, rel=1e-12)
    assert (r.training.min_learning_rate, r.training.epochs, r.training.warmup_epochs) == (0, 20, 2)
    assert (r.training.global_batch, r.training.micro_batch) == (32, 4)
    assert (r.training.betas, r.training.weight_decay, r.training.gradient_clipping) == ([0.9, 0.95], 0.02, 0)
    assert (r.method.name, r.method.slots, r.method.hidden) == ("memvp", slots, 128)
    assert (r.method.visual_scale, r.method.output_scale, r.method.dropout) == (0.01, 0.1, 0.1)
    assert (r.vision.adapter_dim, r.vision.adapter_scale, r.vision.adapter_dropout) == (12, 0.1, 0.1)
    assert (r.vision.statistics, r.data.max_length) == ("imagenet", 512)
    assert (r.data.captions, r.evaluation.captions) == (False, [False, True])
    assert (r.model.language_shape, r.model.vision_shape) == (f"llama-{size}", "clip-vit-l-14")


def test_what_a_recipe_does_not_say_is_the_default(read):
    assert read("") == Recipe(name="r")
    assert read("data: {captions: true}").data == dataclasses.replace(Recipe().data, captions=True)


def test_two_recipes_do_not_share_their_lists(read):
    first, second = read(""), read("")
    first.training.betas.append(1.0)
    assert second.training.betas == [0.9, 0.95]


def test_an_override_wins_over_the_file_and_the_last_override_wins(read):
    r = read("training:\n  epochs: 3\n  micro_batch: 2\n", "training.epochs=5", "seed=1", "training.epochs=7")
    assert (r.training.epochs, r.training.micro_batch, r.seed) == (7, 2, 1)


def test_overrides_are_read_as_yaml(read):
    r = read("", "evaluation.captions=[true]", "data.captions=true", "data.train=some/folder", "method.dropout=0")
    assert r.evaluation.captions == [True] and r.data.captions is True
    assert r.data.train == ["some/folder"] and r.method.dropout == 0.0


@pytest.mark.parametrize(
    ("text", "folders"),
    [
        ("data: {train: a}", ["a"]),
        ("data: {train: [a]}", ["a"]),
        ("data: {train: [a, 'pipe:cat b/{name}']}", ["a", "pipe:cat b/{name}"]),
        ("data: {train: http://host/a}", ["http://host/a"]),
        ("", []),
    ],
)
def test_training_data_are_one_folder_or_several(read, text, folders):
    assert read(text).data.train == folders


def test_what_a_recipe_says_of_its_data_arrives(read):
    r = read(
        "data: {train: [a, b], passes: [1, 0.5], last_batch: repeat, most_bad_in_a_row: 7, record_order: true,"
        " cache: fast/disk, cache_gib: 1.5, allow_pipe: true, remote_timeout: 300}"
        "\ntraining: {checkpoint_steps: 50, stop_at_step: 70}"
    )
    assert (r.data.train, r.data.passes, r.data.last_batch) == (["a", "b"], [1.0, 0.5], "repeat")
    assert (r.data.most_bad_in_a_row, r.data.record_order, r.data.allow_pipe) == (7, True, True)
    assert (r.data.cache, r.data.cache_gib, r.data.remote_timeout) == ("fast/disk", 1.5, 300.0)
    assert (r.training.checkpoint_steps, r.training.stop_at_step) == (50, 70)


def test_nothing_risky_or_lossy_is_on_unless_a_recipe_says_so(read):
    r = read("")
    assert (r.data.allow_pipe, r.data.on_bad_sample, r.data.cache) == (False, "fail", "")
    assert (r.training.checkpoint_steps, r.training.stop_at_step) == (0, 0)


def test_lists_are_given_as_overrides_too(read):
    assert read("", "data.train=[a,b]", "data.passes=[1,2]").data.passes == [1.0, 2.0]
    assert read("data: {train: [a, b]}", "data.train=c").data.train == ["c"]


@pytest.mark.parametrize("text", ["9e-3", "0.009", "9.0e-3", "'9e-3'"])
def test_a_number_with_an_exponent_is_a_float(read, text):
    assert read(f"training: {{learning_rate: {text}}}").training.learning_rate == 0.009
    assert read("", f"training.learning_rate={text}").training.learning_rate == 0.009


def test_a_recipe_written_down_reads_back_the_same(read, tmp_path):
    import yaml

    recipe = read("training: {epochs: 3, betas: [0.8, 0.9]}")
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(as_dict(recipe)))
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("training:\n  epoch: 3", ["line 3", "'training.epoch'", "did you mean 'training.epochs'?"]),
        ("training:\n  learn_rate: 3", ["line 3", "unknown key 'training.learn_rate'", "'training.learning_rate'?"]),
        ("learning_rate: 1", ["line 2", "'learning_rate'", "did you mean 'training.learning_rate'?"]),
        ("modell: {dtype: fp32}", ["line 2", "'modell.dtype'", "did you mean 'model.dtype'?"]),
        ("seed: {x: 1}", ["line 2", "unknown key 'seed.x'"]),
        ("training: 3", ["line 2", "training is a group of keys, such as training.epochs"]),
        ("training:", ["line 2", "training is a group of keys"]),
        ("seed: 1\nseed: 2", ["line 3", "seed is given twice"]),
        ("data: {train: a}\nseed: 1\ndata: {train: b}", ["line 4", "data is given twice"]),
        ("data: {train: a}\ndata: {test: b}", ["line 3", "data is given twice"]),
        ("training:\n  epochs: 3\ntraining.epochs: 4", ["line 4", "training.epochs is given twice"]),
        ("training:\n  micro_batch: 2.5", ["line 3", "training.micro_batch: must be a whole number, not 2.5"]),
        ("training: {micro_batch: '3'}", ["line 2", "training.micro_batch: must be a whole number, not '3'"]),
        ("training: {micro_batch: true}", ["training.micro_batch: must be a whole number, not True"]),
        ("training: {epochs: true}", ["training.epochs: must be a number, not True"]),
        ("training: {learning_rate: fast}", ["training.learning_rate: must be a number, not 'fast'"]),
        ("training: {learning_rate: yes}", ["training.learning_rate: must be a number, not True"]),
        ("training: {betas: 0.9}", ["training.betas: must be a list, not 0.9"]),
        ("training: {betas: [0.9, x]}", ["training.betas: must be a number, not 'x'"]),
        ("evaluation: {captions: [1]}", ["evaluation.captions: must be true or false, not 1"]),
        ("data: {train: 7}", ["data.train: must be a list, not 7"]),
        ("data: {train: [a, 7]}", ["data.train: must be text, not 7"]),
        ("data: {train: {a: 1}}", ["line 2", "unknown key 'data.train.a'"]),
        ("data: {test: [a]}", ["data.test: must be text"]),
        ("data: {passes: 2}", ["data.passes: must be a list, not 2"]),
        ("data: {passes: [x]}", ["data.passes: must be a number, not 'x'"]),
        ("data: {train: a, last_batch: keep}", ["data.last_batch: must be one of drop, repeat, not 'keep'"]),
        ("data: {record_order: 1}", ["data.record_order: must be true or false, not 1"]),
        ("data: {allow_pipe: 'yes'}", ["data.allow_pipe: must be true or false, not 'yes'"]),
        ("data: {most_bad_in_a_row: 2.5}", ["data.most_bad_in_a_row: must be a whole number"]),
        ("training: {checkpoint_steps: many}", ["training.checkpoint_steps: must be a whole number"]),
        ("model: {dtype: fp16}", ["line 2", "model.dtype: must be one of bf16, fp32, not 'fp16'"]),
        ("method: 3", ["line 2", "method is a group of keys, such as method.name"]),
        ("model: {dtype: [fp32]}", ["model.dtype: must be one of bf16, fp32"]),
        ("? [a]\n: 1", ["line 2", "a key must be a word"]),
        ("seed: !odd 1", ["line 2", "seed", "could not determine a constructor"]),
        ("data: {captions: !!bool x}", ["line 2", "data.captions", "'x' cannot be read as bool"]),
        ("training: {epochs: !!timestamp x}", ["line 2", "training.epochs", "'x' cannot be read as timestamp"]),
        ("data: {train: 2024-99-99}", ["line 2", "data.train", "month"]),
    ],
)
def test_an_error_in_a_recipe_names_key_and_line(read, text, parts):
    with pytest.raises(UserError) as caught:
        read(text)
    message = str(caught.value)
    assert "r.yaml" in message and "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("training.epochs", "write key=value"),
        ("training.epoch=3", "did you mean 'training.epochs'?"),
        ("training.epochs=x", "training.epochs: must be a number"),
        ("training=3", "training is a group"),
        ("evaluation.captions=[", "not YAML"),
        ("training.epochs=0", "training.epochs: must be above 0 and at most 100,000, is 0"),
    ],
)
def test_an_error_in_an_override_names_the_override(read, override, part):
    with pytest.raises(UserError) as caught:
        read("", override)
    assert str(caught.value).startswith(f"override {override!r}: ")
    assert part in str(caught.value) and "\n" not in str(caught.value)


POSITIVE = [
    *(
        f"training.{k}"
        for k in ("epochs", "learning_rate", "global_batch", "micro_batch", "log_every", "checkpoint_epochs")
    ),
    *(f"evaluation.{k}" for k in ("batch", "max_new_tokens", "caption_tokens")),
    *(f"data.{k}" for k in ("max_length", "block_shards", "most_bad_in_a_row", "cache_gib", "remote_timeout")),
    "vision.max_pixels",
    *(f"method.{k}" for k in ("hidden", "slots")),
]
NOT_NEGATIVE = [
    *(f"training.{k}" for k in ("warmup_epochs", "min_learning_rate", "weight_decay", "gradient_clipping")),
    *(f"training.{k}" for k in ("checkpoint_steps", "stop_at_step", "keep_last", "most_not_finite", "spike")),
    *("data.workers", "vision.adapter_dim", "vision.adapter_scale", "method.visual_scale", "method.output_scale"),
]


@pytest.mark.parametrize("key", POSITIVE)
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_of_nothing_is_refused_by_name(read, key, value):
    with pytest.raises(UserError, match=rf"{key}: must be (at least 1|above 0) and at most [\d,]+, is {value}"):
        read("", f"{key}={value}")


@pytest.mark.parametrize("key", NOT_NEGATIVE)
def test_a_negative_number_is_refused_by_name_and_zero_is_not(read, key):
    with pytest.raises(UserError, match=rf"{key}: must be at least 0 and at most [\d,]+, is -1"):
        read("", f"{key}=-1")
    read("", f"{key}=0")


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, "nan"])
@pytest.mark.parametrize("key", ["method.dropout", "vision.adapter_dropout"])
def test_a_dropout_outside_its_range_is_refused_by_name(read, key, value):
    with pytest.raises(UserError, match=f"{key}: must be at least 0 and below 1"):
        read("", f"{key}={value}")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name: ''", "name: give the run a name"),
        ("name: a/b", "name: give the run a name"),
        ("training: {betas: [0.9]}", "training.betas: two numbers"),
        ("training: {betas: [0.9, 1.0]}", "training.betas: must be at least 0 and below 1, is 1.0"),
        ("training: {betas: [-0.1, 0.9]}", "training.betas: must be at least 0 and below 1, is -0.1"),
        ("training: {min_learning_rate: 1.0}", "training.min_learning_rate: 1.0 is more than training.learning_rate"),
        ("training: {epochs: 2, warmup_epochs: 2.5}", "training.warmup_epochs: 2.5 is more than training.epochs = 2"),
        (
            "training: {global_batch: 10, micro_batch: 16}",
            "training.micro_batch: 16 is more than training.global_batch = 10",
        ),
        ("data: {train: [a, b], passes: [1]}", "data.passes: 1 number for the 2 folders of data.train"),
        ("data: {train: a, passes: [1, 2]}", "data.passes: 2 numbers for the 1 folder of data.train"),
        ("data: {train: [a, b], passes: [1, 0]}", "data.passes: must be above 0 and at most 1,000,000, is 0"),
        ("data: {train: [a, b], passes: [1, -2]}", "data.passes: must be above 0 and at most 1,000,000, is -2"),
        ("data: {train: [a], passes: [nan]}", "data.passes: must be above 0 and at most 1,000,000, is nan"),
        ("data: {train: [a], passes: [.inf]}", "data.passes: must be above 0 and at most 1,000,000, is inf"),
        ("training: {keep_best: 1}", "training.keep_best: give data.validation"),
        ("training: {schedule: steps}", "training.step_epochs: name the epochs at which the learning rate falls"),
        ("training: {step_epochs: [3]}", "training.step_epochs: name the epochs at which the learning rate falls"),
        ("training: {best_by: score}", "training.best_by: give data.validation"),
    ],
)
def test_an_impossible_combination_names_its_key(read, text, part):
    with pytest.raises(UserError) as caught:
        read(text)
    assert part in str(caught.value)


def test_a_broken_rule_points_at_the_line_that_broke_it(read):
    with pytest.raises(UserError, match=r"r\.yaml, line 3: training\.micro_batch"):
        read("training:\n  micro_batch: 16\n  global_batch: 10\n")


def test_a_recipe_without_a_name_is_refused(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    with pytest.raises(UserError, match=r"empty\.yaml: name: give the run a name"):
        read_recipe(path)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        read_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"name: r\ntraining: {epochs: 3\nseed: 1\n", "line 3"),
        (b"name: r\n\tseed: 1\n", "line 2"),
        (b"name: \xff\xfe\n", "utf-8"),
        (b"name: r\x00\n", "#x0000"),
        (b"name: r\n---\nname: s\n", "line 2"),
    ],
)
def test_a_file_that_is_not_yaml_is_refused_in_one_line_with_its_place(tmp_path, content, part):
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not YAML") as caught:
        read_recipe(path)
    message = str(caught.value)
    assert str(path) in message and part in message and "\n" not in message
