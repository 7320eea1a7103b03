"""Which samples TensorBoard shows, looked into."""

import pytest
from making import fields, picture

from data_prep.shards import Row, write_shards
from dsmemvp.backbones.weights import read_configs
from dsmemvp.config.reading import read_recipe
from dsmemvp.data.collator import recipe_collator
from dsmemvp.evaluation.looking import samples_to_show


@pytest.fixture
def shown(recipe_path, tokenizer, tmp_path):
    recipe = read_recipe(recipe_path)
    configs = read_configs(recipe)
    collator = recipe_collator(recipe, configs.resolution, configs.language.vocab_size)

    def shown(rows: list[Row]):
        data = write_shards(rows, tmp_path / "shards", "test", per_shard=30)
        return samples_to_show(data, collator, tokenizer)

    return shown


def _rows(*answers: str, per_answer: int = 40) -> list[Row]:
    rows = [fields(i, choices=None, answer=answers[i // per_answer]) for i in range(per_answer * len(answers))]
    return [Row(f"s{i:03d}", row, picture(colour=(i, 0, 0))) for i, row in enumerate(rows)]


def test_of_data_that_lie_class_by_class_every_class_is_shown(shown):
    rows = _rows("daisy", "rose", "tulip", "dandelion")
    assert [sample.answer for sample in shown(rows)] == ["daisy", "rose", "tulip", "dandelion"]
    assert [sample.index for sample in shown(rows)] == [sample.index for sample in shown(rows)]


def test_tasks_and_subjects_count_beside_answers(shown):
    rows = _rows("daisy", per_answer=160)
    for row in rows[140:]:
        row.fields["subject"] = "social science"
    subjects = [sample.scores["subject"] for sample in shown(rows)]
    assert len(subjects) == 4 and set(subjects) == {"natural science", "social science"}


def test_rare_pictures_are_found_and_those_that_cannot_be_used_are_passed_over(shown):
    rows = [Row(row.key, row.fields, row.image if i % 10 == 3 else None) for i, row in enumerate(_rows("a", "b"))]
    rows[3] = Row(rows[3].key, rows[3].fields, b"no picture")
    found = shown(rows)
    assert len(found) == 4 and all(sample.index % 10 == 3 and sample.index != 3 for sample in found)
    assert {sample.answer for sample in found} == {"a", "b"}


def test_fewer_are_shown_where_there_are_no_more(shown):
    assert [sample.index for sample in shown(_rows("a", per_answer=2))] == [0, 1]
    assert shown([Row("s", fields())]) == []
