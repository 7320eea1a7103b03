"""A tokenizer and two tiny frozen models made from a data set of shards, for runs without downloads:

    python -m data_prep.tiny_models --data data/demo --out data/demo-models

Reads DATA/train, and DATA/text if there is one; writes OUT/tokenizer.model, OUT/language_model and OUT/vision_tower
in Hugging Face layout. Test data is never looked at.
"""

import argparse
import os
import random
import sys
import time
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from multiprocessing import active_children, get_context
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PretrainedConfig

from data_prep.progress import say
from data_prep.tiny_language import HEAD_DIM, Plan, train_language
from data_prep.tiny_score import Report, Score, reporter
from data_prep.tiny_texts import check_texts, check_words, picture_words, read_split, texts_of
from data_prep.tiny_vision import train_tower
from data_prep.tokenizer import VocabularyTooLarge, train_tokenizer
from dsmemvp.data.sample import Sample
from dsmemvp.data.text import prompt_text, target_text
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.errors import UserError

VOCABULARY = 512
"""Pieces of the tokenizer, if the texts give so many."""


def main() -> int:
    given = _parser().parse_args()
    given.start = time.monotonic()
    try:
        _make(given, reporter(given.start))
    except (ValueError, OSError) as error:
        say("tiny_models", f"error: {error}", error=True)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and perhaps text/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tokenizer and the two models")
    parser.add_argument(
        "--tokenizer-vocabulary", type=int, help=f"pieces (default: {VOCABULARY}, or as many as the texts give)"
    )
    parser.add_argument(
        "--language-width", type=int, default=64, help="hidden size of the language model (default: 64)"
    )
    parser.add_argument("--language-layers", type=int, default=4, help="layers of the language model (default: 4)")
    parser.add_argument(
        "--language-steps", type=int, default=800, help="steps that the language model is trained (default: 800)"
    )
    parser.add_argument("--vision-width", type=int, default=64, help="hidden size of the vision tower (default: 64)")
    parser.add_argument(
        "--vision-layers",
        type=int,
        default=4,
        help="layers of the vision tower; the last one is made but never used (default: 4)",
    )
    parser.add_argument(
        "--vision-steps", type=int, default=2000, help="steps that the vision tower is trained (default: 2000)"
    )
    parser.add_argument(
        "--vision-locality", type=float, default=5.0, help="how much features are to belong to places (tiny_vision.py)"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _make(given: argparse.Namespace, report: Report) -> None:
    """Everything that can be refused is looked at before the minutes of work. Raises UserError or OSError."""
    _check(given)
    check_words(picture_words(read_split(given.data / "train")), given.data / "train")
    texts = texts_of(given.data)
    check_texts(texts, given.data)
    _train_tokenizer(given, texts, report)
    # side by side, each on half of the cores: with layers this small a second thread hardly makes one model faster
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(make_language_model, given), pool.submit(make_vision_tower, given)]
        for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
            if job.exception():
                for process in active_children():  # the other one has minutes to go
                    process.terminate()
                job.result()
        scores = [job.result() for job in jobs]
    report(f"written: {given.out}")
    for name, score in zip(("language", "vision"), scores, strict=True):
        if not score.learned:
            say("tiny_models", f"warning: {_too_little(name, score)}", error=True)


def _too_little(name: str, score: Score) -> str:
    what = {"language": "language model: held-out answers", "vision": "vision tower: held-out words"}[name]
    return (
        f"{what} right {score}, which is no more than chance in {score.cases}. It has learned nothing that a run could"
        f" use; give it more or clearer data, or more --{name}-steps"
    )


def _check(given: argparse.Namespace) -> None:
    for name in ("tokenizer_vocabulary", "language_layers", "language_steps", "vision_layers", "vision_steps"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: must be at least 1, is {value}")
    for name in ("language_width", "vision_width"):
        if (value := getattr(given, name)) < 1 or value % HEAD_DIM:
            raise UserError(f"--{name.replace('_', '-')}: must be a multiple of {HEAD_DIM}, is {value}")


def make_language_model(given: argparse.Namespace) -> Score:
    _settle(given)
    tokenizer = Tokenizer(given.out / "tokenizer.model")
    texts = texts_of(given.data)
    plan = Plan(given.language_width, given.language_layers, given.language_steps, seed=given.seed)
    model, score = train_language(texts, tokenizer, plan, reporter(given.start))
    tensors = {n if n.startswith("lm_head.") else f"model.{n}": t for n, t in model.state_dict().items()}
    _write(given.out / "language_model", model.config, tensors)
    return score


def make_vision_tower(given: argparse.Namespace) -> Score:
    _settle(given)
    samples = read_split(given.data / "train")
    tower, tensors, score = train_tower(
        picture_words(samples),
        {sample.image: sample.where for sample in samples if sample.image is not None},
        given.vision_width,
        given.vision_layers,
        given.vision_steps,
        given.vision_locality,
        reporter(given.start),
    )
    _write(given.out / "vision_tower", tower.config, tensors)
    return score


def _settle(given: argparse.Namespace) -> None:
    """Threads and random numbers of a new process."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
    torch.manual_seed(given.seed)
    random.seed(given.seed)


def _train_tokenizer(given: argparse.Namespace, texts: list[Sample], report: Report) -> None:
    """A vocabulary that was asked for and is too large is an error, the default is made smaller."""
    path, vocabulary = given.out / "tokenizer.model", given.tokenizer_vocabulary or VOCABULARY
    if path.is_file():
        report(f"tokenizer: {path} is there already and is taken")
        return
    written = [prompt_text(s, False) + target_text(s) for s in texts]
    try:
        train_tokenizer(written, path, vocabulary)
    except VocabularyTooLarge as error:
        if given.tokenizer_vocabulary:
            raise
        report(f"tokenizer: {error}; so many are made")
        vocabulary = error.most
        train_tokenizer(written, path, vocabulary)
    report(f"tokenizer: {vocabulary} pieces from {len(texts)} texts")


def _write(folder: Path, config: PretrainedConfig, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone


if __name__ == "__main__":
    sys.exit(main())
