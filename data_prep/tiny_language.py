"""A tiny LLaMA that answers questions from their context, trained from nothing in about a minute on two cores.

Finding the right option and then its letter are two skills behind one token of signal, too little to learn both from
in a minute. So while the model is made, a small head that is thrown away afterwards also asks half-way up the layers,
at each option's last token, whether that option is the right one.
"""

import random
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig

from data_prep.tiny_score import Report, Score
from dsmemvp.backbones.attention import Packing
from dsmemvp.backbones.decoder import DecoderTower
from dsmemvp.data.batch import Batch, Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.sample import Sample
from dsmemvp.data.text import EncodedText, encode_for_answer, encode_for_training, prompt_text
from dsmemvp.data.tokenizer import Tokenizer

HEAD_DIM = 16
LEARNING_RATE = 4e-3
ALL_TOKENS = 0.2
"""Weight of the loss on every token beside that on the answers' tokens."""


@dataclass(frozen=True)
class Plan:
    width: int
    layers: int
    steps: int
    batch: int = 32
    seed: int = 0
    held_out: int = 300
    """Texts kept aside to report the accuracy on, at most a tenth of them."""


@dataclass(frozen=True)
class Text:
    encoded: EncodedText
    known: int
    """Number of tokens that are given when the answer is read: those up to "The answer is"."""
    option_ends: tuple[int, ...]
    """The place of each option's last token."""
    right: int
    """Index of the right option."""


def train_language(
    samples: list[Sample], tokenizer: Tokenizer, plan: Plan, report: Report
) -> tuple[DecoderTower, Score]:
    """`plan.steps` steps, at least 1, on at least 10 samples."""
    rng = random.Random(plan.seed)
    samples = rng.sample(samples, len(samples))
    texts = [encode(tokenizer, sample) for sample in samples]
    kept = min(plan.held_out, len(texts) // 10)
    held_out, texts = texts[:kept], texts[kept:]
    guessing = _guessing(texts, held_out)
    model = _new_model(tokenizer.vocabulary, plan)
    judge = nn.Sequential(nn.RMSNorm(plan.width), nn.Linear(plan.width, 1))
    parameters = [*model.parameters(), *judge.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 50, 2 * (plan.steps - step) / plan.steps)
        optimizer.zero_grad()
        loss = _loss(model, judge, rng.sample(texts, min(plan.batch, len(texts))))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == plan.steps:
            score = Score(accuracy(model, held_out), guessing, len(held_out))
            report(f"language model: step {step + 1}, loss {loss.item():.3f}, held-out answers right {score}")
    return model, score


def encode(tokenizer: Tokenizer, sample: Sample) -> Text:
    ends = []
    for number in range(1, len(sample.choices) + 1):
        shorter = replace(sample, choices=sample.choices[:number], answer=0)
        until = prompt_text(shorter, captions=False).removesuffix("\nResponse:")
        ends.append(len(tokenizer.encode(until)) - 1)
    right = sample.answer if isinstance(sample.answer, int) else -1
    whole = encode_for_training(tokenizer, sample, captions=False, most=10_000)
    known = len(encode_for_answer(tokenizer, sample, captions=False, most=10_000).tokens)
    return Text(whole, known, tuple(ends), right)


def _new_model(vocabulary: int, plan: Plan) -> DecoderTower:
    """Starts with attention from each word to the same word elsewhere (queries and keys partly equal to their input),
    which is most of what answering from a context takes."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=plan.width,
        intermediate_size=2 * plan.width,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.width // HEAD_DIM,
        max_position_embeddings=512,
        pad_token_id=None,
    )
    model = DecoderTower(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.03)
    nn.init.normal_(model.embed_tokens.weight, std=0.5)
    with torch.no_grad():
        for layer in model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight += 0.5 * torch.eye(plan.width)
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight /= (2 * plan.layers) ** 0.5
    return model


def _loss(model: DecoderTower, judge: nn.Module, texts: list[Text]) -> torch.Tensor:
    # a prompt of one token: every later token is trained
    items = [Item(i, replace(text.encoded, prompt=1), None) for i, text in enumerate(texts)]
    batch = make_batch(items, resolution=1).batch
    logits, half_way = _forward(model, batch)
    each = F.cross_entropy(logits, batch.targets, reduction="none")
    is_answer = torch.cat([torch.arange(1, len(t.encoded.tokens)) >= t.encoded.prompt for t in texts])
    loss = ALL_TOKENS * each.mean() + each[is_answer].sum() / len(texts)
    places = [start + end for (start, _), text in zip(batch.bounds, texts, strict=True) for end in text.option_ends]
    if places:
        right = torch.tensor([float(i == text.right) for text in texts for i in range(len(text.option_ends))])
        judged = judge(half_way[places])[:, 0]
        loss = loss + F.binary_cross_entropy_with_logits(judged, right)
    return loss


def _forward(model: DecoderTower, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """-> logits at the supervised tokens, and the hidden states of all tokens half-way up the layers, [T, d]."""
    hidden = model.start(batch.tokens)
    half_way = hidden
    rotary, packing = model.rotary(batch.positions, hidden.dtype), Packing(batch.cu_seqlens, batch.lengths)
    for i, layer in enumerate(model.layers):
        half_way = hidden if i == model.depth // 2 else half_way
        hidden = layer(hidden, rotary, packing)
    return model.head(model.finish(hidden[0, batch.supervised])), half_way[0]


def _guessing(texts: list[Text], held_out: list[Text]) -> float:
    """How often the commonest first token of the answers of `texts` is that of a held-out one."""
    first, wanted = ([text.encoded.tokens[text.known] for text in part] for part in (texts, held_out))
    return wanted.count(Counter(first).most_common(1)[0][0]) / len(wanted)


@torch.no_grad()
def accuracy(model: DecoderTower, texts: list[Text]) -> float:
    """Share of answers whose first token is the most likely one."""
    known = [EncodedText(text.encoded.tokens[: text.known], text.known, False) for text in texts]
    items = [Item(i, encoded, None) for i, encoded in enumerate(known)]
    logits, _ = _forward(model, make_batch(items, resolution=1, last_only=True).batch)
    guesses = logits.argmax(-1).tolist()
    wanted = [text.encoded.tokens[text.known] for text in texts]
    return sum(g == w for g, w in zip(guesses, wanted, strict=True)) / len(texts)
