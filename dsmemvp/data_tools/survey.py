"""What a data set holds: every sample read, decoded and tokenised, in processes of its own."""

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from dsmemvp.config.recipe import Evaluation
from dsmemvp.counting import counted
from dsmemvp.data.collator import Collator
from dsmemvp.data.letters import longest_letter
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.order import Place
from dsmemvp.data.pool import over_shards
from dsmemvp.data.sample import BadSample, SampleError, read_sample
from dsmemvp.data.stream import Reader
from dsmemvp.data.tasks import task_name
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.data_tools.lengths import answer_length, too_long


@dataclass
class Found:
    """What one shard holds."""

    lengths: list[int] = field(default_factory=list)
    """Tokens of each good sample."""
    images: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    choices: int = 0
    """The most that a question has."""
    open: list[int] = field(default_factory=list)
    """Tokens of each open answer (lengths.answer_length)."""
    free: list[int] = field(default_factory=list)
    """Of each caption and turn of a conversation."""
    needed: list[int] = field(default_factory=list)
    """The data.max_length of each sample that is too long without its context."""
    bad: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Survey:
    about: str
    """What the recipe calls the data: train, validation or test."""
    manifest: Manifest
    collator: Collator
    shards: list[Found]

    @property
    def bad(self) -> list[str]:
        """Messages of the samples that cannot be used."""
        return [message for shard in self.shards for message in shard.bad]

    def lines(self, evaluation: Evaluation) -> Iterator[str]:
        """What is to be said of it."""
        manifest = self.manifest
        counts, mib = manifest.counts, [shard.bytes / 2**20 for shard in manifest.shards]
        tasks = sum((shard.tasks for shard in self.shards), Counter[str]())
        kinds = ", ".join(f"{number} {task}" for task, number in tasks.most_common())
        images = sum(shard.images for shard in self.shards)
        yield (
            f"{self.about}: {manifest.location}: {counted(manifest.samples, 'sample')}, {images} with a picture"
            f"{f' ({kinds})' if kinds else ''}"
        )
        yield (
            f"  {counted(len(counts), 'shard')} of {min(counts)} to {counted(max(counts), 'sample')},"
            f" {min(mib):.1f} to {max(mib):.1f} MiB"
        )
        yield from self._texts()
        yield from self._answers(evaluation)

    def _texts(self) -> Iterator[str]:
        limit = f"data.max_length = {self.collator.max_length}"
        if lengths := sorted(length for shard in self.shards for length in shard.lengths):
            middle, cut = lengths[len(lengths) // 2], sum(shard.cut for shard in self.shards)
            asked = ", up to where the answer begins" if self.collator.answers else ""
            yield (
                f"  tokens{asked}: {_range(lengths, f'median {middle}, ')};"
                f" {counted(cut, 'context is', 'contexts are')} cut to {limit}"
            )
        if needed := [least for shard in self.shards for least in shard.needed]:
            yield (
                f"  {counted(len(needed), 'sample is', 'samples are')} longer than {limit} without any context;"
                f" data.max_length={max(needed)} would take all of them"
            )

    def _answers(self, evaluation: Evaluation) -> Iterator[str]:
        """Answers against what an evaluation decodes of them."""
        for what, key, limit, lengths in (
            ("answers", "max_new_tokens", evaluation.max_new_tokens, [n for s in self.shards for n in s.open]),
            ("captions", "caption_tokens", evaluation.caption_tokens, [n for s in self.shards for n in s.free]),
        ):
            if not lengths:
                continue
            yield f"  {what}: {_range(sorted(lengths))} tokens; evaluation.{key} = {limit}"
            if over := sum(length > limit for length in lengths):
                yield (
                    f"  warning: {over} of {len(lengths)} {what} are longer than evaluation.{key} = {limit}: an"
                    f" evaluation cuts what it decodes there; evaluation.{key}={max(lengths)} takes all of them"
                )
        try:
            choices = max(shard.choices for shard in self.shards)
            if choices and (tokens := longest_letter(Tokenizer(self.collator.tokenizer_path), choices)) > 1:
                yield f"  letters of {counted(choices, 'choice')}: up to {counted(tokens, 'token')}"
        except ValueError as error:
            yield f"  warning: {error}"


def survey(manifest: Manifest, collator: Collator, about: str, processes: int) -> Survey:
    """`processes` 0: one per core. Raises OSError or UserError for shards that cannot be read at all."""
    work = functools.partial(_shard, manifest, collator)
    return Survey(about, manifest, collator, list(over_shards(work, range(len(manifest.shards)), about, processes)))


def _shard(manifest: Manifest, collator: Collator, shard: int) -> Found:
    """Goes through one shard."""
    tokenizer, found = Tokenizer(collator.tokenizer_path), Found()
    places = [Place(0, shard, sample) for sample in range(manifest.shards[shard].samples)]
    for entry in Reader([manifest], indexes=1).read(places).values():
        try:
            if isinstance(entry, BadSample):
                raise entry.error
            sample = read_sample(entry)
        except SampleError as error:
            found.bad.append(str(error))
            continue
        try:
            item = collator.item(tokenizer, sample)
        except SampleError as error:
            least = too_long(collator, tokenizer, sample)
            found.needed += [least] if least else []
            found.bad.append(f"{error}; it needs data.max_length={least}" if least else str(error))
            continue
        found.lengths.append(len(item.text.tokens))
        found.images += item.image is not None
        found.tasks[task_name(sample)] += 1
        found.cut += item.text.cut
        found.choices = max(found.choices, len(sample.choices))
        if not sample.choices and sample.labels is None:
            (found.free if sample.free else found.open).append(answer_length(tokenizer, sample))
    return found


def _range(lengths: list[int], middle: str = "") -> str:
    """Of sorted numbers."""
    return f"{lengths[0]} to {lengths[-1]}, {middle}99 % up to {lengths[len(lengths) * 99 // 100]}"
