"""Shards -> encoded samples at given places, read forwards through each shard by its index.

Only the wanted bytes are read, and only they are checked (by the index's CRC-32), so a rank touches nothing of the
others' samples and a run can start anywhere. A sample that does not hold up is a `BadSample`, so that every other one
keeps its place in the order. A file that cannot be read at all is an error of the system and ends the run, however bad
samples are treated: it says nothing about the sample. Nothing here decodes, and nothing is ever unpickled.
"""

import itertools
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dsmemvp.data.index import ShardIndex, read_index
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.order import FileOrder, Place
from dsmemvp.data.sample import IMAGE_ENDINGS, BadSample, EncodedSample, SampleError
from dsmemvp.data.tar import Entry


class Reader:
    """Reads samples of several data sets. It holds the indexes of the shards it used last, and nothing of the data."""

    def __init__(self, manifests: Sequence[Manifest], indexes: int):
        """`indexes` is how many shards' indexes are kept: as many as a pass over the data is within at one time."""
        self._manifests, self._most = manifests, indexes
        self._indexes: OrderedDict[tuple[int, int], ShardIndex] = OrderedDict()
        self._firsts = first_numbers(manifests)

    def entry(self, place: Place) -> Entry:
        """What the index says of a sample."""
        return self._index(place)[place.sample]

    def weight(self, place: Place) -> tuple[int, bool]:
        """(characters of text, whether there is an image) of a sample."""
        return self._index(place).weight(place.sample)

    def _index(self, place: Place) -> ShardIndex:
        key = place[:2]
        if key not in self._indexes:
            self._indexes[key] = read_index(self._manifests[place.source], place.shard)
            if len(self._indexes) > self._most:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(key)
        return self._indexes[key]

    def number(self, place: Place) -> int:
        """The sample's running number in the data."""
        return int(self._firsts[place.source][place.shard]) + place.sample

    def read(self, places: Iterable[Place], images: bool = True) -> dict[Place, EncodedSample | BadSample]:
        """The samples at `places`, every shard gone through once and forwards; without `images` their texts alone,
        unchecked. Raises OSError."""
        found: dict[Place, EncodedSample | BadSample] = {}
        for (source, shard), group in itertools.groupby(sorted(set(places)), key=lambda place: place[:2]):
            manifest = self._manifests[source]
            path, descriptor = manifest.path(shard), manifest.open(shard)
            try:
                for place in group:
                    entry = self.entry(place)
                    where, number = f"{path}, sample {entry.key}", self.number(place)
                    try:
                        found[place] = EncodedSample(_members(descriptor, entry, where, images), where, number)
                    except SampleError as error:
                        found[place] = BadSample(error, number)
            finally:
                os.close(descriptor)
        return found


def first_numbers(manifests: Sequence[Manifest]) -> list[np.ndarray]:
    """[data set][shard]: the running number of the shard's first sample over all data sets."""
    firsts, before = [], 0
    for manifest in manifests:
        ends = before + np.cumsum(manifest.table.samples)
        firsts.append(ends - manifest.table.samples)
        before = int(ends[-1])
    return firsts


def read_all(manifest: Manifest) -> Iterator[EncodedSample | BadSample]:
    """Every sample of a data set in file order, a shard at a time."""
    reader = Reader([manifest], indexes=1)
    for shard, samples in enumerate(manifest.counts):
        yield from reader.read(Place(0, shard, sample) for sample in range(samples)).values()


def read_each(manifests: Sequence[Manifest], first: int = 0) -> Iterator[EncodedSample | BadSample]:
    """The samples of data sets in file order from running number `first` on, one at a time: to look at a few."""
    reader = Reader(manifests, indexes=1)
    for source, manifest in enumerate(manifests):
        places = FileOrder(manifest.counts)
        for number in range(first, len(places)):
            place = places[number]._replace(source=source)
            yield reader.read([place])[place]
        first = max(0, first - len(places))


def _members(descriptor: int, entry: Entry, where: str, images: bool) -> dict[str, bytes]:
    if entry.problem:
        raise SampleError(where, entry.problem)
    members, crc32 = {}, 0
    for member in entry.members:
        if not images and member.ending in IMAGE_ENDINGS:
            continue
        content = os.pread(descriptor, member.size, member.offset)
        if len(content) < member.size:
            raise SampleError(where, "the file ends before it; fetch or prepare the shard again")
        crc32 = zlib.crc32(content, crc32)
        members[member.ending] = content
    if images and crc32 != entry.crc32:
        raise SampleError(where, "its checksum is not the index's; fetch or prepare the shard again")
    return members
