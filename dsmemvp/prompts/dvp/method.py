"""DVP, dynamic visual prompting (Huang et al., IJCNN 2024, arXiv 2306.00409): the question's hidden state at the input
of decoder layer K asks the picture, and what it is answered stands in the sequence as one prompt token from there on.

    s = hidden state of the question at layer K         P = CrossAttention(s, X)         X the image tokens

The prompt has its place in the sequence from the start; layers below K do not see it. Optional adapters behind
attention and feed-forward of every decoder layer, and trained norms.

With `classes` it classifies, as the published runs on VQA, GQA and SNLI-VE do: the text ends with EOS, which asks, and
whose hidden state, normed, goes through a head of two linear layers. T tokens in the pack, Q samples with an image, k
prompts, I images, N visual tokens, v width of the vision tower, d width of the language model.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import nn
from torch.nn import functional as F

from dsmemvp.config.fields import CONFIG, ClassLoss, Fraction, Width
from dsmemvp.config.methods import MethodSettings, VisionFeatures
from dsmemvp.counting import counted
from dsmemvp.data.batch import Batch, Labels
from dsmemvp.data.layout import Reserved
from dsmemvp.dropout import Dropout
from dsmemvp.errors import UserError
from dsmemvp.prompts.dvp.cross_attention import CrossAttention
from dsmemvp.prompts.interface import Site, Sizes, State, Tower, VisualPrompt
from dsmemvp.prompts.parts.adapter import AdaptedLinear
from dsmemvp.prompts.parts.classifier import Classifier

PLACES = "prompt"
ADAPTED = ("o_proj", "down_proj")
"""The last linear layers of attention and of the feed-forward."""
NARROWER = 8
"""The head's hidden width is the language model's divided by this."""


@dataclass(config=CONFIG)
class Settings(MethodSettings):
    layer: Annotated[int, Field(ge=0, le=1000)] = 4
    """K: the decoder layer, from 0, at whose input the question asks the picture and the prompt enters; layers below do
    not see it. At 0 the query is a raw embedding."""
    prompts: Width = 1
    """Prompt tokens; with more than one each has a learned offset to the query."""
    placement: Literal["before_bos", "after_bos"] = "after_bos"
    """Where the prompt's place is: in front of the whole sequence, or behind the token that begins it."""
    query: Literal["last", "mean"] = "last"
    """What asks: the hidden state at the prompt's last token before the answer, or the mean over the question's tokens;
    never the answer's."""
    query_norm: bool = False
    """Divide the query by its root mean square."""
    width: Width = 512
    """Inner width of the cross-attention."""
    heads: Width = 16
    """Heads of the cross-attention, which divide its width."""
    dropout: Fraction = 0.1
    """Dropout on its attention weights."""
    feature_layer: Annotated[int, Field(ge=-1000, le=0)] = 0
    """Block of the vision tower that the image tokens come from, counted from its last as -1; 0 for the one that all
    methods take if nothing is said (of CLIP the last but one). The published code takes the last."""
    class_token: bool = False
    """Whether tokens before the patches, such as the class token, are among the image tokens."""
    feature_norm: bool = True
    """Put the vision tower's last norm on the image tokens. The published code takes them without."""
    adapter_ratio: Annotated[int, Field(ge=0, le=2**16)] = 0
    """Adapters behind attention and feed-forward of every decoder layer, of the language model's width divided by this;
    0 for none. The published runs have 64."""
    adapter_zero_init: bool = False
    """Begin with adapters that change nothing; the published ones do not."""
    train_norms: bool = False
    """Train the weights of the language model's norms, too, as the published runs with adapters do."""

    classes: Annotated[int, Field(ge=0, le=2**16)] = 0
    """Classes of the data, whose labels run from 0 to one below; 0: it writes text. The published runs have 3129 (VQA),
    1843 (GQA) and 3 (SNLI-VE)."""
    loss: ClassLoss = "cross_entropy"
    """With `classes`: one class for each sample, or any number of them (binary cross-entropy, a class from a
    probability of 0.5 on)."""

    @model_validator(mode="after")
    def _together(self) -> "Settings":
        if self.classes == 1:
            raise ValueError("classes: 1 leaves nothing to choose; give two or more, or 0 to write text")
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide method.width = {self.width}; take a multiple of heads")
        return self

    def trains_norms(self) -> bool:
        return self.train_norms

    def classifies(self) -> bool:
        return self.classes > 0

    def vision_features(self) -> VisionFeatures:
        return VisionFeatures(self.feature_layer, self.class_token, self.feature_norm)


