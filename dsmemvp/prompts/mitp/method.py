"""MITP (Yu et al., arXiv 2401.14856) on a vision tower and a decoder: re-implementation from the published description.
No code of the authors is public; how the description was read is said by the keys of `Settings`.

Both towers run in step. At its points a tower's block sees prompts, in the decoder slots behind the question; there
they acquire what that tower knows. After a pair of points the hub (hub.py) mixes the acquired prompts into those of the
next points. In all other blocks the slots are hidden, and the vision tower runs without prompts.

No gradient passes below the first point of either tower: the text's needs nothing but a forward there, and the vision
tower's depends on no trained weight.

T tokens in the pack, B samples, n prompts, v and d widths of the towers; rows of the vision tower are images, from the
second point on samples with an image, since their prompts then depend on the question.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from dsmemvp.counting import counted
from dsmemvp.data.batch import Batch
from dsmemvp.data.layout import Reserved
from dsmemvp.host_values import from_host
from dsmemvp.prompts.interface import Compared, Site, Sizes, State, Tower, VisualPrompt
from dsmemvp.prompts.mitp.hub import Hub, Queries
from dsmemvp.prompts.mitp.settings import Settings, points_of
from dsmemvp.prompts.parts.rows import enter_vision, of_samples, read_slots, write_slots

SLOTS = "prompts"
SIMILARITY = "similarity_"
"""Of the hub with the number behind it, in the state"""


class Method(VisualPrompt):
    description = (
        "MITP, memory-inspired temporal prompt interaction (re-implementation from the published description): prompts"
        " in both towers that meet in a hub"
    )

    @classmethod
    def describe(cls, settings: Settings) -> dict[str, str]:
        prompts, rank = counted(settings.prompt_len, "prompt"), settings.rank
        return {"prompts": f"{prompts} in each tower, hub of rank {rank}, {settings.hub}, {settings.vision}"}

    @classmethod
    def build(cls, settings: Settings, sizes: Sizes) -> "Method":
        return cls(settings, sizes)

    def __init__(self, settings: Settings, sizes: Sizes):
        """Raises UserError for points that do not fit the towers."""
        super().__init__()
        points = points_of(settings, sizes)
        self.text_points, self.vision_points = points.text, points.vision
        self.settings, self.prompts, self.carry = settings, settings.prompt_len, settings.carry
        shape = (self.prompts, sizes.language_width)
        self.text_prompt = nn.Parameter(torch.empty(shape).normal_(std=settings.prompt_std))
        self.hub = Hub(settings, sizes, len(self.vision_points)) if settings.hub != "off" else None
        cached = self.hub is not None and settings.vision == "cached"
        self.queries = Queries(self.prompts, sizes.vision_width) if cached else None

    @classmethod
    def shortened(cls, settings: Settings, sizes: Sizes, blocks: int) -> Settings:
        """The vision tower between its first and its last point is the same."""
        points = points_of(settings, sizes)
        text = range(min(len(points.text), 3) - 1)
        vision = points.vision if len(points.vision) == 1 else (points.vision[0], points.vision[-1])
        return replace(settings, text_points=[*text, blocks - 1], vision_points=list(vision))

    def first_block(self) -> int:
        return self.text_points[0]

    def reserved(self) -> Sequence[Reserved]:
        return (Reserved(SLOTS, self.prompts, "before_cue", without_image=True),)

    def schedule(self, depths: Mapping[Tower, int]) -> list[Site]:
        """Text to its r-th point behind vision to its r-th; the vision tower ends with its last point."""
        seen = read = 0
        sites: list[Site] = []
        for vision, text in zip(self.vision_points, self.text_points, strict=False):
            if self.hub is not None:
                sites += [Site("vision", block) for block in range(seen, vision + 1)]
            sites += [Site("decoder", block) for block in range(read, text + 1)]
            seen, read = vision + 1, text + 1
        return sites + [Site("decoder", block) for block in range(read, depths["decoder"])]

    def begin(self, batch: Batch) -> State:
        """`text` and `vision` are the prompts of the next points, of all samples alike: [1, n, width]."""
        text_1nd = self()
        if self.hub is None:
            return {"text": text_1nd}
        has_image_B = from_host([row >= 0 for row in batch.image_rows], text_1nd.device)
        state = {"text": text_1nd, "has_image": has_image_B[:, None, None]}
        if self.queries is None:
            state["vision"] = self.hub.first(text_1nd)
        return state if self.carry else state | {f"first_{m}": state[m] for m in ("text", "vision") if m in state}

    def forward(self) -> torch.Tensor:
        """The first text prompts, [1, n, d]."""
        return self.text_prompt[None].clone()  # under ZeRO-3 the parameter itself is cut again behind this

    def visible(self, site: Site) -> tuple[str, ...] | None:
        return None if site.block in self.text_points else ()

    def enter(self, site: Site, hidden: torch.Tensor, state: State, batch: Batch) -> torch.Tensor:
        if site.tower == "vision":
            if self.queries is not None:
                return hidden
            return enter_vision(hidden, state["vision"], site.block, self.vision_points, batch)
        if site.block not in self.text_points or "text" not in state:  # later steps of decoding find slots in the cache
            return hidden
        return write_slots(hidden, state["text"], batch.places[SLOTS], batch)

    def collect(self, site: Site, hidden: torch.Tensor, state: State, batch: Batch) -> State:
        """At a vision point `seen`, the acquired prompts of every sample [B, n, v]; at a text point the hub. A sample
        without image reads any row, and g is 0."""
        if site.tower == "vision" and site.block in self.vision_points:
            seen = hidden[:, : self.prompts] if self.queries is None else self.queries(hidden)
            return state | {"seen": of_samples(seen, batch)}
        if site.tower == "decoder" and site.block in self.text_points[:-1] and "text" in state:
            text_Bnd = read_slots(hidden, state["text"], batch.places[SLOTS], batch)
            return self._meet(self.text_points.index(site.block), text_Bnd, state)
        return state

    def _meet(self, number: int, text_Bnd: torch.Tensor, state: State) -> State:
        if self.hub is None:
            return state | {"text": text_Bnd}
        mixed = self.hub.mix(state["seen"], text_Bnd)
        has_image = state["has_image"].to(text_Bnd.dtype)
        kept = text_Bnd if self.carry else state["first_text"]
        state = state | {"text": self.hub.text(kept, mixed, has_image), f"{SIMILARITY}{number}": mixed.similarity}
        if self.hub.from_rank_vision is not None and number + 1 < len(self.vision_points):
            kept = state["seen"] if self.carry else state["first_vision"]
            state["vision"] = self.hub.vision(kept, mixed, has_image)
        return state

    def decoding(self, state: State, batch: Batch) -> State:
        """Later steps need nothing: they find the slots in the cache. The hubs' similarities are for `compared`."""
        return {name: value for name, value in state.items() if name.startswith(SIMILARITY)}

    def compared(self, state: State) -> Sequence[Compared]:
        unit = {"cos": "cosine", "dot": "product / sqrt(rank)"}[self.settings.sim]
        scale = self.settings.tau if self.settings.sim == "cos" else 1.0
        pairs = zip(self.vision_points, self.text_points, strict=False)
        return [
            Compared(f"vision {v}, text {t}", scale * state[f"{SIMILARITY}{r}"], f"{unit} of vision and text prompts")
            for r, (v, t) in enumerate(pairs if self.hub is not None else ())
        ]
