"""Evaluation of a run on its test or validation shards, for captions on and off, the work spread over all ranks.

    RUN/evaluation.json, RUN/predictions.jsonl     scores, and a JSON line for every answer
    RUN/evaluation/NAME.jsonl                      answers of one that is under way (partial.py)

Files of another checkpoint than the newest have its name, or "best", behind theirs, as in evaluation-best.json; then
come -validation, -captions-off or -captions-on if it is one of them alone, -likelihood, and -blind (naming.py). What
follows from a checkpoint, the data and the recipe does not depend on the number of ranks.
"""

import json
from dataclasses import asdict, replace
from functools import partial as bound
from pathlib import Path
from typing import Any

from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.checkpoints.checkpoint import Checkpoint, State, named_checkpoint
from dsmemvp.checkpoints.choosing import best_checkpoint
from dsmemvp.config.reading import as_dict
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import MicroBatch
from dsmemvp.data.datasets import open_test_data, open_validation_data
from dsmemvp.data.manifest import Manifest, check_files
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.errors import UserError
from dsmemvp.evaluation.answering import Answering, Over
from dsmemvp.evaluation.classifying import Classifying
from dsmemvp.evaluation.looking import show_memory
from dsmemvp.evaluation.naming import checkpoint_name, data_name, file_suffix
from dsmemvp.evaluation.partial import Partial
from dsmemvp.evaluation.predictions import Predicted, predict_all
from dsmemvp.evaluation.remarks import remarks
from dsmemvp.evaluation.report import Report
from dsmemvp.evaluation.scores import main_score, scored
from dsmemvp.generation.decoder import build_decoder
from dsmemvp.generation.generate import Continuation, greedy, highest_log_probability
from dsmemvp.inputs import open_inputs
from dsmemvp.log import log
from dsmemvp.prompts import method_class
from dsmemvp.training.checkpoint_manager import agreed_checkpoint
from dsmemvp.training.context import RunContext
from dsmemvp.training.inference import Inference, open_for_inference

ANSWERS = 3
"""Counts up when the same model's answers are decoded or marked otherwise: those of an evaluation that was interrupted
before belong to no later one."""


def evaluate(
    context: RunContext,
    blind: bool = False,
    split: str = "test",
    checkpoint: Path | None = None,
    best: bool = False,
) -> None:
    """Score the run's newest checkpoint, its best one, or the given one, on the "test" or "validation" data. Resumes
    the same evaluation if it was interrupted. Raises UserError or OSError with what to do, and Stopped if
    `context.stop` asked for it."""
    recipe, ranks, run = context.recipe, context.ranks, context.folder
    data = _open_data(recipe, split)
    ranks.together(lambda: check_files(data) if ranks.first else None)
    found = named_checkpoint(checkpoint) if checkpoint else _chosen(recipe, ranks, run, best)
    inputs = open_inputs(recipe, stage=found.state.stage if found else "")
    base = ranks.once_per_node(lambda: fingerprint(inputs.base))
    if found is not None:
        found.check_method(as_dict(recipe))
        found.check_base(base)
        if ranks.first:
            found.check_quantized(as_dict(recipe))
    state = found.state if found else State()

    poll = bound(context.poll, "evaluating", state.step)
    context.at("loading", state.step)
    opened = open_for_inference(recipe, ranks, found, inputs=inputs)
    context.stop.plan = "ending after this batch, its answers are kept"
    answering = answering_of(recipe, ranks, opened)
    collator = replace(opened.collator, answers=True, blind=blind)
    digest = ranks.together(lambda: found.digest() if found and ranks.first else "")
    which, protocol = checkpoint_name(run, checkpoint, best, digest), recipe.evaluation.protocol
    file = run / f"evaluation{file_suffix(which, split, recipe.evaluation.captions, protocol, blind)}.json"
    own_data = ranks.together(lambda: data_name(file, data.fingerprint) if ranks.first else "")
    which = "-".join(filter(None, (which, *ranks.gather([own_data]))))
    about = {"answers": ANSWERS, "checkpoint": [state.step, digest], "base": base, "data": data.fingerprint}
    about |= settings_of_answers(recipe)
    predicted: dict[str, Predicted] = {}
    partials: list[Partial | None] = []
    for captions in recipe.evaluation.captions:
        name, own = _name(recipe, captions, blind), replace(collator, captions=captions)
        belongs = {"evaluation": name, "collator": asdict(own), **about}
        part = file_suffix(which, split, [captions], protocol, blind).removeprefix("-")
        partials.append(ranks.together(bound(_open_partial, ranks, run / "evaluation" / f"{part}.jsonl", belongs)))
        predicted[name] = predict_all(recipe, ranks, data, own, answering, name, poll, partials[-1])
    context.at("scoring", state.step)
    suffix = file_suffix(which, split, recipe.evaluation.captions, protocol, blind)
    # names of evaluations say the rest
    group = f"evaluation{file_suffix(which, split, [False, True], 'generate', blind)}"
    report = Report(run, suffix, group, state, digest, data, protocol)
    ranks.together(lambda: report.write(predicted) if ranks.first else None)
    for partial in partials:
        ranks.together(partial.remove if partial else lambda: None)
    if not blind and isinstance(answering, Answering):
        show_memory(run, state.step, ranks, data, collator, answering.tokenizer, opened.model, opened.forward)


