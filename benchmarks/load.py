"""Loading a model under ZeRO-3 beside transformers' from_pretrained under its DeepSpeed integration, on CPU ranks.

    python benchmarks/load.py --work FOLDER          a LLaMA of 1.35 B parameters, bf16, on 1, 2 and 4 ranks
    python benchmarks/load.py --work FOLDER --small  the same of 3 M parameters, to try it

Writes the model, random, into FOLDER (2.7 GB; kept for the next time), then starts fresh processes for every row.
`read` is what a rank asked the system for, modules that are imported late among it, `by its own count` what the reader
counts; transformers maps files, which the system does not count. `peak` is the most memory a rank had resident while it
loaded, less what it had with everything imported and the ranks joined; `above partition` compares it with model/ranks.
The two take turns and the last round counts, so that the files are in the page cache for both. transformers needs
`accelerate` for this; without it only our rows are printed.
"""

import argparse
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
LARGE = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24}
SMALL = {"vocab_size": 4000, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2}
CONTENDERS = {"this loader": "ours", "transformers": "transformers"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the model")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=2, help="of both, in turn; the last one counts")
    parser.add_argument("--only", choices=CONTENDERS.values())
    parser.add_argument("--rank-of", choices=CONTENDERS.values(), help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = given.work / ("small" if given.small else "large")
    if given.rank_of:
        print(json.dumps(measure(given.rank_of, folder)), flush=True)
        os._exit(0)  # as dsmemvp/__main__.py does, and why
    contenders = {shown: name for shown, name in CONTENDERS.items() if given.only in (None, name)}
    if importlib.util.find_spec("accelerate") is None:
        contenders.pop("transformers", None)
    whole, largest = write_model(folder, SMALL if given.small else LARGE)
    print(f"{whole / 2e9:.2f} B parameters, bf16, {whole / 1e6:.0f} MB; largest tensor {largest / 1e6:.0f} MB\n")
    columns = "ranks|loader|read per rank, MB|by its own count|of model/ranks|peak per rank, MB|above partition"
    columns += "|peak of all, MB|seconds|of transformers'"
    print(f"| {columns.replace('|', ' | ')} |\n|---:|---|{'---:|' * 8}")
    for ranks in given.ranks:
        _rows(contenders, ranks, given.rounds, whole, largest)


def _rows(contenders: dict[str, str], ranks: int, rounds: int, whole: int, largest: int) -> None:
    found = {}
    for _ in range(rounds):
        for shown, name in contenders.items():
            found[shown] = _on_ranks(name, ranks)
    for shown, rows in found.items():
        read, peak = max(row["read"] for row in rows), max(row["peak"] for row in rows)
        above = (peak - whole / ranks) / largest
        seconds = max(row["seconds"] for row in rows)
        theirs = found.get("transformers")
        ratio = f"{seconds / max(row['seconds'] for row in theirs):.2f}" if theirs else ""
        counted = max(row["counted"] for row in rows)
        own = f"{counted / 1e6:.1f} | {read * ranks / whole:.3f}" if counted else "mapped |"
        print(
            f"| {ranks} | {shown} | {read / 1e6:.1f} | {own} | {peak / 1e6:.0f}"
            f" | {above:+.2f} x largest | {sum(row['peak'] for row in rows) / 1e6:.0f} | {seconds:.2f} | {ratio} |",
            flush=True,
        )


def _on_ranks(name: str, ranks: int) -> list[dict[str, Any]]:
    """What each rank has measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    joined = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    joined |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *sys.argv[1:], "--rank-of", name]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **joined, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    shown = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"{name} failed on {ranks} ranks")
    return [json.loads(text.strip().splitlines()[-1]) for text in shown]


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Bytes, memory and seconds of one loading on this rank; imports and joining the ranks come before."""
    import transformers  # noqa: F401

    from dsmemvp.distributed.ranks import join_ranks

    ranks = join_ranks(seconds=1800)
    load = {"ours": _ours, "transformers": _transformers}[name](folder, ranks)
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size begins anew
    before, read, began = _status("VmRSS"), _asked_for(), time.perf_counter()
    ranks.any(False)  # start together
    counted = load()
    ranks.any(False)
    seconds = time.perf_counter() - began
    return {"read": _asked_for() - read, "counted": counted, "peak": _status("VmHWM") - before, "seconds": seconds}


def _settings(world: int) -> dict[str, Any]:
    settings = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    decided = {"train_batch_size": world, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    return {**settings, **decided, "gradient_clipping": 1.0, "bf16": {"enabled": True}}


def _ours(folder: Path, ranks):
    from dsmemvp.backbones.weights import Base, read_configs
    from dsmemvp.config.methods import method_settings
    from dsmemvp.config.recipe import Model, Recipe
    from dsmemvp.training.model_loading import build_model

    model = Model(language_model=str(folder), vision_shape="clip-tiny", dtype="bf16")
    recipe = Recipe("benchmark", model=model, method=method_settings("none"))

    def load() -> int:
        counts: list[int] = []
        built = build_model(
            recipe,
            read_configs(recipe),
            _settings(ranks.world),
            ranks,
            load=lambda model, recipe: counts.append(Base(recipe).load(model)),
        )
        assert all(hasattr(p, "ds_tensor") for p in built.parameters())
        return counts[0]

    return load


def _transformers(folder: Path, ranks):
    from transformers import LlamaForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    transformers_settings = HfDeepSpeedConfig(_settings(ranks.world))

    def load() -> int:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        assert transformers_settings.is_zero3() and all(hasattr(p, "ds_tensor") for p in model.parameters())
        return 0  # it does not count, and maps the files

    return load


def _status(name: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name + ":")).split()[1])


def _asked_for() -> int:
    """Bytes that this process has read through the system."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def write_model(folder: Path, sizes: dict[str, Any], shard: int = 500_000_000) -> tuple[int, int]:
    """A random LLaMA in bf16 over several files, written piece by piece; returns its bytes and its largest tensor's. A
    model that is there is kept."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**sizes, num_attention_heads=sizes["hidden_size"] // 64)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in LlamaForCausalLM(config).named_parameters()}
    stored = {name: 2 * shape.numel() for name, shape in shapes.items()}
    total, largest = sum(stored.values()), max(stored.values())
    if (folder / "model.safetensors.index.json").exists():
        return total, largest
    folder.mkdir(parents=True, exist_ok=True)
    files: list[list[str]] = [[]]
    for name, size in stored.items():
        if files[-1] and sum(stored[each] for each in files[-1]) + size > min(shard, total // 2):
            files.append([])
        files[-1].append(name)
    generator = torch.Generator().manual_seed(0)
    for number, names in enumerate(files):
        _write_file(folder / _file_name(number, len(files)), {name: shapes[name] for name in names}, generator)
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    config.save_pretrained(folder)
    places = {name: _file_name(number, len(files)) for number, names in enumerate(files) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total, largest


def _file_name(number: int, files: int) -> str:
    return f"model-{number + 1:05d}-of-{files:05d}.safetensors"


def _write_file(path: Path, shapes: dict[str, torch.Size], generator: torch.Generator) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape.numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            for start in range(0, shape.numel(), 1 << 22):
                values = torch.randn(min(1 << 22, shape.numel() - start), generator=generator).mul_(0.02)
                file.write(values.to(torch.bfloat16).view(torch.uint8).numpy().data)


if __name__ == "__main__":
    main()
