"""A batch of prompts -> new tokens, greedily or by sampling, with a key/value cache."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from dsmemvp.data.batch import MicroBatch
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.errors import UserError
from dsmemvp.generation.decoder import Decoder
from dsmemvp.prompts.interface import State

NOT_FINITE = (
    "the model's outputs are not finite; its training has diverged: take an earlier checkpoint (--checkpoint), or train"
    " again with a lower training.learning_rate"
)
Done = Callable[[int, list[int]], bool]
"""done(b, tokens): whether sample b needs no token after these new ones."""


def once(pattern: re.Pattern[str], tokenizer: Tokenizer) -> Done:
    """A sample is done as soon as `pattern` is somewhere in its new text."""
    return lambda b, tokens: pattern.search(tokenizer.decode(tokens)) is not None


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int = 64
    """Most tokens of an answer."""
    temperature: float = 0.0
    """0 takes the most likely token; else logits are divided by it before drawing."""
    top_p: float = 1.0
    """Draw among the most likely tokens that together have this probability (Holtzman et al., arXiv 1904.09751)."""
    seed: int = 0
    """Of the draws; the same batch with the same seed gives the same texts."""

    def __post_init__(self) -> None:
        """Raises UserError naming the setting."""
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens: must be at least 1, is {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature: must be 0 (greedy) or a positive number, is {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: must be above 0 and at most 1, is {self.top_p}")
        if not 0 <= self.seed < 1 << 63:
            raise UserError(f"seed: must be at least 0 and below 2^63, is {self.seed}")


@dataclass(frozen=True)
class Continuation:
    """What follows a prompt."""

    tokens: list[int]
    """Up to EOS and without it."""
    log_probabilities: list[float]
    """Natural logarithm of each one's probability; and one more, if there was a further step: EOS's, or without meaning
    for a sample that `done` had ended."""


def generate(
    decoder: Decoder, prompts: MicroBatch, sampling: Sampling, done: Done | None = None, state: State | None = None
) -> list[list[int]]:
    """The new tokens of every sample of `prompts` (made with last_only), up to EOS and without it. A sample also ends
    if `done` holds of its new tokens, the last of which it keeps. `state`: what the model has made of the images before
    (`VisualLanguageModel.look`). A batch without samples decodes nothing, but keeps step with the other ranks."""
    return [_until(decoder.eos, tokens) for tokens in _decoded(decoder, prompts, sampling, done, state)]


def greedy(decoder: Decoder, prompts: MicroBatch, most: int, done: Done | None = None) -> list[Continuation]:
    """As `generate` with temperature 0, at most `most` tokens, and how probable they are: NaN if the model's outputs
    are not finite, which raises nothing here, since other ranks may be in the middle of theirs."""
    watch = _Watch()
    rows = _decoded(decoder, prompts, Sampling(most), done, watch=watch)
    logs = torch.stack(watch.log_probabilities, 1)[: len(rows)].tolist()
    answers = [_until(decoder.eos, row) for row in rows]
    return [Continuation(tokens, own[: len(tokens) + 1]) for tokens, own in zip(answers, logs, strict=True)]


def highest_log_probability(logits_BV: torch.Tensor) -> torch.Tensor:
    """[B], float32: the natural logarithm of the likeliest token's probability."""
    logits_BV = logits_BV.float()
    return logits_BV.amax(-1) - logits_BV.logsumexp(-1)


def _until(eos: int, tokens: list[int]) -> list[int]:
    """A sample that is done is filled up with EOS until the others are."""
    return tokens[: tokens.index(eos)] if eos in tokens else tokens


def _decoded(
    decoder: Decoder,
    prompts: MicroBatch,
    sampling: Sampling,
    done: Done | None,
    state: State | None = None,
    watch: "_Watch | None" = None,
) -> list[list[int]]:
    """The new tokens of every sample, filled up with EOS."""
    samples, batch = len(prompts.indices), prompts.batch.to(decoder.device)
    # the last tokens are supervised already, but for the lone token of a batch without samples
    batch = replace(batch, supervised=batch.cu_seqlens[1:].long() - 1, supervised_counts=(1,) * batch.size)
    # `generate` needs a prompt to append to: a column that nobody reads
    ids = torch.zeros(batch.size, 1, dtype=torch.long, device=decoder.device)
    writer: Any = decoder  # transformers' own declaration has more methods than it calls
    with torch.random.fork_rng(devices=[decoder.device] if decoder.device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        whole = writer.generate(
            inputs=ids,
            generation_config=_settings(sampling, decoder.eos),
            logits_processor=LogitsProcessorList([watch or _Finite()]),
            stopping_criteria=StoppingCriteriaList([_Ends(samples, done)]),
            synced_gpus=decoder.in_step,
            steps=decoder.steps(batch, state),
        )
    return whole[:samples, 1:].tolist()


def _settings(sampling: Sampling, eos: int) -> GenerationConfig:
    drawing = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.temperature > 0,
        eos_token_id=eos,
        pad_token_id=eos,
        use_cache=False,  # transformers' own; ours is in `Steps`
        **drawing,
    )


class _Finite(LogitsProcessor):
    """Raises UserError at the first token if the model's outputs are not finite: a drawn token would end in an error of
    torch, and greedy decoding would write nonsense."""

    def __init__(self) -> None:
        self._checked = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self._checked and scores.isnan().any():
            raise UserError(NOT_FINITE)
        self._checked = True
        return scores


class _Watch(LogitsProcessor):
    """Changes nothing; keeps the logarithm of the likeliest token's probability, [B], at every step."""

    def __init__(self) -> None:
        self.log_probabilities: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.log_probabilities.append(highest_log_probability(scores))
        return scores


class _Ends(StoppingCriteria):
    """Which rows are done before EOS: those `done` says so of, and those beyond the batch's samples."""

    def __init__(self, samples: int, done: Done | None):
        self._samples, self._done = samples, done

    def __call__(self, input_ids: torch.Tensor, scores: object, **more: object) -> torch.Tensor:
        ended = torch.arange(input_ids.shape[0], device=input_ids.device) >= self._samples
        if self._done is not None:
            new = input_ids[: self._samples, 1:].tolist()
            ended[: self._samples] = torch.tensor(
                [self._done(b, tokens) for b, tokens in enumerate(new)], dtype=torch.bool
            )
        return ended
