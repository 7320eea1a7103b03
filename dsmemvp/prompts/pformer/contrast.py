"""Contrast over the rows of all ranks: what others have is gathered without gradient, and the gradient of a rank's own
loss reaches its own features alone, as in the published code (concat_all_gather of BLIP-2).

N rows of this rank, M of all ranks, F features, n queries.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional as F

from dsmemvp.dropout import mix
from dsmemvp.errors import UserError


class Temperature(nn.Module):
    """A trained number that scores are divided by."""

    def __init__(self, start: float):
        super().__init__()
        self.value = nn.Parameter(torch.full((1,), start))

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return scores / self.value.to(scores.dtype)


def unit(x: torch.Tensor) -> torch.Tensor:
    """Of length 1, in float32 at least."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


@dataclass(frozen=True)
class Gathering:
    """Rows of all ranks, rank by rank, of which each has its own number. All ranks gather the same things in the same
    order."""

    sizes: tuple[int, ...]
    """Rows of every rank"""
    rank: int
    empty: bool = False
    """Whether no rank has any: then each gives one row that counts for nothing."""

    @classmethod
    def of(cls, own: int, device: torch.device) -> "Gathering":
        """One collective."""
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return cls((own or 1,), 0, not own)
        sizes = torch.empty(distributed.get_world_size(), dtype=torch.int64, device=device)
        distributed.all_gather_into_tensor(sizes, torch.tensor([own], device=device))
        found = tuple(sizes.tolist())
        return cls(found if any(found) else (1,) * len(found), distributed.get_rank(), not any(found))

    @property
    def first(self) -> int:
        """The place of this rank's first row among all."""
        return sum(self.sizes[: self.rank])

    @property
    def total(self) -> int:
        return sum(self.sizes)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """[N, ..] -> [M, ..] without gradient. One collective, of bytes, whatever the type."""
        rows = rows.detach()[: self.sizes[self.rank]]
        if len(self.sizes) == 1:
            return rows
        most = max(self.sizes)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        sent = padded.reshape(-1).view(torch.uint8)
        held = sent.new_empty(len(self.sizes) * sent.numel())
        distributed.all_gather_into_tensor(held, sent)
        every = held.view(rows.dtype).view(len(self.sizes), most, *rows.shape[1:])
        return torch.cat([own[:size] for own, size in zip(every, self.sizes, strict=True)])

    def check_negatives(self) -> None:
        """Raises UserError on all ranks for a lone pair."""
        if self.total == 1 and not self.empty:
            raise UserError(
                "training.micro_batch: a forward of all ranks together holds a single pair of image and text, which has"
                " nothing to be told from; take a larger one"
            )


def own_index_loss(scores_NM: torch.Tensor, first: int, smoothing: float) -> torch.Tensor:
    """Cross-entropy of each row to its own place among all, summed."""
    own_N = first + torch.arange(scores_NM.shape[0], device=scores_NM.device)
    own_N = own_N.clamp(max=scores_NM.shape[1] - 1)  # of a rank whose row counts for nothing
    return F.cross_entropy(scores_NM, own_N, reduction="sum", label_smoothing=smoothing)


def caption_contrast(
    views: list[torch.Tensor], temperature: nn.Module, gathering: Gathering, smoothing: float
) -> torch.Tensor:
    """The loss of P-Former's own contrast, summed over the N captions. One view [N, F]: each is told from the others,
    its score with itself being 1 / temperature. Two: each finds its own other view, both ways averaged."""
    gathered = [gathering(view_NF) for view_NF in views]
    pairs = zip(views, gathered[::-1], strict=True)
    losses = [own_index_loss(temperature(own @ every.T), gathering.first, smoothing) for own, every in pairs]
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class Scores:
    """Of this rank's images with all texts, and of its texts with all images: [N, M] each, divided by temperature."""

    of_images: torch.Tensor
    of_texts: torch.Tensor

    def loss(self, first: int, smoothing: float) -> torch.Tensor:
        """Summed over the N pairs, both directions averaged."""
        sums = [own_index_loss(scores, first, smoothing) for scores in (self.of_images, self.of_texts)]
        return (sums[0] + sums[1]) / 2


def image_text_scores(
    images_NnF: torch.Tensor, texts_NF: torch.Tensor, temperature: nn.Module, gathering: Gathering
) -> Scores:
    """An image's score is that of its query which fits best."""
    all_texts_MF, all_images_MnF = gathering(texts_NF), gathering(images_NnF)
    of_images_NM = torch.einsum("xnf,yf->xyn", images_NnF, all_texts_MF).amax(-1)
    of_texts_NM = torch.einsum("xf,ynf->xyn", texts_NF, all_images_MnF).amax(-1)
    return Scores(temperature(of_images_NM), temperature(of_texts_NM))


@torch.no_grad()
def hard_negatives(scores_NM: torch.Tensor, first: int, keys_N: torch.Tensor) -> torch.Tensor:
    """[N] int64: for each own row another one of all, drawn with a weight of softmax(scores) + 1e-4. What is drawn
    follows from the keys (dropout.py), so that a resumed run draws the same."""
    weights_NM: Any = scores_NM.double().softmax(dim=1) + 1e-4
    row_N = torch.arange(scores_NM.shape[0], device=scores_NM.device)
    own_N = (first + row_N).clamp(max=scores_NM.shape[1] - 1)
    weights_NM[row_N, own_N] = 0.0
    bounds_NM = weights_NM.cumsum(1)
    chance_N1 = ((mix(keys_N) >> 11) & (2**53 - 1)).double()[:, None] / 2**53
    drawn_N = torch.searchsorted(bounds_NM, chance_N1 * bounds_NM[:, -1:], right=True)[:, 0]
    drawn_N = drawn_N.clamp(max=scores_NM.shape[1] - 1)
    if scores_NM.shape[1] > 1:  # what rounding has put behind the last, if that is the row's own
        drawn_N = torch.where(drawn_N == own_N, (drawn_N - 1) % scores_NM.shape[1], drawn_N)
    return drawn_N