class Method(VisualPrompt):
    description = (
        "DVP, dynamic visual prompting (Huang et al., IJCNN 2024, arXiv 2306.00409): cross-attention from the question"
        " to the picture makes one prompt token, which enters the language model at a chosen layer"
    )

    acts_in_tower = False
    searched = "layer"

    @classmethod
    def describe(cls, settings: Settings) -> dict[str, str]:
        prompts, where = (
            counted(settings.prompts, "prompt token"),
            settings.placement.replace("_", " ").replace("bos", "BOS"),
        )
        rows = {"prompt": f"{prompts} {where}, from layer {settings.layer} on"}
        if settings.classes:
            rows["classes"] = str(settings.classes)
        rows["cross-attention"] = f"width {settings.width}, {counted(settings.heads, 'head')}, query: {settings.query}"
        if settings.adapter_ratio:
            rows["adapters of the language model"] = f"its width divided by {settings.adapter_ratio}"
        return rows | ({"norms of the language model": "trained"} if settings.train_norms else {})

    @classmethod
    def build(cls, settings: Settings, sizes: Sizes) -> "Method":
        return cls(settings, sizes)

    def __init__(self, settings: Settings, sizes: Sizes):
        """Raises UserError for a layer that is not there."""
        super().__init__()
        if settings.layer >= sizes.decoder_blocks:
            raise UserError(
                f"method.layer: there is no layer {settings.layer} in the language model, whose layers run from 0 to"
                f" {sizes.decoder_blocks - 1}"
            )
        if settings.adapter_ratio > sizes.language_width:
            raise UserError(
                f"method.adapter_ratio: {settings.adapter_ratio} leaves nothing of the language model's width of"
                f" {sizes.language_width}"
            )
        self.settings, self.layer, self.depth = settings, settings.layer, sizes.decoder_blocks
        self.attention = CrossAttention(
            sizes.vision_width, sizes.language_width, settings.width, settings.heads, settings.prompts
        )
        classes, width = settings.classes, sizes.language_width
        self.classifier = Classifier(width, classes, max(1, width // NARROWER)) if classes else None
        self._adapter = settings.adapter_ratio and sizes.language_width // settings.adapter_ratio

    def looking(self) -> nn.Module | None:
        return self.attention

    @classmethod
    def shortened(cls, settings: Settings, sizes: Sizes, blocks: int) -> Settings:
        return replace(settings, layer=0)

    def first_block(self) -> int:
        """Without adapters and trained norms the blocks below the prompt train nothing."""
        return 0 if self._adapter or self.settings.train_norms else self.layer

    def choices(self) -> int:
        return self.depth

    def choose(self, value: int) -> None:
        self.layer = value

    def reserved(self) -> Sequence[Reserved]:
        anchor: Literal["start", "front"] = "start" if self.settings.placement == "before_bos" else "front"
        return (Reserved(PLACES, self.settings.prompts, anchor),)

    def labels(self) -> Labels | None:
        """Read at EOS, behind the question."""
        classes, several = self.settings.classes, self.settings.loss == "multi_label"
        return Labels(classes, several, "last") if classes else None

    def logits(self, normed_Sd: torch.Tensor, state: State, batch: Batch) -> torch.Tensor | None:
        return self.classifier(normed_Sd) if self.classifier is not None else None

    def replacement(self, name: str, linear: nn.Linear) -> nn.Linear | None:
        if not self._adapter or name not in ADAPTED:
            return None
        return AdaptedLinear(linear, self._adapter, self.settings.adapter_zero_init)

    def finish(self, tower: Tower, output: torch.Tensor, state: State, batch: Batch) -> State:
        """Of the vision tower: `visual`, the image tokens [max(I, 1), N, v]."""
        return state | {"visual": output} if tower == "vision" else state

    def visible(self, site: Site) -> tuple[str, ...] | None:
        return () if site.block < self.layer else None

    def enter(self, site: Site, hidden: torch.Tensor, state: State, batch: Batch) -> torch.Tensor:
        """The prompts take their places on entering layer K. Later steps of decoding find them in the cache."""
        if site != ("decoder", self.layer) or "visual" not in state:
            return hidden
        rows = [row for row in batch.image_rows if row >= 0]
        if not rows:  # the dummy row enters the graph with weight zero
            prompts_1kd, _ = self.attention(hidden[0, :1], state["visual"], [0])
            return hidden + 0.0 * prompts_1kd.sum()
        spans_Q2 = self._asking(batch)
        query_Qd = self._query(hidden[0], spans_Q2)
        dropout = None
        if self.training:
            dropout = Dropout(batch.token_dropout.keys[spans_Q2[:, 1] - 1]).at(site, "attention")
        prompts_Qkd, _ = self.attention(query_Qd, state["visual"], rows, dropout, self.settings.dropout)
        return hidden.index_copy(1, batch.places[PLACES], prompts_Qkd.flatten(0, 1).to(hidden.dtype)[None])

    def _asking(self, batch: Batch) -> torch.Tensor:
        """[Q, 2]: of each sample with an image [start, stop) in T of its question's tokens; of BOS if it has none."""
        own = [b for b, row in enumerate(batch.image_rows) if row >= 0]
        spans_Q2 = batch.spans[own, 0]
        before = self.settings.prompts if self.settings.placement == "before_bos" else 0
        first_Q = batch.cu_seqlens[own].long() + before
        empty_Q1 = (spans_Q2[:, 1] == spans_Q2[:, 0])[:, None]
        return torch.where(empty_Q1, torch.stack((first_Q, first_Q + 1), dim=1), spans_Q2)

    def _query(self, hidden_Td: torch.Tensor, spans_Q2: torch.Tensor) -> torch.Tensor:
        start_Q1, stop_Q1 = spans_Q2.split(1, dim=1)
        if self.settings.query == "last":
            query_Qd = hidden_Td[stop_Q1[:, 0] - 1]
        else:
            place_T = torch.arange(hidden_Td.shape[0], device=hidden_Td.device)
            inside_QT = ((place_T >= start_Q1) & (place_T < stop_Q1)).to(hidden_Td.dtype)
            query_Qd = (inside_QT @ hidden_Td) / (stop_Q1 - start_Q1).to(hidden_Td.dtype)
        return F.rms_norm(query_Qd, query_Qd.shape[-1:]) if self.settings.query_norm else query_Qd
