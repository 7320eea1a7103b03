"""MITP (Yu et al., arXiv 2401.14856) for text-image classification: a vision tower and a text encoder side by side.
Re-implementation from the published description; how it was read is said by the keys of `Settings`.

    [p_hat_m; u_m] = Block([p_m; u_m])                 in both towers m, at the points; other blocks run on u_m alone
    S = cos(p_hat_v, p_hat_t) / tau                    c_v = softmax(S) p_hat_t     c_t = softmax(S^T) p_hat_v
    p_m <- p_hat_m + G_m gelu(c_m)                     after every point but the last

Towers of different widths compare and mix in a shared one, rank, as in mitp: e_m = A_m rms(p_hat_m) stands for p_hat_m
in S and in c_m, and for the first text prompts in the map that makes the first vision prompts of them.

The classes are read from both towers' class tokens. A sample without an image sees none: g = 0 for what the hub adds,
and a class token of zeros. T tokens in the pack, B samples, n prompts, d width of the text encoder, v of the vision
tower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn
from torch.nn import functional as F

from dsmemvp.backbones.linear import Linear
from dsmemvp.config.fields import CONFIG, FROM_TEXT, Blocks, ClassLoss, Factor, Width
from dsmemvp.config.methods import MethodSettings, VisionFeatures
from dsmemvp.data.batch import Batch, Labels
from dsmemvp.data.layout import Reserved
from dsmemvp.errors import UserError
from dsmemvp.host_values import from_host
from dsmemvp.prompts.interface import Compared, Site, Sizes, State, Tower, VisualPrompt
from dsmemvp.prompts.parts.classifier import Classifier
from dsmemvp.prompts.parts.maps import cosines, rms, wide, zero_linear
from dsmemvp.prompts.parts.rows import enter_vision, of_samples, read_slots, write_slots

PROMPTS = "prompts"
SIMILARITY = "similarity_"
"""Of the hub behind the block with the number behind it, in the state"""


@dataclass(config=CONFIG)
class Settings(MethodSettings):
    classes: Annotated[int, Field(ge=2, le=2**16)] = 101
    """Classes of the data: labels run from 0 to one below."""
    loss: ClassLoss = "cross_entropy"
    """One class for each sample, or any number of them: binary cross-entropy, a class from a probability of 0.5 on."""
    prompt_len: Annotated[int, Field(ge=1, le=2**10)] = 4
    """Prompts in each tower, in front of its tokens."""
    prompt_std: Factor = 0.02
    """Standard deviation of the first text prompts' initial values. At 0.02 BERT makes them all alike: sweep it."""
    points: Blocks = field(default_factory=list)
    """Blocks of both towers, from 0, that see prompts, increasing. None given: the upper half."""
    tau: Annotated[float, Field(gt=0, le=1000), FROM_TEXT] = 0.1
    """Temperature that the cosine is divided by."""
    hub: Literal["similarity", "uniform", "off"] = "similarity"
    """Weights of the hub: by similarity, or 1 / prompt_len; `off`: prompts are passed on as they are."""
    rank: Width = 128
    """Width in which the hub compares and mixes if the towers are of different widths; else it is not read."""
    direction: Literal["both", "text_to_vision", "vision_to_text"] = "both"
    """Which towers' prompts the hub changes: of the other one they are passed on as they are."""
    prompts: bool = True
    """Whether there are any; if not, only the classifier is trained, on the class tokens of the frozen towers."""

    def vision_features(self) -> VisionFeatures:
        return VisionFeatures(class_token=True)

    def text_tower(self) -> Literal["encoder"]:
        return "encoder"

    def classifies(self) -> bool:
        return True


