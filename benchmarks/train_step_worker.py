"""One rank of one contender of `train_step.py --against`: builds the model with the code that PYTHONPATH names, then
runs training steps, each named by a line of standard input, and answers with the seconds and the CPU seconds that it
took; after "memory" with the bytes that are held between its forward and backward, and the most at any moment; after
"language" with the bytes of the language model's tensors, which are then let go.

The same file drives both sides. `_Old` is code up to commit 4a25991, whose batches are laid out padded; `_New` is what
came after. The samples of a step are the same for both: 8 of ScienceQA's lengths, assigned to the ranks by each
side's own balancing.
"""

import ctypes
import gc
import json
import random
import sys
import time
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from measured_memory import held_and_peak
from scienceqa_lengths import Length, draw
from transformers import CLIPVisionConfig, LlamaConfig


class Sample(NamedTuple):
    length: Length
    tokens: list[int]
    image: torch.Tensor | None
    """[3, R, R] uint8"""


def main() -> None:
    spec = json.loads(sys.argv[1])
    padded = (Path(spec["root"]) / "dsmemvp" / "models").exists()
    if spec["side"] == "old" and spec["recompute"] != "full":
        spec["recompute"] = "none"  # what there was before the policies
    side = _Old() if padded else _New()
    assert Path(str(side.package.__file__)).is_relative_to(spec["root"]), side.package.__file__
    run, about = side.build(spec, *_configs(spec))
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        what, _, step = line.rpartition(" ")
        answer = {"memory": run.memory, "language": run.language}.get(what, run.seconds)
        print(json.dumps(answer(int(step))), flush=True)
    side.leave()


def _configs(spec: dict[str, Any]) -> tuple[LlamaConfig, CLIPVisionConfig]:
    return LlamaConfig(**spec["language"]), CLIPVisionConfig(**spec["vision"])


def _global_batches(spec: dict[str, Any]) -> list[list[Sample]]:
    rng, generator = random.Random(1), torch.Generator().manual_seed(1)
    size, side, vocabulary = spec["global_batch"], spec["vision"]["image_size"], spec["language"]["vocab_size"]
    samples = []
    for length in draw(size * spec["steps"]):
        image = torch.randint(256, (3, side, side), dtype=torch.uint8, generator=generator) if length.image else None
        samples.append(Sample(length, [rng.randrange(3, vocabulary) for _ in range(length.tokens)], image))
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def _packing() -> Any:
    """The module of `make_batch`, which was a part of batch.py before it had a file of its own."""
    own = "dsmemvp.data.packing"
    return import_module(own if find_spec(own) else "dsmemvp.data.batch")


class _New:
    def __init__(self) -> None:
        import dsmemvp
        from dsmemvp.distributed.ranks import leave_ranks

        self.package, self.leave = dsmemvp, leave_ranks

    def build(self, spec: dict[str, Any], language: Any, vision: Any) -> "tuple[_Steps, dict]":
        from dsmemvp.backbones.configs import Configs
        from dsmemvp.backbones.costs import cost_model
        from dsmemvp.backbones.partitioned import fill_randomly
        from dsmemvp.config.methods import method_settings
        from dsmemvp.config.recipe import Model, Recipe, Training
        from dsmemvp.data.balancing import Weight, balance
        from dsmemvp.data.batch import Item
        from dsmemvp.data.text import EncodedText
        from dsmemvp.distributed.ranks import join_ranks
        from dsmemvp.training.engine import build_trainer

        packing = _packing()
        ranks = join_ranks(seconds=1800)
        method = method_settings(spec["method"], **({"slots": spec["slots"]} if spec["method"] == "memvp" else {}))
        recipe = Recipe(
            "benchmark",
            model=Model(dtype=spec["dtype"], **{key: spec[key] for key in ("quantize",) if key in spec}),
            method=method,
            training=_training(Training, spec, ranks),
        )
        trainer = build_trainer(recipe, Configs(language, vision), ranks, load=fill_randomly)
        batches, costs = [], cost_model(language, vision)
        for samples in _global_batches(spec):
            weights = [Weight(s.length.tokens, s.length.image) for s in samples]
            (own,) = balance(weights, costs, ranks.world, recipe.training.micro_batch)[ranks.rank]
            items = [Item(i, _encoded(EncodedText, samples[i]), samples[i].image) for i in own]
            items, reserved = packing.by_image(items), trainer.model.method.reserved()
            batches.append(packing.make_batch(items, vision.image_size, reserved=reserved).batch)
        return _Steps(trainer, batches, _supervised(spec)), {"tokens": sum(b.tokens.numel() for b in batches)}


