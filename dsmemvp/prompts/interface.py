"""What a visual prompting method may do. A method is one file or folder of this room, found by its name; it defines

    Settings    its keys under `method:` in a recipe (config/methods.py)
    Method      its modules and parameters, a `VisualPrompt`

The model (model.py) walks `schedule` over the blocks of its towers and calls the method at each site:

    state = begin(batch)
    for site in schedule:   enter -> block, with `mlp` beside its feed-forward -> leave;  state = collect(...)
    after a tower's last block:   state = finish(tower, output, state, batch)

Of the decoder's last block only the supervised tokens are computed: there `mlp` and `leave` get their hidden states,
[1, S, d], and a batch of these tokens alone, without reserved places; `collect` gets these hidden states.

State is a dictionary of tensors that is passed on as an argument and never kept in a module. A module's own parameters
are used in that module's forward only, since under ZeRO-3 they are whole just there: a method that owns parameters
itself calls itself (`self(...)`) or keeps them in a module inside. Shapes follow from what the host knows (`lengths`,
`image_rows`), not from values on the device: `dsmemvp plan` runs a method on tensors without values.

T tokens in the pack, B samples, S supervised tokens, I images, P image tokens, v width of the vision tower, d width of
the language model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import nn

from dsmemvp.data.batch import Batch, Captions, Labels
from dsmemvp.data.captions import CaptionText
from dsmemvp.data.layout import Reserved

State = dict[str, torch.Tensor]
Tower = Literal["vision", "decoder"]


class Site(NamedTuple):
    """A block of a tower."""

    tower: Tower
    block: int


@dataclass(frozen=True)
class Sizes:
    """What a method must know of the two frozen models."""

    image_tokens: int
    vision_width: int
    language_width: int
    vision_blocks: int = 0
    """That the vision tower runs for its features; a method may have it built to another one (config/methods.py,
    VisionFeatures)."""
    decoder_blocks: int = 0


@dataclass(frozen=True)
class Stage:
    """A part of a run with its own data, trainables and losses."""

    name: str
    epochs: float | None = None
    """Passes over the stage's data; None: training.epochs."""
    trains: tuple[str, ...] = ()
    """Beginnings of the names of the tensors it trains; none: all."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """Weights of the method's losses by their names; one that is not named is left out."""
    language_loss: float = 1.0
    """Weight of the language model's loss."""
    data: tuple[str, ...] = ()
    """Of data.train the folders it reads; none: all."""
    decoder: bool = True
    """Whether there is a language model; if not, none is loaded, its blocks do not run and only the method's losses
    count."""
    modules: tuple[str, ...] = ()
    """Beginnings of the names of the method's modules that take part; none: all. What does not take part is neither
    sharded nor saved by the stage."""
    vocabulary: bool = False
    """Whether the method is given the language model's input embeddings (`begin_stage`)."""
    vision: bool = True
    """Whether there is a vision tower, if the method sees images at all."""
    measures: tuple[str, ...] = ()
    """Of the method's losses those that are computed for the record alone."""
    reference_every: int = 0
    """Every so many steps, the language model's loss with what the teacher makes of the captions (`taught`) in the
    place of what is trained is recorded; 0: never."""
    vectors: bool = False
    """Whether what the teacher makes of each caption (`caption_vectors`) is stored beside the shards, and comes with
    the captions of a batch."""

    @property
    def parts(self) -> tuple[bool, bool, tuple[str, ...], bool]:
        """Stages that agree in these, and have no teacher, share one model."""
        return self.decoder, self.vision, self.modules, self.vocabulary


class Callback(Protocol):
    """What happens between steps. Its state is part of a checkpoint, as JSON."""

    def after_step(self, step: int, method: "VisualPrompt") -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class FeedForwardMemory:
    """Key/value slots beside every feed-forward layer, which add scale * active(x, K) V to its output."""

    key: torch.Tensor
    """[B, N, d] float32, as the layers read it"""
    value: torch.Tensor
    """[B, N, d] float32"""
    scale: float
    visual: int
    """The first so many slots carry an image, the others are purely learned."""
    active: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """(x [L, d], key [N, d]) -> how strongly each slot fires at each token, [L, N]; before dropout."""


