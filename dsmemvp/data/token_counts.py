"""Token counts of the samples of a data set, counted once and kept beside the run, so that work can be balanced by
exact numbers before a sample is read.

    RUN/token_counts-0123456789abcdef.npy     [samples] uint32, by running number

The digits in the name tell from what the counts follow. Counts only say which rank computes what: no result depends on
them, so a data set that is too large or not on a local disk is estimated from the characters that its index has.
"""

import functools
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError

import numpy as np

from dsmemvp.atomic_files import replace_file
from dsmemvp.data.collator import Collator
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.order import Place
from dsmemvp.data.pool import over_shards
from dsmemvp.data.sample import BadSample, EncodedSample, SampleError, read_sample
from dsmemvp.data.stream import Reader
from dsmemvp.data.text import PROMPT_FORMAT
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.errors import UserError

MOST = 2_000_000
"""Samples that are counted: some minutes on a node."""
FEW = 10_000
"""Samples for which no other processes are started, which takes longer than to count them."""
CHARACTERS, PROMPT = 4, 25
"""Of text per token, and tokens that every prompt has beside its texts, roughly."""


def estimate(characters: int, max_length: int) -> int:
    """Tokens of a sample, by the index alone."""
    return min(PROMPT + characters // CHARACTERS, max_length)


@dataclass(frozen=True)
class TokenCounts:
    """Token counts in a file, mapped into memory when they are asked for; what travels to workers is its name."""

    path: Path

    def __getitem__(self, number: int) -> int:
        """Tokens of the sample with this running number, without reserved places."""
        return int(self._counts[number])

    @cached_property
    def _counts(self) -> np.ndarray:
        if self.path.exists() and not self.path.is_file():
            raise ValueError("it is not a regular file")
        return np.lib.format.open_memmap(self.path, mode="r")

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}

    def check(self, samples: int) -> str:
        """The checksum of the counts, for ranks to compare. Raises UserError or OSError."""
        try:
            counts = self._counts
        except (ValueError, EOFError, SyntaxError, TokenError) as error:  # numpy reads the header as Python
            raise UserError(f"{self.path} does not hold token counts ({error}); delete it") from None
        if counts.shape != (samples,) or counts.dtype != np.uint32:
            raise UserError(f"{self.path} does not hold token counts of {samples} samples; delete it")
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def countable(manifests: Sequence[Manifest]) -> bool:
    """Whether the samples are on a local disk and few enough to be counted at the start of a run."""
    return not any(manifest.remote for manifest in manifests) and sum(m.samples for m in manifests) <= MOST


def counts_path(folder: Path, manifests: Sequence[Manifest], collator: Collator) -> Path:
    """Where the counts of these data sets are kept."""
    tokenizer = hashlib.sha256(Path(collator.tokenizer_path).read_bytes()).hexdigest()
    settings: list[object] = [PROMPT_FORMAT, collator.captions, collator.max_length, collator.answers]
    settings += ["classes"] if collator.labels else []
    if collator.caption_reader is not None and collator.caption_reader.text.target:
        settings += ["caption", collator.caption_reader.text.supervise_bos]
    follows_from = json.dumps([[manifest.fingerprint for manifest in manifests], tokenizer, *settings])
    return folder / f"token_counts-{hashlib.sha256(follows_from.encode()).hexdigest()[:16]}.npy"


def count_tokens(folder: Path, manifests: Sequence[Manifest], collator: Collator, processes: int = 0) -> TokenCounts:
    """The counts, read from `folder` or counted and written there. `processes` 0: one per core, or this one for few
    samples. A sample that cannot be used counts as one token. Raises UserError or OSError."""
    path = counts_path(folder, manifests, collator)
    if not path.exists():
        if not processes and sum(manifest.samples for manifest in manifests) <= FEW:
            processes = 1
        counts = [
            part
            for manifest in manifests
            for part in over_shards(
                functools.partial(_shard, manifest, collator), range(len(manifest.shards)), "count tokens", processes
            )
        ]
        content = io.BytesIO()
        np.save(content, np.concatenate(counts).astype(np.uint32), allow_pickle=False)
        replace_file(path, content.getvalue())
    return TokenCounts(path)


def _shard(manifest: Manifest, collator: Collator, shard: int) -> np.ndarray:
    """Of each sample of a shard, without looking at its image."""
    tokenizer, reader = Tokenizer(collator.tokenizer_path), Reader([manifest], indexes=1)
    places = [Place(0, shard, sample) for sample in range(manifest.shards[shard].samples)]
    return np.array([_tokens(collator, tokenizer, entry) for entry in reader.read(places, images=False).values()])


def _tokens(collator: Collator, tokenizer: Tokenizer, entry: EncodedSample | BadSample) -> int:
    try:
        return 1 if isinstance(entry, BadSample) else len(collator.text(tokenizer, read_sample(entry)).tokens)
    except SampleError:
        return 1