class Method(VisualPrompt):
    description = (
        "MITP, memory-inspired temporal prompt interaction, for classification (re-implementation from the published"
        " description): prompts in a vision tower and a text encoder that meet in a hub"
    )

    @classmethod
    def describe(cls, settings: Settings) -> dict[str, str]:
        prompts = f"{settings.prompt_len} in each tower, {settings.hub}, {settings.direction}"
        return {"classes": str(settings.classes), "prompts": prompts if settings.prompts else "none"}

    @classmethod
    def build(cls, settings: Settings, sizes: Sizes) -> "Method":
        return cls(settings, sizes)

    def __init__(self, settings: Settings, sizes: Sizes):
        """Raises UserError for towers that do not go together, and for points that they do not have."""
        super().__init__()
        self.settings, depth = settings, sizes.decoder_blocks
        if sizes.vision_blocks != depth:
            raise UserError(
                f"method.name: mitp_encoders needs towers of as many blocks, not of {sizes.vision_blocks} and {depth}"
            )
        points = settings.points or list(range(depth // 2, depth))
        if points[-1] >= depth:
            raise UserError(f"method.points: the towers have no block {points[-1]}; they run from 0 to {depth - 1}")
        self.points, self.last = tuple(points) if settings.prompts else (), depth - 1
        v, d = sizes.vision_width, sizes.language_width
        self.classifier = Classifier(v + d, settings.classes)
        if not self.points:
            return
        hub = settings.hub != "off" and len(points) > 1
        shared = d if v == d else settings.rank
        self.text_prompt = nn.Parameter(torch.empty(settings.prompt_len, d).normal_(std=settings.prompt_std))
        self.to_rank_text = None if v == d else Linear(d, shared)
        self.to_rank_vision = None if v == d or not hub else Linear(v, shared)
        self.first_vision = Linear(shared, v)
        self.to_vision = zero_linear(shared, v) if hub and settings.direction != "vision_to_text" else None
        self.to_text = zero_linear(shared, d) if hub and settings.direction != "text_to_vision" else None

    def labels(self) -> Labels:
        return Labels(self.settings.classes, self.settings.loss == "multi_label")

    def first_block(self) -> int:
        return self.points[0] if self.points else 0

    def reserved(self) -> Sequence[Reserved]:
        return (Reserved(PROMPTS, self.settings.prompt_len, "start", without_image=True),) if self.points else ()

    def schedule(self, depths: Mapping[Tower, int]) -> list[Site]:
        """Block by block, the vision tower's first."""
        return [Site(tower, block) for block in range(depths["decoder"]) for tower in ("vision", "decoder")]

    def begin(self, batch: Batch) -> State:
        """`text` and `vision` are the prompts of the next points: [1, n, d] and [1, n, v]."""
        has_image_B = from_host([row >= 0 for row in batch.image_rows], batch.tokens.device)
        state = {"has_image": has_image_B[:, None]}
        if self.points:
            state["text"] = self()
            state["vision"] = self.first_vision(_shared(self.to_rank_text, state["text"]))
        return state

    def forward(self) -> torch.Tensor:
        """The first text prompts, [1, n, d]."""
        return self.text_prompt[None].clone()  # under ZeRO-3 the parameter itself is cut again behind this

    def visible(self, site: Site) -> tuple[str, ...] | None:
        return None if site.block in self.points else ()

    def enter(self, site: Site, hidden: torch.Tensor, state: State, batch: Batch) -> torch.Tensor:
        if site.tower == "vision":
            return enter_vision(hidden, state["vision"], site.block, self.points, batch) if self.points else hidden
        if site.block not in self.points:
            return hidden
        return write_slots(hidden, state["text"], batch.places[PROMPTS], batch)

    def collect(self, site: Site, hidden: torch.Tensor, state: State, batch: Batch) -> State:
        if site.tower == "vision" and site.block in self.points:
            return state | {"seen": of_samples(hidden[:, : self.settings.prompt_len], batch)}
        if site.tower == "decoder" and site.block in self.points[:-1]:
            text_Bnd = read_slots(hidden, state["text"], batch.places[PROMPTS], batch)
            return self._meet(site.block, text_Bnd, state)
        return state

    def _meet(self, block: int, text_Bnd: torch.Tensor, state: State) -> State:
        vision_Bnv = state["seen"]
        state = state | {"text": text_Bnd, "vision": vision_Bnv}
        if self.settings.hub == "off":
            return state
        v = wide(_shared(self.to_rank_vision, vision_Bnv))
        t = wide(_shared(self.to_rank_text, text_Bnd))
        similarity = cosines(v, t) / self.settings.tau
        state[f"{SIMILARITY}{block}"] = similarity
        # with weight zero: in one direction nothing else may read a map to the shared width
        scores = 0.0 * similarity if self.settings.hub == "uniform" else similarity
        has_image_B11 = state["has_image"][..., None].to(text_Bnd.dtype)
        if self.to_vision is not None:
            mixed = F.gelu(scores.softmax(-1) @ t).to(text_Bnd.dtype)
            state["vision"] = vision_Bnv + has_image_B11 * self.to_vision(mixed)
        if self.to_text is not None:
            mixed = F.gelu(scores.transpose(1, 2).softmax(-1) @ v).to(text_Bnd.dtype)
            state["text"] = text_Bnd + has_image_B11 * self.to_text(mixed)
        return state

    def finish(self, tower: Tower, output: torch.Tensor, state: State, batch: Batch) -> State:
        """Of the vision tower its class token, normed, of every sample: [B, v]."""
        if tower == "decoder":
            return state
        place = self.settings.prompt_len if self.last in self.points else 0
        return state | {"class_token": of_samples(output[:, place], batch) * state["has_image"].to(output.dtype)}

    def logits(self, normed_Sd: torch.Tensor, state: State, batch: Batch) -> torch.Tensor:
        """Of the samples' class tokens; of a lone token in place of samples none."""
        return self.classifier(torch.cat((state["class_token"][: len(normed_Sd)], normed_Sd), dim=-1))

    def decoding(self, state: State, batch: Batch) -> State:
        """For `compared`: nothing is decoded."""
        return {name: value for name, value in state.items() if name.startswith(SIMILARITY)}

    def compared(self, state: State) -> Sequence[Compared]:
        return [
            Compared(f"block {block}", self.settings.tau * state[f"{SIMILARITY}{block}"], "cosine")
            for block in self.points[:-1]
            if self.settings.hub != "off"
        ]


def _shared(to_rank: Linear | None, prompts: torch.Tensor) -> torch.Tensor:
    """In the width that both towers' prompts are compared and mixed in."""
    return prompts if to_rank is None else to_rank(rms(prompts))