@dataclass(frozen=True)
class Compared:
    """What a method has compared at one place of its schedule: a square matrix for every sample."""

    where: str
    """In words"""
    values: torch.Tensor
    """[B, n, n]"""
    what: str
    """What a row and a column are, and the unit, in words"""


class PublishedLayout(Protocol):
    """The files of a method's published code, which `dsmemvp convert` reads and `dsmemvp export --published` writes."""

    options: Mapping[str, str]
    """Options of the published code that a recipe has to repeat -> the recipe's keys."""
    fixed: Mapping[str, Any]
    """The recipe's keys -> what stands in the published code and cannot be set there."""
    unused: Sequence[str]
    """Tensors of a file that no forward pass uses."""

    def trained_tensors(self, published: Mapping[str, Any]) -> dict[str, Any]:
        """A file's trained tensors (convert/lazy.py) under this package's names; none if it is not such a file."""
        ...

    def published_names(self, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The way back. Raises UserError for tensors that have no place in the layout."""
        ...

    def needs(self, recipe: Any) -> str:
        """The options that the published code needs for such a file, in words."""
        ...


class VisualPrompt(nn.Module):
    """A method that does nothing: a method overrides the points it uses."""

    sees_images = True
    """Whether the vision tower is run at all."""
    acts_in_tower = True
    """Whether it acts in blocks of the vision tower, and does not take its last features alone in `finish`. Those that
    do not may train on features that were computed before (vision.cache_features)."""
    trainable = True
    """Whether it has anything to train; if not, it can be evaluated without a checkpoint."""
    description = ""
    """The method in a sentence, for model cards."""
    published: PublishedLayout | None = None
    """How its published code stores what it has trained."""
    searched = ""
    """The setting that `dsmemvp search` can look for, a whole number from 0 on; empty: none."""

    @classmethod
    def describe(cls, settings: Any) -> dict[str, str]:
        """Rows of a model card's table: what was set, in words."""
        return {}

    @classmethod
    def build(cls, settings: Any, sizes: Sizes) -> "VisualPrompt":
        """The method with its initial values, drawn from torch's default generator. Raises UserError for settings that
        do not fit the sizes."""
        raise NotImplementedError

    @classmethod
    def shortened(cls, settings: Any, sizes: Sizes, blocks: int) -> Any:
        """The settings for a decoder of so few blocks, a gradient passing through all of them but the first one's
        input: on it planning/budget.py measures what a step holds beside the blocks."""
        return settings

    def first_block(self) -> int:
        """The first block of the decoder that a gradient passes through; those below keep nothing for the backward."""
        return 0

    def reserved(self) -> Sequence[Reserved]:
        """The places that it reserves in a sample's sequence."""
        return ()

    def schedule(self, depths: Mapping[Tower, int]) -> list[Site]:
        """The order in which blocks run, the same on every rank."""
        return [Site(tower, block) for tower in ("vision", "decoder") for block in range(depths.get(tower, 0))]

    def begin(self, batch: Batch) -> State:
        """Once per forward, before any block."""
        return {}

    def taught(self, batch: Batch) -> State:
        """As `begin`, of a stage with `reference_every`: what the method's own modules would make of the images comes
        from the teacher. The decoder's blocks alone then run, without a gradient."""
        raise NotImplementedError

    def finish(self, tower: Tower, output: torch.Tensor, state: State, batch: Batch) -> State:
        """After a tower's last block. `output` of the vision tower is [max(I, 1), P, v]: if the batch has no image it
        is one dummy row, which must enter the graph with weight zero; of the decoder it is [S, d], normed, at the
        supervised tokens alone."""
        return state

    def enter(self, site: Site, hidden: torch.Tensor, state: State, batch: Batch) -> torch.Tensor:
        """The hidden states on entering a block: [1, T, d] in the decoder, [max(I, 1), tokens, v] elsewhere; there a
        method may from some block on have a row of its own for every sample with an image."""
        return hidden

    def visible(self, site: Site) -> tuple[str, ...] | None:
        """Names of the reserved places that attention may read in this block of the decoder; None: all."""
        return None

    def mlp(self, site: Site, x: torch.Tensor, state: State, batch: Batch) -> torch.Tensor | None:
        """What is added to a block's feed-forward output; `x` is the feed-forward's normed input. What autograd saves
        of `x` itself is not kept under a policy of gradient checkpointing; anything else of size it has to compute
        again by itself, such as by backbones/recompute.py's `run_again`."""
        return None

    def leave(self, site: Site, hidden: torch.Tensor, state: State, batch: Batch) -> torch.Tensor:
        """The hidden states on leaving a block."""
        return hidden

    def collect(self, site: Site, hidden: torch.Tensor, state: State, batch: Batch) -> State:
        """After a block: the state for the sites that follow, such as one tower's hidden states for the other. It is
        outside of what gradient checkpointing computes again, so it must compute nothing of any size."""
        return state

    def labels(self) -> Labels | None:
        """What it classifies into; None if it writes text."""
        return None

    def logits(self, normed_Sd: torch.Tensor, state: State, batch: Batch) -> torch.Tensor | None:
        """float32 [S, classes] in place of the language model's own head; None: that one."""
        return None

    def losses(self, state: State, batch: Batch) -> dict[str, torch.Tensor]:
        """Auxiliary losses by name, each a float32 sum over as many things as `loss_counts` says."""
        return {}

    def loss_counts(self, batch: Batch) -> dict[str, int]:
        """How many things each auxiliary loss is summed over in this batch, without a transfer from a GPU."""
        return {}

    def decoding(self, state: State, batch: Batch) -> State:
        """What later steps of decoding need, when a batch holds one new token per sample and no images: tensors with
        one row per sample, so that they can be selected and joined."""
        return {}

    def memory(self, state: State) -> FeedForwardMemory | None:
        """What `dsmemvp inspect` looks into, from what `decoding` has returned; None for a method without a
        feed-forward memory."""
        return None

    def compared(self, state: State) -> Sequence[Compared]:
        """What `dsmemvp inspect` shows of a method without a feed-forward memory, from what `decoding` has returned."""
        return ()

    def looking(self) -> nn.Module | None:
        """The module that looks at the picture, whose second output are attention weights over the image tokens, [Q, H,
        k, N] (Q samples with an image, H heads, k queries, N tokens with the patches last): `dsmemvp inspect` draws
        them."""
        return None

    def choices(self) -> int:
        """How many values the searched setting has."""
        return 0

    def choose(self, value: int) -> None:
        """Take this value of the searched setting from the next forward on; all ranks call it together. Whatever the
        value, the same tensors are trained."""

    def callbacks(self) -> Sequence[Callback]:
        return ()

    def stages(self) -> Sequence[Stage]:
        """Of a run, in order; of the names that its `Settings` give in `stage_names`."""
        return (Stage("train"),)

    def captions(self) -> CaptionText | None:
        """How the stage that has begun reads a caption of every sample into `Batch.captions`; None: it reads none."""
        return None

    def caption_vectors(self, captions: Captions) -> torch.Tensor:
        """[B, H], what the stage's teacher makes of each caption, without noise; of a stage with `vectors`."""
        raise NotImplementedError

    def teacher(self, stage: Stage) -> nn.Module | None:
        """One of the method's own modules that the stage needs frozen and whole on every rank, with the values that it
        had at the end of the stage that trained it: outside of what is sharded and saved, in evaluation mode, in the
        recipe's type. The method's own module of that name takes no part, and becomes None."""
        return None

    def begin_stage(
        self, stage: Stage, teacher: nn.Module | None = None, vocabulary_Vd: torch.Tensor | None = None
    ) -> None:
        """Before a stage's first forward, and before the forwards of an evaluation, which is of the last one:
        `schedule`, `reserved` and the losses are this stage's from here on. `teacher` is what `teacher(stage)` has
        returned, filled; `vocabulary_Vd` a frozen copy of the input embeddings, if the stage asks for it. It keeps both
        where they are no submodule and no buffer, such as in a tuple. While a model is built, and where none is, it is
        called without the two; the last call counts."""

    def replacement(self, name: str, linear: nn.Linear) -> nn.Linear | None:
        """Another layer in place of a linear layer of the decoder, such as one with LoRA; None keeps it. Called while
        the model is built; `name` is its name inside the block ("q_proj"). The new layer must own the old weight."""
        return None
