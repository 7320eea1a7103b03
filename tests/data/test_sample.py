"""A sample's fields are checked once; every message names shard and sample key."""

import pytest
from making import as_json, fields, picture, write_tar

from dsmemvp.data.sample import read_sample, sample_from_row
from dsmemvp.data.stream import EncodedSample, SampleError, read_shard


def read(tmp_path, *members):
    """The one sample of a shard with these members of sample `odd`."""
    path = write_tar(tmp_path / "shard.tar", [(f"odd.{ending}", content) for ending, content in members])
    (entry,) = read_shard(path, 1, 4)
    return read_sample(entry)


def test_all_fields_of_a_good_sample_arrive(tmp_path):
    row = {
        "question": "Q?",
        "context": "C.",
        "caption": "a cat.",
        "choices": ["x", "y", "z"],
        "answer": 2,
        "grade": 5,
        "id": "q7",
    }
    sample = read(tmp_path, ("json", as_json(row)), ("png", b"encoded"))
    assert (sample.question, sample.context, sample.caption) == ("Q?", "C.", "a cat.")
    assert (sample.choices, sample.answer, sample.letter) == (("x", "y", "z"), 2, "C")
    assert (sample.image, sample.index) == (b"encoded", 4)
    assert sample.scores == {"grade": 5, "id": "q7"}
    assert sample.where == f"{tmp_path / 'shard.tar'}, sample odd"


def test_an_open_question_needs_no_choices(tmp_path):
    for row in ({"question": "Q?", "answer": "two dogs"}, {"question": "Q?", "answer": "two dogs", "choices": []}):
        sample = read(tmp_path, ("json", as_json(row)))
        assert (sample.choices, sample.answer, sample.image, sample.context) == ((), "two dogs", None, "")


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp", "bmp", "gif", "PNG"])
def test_an_image_member_of_each_known_ending_is_found(tmp_path, ending):
    assert read(tmp_path, ("json", as_json(fields())), (ending, b"x")).image == b"x"


def test_members_of_other_kinds_are_left_alone(tmp_path):
    assert read(tmp_path, ("json", as_json(fields())), ("txt", b"x")).image is None


@pytest.mark.parametrize(
    ("members", "part"),
    [
        ([("png", picture())], "has no json member, only png"),
        ([("json", as_json(fields())), ("png", b"x"), ("jpg", b"y")], "has 2 image members, at most one is allowed"),
        ([("json", b'{"question": "caf\xe9"}')], "json member cannot be read"),
        ([("json", b"{")], "json member cannot be read"),
        ([("json", b"")], "json member cannot be read"),
        ([("json", b"[1]")], "json member is not an object"),
        ([("json", b"null")], "json member is not an object"),
    ],
)
def test_a_sample_with_wrong_members_is_refused_with_file_and_key(tmp_path, members, part):
    with pytest.raises(SampleError) as caught:
        read(tmp_path, *members)
    assert str(caught.value).startswith(f"{tmp_path / 'shard.tar'}, sample odd: {part}")


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"question": None}, "has no question"),
        ({"question": ""}, "has no question"),
        ({"question": " \n"}, "has no question"),
        ({"question": 7}, "question is not text"),
        ({"context": ["a"]}, "context is not text"),
        ({"caption": 7}, "caption is not text"),
        ({"choices": "ab"}, "choices is not a list of texts"),
        ({"choices": ["a", 2]}, "choices is not a list of texts"),
        ({"choices": {"a": 1}}, "choices is not a list of texts"),
        ({"choices": [str(i) for i in range(27)]}, "has 27 choices, letters end at 26"),
        ({"answer": 2}, "answer 2 is not the index of one of its 2 choices"),
        ({"answer": -1}, "answer -1 is not the index"),
        ({"answer": "yes"}, "answer 'yes' is not the index"),
        ({"answer": True}, "answer True is not the index"),
        ({"answer": 1.0}, "answer 1.0 is not the index"),
        ({"answer": None}, "answer None is not the index"),
        ({"choices": None, "answer": None}, "has neither choices nor an answer in text"),
        ({"choices": [], "answer": 1}, "has neither choices nor an answer in text"),
        ({"choices": [], "answer": " "}, "has neither choices nor an answer in text"),
        ({"question": "\ud800?"}, "not Unicode"),
        ({"context": "\udfff"}, "not Unicode"),
        ({"caption": "\udfff"}, "not Unicode"),
        ({"choices": ["a", "\ud800"]}, "not Unicode"),
        ({"choices": [], "answer": "\ud800"}, "not Unicode"),
    ],
)
def test_a_wrong_field_is_refused_with_file_and_key(tmp_path, changed, part):
    with pytest.raises(SampleError) as caught:
        read(tmp_path, ("json", as_json(fields(**changed))))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'shard.tar'}, sample odd: ") and part in message


def test_twenty_six_choices_are_allowed():
    row = fields(choices=[str(i) for i in range(26)], answer=25)
    assert sample_from_row(row, None, "here").letter == "Z"


def test_an_empty_sample_says_that_it_has_nothing():
    with pytest.raises(SampleError, match="has no json member, only nothing"):
        read_sample(EncodedSample({}, "here", 0))
