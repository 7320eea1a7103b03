"""Where everything of one sample lies in its sequence: its text, the places that a prompting method reserves, what is
supervised."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dsmemvp.data.text import EncodedText


@dataclass(frozen=True)
class Reserved:
    """Places that a prompting method reserves in the sequence of every sample with an image, or of every sample."""

    name: str
    count: int
    anchor: Literal["start", "front", "before_cue", "after_question"] = "front"
    """`start`: before everything; `front`: before the text, behind BOS if there is one; `before_cue`: within the
    prompt, before the words that ask for the answer; `after_question`: between the prompt and the answer."""
    without_image: bool = False
    """Also in a sample without an image."""


class Layout(NamedTuple):
    """One sample's sequence; numbers count from its first token."""

    tokens: list[int]
    spans: tuple[tuple[int, int], tuple[int, int]]
    places: dict[str, range]
    supervised: Sequence[int]
    targets: list[int]

    def ends(self, place: Literal["first", "last"]) -> tuple[int]:
        """Its text's first token, which reserved places may stand before, or its last one."""
        if place == "last":
            return (len(self.tokens) - 1,)
        taken = {i for places in self.places.values() for i in places}
        return (next(i for i in range(len(self.tokens)) if i not in taken),)


LONE = Layout([0], ((0, 0), (0, 0)), {}, (), [])
"""In place of samples, where there are none: one token that trains nothing."""


def lay_out(text: EncodedText, has_image: bool, reserved: Sequence[Reserved], last_only: bool) -> Layout:
    """`last_only` supervises its last token alone, with target 0."""
    cue = max(text.bos, text.prompt - text.cue)
    parts = {
        "start": text.tokens[:0],
        "front": text.tokens[: text.bos],
        "before_cue": text.tokens[text.bos : cue],
        "after_question": text.tokens[cue : text.prompt],
    }
    tokens: list[int] = []
    places: dict[str, range] = {}
    edges: dict[str, tuple[int, int]] = {}
    for anchor, part in parts.items():
        edges[anchor] = (len(tokens), len(tokens) + len(part))
        tokens += part
        for r in reserved:
            if r.anchor == anchor and (r.without_image or has_image):
                # the place before the answer has to predict its first token, which a reserved one cannot
                assert text.cue or anchor != "before_cue", "a text without a cue"
                places[r.name] = range(len(tokens), len(tokens) + r.count)
                tokens += [0] * r.count
    start = len(tokens)
    question = (edges["before_cue"][0], edges["after_question"][1])
    tokens += text.tokens[text.prompt :]
    spans = (question, (start, len(tokens)))
    if last_only:
        return Layout(tokens, spans, places, (len(tokens) - 1,), [0])
    targets = text.tokens[text.prompt :]
    if not start:  # nothing stands before the first token, from which it could be predicted
        return Layout(tokens, spans, places, range(len(tokens) - 1), targets[1:])
    return Layout(tokens, spans, places, range(start - 1, len(tokens) - 1), targets)
