"""The model card of an exported folder: Markdown for people, with what adapter.json says."""

import json
from pathlib import Path
from typing import Any

from dsmemvp.config.recipe import Recipe, Training
from dsmemvp.counting import counted
from dsmemvp.evaluation.scores import scores_of, table
from dsmemvp.prompts import method_class

DIGESTED = "SHA-256 of settings, names, shapes and a sample of the values; of the tokenizer's file"


def model_card(content: dict[str, Any], recipe: Recipe, run: Path | None, digest: str) -> str:
    """`content` is adapter.json's; scores are taken from `run` if they are of the checkpoint of this digest."""
    classifies, encodes = recipe.method.classifies(), recipe.method.text_tower() == "encoder"
    models = "bert, vit" if encodes else "llama, clip"
    text = "text encoder" if encodes else "LLaMA"
    parts = [
        f"---\nlibrary_name: dsmemvp\ntags: [visual-prompting, {recipe.method.name}, {models}]\n---",
        f"# {recipe.name}",
        f"{content['parameters']:,} trained parameters that {'classify with' if classifies else 'let'} a frozen {text}"
        f" {'and' if classifies else 'see through'} a frozen {'vision tower' if encodes else 'CLIP vision tower'}."
        f" Method: {method_class(recipe.method.name).description or recipe.method.name}.",
        "Written by `dsmemvp export`, version " + content["dsmemvp"] + ". The base is not in here.",
        "## Use",
        SCORE if classifies else f"{USE}\n\n{SCORE}",
        "## Base",
        "Any copy of the base works: under any path, in any number of files, in the layout of any version of"
        " transformers. Another one is refused by these digests.",
        _table(["", DIGESTED], sorted(content["base"].items())),
        *_shapes(content),
        "## Training",
        f"{_progress(content, recipe)} The whole recipe stands in `adapter.json`.",
        _table(["", ""], _settings(recipe)),
        *(_scores(digest, run) if run else []),
    ]
    return "\n\n".join(parts) + "\n"


USE = """```python
import dsmemvp

model = dsmemvp.load("this folder", language_model="LLaMA's folder", vision_tower="CLIP's folder",
                     tokenizer="LLaMA's tokenizer.model")
picture = model.see("cat.png")
print(model.answer("What is in the picture?", picture))
```

On the command line the base is named in the same way, once for each of the three keys:

    dsmemvp generate --run FOLDER --set model.language_model=... --set model.vision_tower=... \\
        --set model.tokenizer=... --image cat.png "What is in the picture?\""""
SCORE = "`dsmemvp evaluate RECIPE --checkpoint FOLDER` scores it with the recipe it was trained with."


def _shapes(content: dict[str, Any]) -> list[str]:
    rows = [(part, ", ".join(f"{k} {v}" for k, v in keys.items())) for part, keys in content["base_shapes"].items()]
    return [_table(["model", "sizes"], rows)] if rows else []


def _progress(content: dict[str, Any], recipe: Recipe) -> str:
    if not content["step"]:
        return "Trained elsewhere; the settings below are those it is used with."
    loss = content["validation_loss"]
    validation = "" if loss is None else f"; loss on the validation samples {loss:.4f}"
    of = "" if recipe.stages else f" of {counted(recipe.training.global_batch, 'sample')}"
    steps = f"steps{of}: {content['step']}"
    stage = f"; the last one of the stage {content['stage']}" if content.get("stage") else ""
    return f"Finished epochs: {content['epoch']}; {steps}{stage}{validation}."


def _settings(recipe: Recipe) -> list[tuple[str, str]]:
    training = recipe.training
    rows = [
        (
            "learning rate",
            f"{training.learning_rate}, {training.warmup_epochs} epochs of warm-up, {_fall(training)}",
        ),
        ("AdamW", f"betas {training.betas}, weight decay {training.weight_decay}"),
        ("compute type", recipe.model.dtype),
        ("frozen base", {"none": "not quantised"}.get(recipe.model.quantize, recipe.model.quantize)),
        ("images", f"squashed, {recipe.vision.statistics}'s mean and deviation"),
        ("vision adapters", f"width {recipe.vision.adapter_dim}, scale {recipe.vision.adapter_scale}"),
        ("longest text", f"{recipe.data.max_length} tokens, captions {'on' if recipe.data.captions else 'off'}"),
        ("seed", str(recipe.seed)),
    ]
    rows += method_class(recipe.method.name).describe(recipe.method).items()
    rows += [(f"stage {name}", _changed(own)) for name, own in recipe.stages.items()]
    return rows


def _changed(stage: dict[str, Any]) -> str:
    """What a stage has other than the run, without places on one machine."""
    values = {key: value for group in ("data", "training") for key, value in stage.get(group, {}).items()}
    return ", ".join(f"{key} {value}" for key, value in values.items() if "/" not in str(value)) or "as the run"


def _fall(training: Training) -> str:
    """How the learning rate falls, in words."""
    ends = ", ".join(f"{epoch:g}" for epoch in training.step_epochs)
    steps = f"times {training.step_factor} at epochs {ends}"
    fall = {"cosine": "half a cosine", "linear": "a straight line", "steps": steps}[training.schedule]
    scaled = ", ".join(training.scaled_tensors)
    return f"{fall}; of {scaled} times {training.scaled_rate}" if scaled else fall


def _scores(digest: str, run: Path) -> list[str]:
    """Every table of numbers in the run's evaluations of this checkpoint."""
    found = []
    for path in sorted(run.glob("evaluation*.json")):
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.get("checkpoint") == digest:
            found += [_about(content), table(scores_of(content))]
    return ["## Scores", *found] if found else []


def _about(content: dict[str, Any]) -> str:
    """Of an evaluation. Its data's place is one on the machine where it was made, so only the last part is named."""
    left_out = f", {content['left_out']} of them left out" if content["left_out"] else ""
    data, protocol = Path(content["data"]).name, content["protocol"]
    intervals = "± half of a 95 % bootstrap interval"
    return f"On the {counted(content['samples'], 'sample')}{left_out} of `{data}`, protocol {protocol}; {intervals}."


def _table(columns: list[str], rows: Any) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
