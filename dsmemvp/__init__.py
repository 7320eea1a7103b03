"""dsmemvp: fine-tune frozen LLaMA models on image-text tasks with memory-space visual prompts.

    import dsmemvp

    model = dsmemvp.load("runs/demo")
    picture = model.see("cat.png")
    print(model.answer("What colour is it?", picture))

The packages stand in the order in which a sample passes through them, and imports point only backwards:
recipe -> data -> backbones -> prompts -> model -> checkpoints -> training -> generation, inspection -> evaluation
-> export -> cli (docs/contributing.md says what each is for).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from dsmemvp.generation.answers import Answerer

__version__ = "0.1.0"


def load(
    folder: "str | Path",
    checkpoint: "str | Path | None" = None,
    *,
    language_model: "str | Path | None" = None,
    vision_tower: "str | Path | None" = None,
    tokenizer: "str | Path | None" = None,
    **overrides: "Any",
) -> "Answerer":
    """The trained model of a run's folder, or of one that `dsmemvp export` has written, to answer questions with
    (generation/answers.py): whole, on this process's own device. An exported folder needs to know where the base is;
    for a run that stands in its recipe, of which `overrides` are other keys, such as **{"evaluation.batch": 4}. Raises
    UserError that say what is wrong and where."""
    from dsmemvp.generation.answers import load

    base = {"language_model": language_model, "vision_tower": vision_tower, "tokenizer": tokenizer}
    named = {f"model.{key}": str(place) for key, place in base.items() if place is not None}
    return load(folder, checkpoint, {**named, **overrides})
