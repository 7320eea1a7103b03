"""One forward and backward of the real model on fake tensors: which modules run in which order, what is held, how much
is computed. Nothing is allocated; a 13B model takes seconds.

Fake CPU tensors stand for those of a GPU: the same operations save the same tensors there. What depends on kernels (how
many, how many bytes they move) is counted on the meta device, where the model takes a GPU's way.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.recompute import Policy
from dsmemvp.building import add_trainables, build_frozen, sizes_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Batch, Captions, Item, Labels
from dsmemvp.data.layout import Reserved
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.dtypes import NAMED
from dsmemvp.model import VisualLanguageModel, loss_sum
from dsmemvp.planning.meter import Meter, Operation
from dsmemvp.prompts import build_method
from dsmemvp.prompts.interface import Stage

SUPERVISED = 8
"""Tokens of a sample's target: "The answer is B." and the end of text."""


@dataclass(frozen=True)
class Parameter:
    name: str
    numel: int
    trained: bool
    decayed: bool
    item: int
    """Bytes of an element."""
    scaled: bool = False
    """Of trained ones this and `decayed` say in which of the optimizer's groups it is."""


@dataclass(frozen=True)
class Event:
    """What ZeRO-3 hooks into: a module is about to run (`fetch`) or has run."""

    module: int
    fetch: bool
    forward: bool
    again: bool = False
    """A forward inside the backward, for gradient checkpointing."""


@dataclass(frozen=True)
class Trace:
    parameters: tuple[Parameter, ...]
    own: tuple[tuple[int, ...], ...]
    """Module -> its own parameters, without those of the modules inside it."""
    inside: tuple[tuple[int, ...], ...]
    """Module -> its own parameters and those of all modules inside it."""
    whole: frozenset[int]
    """Modules that are gathered as one, with all inside."""
    events: tuple[Event, ...]
    held: int
    """Bytes alive between forward and backward, parameters not counted."""
    peak: int
    """Most bytes alive at any moment, gradients of the trained tensors included."""
    flops: int
    """Of matrix products and attention, recomputed ones included."""
    item: int
    """Bytes of an element in the compute type."""
    forward_flops: int = 0
    """Of `flops` what the forward takes."""
    beside: int = 0
    """Bytes of what stands whole on every GPU beside the model: a stage's teacher and its copy of the vocabulary."""
    operations: Counter[Operation] = field(default_factory=Counter)
    """How often the host calls each; on the meta device with kernels of this package."""
    written_out: Counter[Operation] = field(default_factory=Counter)
    """The same in torch's operations alone."""


def trace(
    recipe: Recipe,
    configs: Configs,
    tokens: int,
    recompute: Policy | Sequence[Policy],
    device: Literal["cpu", "meta"] = "cpu",
    stage: Stage | None = None,
) -> Trace:
    """One micro-step of `recipe.training.micro_batch` samples with an image and `tokens` text tokens each, in a stage
    (None: the method's last one), to which `recipe` belongs. `recompute`: one policy, or one for each decoder layer.
    `device`: cpu takes the way of CPUs through the model, on fake tensors; meta that of GPUs in 16 bits, with their
    attention and kernels."""
    dtype = NAMED[recipe.model.dtype]
    with torch.device("meta"):
        method = build_method(recipe.method, sizes_of(configs, recipe.method))
    stage = stage or method.stages()[-1]
    method.begin_stage(stage)
    example = example_batch(recipe, configs, method.reserved(), tokens, method.labels(), stage.vision)
    if (text := method.captions()) is not None:
        example = replace(example, captions=_example_captions(example.size, text.length))
    with ExitStack() as stack:
        if device == "cpu":
            mode = stack.enter_context(FakeTensorMode())
            model, batch = _build(recipe, configs, dtype, stage), example.map(mode.from_tensor)
        else:
            with torch.device("meta"):
                model = _build(recipe, configs, dtype, stage)
            batch = example.to(torch.device("meta"))
            if model.vision is not None:
                model.vision.config._attn_implementation = "traced_flash"
        model.set_recompute(recompute, "full" if recompute == "full" else "none")
        order = _Order(model)
        with Meter() as meter:
            logits, losses = model(batch)
            terms = [losses[name] for name, weight in stage.losses.items() if weight]
            loss = sum(terms, start=loss_sum(logits, batch.targets) if stage.decoder else torch.zeros(()))
            del logits, losses
            held, forward_flops = meter.now, meter.flops
            if loss.requires_grad:  # a method may train nothing
                loss.backward()
    training = recipe.training
    scaled = tuple(training.scaled_tensors) if training.scaled_rate != 1 else ()
    places = {id(p): i for i, p in enumerate(model.parameters())}
    whole = set(model.whole_blocks())
    modules = list(model.modules())
    own, inside = (
        tuple(tuple(places[id(p)] for p in m.parameters(recurse=recurse)) for m in modules) for recurse in (False, True)
    )
    return Trace(
        parameters=tuple(
            Parameter(name, p.numel(), p.requires_grad, p.dim() > 1, p.element_size(), name.startswith(scaled))
            for name, p in model.named_parameters()
        ),
        own=own,
        inside=inside,
        whole=frozenset(i for i, m in enumerate(modules) if m in whole),
        events=tuple(order.events),
        held=held,
        peak=meter.peak,
        flops=meter.flops,
        forward_flops=forward_flops,
        item=dtype.itemsize,
        beside=_beside(model, configs, stage, dtype),
        operations=meter.operations,
        written_out=meter.written_out,
    )


