"""A sample's fields are checked once; every message names shard and sample key."""

import io
import tarfile

import pytest
from making import as_json, fields, manifest_of, picture, write_tar

from dsmemvp.data.sample import DESCRIBE, EncodedSample, SampleError, read_sample, sample_from_row, text_length
from dsmemvp.data.stream import read_all


def read(tmp_path, *members):
    """The one sample of a shard with these members of sample `odd`."""
    path = write_tar(tmp_path / "shard.tar", [(f"odd.{ending}", content) for ending, content in members])
    (entry,) = read_all(manifest_of(path))
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
    assert (sample.image, sample.index) == (b"encoded", 0)
    assert sample.scores == {"grade": 5, "id": "q7"}
    assert sample.where == f"{tmp_path / 'shard.tar'}, sample odd"


def test_an_open_question_needs_no_choices(tmp_path):
    for row in ({"question": "Q?", "answer": "two dogs"}, {"question": "Q?", "answer": "two dogs", "choices": []}):
        sample = read(tmp_path, ("json", as_json(row)))
        assert (sample.choices, sample.answer, sample.image, sample.context) == ((), "two dogs", None, "")


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "PNG"])
def test_an_image_member_of_each_known_ending_is_found(tmp_path, ending):
    assert read(tmp_path, ("json", as_json(fields())), (ending, b"x")).image == b"x"


def test_members_of_other_kinds_are_left_alone(tmp_path):
    sample = read(tmp_path, ("json", as_json(fields())), ("txt", b"x"), ("cls", b"3"), ("seg.png", b"mask"))
    assert sample.image is None and sample.question == fields()["question"]


@pytest.mark.parametrize(
    ("members", "part"),
    [
        ([("png", picture())], "has no json member, only png"),
        ([("cls", b"3")], "has no json member, only nothing"),
        ([("pyd", b"x"), ("png", b"x")], "has no json member, only png"),
        ([("json", as_json(fields())), ("png", b"x"), ("jpg", b"y")], "has 2 image members, at most one is allowed"),
        ([("json", b'{"question": "caf\xe9"}')], "json member cannot be read"),
        ([("json", b"{")], "json member cannot be read"),
        ([("json", b"")], "json member cannot be read"),
        ([("json", b"\xef\xbb\xbf{}")], "json member cannot be read"),
        ([("json", b"[" * 100_000 + b"]" * 100_000)], "json member cannot be read"),
        ([("json", b'{"answer": ' + b"9" * 5000 + b"}")], "json member cannot be read"),
        ([("json", b'{"a": ' * 100_000)], "json member cannot be read"),
        ([("txt", b"caf\xe9")], "txt member cannot be read"),
        ([("txt", b" \n")], "its caption is empty"),
        ([("json", b"[1]")], "json member is not an object"),
        ([("json", b"null")], "json member is not an object"),
    ],
)
def test_a_sample_with_wrong_members_is_refused_with_file_and_key(tmp_path, members, part):
    with pytest.raises(SampleError) as caught:
        read(tmp_path, *members)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'shard.tar'}, sample odd: {part}")


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"question": None}, "has no question"),
        ({"question": ""}, "has no question"),
        ({"question": " \n"}, "has no question"),
        ({"question": None, "caption": "a cat."}, "has no question"),
        ({"question": None, "caption": "a cat.", "choices": None, "answer": "yes"}, "has no question"),
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


@pytest.mark.parametrize("escaped", [rb'"\ud83d?"', rb'"\udc00\ud800"'])
def test_half_a_surrogate_pair_written_as_an_escape_is_refused_with_file_and_key(tmp_path, escaped):
    content = b'{"question": "Q?", "answer": ' + escaped + b"}"
    with pytest.raises(SampleError) as caught:
        read(tmp_path, ("json", content))
    assert str(caught.value).startswith(f"{tmp_path / 'shard.tar'}, sample odd: holds text that is not Unicode")
    whole = read(tmp_path, ("json", rb'{"question": "Q?", "answer": "\ud83d\ude42"}'))
    assert whole.answer == "\U0001f642"


