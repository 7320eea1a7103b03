"""Vision tower + language model + visual prompting method: the module that is trained. It walks the method's schedule
over the blocks of the towers (building.py makes one).

T tokens in the pack, B samples, S supervised tokens, V vocabulary, I images.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from dsmemvp.backbones.attention import Packing
from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.decoder import DecoderTower, Rotary
from dsmemvp.backbones.key_value_cache import KeyValueCache
from dsmemvp.backbones.recompute import Policy, run_again
from dsmemvp.backbones.text_encoder import ENCODERS, TextEncoder
from dsmemvp.backbones.vision import VisionTower
from dsmemvp.config.methods import VisionFeatures
from dsmemvp.data.batch import Batch
from dsmemvp.prompts import State, VisualPrompt
from dsmemvp.prompts.interface import Site, Tower

Losses = dict[str, torch.Tensor]


@dataclass
class Decoding:
    """One forward of decoding: the first reads the prompts, each later one a new token of every sample."""

    cache: KeyValueCache
    """Keys and values of the tokens before, to which this forward's are added."""
    state: State | None = None
    """For the first: what `look` made of the images, None to look now. For a later one: what the one before
    returned."""


class Teacher(NamedTuple):
    """A module of the method's that a stage learns from, outside of the model (prompts/interface.py)."""

    name: str
    """Of its tensors the beginning, in checkpoints."""
    module: nn.Module