def _beside(model: VisualLanguageModel, configs: Configs, stage: Stage, dtype: torch.dtype) -> int:
    elements = sum(p.numel() for p in model.teacher.module.parameters()) if model.teacher is not None else 0
    if stage.vocabulary:
        elements += configs.language.vocab_size * configs.language.hidden_size
    return elements * dtype.itemsize


def _build(recipe: Recipe, configs: Configs, dtype: torch.dtype, stage: Stage) -> VisualLanguageModel:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = build_frozen(recipe, configs, stage)
        add_trainables(model, recipe, configs, stage)
        vocabulary = configs.language.vocab_size, configs.language.hidden_size
        vocabulary_Vd = torch.empty(vocabulary) if stage.vocabulary else None
    finally:
        torch.set_default_dtype(before)
    for name, parameter in model.trainables().items():
        parameter.requires_grad_(not stage.trains or name.startswith(stage.trains))
    if model.teacher is not None or stage.vocabulary:
        teacher = model.teacher.module.requires_grad_(False).eval() if model.teacher is not None else None
        model.method.begin_stage(stage, teacher, vocabulary_Vd)
    return model


def example_batch(
    recipe: Recipe,
    configs: Configs,
    reserved: Sequence[Reserved],
    tokens: int,
    labels: Labels | None = None,
    seen: bool = True,
) -> Batch:
    """`seen`: with an image in every sample."""
    text = EncodedText(tokens=[0] * tokens, prompt=max(1, tokens - SUPERVISED), cut=False, cue=1)
    side = configs.resolution
    # an image of its own for each: one tensor would be one row
    images = torch.zeros(recipe.training.micro_batch, 3, side, side, dtype=torch.uint8)
    if recipe.vision.cache_features:
        shape = configs.features(recipe.method.vision_features())
        images = torch.zeros(recipe.training.micro_batch, *shape, dtype=NAMED[recipe.model.dtype])
    items = [Item(i, text, image if seen else None, labels=(0,) if labels else ()) for i, image in enumerate(images)]
    return make_batch(items, side, reserved, labels=labels).batch


def _example_captions(samples: int, length: int) -> Captions:
    """Rows without padding."""
    tokens_BL = torch.zeros(samples, length, dtype=torch.long)
    mask_BL = torch.ones(samples, length, dtype=torch.bool)
    return Captions(tokens_BL, mask_BL, ~mask_BL, (length,) * samples, 0)


def _flash(_: nn.Module, query: Any, key: Any, value: Any, mask: None, scaling: float, **more: Any) -> Any:
    """Attention of the vision tower as on a GPU. On the meta device torch itself would write it out."""
    assert mask is None and not more.get("dropout")
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scaling)[0].transpose(1, 2), None


AttentionInterface.register("traced_flash", _flash)


class _Order:
    """Records modules where DeepSpeed's hooks would fetch and release their parameters (parameter_offload.py)."""

    def __init__(self, model: VisualLanguageModel):
        self.events: list[Event] = []
        self._left = [0] * len(list(model.modules()))
        inside = _inside(model)
        for i, module in enumerate(model.modules()):
            if module in inside:
                continue
            module.register_forward_pre_hook(lambda _, args, i=i: self._before(i, args))
            module.register_forward_hook(lambda _, args, out, i=i: self._after(i, out))

    def _before(self, i: int, args: Any) -> Any:
        self.events.append(Event(i, fetch=True, forward=True, again=torch._C._current_graph_task_id() != -1))
        self._left[i] = sum(t.requires_grad for t in _tensors(args))
        return _each(args, lambda t: _Mark.apply(t, lambda: self._input_done(i)))

    def _after(self, i: int, out: Any) -> Any:
        self.events.append(Event(i, fetch=False, forward=True))
        return _each(out, lambda t: _Mark.apply(t, lambda: self.events.append(Event(i, fetch=True, forward=False))))

    def _input_done(self, i: int) -> None:
        self._left[i] -= 1
        if self._left[i] == 0:
            self.events.append(Event(i, fetch=False, forward=False))


def _inside(model: VisualLanguageModel) -> set[nn.Module]:
    """The modules inside the blocks that are gathered as one."""
    return {module for block in model.whole_blocks() for module in block.modules() if module is not block}


class _Mark(torch.autograd.Function):
    """The tensor itself; says when its gradient passes."""

    @staticmethod
    def forward(ctx, tensor, passed):
        ctx.passed = passed
        return tensor.detach()

    @staticmethod
    def backward(ctx, gradient):
        ctx.passed()
        return gradient, None


def _each(value: Any, change: Any) -> Any:
    """DeepSpeed looks into lists, tuples and dictionaries, and not into other objects."""
    if isinstance(value, dict):
        return {key: _each(v, change) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_each(v, change) for v in value)
    return change(value) if isinstance(value, torch.Tensor) else value


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [t for v in value for t in _tensors(v)]
    return [value] if isinstance(value, torch.Tensor) else []
