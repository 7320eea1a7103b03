"""P-Former: a caption's class vector -> the prompts from which the frozen language model would write it, and the losses
of the stage that trains it on text alone (BLIText, pformer_opt.py).

    h = BERT(t)[CLS]      z = reshape(Wc h + bc)      p_hat = Wo tanh(Wp z + bp) + bo

B captions, L tokens, n prompts, H width of BERT, d width of the language model, V its vocabulary, N = B n.
"""

from typing import Any

import torch
from torch import nn

from dsmemvp.backbones.linear import Linear
from dsmemvp.data.batch import Captions
from dsmemvp.prompts.pformer.bert import ClassEncoder, Noise
from dsmemvp.prompts.pformer.contrast import Temperature, unit

VOCABULARY_ROWS, PROMPT_ROWS = 4096, 1024
"""How many rows of the vocabulary are compared at once with how many prompts: at a width of 5,120 about 140 MB in
float32, whatever the number of either."""


class Head(nn.Module):
    """A class vector -> reference prompts. Linear layers start as torch's own do."""

    def __init__(self, width: int, prompts: int, language_width: int):
        super().__init__()
        self.prompts = prompts
        self.spread = Linear(width, prompts * width)
        self.inner = Linear(width, width)
        self.out = Linear(width, language_width)

    def forward(self, vector_BH: torch.Tensor) -> torch.Tensor:
        """-> [B, n, d]"""
        z_BnH = self.spread(vector_BH).unflatten(-1, (self.prompts, -1))
        return self.out(torch.tanh(self.inner(z_BnH)))


class ContrastHead(nn.Module):
    def __init__(self, width: int, features: int, temperature: float):
        super().__init__()
        self.projection = Linear(width, features)
        self.temperature = Temperature(temperature)

    def forward(self, vector_BH: torch.Tensor) -> torch.Tensor:
        """-> [B, features], float32, of length 1"""
        return unit(self.projection(vector_BH))


class PFormer(nn.Module):
    def __init__(self, config: Any, prompts: int, language_width: int, features: int, temperature: float):
        """`config` is BERT's."""
        super().__init__()
        self.encoder = ClassEncoder(config)
        self.head = Head(config.hidden_size, prompts, language_width)
        self.contrast = ContrastHead(config.hidden_size, features, temperature)

    def forward(self, captions: Captions, noise: Noise) -> torch.Tensor:
        """The reference prompts of clean captions, [B, n, d]; from their class vectors, if these are given."""
        if captions.vectors_BH is not None:
            return self.head(captions.vectors_BH.to(self.head.out.weight.dtype))
        return self.head(self.encoder(captions.tokens_BL, captions.mask_BL, noise))


def corrupted(captions: Captions) -> torch.Tensor:
    """[B, L]: what P-Former reads in its own stage."""
    return captions.tokens_BL.masked_fill(captions.drawn_BL, captions.mask_token)


def rows_of(captions: Captions, rows: list[int]) -> Captions:
    """Some of them."""
    vectors_BH = captions.vectors_BH
    return Captions(
        captions.tokens_BL[rows],
        captions.mask_BL[rows],
        captions.drawn_BL[rows],
        tuple(captions.lengths[row] for row in rows),
        captions.mask_token,
        None if vectors_BH is None else vectors_BH[rows],
    )


def variances(prompts_Bnd: torch.Tensor) -> torch.Tensor:
    """[B], float32: of each caption the variance of its prompts' elements. No gradient."""
    return prompts_Bnd.detach().float().flatten(1).var(dim=1)


@torch.no_grad()
def nearest(prompts_Nd: torch.Tensor, vocabulary_Vd: torch.Tensor) -> torch.Tensor:
    """[N] int64: of each prompt the row of the vocabulary at the least distance, the first of several. In float32,
    chunk by chunk: |p - v|^2 - |p|^2 = |v|^2 - 2 p v."""
    count, device = prompts_Nd.shape[0], prompts_Nd.device
    least_N = torch.full((count,), torch.inf, device=device)
    found_N = torch.zeros(count, dtype=torch.long, device=device)
    for first in range(0, vocabulary_Vd.shape[0], VOCABULARY_ROWS):
        rows_Rd = vocabulary_Vd[first : first + VOCABULARY_ROWS].float()
        squares_R = torch.linalg.vector_norm(rows_Rd, dim=1).square_()
        for start in range(0, count, PROMPT_ROWS):
            own = slice(start, start + PROMPT_ROWS)
            distances_PR = torch.addmm(squares_R, prompts_Nd[own].float(), rows_Rd.T, alpha=-2)
            here_P, at_P = distances_PR.min(dim=1)
            closer_P = here_P < least_N[own]
            least_N[own] = torch.where(closer_P, here_P, least_N[own])
            found_N[own] = torch.where(closer_P, at_P + first, found_N[own])
        del rows_Rd  # before the next one is made
    return found_N


def vocabulary_losses(prompts_Bnd: torch.Tensor, vocabulary_Vd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each caption the mean squared difference of its prompts' elements from the nearest rows, and the mean distance
    to these (without gradient): [B], float32. Rows have no gradient."""
    flat_Nd = prompts_Bnd.detach().flatten(0, 1)
    rows_Bnd = vocabulary_Vd[nearest(flat_Nd, vocabulary_Vd)].view(prompts_Bnd.shape)
    squares_Bnd = (rows_Bnd.float() - prompts_Bnd.float()).square()
    return squares_Bnd.mean(dim=(1, 2)), squares_Bnd.detach().sum(-1).sqrt().mean(-1)
