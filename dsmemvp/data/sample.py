"""A sample's fields, checked once on the way in; everything later may rely on them.

The json member of a shard holds: question, choices and answer (the index of the right choice), or no choices and an
open answer in text; optional context, caption, subject, grade, split. At most one image member lies beside it.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from dsmemvp.data.stream import EncodedSample, SampleError

IMAGE_ENDINGS = ("png", "jpg", "jpeg", "webp", "bmp", "gif")


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

    @property
    def letter(self) -> str:
        """A, B, ... of the right choice."""
        assert isinstance(self.answer, int)
        return chr(ord("A") + self.answer)


def read_sample(encoded: EncodedSample) -> Sample:
    """Check the members and fields of one sample. Raises SampleError."""
    where = encoded.where
    if "json" not in encoded.members:
        raise SampleError(where, f"has no json member, only {', '.join(sorted(encoded.members)) or 'nothing'}")
    images = [ending for ending in encoded.members if ending in IMAGE_ENDINGS]
    if len(images) > 1:
        raise SampleError(where, f"has {len(images)} image members, at most one is allowed: {', '.join(images)}")
    try:
        row = json.loads(encoded.members["json"].decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SampleError(where, f"json member cannot be read ({error})") from None
    image = encoded.members[images[0]] if images else None
    return sample_from_row(row, image, where, encoded.index)


def sample_from_row(row: Any, image: bytes | None, where: str, index: int = 0) -> Sample:
    """A row of fields as a sample; data_prep checks with it before it writes. Raises SampleError."""
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
    if choices:
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise SampleError(where, f"answer {answer!r} is not the index of one of its {len(choices)} choices")
    elif not isinstance(answer, str) or not answer.strip():
        raise SampleError(where, "has neither choices nor an answer in text")
    texts = [question, _text(row, "context", where), _text(row, "caption", where), *choices, str(answer)]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:  # JSON can write half a surrogate pair; a tokenizer cannot read it
        raise SampleError(where, "holds text that is not Unicode (half of a surrogate pair)") from None
    scores = {k: v for k, v in row.items() if k not in ("question", "context", "caption", "choices", "answer")}
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
    )


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key) or ""
    if not isinstance(value, str):
        raise SampleError(where, f"{key} is not text")
    return value