def look_and_score(context: RunContext, opened: Inference, data: Manifest, step: int) -> dict[str, float]:
    """Inside training, after `step` steps (training/validation.py's Evaluator): the memory of a few samples in
    TensorBoard; and if training.best_by asks for them, scores, with the first of evaluation.captions, the main one
    first. Raises UserError."""
    recipe, ranks = context.recipe, context.ranks
    answering = answering_of(recipe, ranks, opened)
    collator = replace(opened.collator, answers=True, captions=recipe.evaluation.captions[0])
    if isinstance(answering, Answering):
        show_memory(context.folder, step, ranks, data, collator, answering.tokenizer, opened.model, opened.forward)
    if recipe.training.best_by != "score":
        return {}
    name = f"validation, {_name(recipe, collator.captions, blind=False)}"
    poll = bound(context.poll, "validating", step)
    predicted = predict_all(recipe, ranks, data, collator, answering, name, poll)

    def score() -> list[str]:
        if not ranks.first:
            return []
        scores = scored(predicted.predictions)
        for remark in remarks(name, predicted.predictions):
            log.info(remark)
        main = main_score(scores)
        ordered = sorted(scores.items(), key=lambda item: item[1] is not main)
        return [json.dumps([[column, score.value] for column, score in ordered])]

    (text,) = ranks.gather(ranks.together(score))
    return dict(json.loads(text))


def answering_of(recipe: Recipe, ranks: Ranks, opened: Inference) -> Answering | Classifying:
    """What answers a batch of questions. All ranks call it together."""
    model, forward = opened.model, opened.forward
    if (labels := model.method.labels()) is not None:
        return Classifying(forward, labels)
    tokenizer = Tokenizer(recipe.model.tokenizer)
    decoder = build_decoder(model, forward, ranks, tokenizer.eos)

    def decode(batch: MicroBatch, steps: int, over: Over) -> list[Continuation]:
        if steps == 1:  # no cache: the forward of training
            logits, _ = forward(batch.batch)
            best = zip(logits.argmax(-1).tolist(), highest_log_probability(logits).tolist(), strict=True)
            return [Continuation([token], [log]) for token, log in best]
        return greedy(decoder, batch, steps, over)

    return Answering(recipe.evaluation, ranks, tokenizer, forward, decode, model.method.reserved())


def _open_data(recipe: Recipe, split: str) -> Manifest:
    if split == "test":
        return open_test_data(recipe)
    data = open_validation_data(recipe)
    if data is None:
        raise UserError("data.validation: give the folder of shards to evaluate on")
    return data


def _chosen(recipe: Recipe, ranks: Ranks, run: Path, best: bool) -> Checkpoint | None:
    """The newest or the best checkpoint; None if there is nothing trained to look for."""
    by = recipe.training.best_by
    find = (bound(best_checkpoint, best_by=by),) if best else ()
    found, complaints = agreed_checkpoint(run, ranks, *find)
    if ranks.first:
        for complaint in complaints:
            log.info(complaint)
    if found is None and best:
        raise UserError(
            f"{run / 'checkpoints'} holds no checkpoint with a {by} on data.validation, which training.best_by compares"
            " the best; evaluate without --best, or give --checkpoint"
        )
    if found is None and method_class(recipe.method.name).trainable:
        raise UserError(f"{run / 'checkpoints'} holds no checkpoint; train first, or give --checkpoint")
    return found


def _name(recipe: Recipe, captions: bool, blind: bool) -> str:
    protocol = recipe.evaluation.protocol
    return f"captions {'on' if captions else 'off'}" + ", blind" * blind + f", {protocol}" * (protocol != "generate")


def _open_partial(ranks: Ranks, path: Path, belongs: dict[str, Any]) -> Partial | None:
    """The first rank's."""
    return Partial(path, belongs) if ranks.first else None


def settings_of_answers(recipe: Recipe) -> dict[str, Any]:
    """The recipe's part in the answers, beside what the collator has of it: an evaluation that was interrupted resumes
    under the same alone."""
    whole, model = as_dict(recipe), recipe.model
    evaluation = {key: value for key, value in whole["evaluation"].items() if key != "captions"}
    counts = {"dtype": model.dtype, "vision": whole["vision"], "method": whole["method"], "settings": evaluation}
    return counts | ({} if model.quantize == "none" else {"quantize": [model.quantize, model.nf4_scales]})
