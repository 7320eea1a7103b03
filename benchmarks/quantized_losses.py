"""What the frozen base's form costs in loss: without training, and over the first steps of a recipe.

    python benchmarks/quantized_losses.py base --model data/parts/smollm2 --text FILE --rows ROWS.jsonl
    python benchmarks/quantized_losses.py training recipes/real.yaml --steps 50 --seeds 0 1 2

`base` needs no training: the loss of a text, and of short answers ({"question": ..., "answer": ...} in each line), with
weights that were quantised beside the same in float32. `training` starts `dsmemvp train` for every form and seed, on
one rank, and compares the mean loss over all steps with that of the first form. A seed is one of initial values, order
and dropout, the same for all forms. A form that only changes the order of additions, such as training.micro_batch=16,
shows how far rounding alone takes two runs apart.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from dsmemvp.backbones.quantized import Form, Layout, product, quantize

FORMS = ["none", "int8", "nf4", "nf4,model.nf4_scales=largest"]
"""model.quantize, and behind commas further settings."""
LARGEST = "model.nf4_scales=largest"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    base = commands.add_parser("base")
    base.add_argument("--model", required=True)
    base.add_argument("--text", type=Path, required=True)
    base.add_argument("--rows", type=Path, required=True)
    base.add_argument("--tokens", type=int, default=1024, help="of the text")
    training = commands.add_parser("training")
    training.add_argument("recipe")
    training.add_argument("--steps", type=int, default=50)
    training.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    training.add_argument("--set", nargs="*", default=[], help="further settings, key=value")
    for command in (base, training):
        command.add_argument("--forms", nargs="+", default=FORMS)
        command.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    _base(given) if given.command == "base" else _training(given)


# ---- without training


@torch.no_grad()
def _base(given: argparse.Namespace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    rows = [json.loads(line) for line in given.rows.read_text().splitlines()]
    text = tokenizer(given.text.read_text(), return_tensors="pt").input_ids[:, : given.tokens]
    weights = {name: p.clone() for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2}
    print("| form | error of the weights | text | | answers | |\n|---|---:|---:|---:|---:|---:|")
    first: list[float] = []
    for form in given.forms:
        lost, whole = 0.0, 0.0
        for name, weight in weights.items():
            found = _rounded(weight, form)
            lost, whole = lost + (found - weight).square().sum().item(), whole + weight.square().sum().item()
            model.get_parameter(name).copy_(found)
        losses = [model(text, labels=text).loss.item(), _answers(model, tokenizer, rows)]
        first = first or losses
        cells = [f"{loss:.4f} | {100 * (loss / was - 1):+.1f} %" for loss, was in zip(losses, first, strict=True)]
        print(f"| `{form}` | {100 * math.sqrt(lost / whole):.2f} % | {' | '.join(cells)} |", flush=True)


def _rounded(weight: torch.Tensor, form: str) -> torch.Tensor:
    """What a weight [O, I] is after it was stored."""
    name = form.partition(",")[0]
    if name == "none":
        return weight
    shape = (weight.shape[0], weight.shape[1])
    layout = Layout(cast(Form, name), shape, fitted=name == "nf4" and LARGEST not in form)
    codes, found = quantize(layout, weight.reshape(-1, layout.unit), torch.bfloat16)
    identity = torch.eye(weight.shape[1], dtype=torch.bfloat16)
    return product(identity, codes.view(layout.codes_shape), found, layout).T.float()


def _answers(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, str]]) -> float:
    """Loss per token of "The answer is ...", of which the last words count."""
    total, count = 0.0, 0
    for row in rows:
        asked = tokenizer(f"Question: {row['question']}\nAnswer: The answer is").input_ids
        answer = tokenizer(f" {row['answer']}.").input_ids
        tokens = torch.tensor([asked + answer])
        labels = tokens.clone()
        labels[:, : len(asked)] = -100
        total += model(tokens, labels=labels).loss.item() * len(answer)
        count += len(answer)
    return total / count


# ---- over steps of training


def _training(given: argparse.Namespace) -> None:
    losses = {form: [_mean_loss(given, form, seed) for seed in given.seeds] for form in given.forms}
    first = losses[given.forms[0]]
    print("| form | mean loss of each seed | difference of each | in the mean |\n|---|---|---|---:|")
    for form, found in losses.items():
        percent = [100 * (loss / was - 1) for loss, was in zip(found, first, strict=True)]
        spread = f" ± {stdev(percent) / len(percent) ** 0.5:.1f}" if len(percent) > 1 else ""
        each = ", ".join(f"{value:+.1f} %" for value in percent)
        print(f"| `{form}` | {', '.join(f'{loss:.4f}' for loss in found)} | {each} | {mean(percent):+.1f} %{spread} |")


def _mean_loss(given: argparse.Namespace, form: str, seed: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"output={folder}", "name=run", f"seed={seed}", f"training.stop_at_step={given.steps}"]
        settings += ["training.log_every=1", *given.set, *f"model.quantize={form}".split(",")]
        command = [sys.executable, "-m", "dsmemvp", "train", given.recipe, *settings]
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": str(given.threads)}
        )
        rows = list(_rows(Path(folder) / "run" / "metrics.jsonl"))
    losses = [row["loss/train"] for row in rows if "loss/train" in row]
    print(f"{form}, seed {seed}: {mean(losses):.4f} over {len(losses)} steps", file=sys.stderr, flush=True)
    return mean(losses)


def _rows(path: Path) -> Iterator[dict[str, float]]:
    yield from map(json.loads, path.read_text().splitlines())


if __name__ == "__main__":
    main()
