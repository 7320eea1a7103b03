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
from dsmemvp.data.loader import Encoder, Share, evaluation_steps, recipe_encoder
from dsmemvp.data.manifest import Manifest, read_manifest
from dsmemvp.data.order import file_order
from dsmemvp.data.sample import Sample, read_sample
from dsmemvp.data.stream import EncodedSample, SampleError, read_in_order
from dsmemvp.data.text import Tokenizer
from dsmemvp.evaluation.decode import decode_greedily
from dsmemvp.evaluation.scores import Prediction, accuracies, predict, table
from dsmemvp.models.weights import read_configs
from dsmemvp.recipe import Recipe
from dsmemvp.recipe_file import as_dict
from dsmemvp.training.checkpoint import newest_checkpoint, read_checkpoint
from dsmemvp.training.engine import build_for_inference
from dsmemvp.training.monitor import write_json
from dsmemvp.training.ranks import Ranks


def evaluate(recipe: Recipe, ranks: Ranks, blind: bool, checkpoint: Path | None = None) -> None:
    """Score the run's newest checkpoint, or the given one. Raises ValueError or FileNotFoundError."""
    run = Path(recipe.output) / recipe.name
    if not recipe.data.test:
        raise ValueError("data.test: give the folder of shards to evaluate on")
    manifest = read_manifest(recipe.data.test)
    configs = read_configs(recipe)
    encoder = recipe_encoder(recipe, configs.resolution, configs.language.vocab_size)
    found = read_checkpoint(checkpoint) if checkpoint else newest_checkpoint(run)
    if found is None and recipe.method.name != "none":
        raise FileNotFoundError(f"{run / 'checkpoints'} holds no checkpoint; train first, or give --checkpoint")
    if found is not None:
        found.check_method(as_dict(recipe))
    model, forward = build_for_inference(recipe, configs, ranks, found)
    encoder = replace(encoder, slots=model.method.slots, answers=True, blind=blind)
    samples, left_out = _samples(manifest, encoder.skip_bad)
    steps = recipe.evaluation.max_new_tokens if any(not s.choices for s in samples.values()) else 1

    tokenizer = Tokenizer(recipe.model.tokenizer)
    results, predictions = {}, {}
    for captions in recipe.evaluation.captions:
        name = f"captions {'on' if captions else 'off'}" + (", blind" if blind else "")
        encoder = replace(encoder, captions=captions)
        decoded, skipped, cut = _decode_all(recipe, ranks, manifest, encoder, forward, steps, name)
        predictions[name] = [predict(samples[i], tokenizer.decode(t)) for i, t in decoded.items() if i in samples]
        left_out |= skipped
        results[name] = accuracies(predictions[name])
        if cut and ranks.first:
            print(f"{name}: {cut} contexts were cut to data.max_length = {recipe.data.max_length} tokens")
    if ranks.first:
        epoch = found.epoch if found else 0
        scored = len(next(iter(predictions.values())))
        about = {"epoch": epoch, "samples": manifest.samples, "left_out": manifest.samples - scored}
        _write(run, blind, results, predictions, about)
        print(f"{recipe.name}, epoch {epoch}, {scored} samples of {recipe.data.test}")
        print(table(results), flush=True)
        if left_out:
            print(f"{about['left_out']} samples left out:", *sorted(left_out), sep="\n  ", flush=True)


def _samples(manifest: Manifest, skip_bad: bool) -> tuple[dict[int, Sample], set[str]]:
    """Every good sample's fields by running number (every rank reads them, for scoring), and messages of the bad."""
    samples: dict[int, Sample] = {}
    bad: set[str] = set()
    for block in file_order([shard.samples for shard in manifest.shards]):
        for entry in read_in_order(manifest, block):
            try:
                if not isinstance(entry, EncodedSample):
                    raise entry.error
                sample = read_sample(entry)
                samples[entry.index] = replace(sample, image=b"" if sample.image is not None else None)
            except SampleError as error:
                if not skip_bad:
                    raise
                bad.add(str(error))
    return samples, bad


def _decode_all(
    recipe: Recipe,
    ranks: Ranks,
    manifest: Manifest,
    encoder: Encoder,
    forward: Callable[[Batch], torch.Tensor],
    steps: int,
    name: str,
) -> tuple[dict[int, list[int]], set[str], int]:
    """From all ranks: decoded tokens by the samples' running numbers, messages of the skipped samples, and how many
    contexts were cut."""
    share = Share(ranks.rank, ranks.world, recipe.evaluation.batch * ranks.world, recipe.evaluation.batch)
    # a row per sample; each rank fills its own rows with token + 1, and the sum over ranks is everybody's
    rows = torch.zeros(manifest.samples, steps, dtype=torch.int64, device=ranks.device)
    skipped: set[str] = set()
    cut = 0
    source = evaluation_steps(manifest, encoder, share, recipe.data.workers)
    total = -(-manifest.samples // share.global_batch)
    quiet = not (ranks.first and sys.stderr.isatty())
    with torch.no_grad():
        for batches in tqdm(ranks.in_step(source), total=total, desc=name, unit="batch", disable=quiet):
            for batch in batches:
                decoded = decode_greedily(forward, batch, encoder.slots, steps)
                for index, tokens in zip(batch.indices.tolist(), decoded, strict=True):
                    rows[index] = torch.tensor(tokens) + 1
                skipped.update(batch.skipped)
                cut += batch.cut
    torch.distributed.all_reduce(rows)
    decoded_rows = {i: [t - 1 for t in row] for i, row in enumerate(rows.tolist()) if row[0] > 0}
    return decoded_rows, set(ranks.gather(sorted(skipped))), int(ranks.sums(cut)[0])


def _write(
    run: Path,
    blind: bool,
    results: dict[str, dict[str, float]],
    predictions: dict[str, list[Prediction]],
    about: dict,
) -> None:
    run.mkdir(parents=True, exist_ok=True)
    suffix = "-blind" if blind else ""
    write_json(run / f"evaluation{suffix}.json", {**about, "accuracy": results})
    with (run / f"predictions{suffix}.jsonl").open("w", encoding="utf-8") as file:
        for name, rows in predictions.items():
            for row in rows:
                file.write(json.dumps({"evaluation": name, **asdict(row), "right": row.right}) + "\n")
