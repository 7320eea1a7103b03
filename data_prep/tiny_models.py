"""A tokenizer and two tiny frozen models made from a data set of shards, for runs without downloads:

    python -m data_prep.tiny_models --data data/demo --out data/demo-models

Reads DATA/train, and DATA/text where there is one; writes OUT/tokenizer.model, OUT/language_model and OUT/vision_tower
in Hugging Face layout. Test data is never looked at.
"""

import argparse
import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PretrainedConfig

from data_prep.tiny_language import Plan, train_language
from data_prep.tiny_vision import train_tower
from data_prep.tokenizer import train_tokenizer
from dsmemvp.data.manifest import read_manifest
from dsmemvp.data.sample import BadSample, Sample, read_sample
from dsmemvp.data.stream import read_all
from dsmemvp.data.text import prompt_text, target_text
from dsmemvp.data.tokenizer import Tokenizer

Report = Callable[[str], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and perhaps text/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tokenizer and the two models")
    parser.add_argument("--tokenizer-vocabulary", type=int, default=512)
    parser.add_argument("--language-width", type=int, default=64)
    parser.add_argument("--language-layers", type=int, default=4)
    parser.add_argument("--language-steps", type=int, default=500)
    parser.add_argument("--vision-width", type=int, default=64)
    parser.add_argument("--vision-layers", type=int, default=4, help="the last one is made but never used")
    parser.add_argument("--vision-steps", type=int, default=2000)
    parser.add_argument(
        "--vision-locality", type=float, default=5.0, help="how much features are to belong to places (tiny_vision.py)"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.start = time.monotonic()
    report = reporter(given.start)
    _train_tokenizer(given, report)
    # side by side, each on half of the cores: with layers this small a second thread hardly makes one model faster
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for job in [pool.submit(make_language_model, given), pool.submit(make_vision_tower, given)]:
            job.result()
    report(f"written: {given.out}")


def make_language_model(given: argparse.Namespace) -> None:
    _settle(given)
    tokenizer = Tokenizer(given.out / "tokenizer.model")
    texts = texts_of(given.data)
    plan = Plan(given.language_width, given.language_layers, given.language_steps, seed=given.seed)
    model = train_language(texts, tokenizer, plan, reporter(given.start))
    tensors = {n if n.startswith("lm_head.") else f"model.{n}": t for n, t in model.state_dict().items()}
    _write(given.out / "language_model", model.config, tensors)


def make_vision_tower(given: argparse.Namespace) -> None:
    _settle(given)
    words = picture_words(read_split(given.data / "train"))
    tower, tensors = train_tower(
        words,
        given.vision_width,
        given.vision_layers,
        given.vision_steps,
        given.vision_locality,
        reporter(given.start),
    )
    _write(given.out / "vision_tower", tower.config, tensors)


def _settle(given: argparse.Namespace) -> None:
    """Threads and random numbers of a new process."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
    torch.manual_seed(given.seed)
    random.seed(given.seed)


def reporter(start: float) -> Report:
    """Prints lines with the seconds since `start`."""
    return lambda line: print(f"[{time.monotonic() - start:6.1f} s] {line}", flush=True)


def read_split(folder: Path) -> list[Sample]:
    """All samples of a folder of shards. Raises SampleError at the first bad one."""
    samples = []
    for entry in read_all(read_manifest(folder)):
        if isinstance(entry, BadSample):
            raise entry.error
        samples.append(read_sample(entry))
    return samples


def picture_words(samples: list[Sample]) -> dict[bytes, tuple[str, ...]]:
    """Encoded picture -> what is said of it: the words of its captions, else of its questions' open answers. A word
    said of more than half of the pictures (the, yes) tells nothing and is left out."""
    said: dict[bytes, set[str]] = defaultdict(set)
    for sample in samples:
        if sample.image is not None:
            text = sample.caption or (sample.answer if isinstance(sample.answer, str) else "")
            said[sample.image].update(re.findall(r"\w+", text.lower()))
    number: dict[str, int] = defaultdict(int)
    for words in said.values():
        for word in words:
            number[word] += 1
    return {image: tuple(sorted(w for w in words if number[w] <= len(said) / 2)) for image, words in said.items()}


def in_words(sample: Sample, words: dict[bytes, tuple[str, ...]]) -> Sample:
    """The sample as text alone: its picture replaced by its caption, or by the words said of it."""
    seen = sample.caption or (" ".join(words[sample.image]) if sample.image is not None else "")
    return replace(sample, context=f"{sample.context} {seen}".strip(), caption="", image=None)


def texts_of(data: Path) -> list[Sample]:
    """What the language model reads: the split `text`, or else the training samples with their pictures in words."""
    if (data / "text").is_dir():
        return read_split(data / "text")
    train = read_split(data / "train")
    words = picture_words(train)
    return [in_words(sample, words) for sample in train]


def _train_tokenizer(given: argparse.Namespace, report: Report) -> None:
    path = given.out / "tokenizer.model"
    if not path.is_file():
        texts = texts_of(given.data)
        train_tokenizer((prompt_text(s, False) + target_text(s) for s in texts), path, given.tokenizer_vocabulary)
        report(f"tokenizer: {given.tokenizer_vocabulary} pieces from {len(texts)} texts")


def _write(folder: Path, config: PretrainedConfig, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone


if __name__ == "__main__":
    main()