class _Old:
    def __init__(self) -> None:
        from dsmemvp.training.ranks import leave_ranks

        import dsmemvp

        self.package, self.leave = dsmemvp, leave_ranks

    def build(self, spec: dict[str, Any], language: Any, vision: Any) -> "tuple[_Steps, dict]":
        from dsmemvp.data.dealing import Weight, deal
        from dsmemvp.models.joined import Configs
        from dsmemvp.models.partitioned import fill_randomly
        from dsmemvp.recipe import Method, Model, Recipe, Training
        from dsmemvp.training.ranks import join_ranks

        from dsmemvp.data.batch import Item
        from dsmemvp.data.images import STATISTICS
        from dsmemvp.data.text import EncodedText
        from dsmemvp.training.engine import build_trainer

        old_make_batch = _packing().make_batch  # of another signature than the present one
        ranks = join_ranks(seconds=1800)
        method = Method(spec["method"], slots=spec["slots"])
        recipe = Recipe(
            "benchmark", model=Model(dtype=spec["dtype"]), method=method, training=_training(Training, spec, ranks)
        )
        trainer = build_trainer(recipe, Configs(language, vision), ranks, load=fill_randomly)
        mean, deviation = (torch.tensor(s)[:, None, None] for s in STATISTICS["imagenet"])
        batches = []
        for samples in _global_batches(spec):
            weights = [Weight(s.length.tokens, s.length.image) for s in samples]
            (own,) = deal(weights, ranks.world, recipe.training.micro_batch)[ranks.rank]
            items = []
            for i in own:
                image = samples[i].image
                pixels = None if image is None else (image / 255 - mean) / deviation  # by the loader, not the step
                items.append(Item(i, _encoded(EncodedText, samples[i]), pixels))
            batches.append(old_make_batch(items, vision.image_size, trainer.model.method.slots))
        return _Steps(trainer, batches, _supervised(spec)), {"tokens": sum(b.size * b.length for b in batches)}


def _training(Training: Any, spec: dict[str, Any], ranks: Any) -> Any:
    size = spec["global_batch"]
    return Training(
        global_batch=size,
        micro_batch=size // ranks.world,
        recompute=spec["recompute"],
        deepspeed=spec["deepspeed"],
    )


def _encoded(EncodedText: Any, sample: Sample) -> Any:
    known = {field.name for field in fields(EncodedText)}  # the older code knew no cue
    return EncodedText(sample.tokens, sample.length.prompt, False, **({"cue": 1} if "cue" in known else {}))


def _supervised(spec: dict[str, Any]) -> list[int]:
    """Supervised tokens of every global batch."""
    return [sum(s.length.tokens - s.length.prompt for s in samples) for samples in _global_batches(spec)]


class _Steps:
    def __init__(self, trainer: Any, batches: list[Any], supervised: list[int]):
        self._trainer, self._batches, self._supervised = trainer, batches, supervised

    def seconds(self, step: int) -> list[float]:
        start, used = time.perf_counter(), time.process_time()
        self._accumulate(step)
        self._trainer.update(1e-4)
        return [time.perf_counter() - start, time.process_time() - used]

    def memory(self, step: int) -> list[int]:
        """Of this rank: (held, peak)"""
        held, _ = held_and_peak(lambda: self._trainer.engine(self._batches[step]))
        _, peak = held_and_peak(lambda: self._accumulate(step))
        self._trainer.update(1e-4)
        return [held, peak]

    def language(self, step: int) -> list[int]:
        """Of this rank: (bytes of the language model's tensors, what the system gets back when they are let go)"""
        before, held = _resident(), 0
        for parameter in self._trainer.model.language.parameters():
            for part in (parameter, getattr(parameter, "ds_tensor", None)):
                if part is not None:
                    held += part.nbytes
                    part.data = torch.empty(0, dtype=part.dtype)
        return [held, before - _resident()]

    def _accumulate(self, step: int) -> None:
        self._trainer.accumulate([self._batches[step]], 1 / self._supervised[step])


def _resident() -> int:
    """Of this process, once what is free has gone back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    main()