IMG2DATASET = {
    "caption": " a red star on a blue wall ",
    "url": "https://example.org/1.jpg",
    "key": "000000001",
    "status": "success",
    "error_message": None,
    "width": 6,
    "height": 4,
    "original_width": 6,
    "original_height": 4,
    "exif": "{}",
    "sha256": "00",
}
"""The json member of img2dataset 1.45 (its README, "File system structure" and "Output format")."""


def test_the_layout_of_img2dataset_is_a_caption_to_be_written(tmp_path):
    caption = IMG2DATASET["caption"].encode()
    sample = read(tmp_path, ("jpg", b"encoded"), ("json", as_json(IMG2DATASET)), ("txt", caption))
    assert (sample.question, sample.answer) == (DESCRIBE, "a red star on a blue wall")
    assert (sample.choices, sample.caption, sample.context) == ((), "", "")  # the answer must not stand in the prompt
    assert sample.image == b"encoded" and sample.free
    assert sample.scores["task"] == "caption" and sample.scores["url"] == IMG2DATASET["url"]


def test_a_picture_with_a_txt_alone_is_a_caption_too(tmp_path):
    sample = read(tmp_path, ("jpg", b"encoded"), ("txt", "eine große Katze\n".encode()))
    assert (sample.question, sample.answer, sample.caption) == (DESCRIBE, "eine große Katze", "")
    assert sample.image == b"encoded" and sample.free and sample.scores == {"task": "caption"}


def test_a_picture_that_img2dataset_has_no_caption_for_is_refused(tmp_path):
    for caption in (None, ""):
        with pytest.raises(SampleError, match=r"sample odd: (has n|its caption is empty)"):
            read(tmp_path, ("jpg", b"x"), ("json", as_json({**IMG2DATASET, "caption": caption})))


def test_a_caption_beside_a_question_stays_a_caption(tmp_path):
    sample = read(tmp_path, ("json", as_json(fields(caption="a cat."))))
    assert (sample.caption, sample.question) == ("a cat.", fields()["question"]) and not sample.free


@pytest.mark.parametrize(
    ("changed", "free"),
    [
        ({"choices": None, "answer": "x", "task": "caption"}, True),
        ({"choices": None, "answer": "x", "task": "conversation"}, True),
        ({"choices": None, "answer": "x", "task": "vqa"}, False),
        ({"choices": None, "answer": "x", "task": ["caption"]}, False),
        ({"choices": None, "answer": "x"}, False),
        ({"task": "caption"}, False),
    ],
)
def test_an_answer_stands_by_itself_for_captions_and_conversations_without_choices(changed, free):
    assert sample_from_row(fields(**changed), None, "here").free == free


def test_the_length_is_counted_of_the_fields_that_are_seen_also_where_they_are_wrong():
    assert text_length("json", b'{"question": "abc", "choices": ["d", "ef"], "answer": 1}') == 6
    assert text_length("json", b'{"question": "abc", "choices": "no list", "answer": "xyz"}') == 3
    assert text_length("json", b'{"question": 7, "answer": "xyz"}') == 3
    unreadable = (b"\xff", b"", b"[1]", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}")
    assert [text_length("json", content) for content in unreadable] == [0] * 5


def test_a_message_can_be_written_whatever_a_sample_is_called(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("caf\xe9.json"), io.BytesIO())
    (entry,) = read_all(manifest_of(tmp_path / "x.tar"))
    with pytest.raises(SampleError) as caught:
        read_sample(entry)
    assert f"{tmp_path / 'x.tar'}, sample caf\\udce9: json member" in str(caught.value).encode("utf-8").decode()


def test_a_sample_error_reads_as_place_and_reason():
    assert str(SampleError("file, sample s0", "is odd")) == "file, sample s0: is odd"
