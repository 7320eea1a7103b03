"""`dsmemvp index DIR`: makes any folder of WebDataset shards usable, or checks one that already is.

The folder may come from elsewhere, img2dataset for example: what counts is that it holds .tar files.
"""

from collections import Counter
from pathlib import Path

from dsmemvp.data.index import SUFFIX, describe, index_path, index_shard
from dsmemvp.data.manifest import FILE, Manifest, Shard, read_manifest, write_manifest
from dsmemvp.data_tools.pool import over_shards


def index_folder(folder: Path, split: str, processes: int = 0) -> list[str]:
    """Write dataset.json and the shards' indexes; what is to be said of it, line by line. Raises FileNotFoundError or
    ValueError naming every shard that cannot be used; then no manifest is left."""
    paths = _shards(folder)
    (folder / FILE).unlink(missing_ok=True)
    found = list(over_shards(_index, paths, "index", processes))
    wrong = [result for result, _ in found if isinstance(result, str)]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"{'; '.join(wrong[:5])}{more}. Fetch these shards again or take them away")
    shards = tuple(shard for shard, _ in found if isinstance(shard, Shard))
    manifest = Manifest(folder, split or folder.name, shards)
    if manifest.samples == 0:
        raise ValueError(f"{folder}: its shards hold no sample")
    write_manifest(manifest)
    _drop_leftovers(folder, paths)
    ignored = sum((counter for _, counter in found), Counter[str]())
    return [f"{manifest.samples} samples in {len(shards)} shards -> {folder / FILE}", *_about(ignored)]


def check_folder(folder: Path, processes: int = 0) -> list[str]:
    """Read every byte of an indexed folder again and compare; what is to be said of it. Raises ValueError listing what
    differs."""
    manifest = read_manifest(folder)
    work = [(folder, shard) for shard in manifest.shards]
    wrong = [message for message in over_shards(_check, work, "check", processes) if message]
    listed = {shard.name for shard in manifest.shards}
    wrong += [f"{path.name} is not in {FILE}" for path in _shards(folder) if path.name not in listed]
    if wrong:
        raise ValueError(f"{folder}: {'; '.join(wrong)}. Fetch them again, or run `dsmemvp index {folder}`")
    return [f"{manifest.samples} samples in {len(manifest.shards)} shards are as {folder / FILE} says"]


def _shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        packed = [*folder.glob("*.tar.gz"), *folder.glob("*.tgz"), *folder.glob("*.tar.zst")]
        also = "; unpack the compressed ones: samples are read by their place in the file" if packed else ""
        raise FileNotFoundError(f"{folder} holds no .tar file{also}")
    return paths


def _index(path: Path) -> tuple[Shard | str, Counter[str]]:
    """The shard's line for the manifest, or why it cannot be used; and what of it is never read."""
    ignored: Counter[str] = Counter()
    try:
        return index_shard(path, ignored), ignored
    except (ValueError, OSError) as error:
        return str(error), ignored


def _check(work: tuple[Path, Shard]) -> str:
    """What is wrong with a shard; empty if nothing is."""
    folder, known = work
    path = folder / known.name
    try:
        found, index = describe(path, Counter())
        if index_path(path).read_bytes() != index:
            return f"the index of {known.name} is not its own"
    except (ValueError, OSError) as error:
        return str(error)
    return "" if found == known else f"{known.name} is not the file that was indexed"


def _drop_leftovers(folder: Path, paths: list[Path]) -> None:
    """Indexes of shards that are no longer there."""
    for path in folder.glob(f"*.tar{SUFFIX}"):
        if path.with_name(path.name.removesuffix(SUFFIX)) not in paths:
            path.unlink()


def _about(ignored: Counter[str]) -> list[str]:
    return [f"never read: {', '.join(f'{n} x .{ending}' for ending, n in ignored.most_common())}"] if ignored else []
