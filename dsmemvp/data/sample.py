"""A sample's fields, checked once on the way in; everything later may rely on them.

The json member of a shard holds: question, choices and answer (the index of the right choice), or no choices and an
open answer in text, or a class: label (its number), or labels (a list of them); optional context, caption, task,
subject, grade, split. At most one image member lies beside it.
Shards of pictures and their captions, as img2dataset writes them, have a json member with a caption and no question,
or a txt member alone: the question is then to describe the image. Shards of captions alone have the same without an
image.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dsmemvp.errors import UserError
from dsmemvp.json_text import parse_json

IMAGE_ENDINGS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
TEXT_ENDINGS = ("json", "txt")
"""The first of these that a sample has is read."""
DESCRIBE = "Describe the image."
"""The question of a sample that is a caption."""
MOST_TEXT = 16 << 20
"""Bytes of a text member; JSON takes up to thirty times as much memory."""
FREE_TASKS = ("caption", "conversation")
"""Tasks whose answer is a text of its own, not the end of "The answer is"."""


class SampleError(UserError):
    """A sample that cannot be used: `SampleError(where, why)`, where `where` names file and key."""

    def __str__(self) -> str:
        # a file's or sample's name may be no Unicode; this goes to logs and files
        return ": ".join(map(str, self.args)).encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class EncodedSample:
    """One sample's members by their ending ("json", "png", ...), and where it came from."""

    members: dict[str, bytes]
    where: str
    index: int
    """Running number in the data, shard by shard as the manifests list them."""


@dataclass(frozen=True)
class BadSample:
    error: SampleError
    index: int


@dataclass(frozen=True)
class Sample:
    question: str
    answer: int | str
    """Index into `choices`, or the text of an open answer."""
    choices: tuple[str, ...] = ()
    context: str = ""
    caption: str = ""
    image: bytes | None = None
    """Encoded, as it lay in the shard."""
    scores: dict[str, Any] = field(default_factory=dict)
    """What the task's scores need, such as subject and grade."""
    where: str = ""
    """File and key, for messages."""
    index: int = 0
    """Running number in the data set."""
    labels: tuple[int, ...] | None = None
    """Numbers of the classes that it belongs to; None if it has an answer."""
    several: bool = False
    """Whether these may be any number, or exactly one."""

    @property
    def free(self) -> bool:
        """Whether the answer stands by itself."""
        return not self.choices and self.scores.get("task") in FREE_TASKS

    @property
    def letter(self) -> str:
        """A, B, ... of the right choice."""
        assert isinstance(self.answer, int)
        return chr(ord("A") + self.answer)


def read_sample(encoded: EncodedSample) -> Sample:
    """Check the members and fields of one sample. Raises SampleError."""
    where = encoded.where
    texts = [ending for ending in TEXT_ENDINGS if ending in encoded.members]
    if not texts:
        raise SampleError(where, f"has no json member, only {', '.join(sorted(encoded.members)) or 'nothing'}")
    images = [ending for ending in encoded.members if ending in IMAGE_ENDINGS]
    if len(images) > 1:
        raise SampleError(where, f"has {len(images)} image members, at most one is allowed: {', '.join(images)}")
    try:
        row = _row(texts[0], encoded.members[texts[0]])
    except ValueError as error:
        raise SampleError(where, f"{texts[0]} member cannot be read ({error})") from None
    image = encoded.members[images[0]] if images else None
    return sample_from_row(row, image, where, encoded.index)


def text_length(ending: str, member: bytes) -> int:
    """Characters that a model would see of a text member; 0 if it cannot be read."""
    try:
        row = _row(ending, member)
    except ValueError:
        return 0
    if not isinstance(row, dict):
        return 0
    choices = row.get("choices")
    seen = [row.get("question"), row.get("context"), *(choices if isinstance(choices, list) else [])]
    seen += [] if choices else [row.get("answer")]
    return sum(len(text) for text in seen if isinstance(text, str))


def _row(ending: str, member: bytes) -> Any:
    if len(member) > MOST_TEXT:
        raise UserError(f"it has {len(member)} bytes, at most {MOST_TEXT} are read")
    text = member.decode("utf-8")
    return _described({"caption": text} if ending == "txt" else parse_json(text, "it"))


def _described(row: Any) -> Any:
    """A caption alone as the answer to DESCRIBE."""
    asked = isinstance(row, dict) and row.keys() & {"question", "choices", "answer"}
    if isinstance(row, dict) and not asked and isinstance(row.get("caption"), str):
        row = {**row, "question": DESCRIBE, "answer": row["caption"].strip(), "task": "caption"}
        del row["caption"]
    return row


def sample_from_row(row: Any, image: bytes | None, where: str, index: int = 0) -> Sample:
    """A row of fields as a sample; data_prep checks with it before it writes. Raises SampleError."""
    row = _described(row)
    if not isinstance(row, dict):
        raise SampleError(where, "json member is not an object")
    question = _text(row, "question", where)
    if not question.strip():
        raise SampleError(where, "has no question")
    choices = row.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        raise SampleError(where, "choices is not a list of texts")
    if len(choices) > 26:
        raise SampleError(where, f"has {len(choices)} choices, letters end at 26")
    answer = row.get("answer")
    labels, several = _labels(row, where)
    if labels is not None:
        if choices or answer is not None:
            raise SampleError(where, "has both an answer and a class (label or labels)")
        answer = ""
    elif choices:
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise SampleError(where, f"answer {answer!r} is not the index of one of its {len(choices)} choices")
    elif not isinstance(answer, str) or not answer.strip():
        if row.get("task") == "caption":
            raise SampleError(where, "its caption is empty")
        raise SampleError(where, "has neither choices nor an answer in text, nor a label")
    texts = [question, _text(row, "context", where), _text(row, "caption", where), *choices, str(answer)]
    if not all(map(is_text, texts)):  # JSON can write half a surrogate pair; a tokenizer cannot read it
        raise SampleError(where, "holds text that is not Unicode (half of a surrogate pair)")
    fields = ("question", "context", "caption", "choices", "answer", "label", "labels")
    scores = {k: v for k, v in row.items() if k not in fields}
    return Sample(
        question=question,
        answer=answer,
        choices=tuple(choices),
        context=texts[1],
        caption=texts[2],
        image=image,
        scores=scores,
        where=where,
        index=index,
        labels=labels,
        several=several,
    )


def is_text(value: str) -> bool:
    """Whether UTF-8 can write it, so that a tokenizer can read it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def label_text(labels: Iterable[int]) -> str:
    """As in "3", or "0 4"; of none "-"."""
    return " ".join(map(str, sorted(labels))) or "-"


def _labels(row: dict[str, Any], where: str) -> tuple[tuple[int, ...] | None, bool]:
    """The classes, and whether they are given as a list."""
    if "label" in row and "labels" in row:
        raise SampleError(where, "has both label and labels")
    if "label" not in row and "labels" not in row:
        return None, False
    given = row["labels"] if "labels" in row else [row["label"]]
    if not isinstance(given, list) or not all(type(label) is int and label >= 0 for label in given):
        raise SampleError(where, "label is not the number of a class, or labels no list of such numbers")
    if len(set(given)) < len(given):
        raise SampleError(where, "names a class twice in labels")
    return tuple(given), "labels" in row


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key) or ""
    if not isinstance(value, str):
        raise SampleError(where, f"{key} is not text")
    return value
