"""The stages of `make gpu` (first_run.py) that no other program is there for: `--device cuda --work FOLDER NAME`.

Each compares what a device computes with the CPU, in float64 where that can be had, and ends in an AssertionError that
says how far off it is. What a passing stage prints stands in the report.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch
from numerics import attention, decoding, layer, model, near

ROOT = Path(__file__).resolve().parents[2]
STEPS, CURVES = 20, 1e-3
"""Steps, and by how much their losses may differ between a device and the CPU."""


def environment(device: str, work: Path) -> None:
    """Card, versions, commit; fails if a library cannot be imported, or the kernels cannot be compiled."""
    from dsmemvp.backbones import kernels

    names = ("torch", "triton", "deepspeed", "transformers")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names if _there(name))
    commit = _said(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]) or "unknown"
    card = f"CPU, {torch.get_num_threads()} threads"
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        driver = _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]) or "unknown"
        driver = driver.partition("\n")[0]
        card = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, sm{about.major}{about.minor}, driver {driver}"
        card += f", CUDA {torch.version.cuda}"
    print(f"{card}; Python {sys.version.split()[0]}, {versions}; commit {commit}", flush=True)
    import deepspeed  # noqa: F401
    import transformers  # noqa: F401

    problem = kernels.missing()
    assert device == "cpu" or not problem, f"kernels would not be used: {problem}"


def _there(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()
    except OSError:
        return ""


def steps(device: str, work: Path, kind: str) -> None:
    """20 steps through DeepSpeed on one rank, dropout on: on the CPU, replicated, under ZeRO-3; the same losses."""
    from dsmemvp.backbones.weights import configs_of_shapes
    from dsmemvp.config.methods import method_settings
    from dsmemvp.config.recipe import Model, Recipe, Training
    from dsmemvp.distributed.ranks import join_ranks, leave_ranks
    from dsmemvp.dropout import step_seed
    from dsmemvp.training.engine import build_trainer

    ranks = join_ranks(seconds=60)
    assert ranks.device.type == ("cpu" if kind == "cpu" else device), ranks.device
    file = ROOT / "ds_configs" / ("zero3.json" if kind == "zero3" else "replicated.json")
    recipe = Recipe("steps", method=method_settings("memvp", slots=80))
    recipe.model = Model(language_shape="llama-tiny", vision_shape="clip-tiny", dtype="fp32")
    recipe.training = Training(global_batch=8, micro_batch=8, deepspeed=str(file), learning_rate=1e-3)
    trainer = build_trainer(recipe, configs_of_shapes(recipe), ranks, load=_same_values)
    batches, losses = _batches(torch.Generator().manual_seed(0)), []
    for step in range(STEPS):
        batch = replace(batches[step % len(batches)], dropout_seed=step_seed(recipe.seed, step))
        supervised = batch.targets.numel()
        losses.append(trainer.accumulate([batch], 1 / supervised)["language"] / supervised)
        trainer.update(1e-3)
    (work / f"losses-{kind}.json").write_text(json.dumps(losses))
    leave_ranks()
    print(f"loss {losses[0]:.4f} to {losses[-1]:.4f}")
    assert losses[-1] < losses[0], losses
    if kind != "cpu":
        recorded = work / "losses-cpu.json"
        assert recorded.is_file(), "the stage on the CPU left no losses to compare with"
        largest = max(abs(a / b - 1) for a, b in zip(losses, json.loads(recorded.read_text()), strict=True))
        assert largest <= CURVES, f"losses differ from the CPU's by up to {largest:.1e}, allowed are {CURVES:.0e}"
        print(f"at most {largest:.1e} from the CPU's")


def _same_values(made, *_unused) -> None:
    """In place of loading: the same weights on every device and under every sharding."""
    from dsmemvp.backbones.partitioned import held_pieces, whole_shape

    for name, parameter in made.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        shape = whole_shape(parameter)
        values = torch.randn(shape, generator=generator).flatten() * 0.05 + float(len(shape) == 1 and "weight" in name)
        for start, piece in held_pieces(parameter):
            piece.copy_(values[start : start + piece.numel()])


def _batches(generator, vocabulary: int = 512, side: int = 64, samples: int = 8, longest: int = 60) -> list:
    from dsmemvp.data.batch import Item
    from dsmemvp.data.packing import by_image, make_batch
    from dsmemvp.data.text import EncodedText

    batches = []
    for number in range(2):
        items = []
        for i in range(samples):
            length = int(torch.randint(longest // 3, longest, (), generator=generator))
            tokens = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
            image = torch.randint(256, (3, side, side), generator=generator).to(torch.uint8)
            items.append(Item(number * samples + i, EncodedText(tokens, length - 6, False), image if i % 2 else None))
        batches.append(make_batch(by_image(items), side).batch)
    return batches


def policies(device: str, work: Path) -> None:
    """One step of a model under every policy of gradient checkpointing: the same gradients, less memory."""
    from dsmemvp.backbones.recompute import KEPT
    from dsmemvp.backbones.weights import configs_of_shapes
    from dsmemvp.building import add_trainables, build_frozen
    from dsmemvp.config.methods import method_settings
    from dsmemvp.config.recipe import Model, Recipe
    from dsmemvp.model import loss_sum

    cuda = device == "cuda"
    recipe = Recipe("policies", method=method_settings("memvp", slots=80))
    recipe.model = Model(language_shape="llama-tiny", vision_shape="clip-tiny")
    configs = configs_of_shapes(recipe)
    heads, width = (8, 128) if cuda else (4, 16)
    sizes = {"hidden_size": heads * width, "intermediate_size": 2688 if cuda else 168, "head_dim": width}
    configs.language.update(sizes | {"num_attention_heads": heads, "num_key_value_heads": heads})
    torch.manual_seed(0)
    made = build_frozen(recipe, configs)
    add_trainables(made, recipe, configs)
    _same_values(made)
    made = made.to(device, torch.bfloat16).train()
    (batch, _) = _batches(torch.Generator().manual_seed(0), samples=32 if cuda else 4, longest=200 if cuda else 40)
    batch = batch.to(torch.device(device))
    found: dict[str, tuple] = {}
    for policy in ("elementwise", "none", *KEPT):  # the first one twice, since it warms up
        made.set_recompute(policy, "full" if policy == "full" else "none")
        made.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        logits, _ = made(batch)
        loss = loss_sum(logits, batch.targets)
        loss.backward()
        gradients = torch.cat([p.grad.float().flatten().cpu() for p in made.trainables().values()])
        peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else 0.0
        found[policy] = (loss.detach(), gradients, peak, time.perf_counter() - began)
    print("| policy | peak MiB | ms |\n|---|---:|---:|")
    for policy, (_, _, peak, seconds) in found.items():
        print(f"| {policy} | {peak:.0f} | {1000 * seconds:.1f} |")
    for policy, (loss, gradients, _, _) in found.items():
        near(f"loss under {policy}", loss, found["elementwise"][0].cpu(), 1e-2)
        near(f"gradients under {policy}", gradients, found["elementwise"][1], 5e-2)
    held = [found[policy][2] for policy in ("full", "elementwise", "none")]
    assert not cuda or held == sorted(held), f"full, elementwise, none hold {held} MiB at most"


STAGES = {stage.__name__: stage for stage in (environment, attention, layer, model, steps, policies, decoding)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("arguments", nargs="*")
    given = parser.parse_args()
    if given.device == "cpu" or given.arguments == ["cpu"]:
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    given.work.mkdir(parents=True, exist_ok=True)
    STAGES[given.stage](given.device, given.work, *given.arguments)


if __name__ == "__main__":
    main()
