"""A tiny CLIP vision tower, trained from nothing to tell from a picture's patches the words that are said of it.

Features are to belong to places, as those of published towers mostly do; otherwise a heat map of what a model looks at
(inspection/) shows nothing. Two things see to it. Any patch may predict a word, not all need to: asked for everything
everywhere, attention spreads it, and all patches carry the same. And the features of a patch that shows nothing, one
colour alone, are to change little when others are replaced by those of another picture: what other patches show is not
to be predicted there.
"""

import random

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig

from data_prep.tiny_score import Report, Score
from data_prep.tiny_texts import Words
from dsmemvp.backbones.vision import Block, VisionTower, normalised
from dsmemvp.data.images import STATISTICS, ImageTransform

RESOLUTION, PATCH = 64, 16
HEAD_DIM = 16
BATCH = 64
LEARNING_RATE = 1.5e-3
FLAT = 0.2
"""Largest difference between pixels of a flat patch, in any colour, in standard deviations of ImageNet's."""
SHIFT = 3
"""Pixels by which pictures are moved at most, so that there are more of them."""


def train_tower(
    words: Words,
    wheres: dict[bytes, str],
    width: int,
    layers: int,
    steps: int,
    locality: float,
    report: Report,
) -> tuple[VisionTower, dict[str, torch.Tensor], Score]:
    """-> the tower; all tensors of a whole CLIP vision model: those of the tower and of an untrained last block, which
    the tower leaves out; and how many words of held-out pictures it predicts. `words` is what is said of each encoded
    picture, of 10 at least something, `wheres` its file and key; `steps` is at least 1; `locality` weighs the mean
    square by which features of flat patches, which are of about unit size, change with others. Raises SampleError for
    a picture that cannot be decoded."""
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_DIM,
        image_size=RESOLUTION,
        patch_size=PATCH,
        hidden_act="quick_gelu",
    )
    tower = VisionTower(config)
    pixels, targets = _tensors({image: said for image, said in words.items() if said}, wheres)
    score = _fit(tower, pixels, targets, steps, locality, report)
    last = Block(config)
    tensors = {}
    for name, tensor in tower.state_dict().items():
        name = f"encoder.{name}" if name.startswith("layers.") else name
        tensors[f"vision_model.{name}"] = tensor
    for name, tensor in last.state_dict().items():
        tensors[f"vision_model.encoder.layers.{layers - 1}.{name}"] = tensor
    return tower, {n: t for n, t in tensors.items() if not n.endswith("position_ids")}, score


def _fit(
    tower: VisionTower,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    steps: int,
    locality: float,
    report: Report,
) -> Score:
    kept = len(pixels) // 10  # to report on
    common = targets[kept:].sum(0).expand_as(targets[:kept])
    guessing, cases = _precision(common, targets[:kept]), int(targets[:kept].sum())
    reader = nn.Linear(tower.config.hidden_size, targets.shape[1])
    parameters = [*tower.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 50, 2 * (steps - step) / steps)
        rows = torch.randint(kept, len(pixels), (BATCH,))
        seen = _moved(pixels[rows])
        mixed, own = collages(seen)
        optimizer.zero_grad()
        features_IPv, mixed_IPv = tower_features(tower, torch.cat([seen, mixed])).chunk(2)
        loss = cross_entropy(reader(features_IPv), targets[rows])
        changed = (features_IPv - mixed_IPv)[own & flat(seen)]  # by other patches
        if len(changed):
            loss = loss + locality * changed.square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            right = _precision(reader(tower_features(tower, pixels[:kept])).logsumexp(1), targets[:kept])
            score = Score(right, guessing, cases)
            report(f"vision tower: step {step + 1}, loss {loss.item():.3f}, held-out words right {score}")
    return score


def tower_features(tower: VisionTower, pixels: torch.Tensor) -> torch.Tensor:
    """[I, P, v]"""
    hidden = tower.start(pixels)
    for block in tower.layers:
        hidden = block(hidden)
    return tower.finish(hidden)


def _tensors(words: Words, wheres: dict[bytes, str]) -> tuple[torch.Tensor, torch.Tensor]:
    """-> pixels [I, 3, R, R] and, for each picture, 1 for the words said of it [I, W]."""
    transform = ImageTransform(RESOLUTION, max_pixels=50_000_000)
    images = sorted(words)
    random.Random(0).shuffle(images)
    vocabulary = {word: i for i, word in enumerate(sorted({word for said in words.values() for word in said}))}
    pixels = normalised(torch.stack([transform(image, wheres[image]) for image in images]), *STATISTICS["imagenet"])
    targets = torch.zeros(len(images), len(vocabulary))
    for row, image in enumerate(images):
        targets[row, [vocabulary[word] for word in words[image]]] = 1
    return pixels, targets


def _moved(pixels: torch.Tensor) -> torch.Tensor:
    """The whole batch shifted by a few pixels, the edge repeated."""
    x, y = random.randint(0, 2 * SHIFT), random.randint(0, 2 * SHIFT)
    wider = F.pad(pixels, (SHIFT,) * 4, mode="replicate")
    return wider[:, :, y : y + RESOLUTION, x : x + RESOLUTION]


def flat(pixels_I3RR: torch.Tensor) -> torch.Tensor:
    """Which patches are of one colour, [I, P]."""
    patches = pixels_I3RR.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).flatten(4)  # [I, 3, side, side, pixels]
    return (patches.amax(-1) - patches.amin(-1)).amax(1).flatten(1) < FLAT


def collages(pixels_I3RR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-> each picture with some of its patches replaced by those of the one before, and which are its own, [I, P]."""
    side = RESOLUTION // PATCH
    own_Iss = torch.rand(len(pixels_I3RR), side, side) < torch.rand(len(pixels_I3RR), 1, 1)
    own_IRR = own_Iss.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
    return torch.where(own_IRR[:, None], pixels_I3RR, pixels_I3RR.roll(1, 0)), own_Iss.flatten(1)


def cross_entropy(scores_IPW: torch.Tensor, targets_IW: torch.Tensor) -> torch.Tensor:
    """All patches together are to tell all of the picture's words: a word's score is the logsumexp of the patches'. The
    words said share the probability: words left unsaid are only ever alternatives, not wrong."""
    shares_IW = targets_IW / targets_IW.sum(1, keepdim=True)
    return -(scores_IPW.logsumexp(1).log_softmax(-1) * shares_IW).sum(1).mean()


@torch.no_grad()
def _precision(scores: torch.Tensor, targets: torch.Tensor) -> float:
    """Share of the words said that are among as many highest scores."""
    hits = 0.0
    for row, said in zip(scores, targets, strict=True):
        hits += said[row.topk(int(said.sum())).indices].sum().item()
    return hits / targets.sum().item()
