"""Evaluation of a run on its test shards, the work dealt over all ranks, for captions on and off.

Writes RUN/evaluation.json (RUN/evaluation-blind.json) and predictions as JSON lines beside it; the first rank prints
the table.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from dsmemvp.data.batch import Batch
from dsmemvp.data.encoder import Encoder, recipe_encoder
from dsmemvp.data.loader import Share, evaluation_steps
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.sets import open_test_data
from dsmemvp.data.text import Tokenizer
from dsmemvp.evaluation.decode import decode_greedily
from dsmemvp.evaluation.scores import Prediction, Score, as_json, predict, scored, table
from dsmemvp.models.fingerprint import base_fingerprint
from dsmemvp.models.weights import read_configs
from dsmemvp.recipe import Recipe
from dsmemvp.recipe_file import as_dict
from dsmemvp.stopping import Stop, Stopped
from dsmemvp.training.checkpoint import State, read_checkpoint
from dsmemvp.training.engine import build_for_inference
from dsmemvp.training.monitor import write_json
from dsmemvp.training.ranks import Ranks
from dsmemvp.training.saver import agreed_checkpoint
from dsmemvp.training.watch import Watch


def evaluate(
    recipe: Recipe, ranks: Ranks, stop: Stop, watch: Watch, blind: bool, checkpoint: Path | None = None
) -> None:
    """Score the run's newest checkpoint, or the given one. Raises ValueError or OSError with what to do, and Stopped
    where `stop` asked for it."""
    run = Path(recipe.output) / recipe.name
    manifest = open_test_data(recipe)
    configs = read_configs(recipe)
    encoder = recipe_encoder(recipe, configs.resolution, configs.language.vocab_size)
    found, complaints = (read_checkpoint(checkpoint), []) if checkpoint else agreed_checkpoint(run, ranks)
    if found is None and recipe.method.name != "none":
        raise FileNotFoundError(f"{run / 'checkpoints'} holds no checkpoint; train first, or give --checkpoint")
    if found is not None:
        found.check_method(as_dict(recipe))
        base = ranks.together(lambda: base_fingerprint(recipe))
        found.check_base(base)
    if ranks.first:
        print(*complaints, sep="\n", end="\n" if complaints else "", flush=True)
    state = found.state if found else State()

    def between() -> None:
        watch.at("evaluating", state.step)
        if ranks.any(stop.asked):
            raise Stopped("during the evaluation")

    watch.at("loading", state.step)
    model, forward = build_for_inference(recipe, configs, ranks, found)
    encoder = replace(encoder, slots=model.method.slots, answers=True, blind=blind)
    results, predictions = {}, {}
    left_out: set[str] = set()
    for captions in recipe.evaluation.captions:
        name = f"captions {'on' if captions else 'off'}" + (", blind" if blind else "")
        encoder = replace(encoder, captions=captions)
        predictions[name], skipped, cut = _predict_all(recipe, ranks, between, manifest, encoder, forward, name)
        left_out |= skipped
        results[name] = scored(predictions[name])
        if cut and ranks.first:
            print(f"{name}: {cut} contexts were cut to data.max_length = {recipe.data.max_length} tokens")
    if ranks.first:
        epoch = state.epoch
        used = len(next(iter(predictions.values())))
        about = {"epoch": epoch, "samples": manifest.samples, "left_out": manifest.samples - used}
        _write(run, blind, results, predictions, about)
        print(f"{recipe.name}, epoch {epoch}, {used} samples of {recipe.data.test}")
        print(table(results), flush=True)
        if left_out:
            print(f"{about['left_out']} samples left out:", *sorted(left_out), sep="\n  ", flush=True)


def _predict_all(
    recipe: Recipe,
    ranks: Ranks,
    between: Callable[[], object],
    manifest: Manifest,
    encoder: Encoder,
    forward: Callable[[Batch], torch.Tensor],
    name: str,
) -> tuple[list[Prediction], set[str], int]:
    """From all ranks: predictions in the samples' order, messages of the skipped samples, and how many contexts were
    cut."""
    share = Share(ranks.rank, ranks.world, recipe.evaluation.batch)
    tokenizer = Tokenizer(recipe.model.tokenizer)
    own: list[str] = []
    skipped: set[str] = set()
    cut = 0
    source = evaluation_steps(manifest, encoder, share, recipe.data.workers)
    total = -(-manifest.samples // (share.world * share.micro_batch))
    quiet = not (ranks.first and sys.stderr.isatty())
    with torch.no_grad():
        for (batch,) in tqdm(ranks.in_step(source), total=total, desc=name, unit="batch", disable=quiet):
            between()
            is_open = ranks.sums(any(not sample.choices for sample in batch.samples))[0]
            steps = recipe.evaluation.max_new_tokens if is_open else 1
            decoded = decode_greedily(forward, batch, encoder.slots, steps)
            for sample, tokens in zip(batch.samples, decoded, strict=True):
                own.append(json.dumps([sample.index, asdict(predict(sample, tokenizer.decode(tokens)))]))
            skipped.update(skip.message for skip in batch.skipped)
            cut += batch.cut
    rows = sorted(map(json.loads, ranks.gather(own)), key=lambda row: row[0])
    predictions = [
        Prediction(**{**row, "classes": tuple(row["classes"]), "answers": tuple(row["answers"])}) for _, row in rows
    ]
    return predictions, set(ranks.gather(sorted(skipped))), int(ranks.sums(cut)[0])


def _write(
    run: Path,
    blind: bool,
    results: dict[str, dict[str, Score]],
    predictions: dict[str, list[Prediction]],
    about: dict,
) -> None:
    run.mkdir(parents=True, exist_ok=True)
    suffix = "-blind" if blind else ""
    write_json(run / f"evaluation{suffix}.json", {**about, **as_json(results)})
    with (run / f"predictions{suffix}.jsonl").open("w", encoding="utf-8") as file:
        for name, rows in predictions.items():
            for row in rows:
                file.write(json.dumps({"evaluation": name, **asdict(row)}) + "\n")
