"""Lengths of ScienceQA's samples, for benchmarks whose result depends on them.

They are read from scienceqa_lengths/test.json under $DSMEMVP_SHARED/data (a row per question of the test split: tokens,
tokens of the prompt, characters, whether it has an image; BOS and EOS counted). If that is absent they are drawn from a
distribution fitted to it: 33 tokens + a lognormal of median 34 (mean 84, median 67, 90 % below 137), an image with
48 %, 6 supervised tokens.
"""

import json
import math
import os
import random
from pathlib import Path
from typing import NamedTuple

LONGEST = 512


class Length(NamedTuple):
    tokens: int
    prompt: int
    """How many of the tokens are the prompt."""
    image: bool


def draw(count: int, seed: int = 0) -> list[Length]:
    """`count` lengths in random order, the same for the same seed."""
    rng = random.Random(seed)
    path = Path(os.environ.get("DSMEMVP_SHARED", "../shared"), "data", "scienceqa_lengths", "test.json")
    if path.is_file():
        rows = rng.choices(json.loads(path.read_text()), k=count)
        return [Length(tokens, prompt, bool(image)) for tokens, prompt, _, image in rows]
    return [_fitted(rng) for _ in range(count)]


def _fitted(rng: random.Random) -> Length:
    tokens = min(LONGEST, round(33 + 34 * math.exp(rng.gauss(0, 0.87))))
    return Length(tokens, tokens - 6, rng.random() < 0.48)
