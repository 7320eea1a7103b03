"""`dsmemvp data check RECIPE`: every sample of every shard read, decoded and tokenised, as a run would do it."""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from dsmemvp.data.dealing import Weight, deal
from dsmemvp.data.encoder import Encoder
from dsmemvp.data.loader import weigh
from dsmemvp.data.manifest import Manifest, check_files
from dsmemvp.data.order import Order, Place
from dsmemvp.data.sample import BadSample, SampleError, read_sample
from dsmemvp.data.sets import open_test_data, open_training_data
from dsmemvp.data.stream import Reader
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.data_tools.look import encoder_of
from dsmemvp.data_tools.pool import over_shards
from dsmemvp.recipe import Recipe

LISTED = 20
"""Bad samples listed; the others are counted."""
BATCHES = 100
"""Global batches of the first epoch from which the balance over ranks is worked out."""


@dataclass
class Found:
    """What one shard holds."""

    lengths: list[int] = field(default_factory=list)
    """Tokens of each good sample."""
    images: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    bad: list[str] = field(default_factory=list)


def check(recipe: Recipe, ranks: int, processes: int = 0) -> tuple[list[str], int]:
    """What is to be said, line by line, and how many samples cannot be used. Raises ValueError or FileNotFoundError
    where the data as a whole cannot be."""
    if ranks < 1:
        raise ValueError(f"--ranks: must be at least 1, is {ranks}")
    encoder = replace(encoder_of(recipe), skip_bad=True)
    lines, bad = [], []
    if recipe.data.train:
        data = open_training_data(recipe)
        check_files(*data.manifests)
        # Worked out first: what it refuses is refused before hours of reading.
        about_epoch = list(_epoch(recipe, data.order, data.manifests, encoder, ranks))
        for manifest, source in zip(data.manifests, data.order.sources, strict=True):
            said, messages = _data_set(manifest, encoder, "train", processes)
            lines += said
            if len(data.manifests) > 1:
                share = source.per_epoch / data.order.samples
                lines.append(f"  {source.per_epoch} samples of it in an epoch ({source.passes} passes), {share:.1%}")
            bad += messages
        lines += about_epoch
    if recipe.data.test:
        test = open_test_data(recipe)
        check_files(test)
        said, messages = _data_set(test, encoder, "test", processes)
        lines += said
        bad += messages
    if bad:
        lines.append(f"{len(bad)} samples cannot be used:")
        lines += [f"  {message}" for message in bad[:LISTED]]
        lines += [f"  and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
    return lines, len(bad)


def _data_set(manifest: Manifest, encoder: Encoder, about: str, processes: int) -> tuple[list[str], list[str]]:
    work = functools.partial(_shard, manifest, encoder)
    found = list(over_shards(work, range(len(manifest.shards)), about, processes))
    lengths = sorted(length for shard in found for length in shard.lengths)
    tasks = sum((shard.tasks for shard in found), Counter[str]())
    counts, sizes = manifest.counts, manifest.table.bytes / 2**20
    kinds = ", ".join(f"{number} {task}" for task, number in tasks.most_common())
    images = sum(shard.images for shard in found)
    lines = [
        f"{about}: {manifest.location}: {manifest.samples} samples, {images} with a picture"
        + (f" ({kinds})" if kinds else ""),
        f"  {len(counts)} shards of {min(counts)} to {max(counts)} samples, {min(sizes):.1f} to {max(sizes):.1f} MiB",
    ]
    if lengths:
        middle, most = lengths[len(lengths) // 2], lengths[len(lengths) * 99 // 100]
        cut = sum(shard.cut for shard in found)
        lines.append(
            f"  tokens: {lengths[0]} to {lengths[-1]}, median {middle}, 99 % up to {most}; {cut} contexts are cut to"
            f" data.max_length = {encoder.max_length}"
        )
    return lines, [message for shard in found for message in shard.bad]


def _shard(manifest: Manifest, encoder: Encoder, shard: int) -> Found:
    """Goes through one shard in a process of its own."""
    tokenizer, found = Tokenizer(encoder.tokenizer_path), Found()
    places = [Place(0, shard, sample) for sample in range(manifest.shards[shard].samples)]
    for entry in Reader([manifest], indexes=1).read(places).values():
        try:
            if isinstance(entry, BadSample):
                raise entry.error
            read = read_sample(entry)
            item = encoder.item(tokenizer, read)
        except SampleError as error:
            found.bad.append(str(error))
            continue
        found.lengths.append(len(item.text.tokens))
        found.images += item.image is not None
        found.tasks[str(read.scores.get("task", "multiple choice" if read.choices else "open answer"))] += 1
        found.cut += item.text.cut
    return found


def _epoch(recipe: Recipe, order: Order, manifests: Sequence[Manifest], encoder: Encoder, ranks: int) -> Iterable[str]:
    """What an epoch is made of, and how evenly its batches can be dealt."""
    rest = order.samples - order.steps * order.global_batch
    last = f"{order.repeats} samples are repeated to complete the last one" if order.repeats else f"{rest} left out"
    yield f"epoch: {order.samples} samples, {order.steps} global batches of {order.global_batch}; {last}"
    micro_batch = recipe.training.micro_batch
    recipe.training.micro_steps(ranks)
    reader = Reader(manifests, order.near_shards)
    dealt = in_turn = 0.0
    steps = range(min(BATCHES, order.steps))
    for step in steps:
        weights = [weigh(reader, place, encoder) for place in order.batch(step)]
        shares = deal(weights, ranks, micro_batch)
        dealt += _busy(weights, shares)
        turns = [list(range(rank, len(weights), ranks)) for rank in range(ranks)]
        in_turn += _busy(weights, [[t[i : i + micro_batch] for i in range(0, len(t), micro_batch)] for t in turns])
    if dealt:
        yield (
            f"  dealt by length to {ranks} ranks, {dealt / in_turn:.2f} x the padded places of dealing in turn"
            f" (from text lengths of the first {len(steps)} batches)"
        )


def _busy(weights: list[Weight], shares: list[list[list[int]]]) -> float:
    """How long a step keeps the ranks together: for every micro-step, what the slowest needs."""
    return sum(
        max(len(part) * max((weights[i].length for i in part), default=0) for part in parts)
        for parts in zip(*shares, strict=True)
    )
