"""Training steps and memory with the frozen base in 16, 8 and 4 bits, in turn on the same samples.

    python benchmarks/quantized.py --threads 1
    python benchmarks/quantized.py --ranks 2 --threads 1

The language model is a LLaMA of 0.5 B parameters with a vocabulary of 32,000, whose embedding and head are one. Bytes:
those of its tensors on a rank; resident: what the system gets back when a rank lets go of them. One rank holds it
whole; several cut it with ZeRO-3, gathering all but the norms. Rules of taking turns: train_step_against.py.
"""

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

from train_step_against import LANGUAGE, ROOT, Contender, of_medians, spec_of, take_turns

HALF_A_BILLION = {"vocab_size": 32000, "hidden_size": 1024, "num_hidden_layers": 36, "num_attention_heads": 16}
HALF_A_BILLION |= {"intermediate_size": 2816, "tie_word_embeddings": True}
PERSISTENT = 10_000
"""stage3_param_persistence_threshold: the files' is made for larger models."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forms", nargs="+", default=["none", "int8", "nf4"])
    parser.add_argument("--method", default="memvp")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--recompute", default="elementwise")
    parser.add_argument("--global-batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="per rank")
    parser.add_argument("--small", action="store_true", help="a model of 106 M parameters")
    given = parser.parse_args()
    with ExitStack() as stack:
        file = _sharding(Path(stack.enter_context(tempfile.TemporaryDirectory())), given.ranks)
        sides = {}
        for form in given.forms:
            spec = spec_of(given, "new", ROOT, str(file)) | {"quantize": form}
            spec["language"] = LANGUAGE if given.small else HALF_A_BILLION
            sides[form] = stack.enter_context(Contender("new", ROOT, spec, given.ranks, given.threads))
        rounds = [take_turns(sides, given.steps) for _ in range(given.rounds + 1)]
        del rounds[0]  # allocates, and records the order of gathers
        memory = {form: sides[form].language() for form in given.forms}
    print("| quantize | ranks | threads | seconds | ratio | of CPU seconds | bytes, MiB | ratio | resident | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    first = given.forms[0]
    for form in given.forms:
        time, cpu = (of_medians(rounds, form, which) / of_medians(rounds, first, which) for which in (0, 1))
        cells = [f"{of_medians(rounds, form, 0) / given.steps:.2f}", f"{time:.2f}", f"{cpu:.2f}"]
        for own, whole in zip(memory[form], memory[first], strict=True):
            cells += [f"{own / 2**20:.1f}", f"{own / whole:.3f}"]
        print(f"| `{form}` | {given.ranks} | {given.threads} | {' | '.join(cells)} |")


def _sharding(folder: Path, ranks: int) -> Path:
    settings = json.loads((ROOT / "ds_configs" / ("zero3.json" if ranks > 1 else "replicated.json")).read_text())
    if ranks > 1:
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = PERSISTENT
    path = folder / "sharding.json"
    path.write_text(json.dumps(settings))
    return path


if __name__ == "__main__":
    main()