class VisualLanguageModel(nn.Module):
    def __init__(
        self,
        configs: Configs,
        sees_images: bool,
        statistics: str = "auto",
        features: VisionFeatures | None = None,
        cached: bool = False,
        decoder: bool = True,
    ):
        """`cached`: the batch's images are features that the tower has made before; it is not built."""
        super().__init__()
        self.vision = VisionTower(configs.vision, statistics, features) if sees_images and not cached else None
        self.cached: _Cached | None = None
        if sees_images and cached:
            self.cached = _Cached(configs.features(features or VisionFeatures()), torch.get_default_dtype())
        encodes = configs.language.model_type in ENCODERS
        self.language: Any = None
        """None in a stage without a language model."""
        if decoder:
            self.language = TextEncoder(configs.language) if encodes else DecoderTower(configs.language)
        self.method = VisualPrompt()
        self.teacher: Teacher | None = None
        self.recompute: dict[Tower, Sequence[Policy]] = {}
        self.set_recompute("none")
        self.choose: Callable[[int, int], Sequence[Policy]] | None = None
        """(tokens, images) of a micro-batch -> the decoder's policies; None: those of `set_recompute`."""

    def forward(
        self, batch: Batch, decoding: Decoding | None = None, taught: bool = False
    ) -> tuple[torch.Tensor, Losses | State]:
        """-> float32 logits [S, V] at the batch's supervised tokens, and the method's auxiliary losses by name; in
        decoding, the state that the next step takes. `taught`: by what the stage's teacher makes of the captions."""
        if decoding is not None:
            return self._decode(batch, decoding)
        if taught:
            sites = [site for site in self.schedule() if site.tower == "decoder"]
            return self._walk(batch, self.method.taught(batch), sites)[0], {}
        logits_SV, state = self._walk(batch, self._begin(batch), self.schedule())
        return logits_SV, self.method.losses(state | {"logits": logits_SV}, batch)

    def set_recompute(self, decoder: Policy | Sequence[Policy], vision: Policy = "none") -> None:
        """What the backward computes again: a policy for all blocks of the decoder or one for each, and one for the
        vision tower, of which a block is either kept or computed again as a whole (`full`)."""
        each = [decoder] * self._depth("decoder") if isinstance(decoder, str) else list(decoder)
        assert len(each) == self._depth("decoder")
        self.recompute = {"decoder": each, "vision": [vision] * self._depth("vision")}

    def look(self, batch: Batch) -> State | None:
        """What the method makes of the images alone, for `Decoding.state`; None if its schedule runs the decoder's
        blocks among those of the vision tower."""
        sites = self.schedule()
        seen = [site for site in sites if site.tower == "vision"]
        if sites[: len(seen)] != seen:
            return None
        return self._walk(batch, self._begin(batch), seen)[1]

    def whole_blocks(self) -> list[nn.Module]:
        """The decoder's blocks without anything trained: ZeRO-3 gathers each as one."""
        blocks = self.language.layers if self.language is not None else ()
        return [block for block in blocks if not any(p.requires_grad for p in block.parameters())]

    def trainables(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def _begin(self, batch: Batch) -> State:
        """The method's state before any block, and if features are cached after those of the vision tower."""
        state = self.method.begin(batch)
        if self.cached is None:
            return state
        features = batch.images if batch.images.shape[0] else self.cached.dummy(batch.images.device)
        return self.method.finish("vision", features, state, batch)

    def schedule(self) -> list[Site]:
        towers: tuple[Tower, ...] = ("decoder", "vision")
        depths: dict[Tower, int] = {tower: depth for tower in towers if (depth := self._depth(tower))}
        return self.method.schedule(depths)

    def _decode(self, batch: Batch, decoding: Decoding) -> tuple[torch.Tensor, State]:
        cache, sites = decoding.cache, self.schedule()
        first, state = not cache.lengths, decoding.state
        if not first:
            cache.make_room()
        if state is None:
            state = self._begin(batch)
        else:
            sites = [site for site in sites if site.tower == "decoder"]
        logits_SV, state = self._walk(batch, state, sites, cache)
        if not first:
            cache.advance()
            return logits_SV, state
        cache.begin(batch.lengths, batch.cu_seqlens)
        return logits_SV, self.method.decoding(state, batch)

    def _walk(
        self, batch: Batch, state: State, sites: Iterable[Site], cache: KeyValueCache | None = None
    ) -> tuple[torch.Tensor, State]:
        """-> logits (empty if the decoder is not walked to its end), and the state after the last site."""
        hidden: dict[Tower, torch.Tensor] = {}
        logits_SV = torch.empty(0)
        context = _Context(batch, Packing(batch.cu_seqlens, batch.lengths, cache), self._policies(batch))
        for site in sites:
            if site.tower not in hidden:
                hidden[site.tower] = self._start(site.tower, batch)
                if site.tower == "decoder":
                    context.rotary = self.language.rotary(batch.positions, hidden["decoder"].dtype)
            hidden[site.tower] = self._step(site, context, hidden[site.tower], state)
            state = self.method.collect(site, hidden[site.tower], state, batch)
            if site == ("vision", self._depth("vision") - 1):
                assert self.vision is not None
                features = self.vision.finish(hidden["vision"])
                state = self.method.finish("vision", features, state, batch)
            elif site == ("decoder", self._depth("decoder") - 1):
                normed_Sd = self.language.finish(hidden["decoder"][0])
                state = self.method.finish("decoder", normed_Sd, state, batch)
                own = self.method.logits(normed_Sd, state, batch)
                logits_SV = self.language.head(normed_Sd) if own is None else own
        return logits_SV, state

    def _policies(self, batch: Batch) -> dict[Tower, Sequence[Policy]]:
        if self.choose is None or not torch.is_grad_enabled():
            return self.recompute
        return self.recompute | {"decoder": self.choose(batch.tokens.shape[0], batch.images.shape[0])}

    def _depth(self, tower: Tower) -> int:
        part = self.language if tower == "decoder" else self.vision
        return part.depth if part is not None else 0

    def _start(self, tower: Tower, batch: Batch) -> torch.Tensor:
        if tower == "decoder":
            if isinstance(self.language, TextEncoder):
                return self.language.start(batch.tokens, batch.text_positions)
            return self.language.start(batch.tokens)
        assert self.vision is not None
        images = batch.images
        if images.shape[0] == 0:
            # every rank runs the same modules in every micro-step; the method gives the dummy row weight zero
            images = images.new_zeros(1, *images.shape[1:])
        return self.vision.start(images)

    def _step(self, site: Site, context: "_Context", hidden: torch.Tensor, state: State) -> torch.Tensor:
        """One block with what the method does around it."""
        batch, method, policy = context.batch, self.method, context.policies[site.tower][site.block]
        hidden = method.enter(site, hidden, state, batch)

        def branch(x: torch.Tensor) -> torch.Tensor | None:
            return method.mlp(site, x, state, batch)

        if site.tower == "vision":
            assert self.vision is not None
            dropout = batch.image_dropout(*hidden.shape[:2]).at(site) if self.training else None
            block = self.vision.layers[site.block]
            given = (hidden, branch, dropout)
            hidden = run_again(block, *given) if policy == "full" else block(*given)
        else:
            packing = context.reading(method.visible(site))
            dropout, rows_S = batch.token_dropout if self.training else None, None
            if site.block == self._depth("decoder") - 1 and batch.supervised.shape[0] < batch.tokens.shape[0]:
                rows_S, batch = batch.supervised, batch.at_supervised()
            block = self.language.layers[site.block]
            hidden = block(hidden, context.rotary, packing, branch, dropout, policy, rows_S)
        return method.leave(site, hidden, state, batch)


@dataclass(frozen=True)
class _Cached:
    """What features of an image are."""

    shape: tuple[int, int]
    """[P, v]"""
    dtype: torch.dtype

    def dummy(self, device: torch.device) -> torch.Tensor:
        """[1, P, v] for a batch without images, to which the method gives weight zero."""
        return torch.zeros(1, *self.shape, dtype=self.dtype, device=device)


@dataclass
class _Context:
    """The same for all blocks of a forward."""

    batch: Batch
    packing: Packing
    policies: dict[Tower, Sequence[Policy]]
    rotary: Rotary | None = None
    read: dict[tuple[str, ...] | None, Packing] = field(default_factory=dict)

    def reading(self, visible: tuple[str, ...] | None) -> Packing:
        """For blocks that read these of the reserved places (None: all), made once."""
        if visible not in self.read:
            self.read[visible] = replace(self.packing, hidden=_hidden_places(visible, self.batch))
        return self.read[visible]


def _hidden_places(visible: tuple[str, ...] | None, batch: Batch) -> torch.Tensor | None:
    """[T] bool of the reserved places that a block does not read; None if it reads all."""
    hidden = [] if visible is None else [place for name, place in batch.places.items() if name not in visible]
    if not hidden:
        return None
    mask = torch.zeros_like(batch.tokens, dtype=torch.bool)
    for place in hidden:
        mask[place] = True
    return mask


def loss_sum(logits_SV: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over supervised tokens, float32; of several labels [S, V] binary cross-entropy, summed over
    all entries."""
    if targets.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits_SV, targets, reduction="sum")
    return F.cross_entropy(logits_SV, targets, reduction="sum")
