"""The losses of stage `align`, by which the Q-Former learns to represent an image: ITC, ITM and ITG of BLIP-2 (LAVIS,
blip2_qformer.py), on pairs of an image and a caption of all ranks.

N pairs of this rank, M of all ranks, n queries, P image tokens, v width of the vision tower, L text tokens, H width, F
features.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from dsmemvp.backbones.linear import Linear
from dsmemvp.prompts.pformer.bert import KeysValues, Noise
from dsmemvp.prompts.pformer.contrast import (
    Gathering,
    Scores,
    Temperature,
    hard_negatives,
    image_text_scores,
    unit,
)
from dsmemvp.prompts.pformer.qformer import QFormer, TextBranch, match, read


class PairHeads(nn.Module):
    def __init__(self, width: int, features: int, temperature: float):
        super().__init__()
        self.image = Linear(width, features)
        self.text = Linear(width, features)
        self.matching = Linear(width, 2)
        self.temperature = Temperature(temperature)


@dataclass(frozen=True)
class Pairs:
    """Of this rank."""

    visual_NPv: torch.Tensor
    """Image tokens as the vision tower gives them"""
    queries_NnH: torch.Tensor
    past: list[KeysValues]
    """Of the queries, [N, h, n, D]"""
    tokens_NL: torch.Tensor
    lengths_N: torch.Tensor
    """int64: tokens of each text, padding left out"""
    keys_N: torch.Tensor
    """int64: of each the key that its negatives are drawn by"""
    query_noise: Noise
    text_noise: Noise

    @property
    def mask_NL(self) -> torch.Tensor:
        return _mask(self.lengths_N, self.tokens_NL.shape[1])


def pair_losses(
    pairs: Pairs,
    gathering: Gathering,
    qformer: QFormer,
    text: TextBranch,
    heads: PairHeads,
    begin: int,
    smoothing: float,
) -> dict[str, torch.Tensor]:
    """ITC summed over pairs, ITM over three times as many (each pair, and with a wrong image and a wrong text), ITG
    over the texts' tokens. `begin` is [DEC]. All ranks call it together. Raises UserError for a lone pair."""
    gathering.check_negatives()
    images_NnF = unit(heads.image(pairs.queries_NnH))
    own_BLH = read(qformer, text, pairs.tokens_NL, pairs.mask_NL, pairs.text_noise.at("itc"))
    texts_NF = unit(heads.text(own_BLH[:, 0]))
    scores = image_text_scores(images_NnF, texts_NF, heads.temperature, gathering)
    return {
        "itc": scores.loss(gathering.first, smoothing),
        "itm": _matching(pairs, scores, gathering, qformer, text, heads),
        "itg": _generating(pairs, qformer, text, begin, smoothing),
    }


def _matching(
    pairs: Pairs, scores: Scores, gathering: Gathering, qformer: QFormer, text: TextBranch, heads: PairHeads
) -> torch.Tensor:
    """Pair, wrong image with the text, image with a wrong text."""
    keys_N = pairs.keys_N
    image_N = hard_negatives(scores.of_texts, gathering.first, keys_N)
    text_N = hard_negatives(scores.of_images, gathering.first, keys_N + 1)
    wrong_visual = gathering(pairs.visual_NPv)[image_N]
    wrong_tokens, wrong_lengths = gathering(pairs.tokens_NL)[text_N], gathering(pairs.lengths_N)[text_N]
    visual = torch.cat((pairs.visual_NPv, wrong_visual, pairs.visual_NPv))
    tokens = torch.cat((pairs.tokens_NL, pairs.tokens_NL, wrong_tokens))
    lengths = torch.cat((pairs.lengths_N, pairs.lengths_N, wrong_lengths))
    noises = pairs.query_noise.copies("itm", 3), pairs.text_noise.copies("itm", 3)
    queries = match(qformer, text, visual, tokens, _mask(lengths, tokens.shape[1]), noises)
    logits = heads.matching(queries).float().mean(dim=1)
    labels = torch.arange(len(logits), device=logits.device) < len(keys_N)
    return F.cross_entropy(logits, labels.long(), reduction="sum")


def _generating(pairs: Pairs, qformer: QFormer, text: TextBranch, begin: int, smoothing: float) -> torch.Tensor:
    tokens_NL, mask_NL = pairs.tokens_NL, pairs.mask_NL
    begun_NL = torch.cat((torch.full_like(tokens_NL[:, :1], begin), tokens_NL[:, 1:]), dim=1)
    out_NLH = read(qformer, text, begun_NL, mask_NL, pairs.text_noise.at("itg"), pairs.past)
    wanted_NL = tokens_NL.masked_fill(~mask_NL, -100)[:, 1:]
    logits_NLV = text.logits(out_NLH[:, :-1])
    return F.cross_entropy(
        logits_NLV.flatten(0, 1), wanted_NL.flatten(), reduction="sum", label_smoothing=smoothing, ignore_index=-100
    )


def _mask(lengths_N: torch.Tensor, length: int) -> torch.Tensor:
    return torch.arange(length, device=lengths_N.device) < lengths_N[:, None]


def alignment(prompts_Nnd: torch.Tensor, reference_Nnd: torch.Tensor, scaled: bool) -> torch.Tensor:
    """Of each pair the mean squared difference of its prompts from the reference, float32 [N]; `scaled`: divided by
    the variance of the reference's elements, so that the width and the language model do not matter. No gradient to
    the reference."""
    reference = reference_Nnd.detach().float()
    squares_N = (prompts_Nnd.float() - reference).square().mean(dim=(1, 2))
    return squares_N / reference.flatten(1).var(dim=1) if scaled else squares_N


@torch.no_grad()
def likeness(prompts_Nnd: torch.Tensor, reference_Nnd: torch.Tensor) -> torch.Tensor:
    """Of each pair the mean cosine of its prompts and the reference's, float32 [N]."""
    return F.cosine_similarity(prompts_Nnd.float(), reference_Nnd.float(), dim=-1).mean(-1)
