"""Compiles the Triton kernels for a GPU that need not be there, as they would be launched on tensors of LLaMA-13B's
shapes. Prints, as JSON, for each launch: what one program loads ("ld") and stores ("st") in accesses of 16 bytes, as a
multiple of its block in bf16; how many accesses of a thread are narrower; how many shifts bring in the sign.

Argument: the compute capability, 90 for an H100.
"""

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dsmemvp.backbones.kernels import activation, norm, rotary, slots

WIDE = 16
"""Bytes of the widest load or store."""


class Absent:
    """Stands for the GPU's driver: names the target and launches nothing."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main(capability: str) -> None:
    target = GPUTarget("cuda", int(capability), 32)
    triton.runtime.driver.set_active(Absent(target))
    said = {}
    for name, launch in launches().items():
        launched = []

        def note(launched: list = launched, **about: Any) -> bool:
            launched.append(about)
            return True  # which ends the launch here

        triton.knobs.runtime.jit_cache_hook = note
        launch()
        (about,) = launched
        said[name] = traffic(about["fn"].jit_function, about["compile"], target)
    print(json.dumps(said))


def launches() -> dict[str, Callable[[], Any]]:
    d, wide, tokens = 5120, 13824, 17
    x, weight = torch.zeros(1, tokens, d, dtype=torch.bfloat16), torch.ones(d, dtype=torch.bfloat16)
    gate = torch.zeros(1, tokens, wide, dtype=torch.bfloat16)
    head = torch.zeros(1, tokens, 40, 128, dtype=torch.bfloat16).transpose(1, 2)
    angle = torch.zeros(1, tokens, 128, dtype=torch.bfloat16)
    scores, keys = torch.zeros(1, tokens, 512, dtype=torch.bfloat16), torch.zeros(tokens, dtype=torch.int64)
    narrow = torch.zeros(1, tokens, 40, 128, dtype=torch.bfloat16)
    return {
        "rms_norm": lambda: norm.rms_norm(x, weight, 1e-6),
        "rms_norm of heads": lambda: norm.rms_norm(narrow, weight[:128], 1e-6),
        "rms_norm_backward": lambda: norm.rms_norm_backward(x, x, weight, 1e-6),
        "rotate": lambda: rotary.rotate(head, angle, angle),
        "rotate back": lambda: rotary.rotate(head, angle, angle, inverse=True),
        "silu_mul": lambda: activation.silu_mul(gate, gate),
        "silu_mul_backward": lambda: activation.silu_mul_backward(gate, gate, gate),
        "slot_activation": lambda: slots.slot_activation(scores, keys, 0.1),
        "slot_activation_backward": lambda: slots.slot_activation_backward(scores, scores, keys, 0.1),
    }


def traffic(kernel: Any, about: dict[str, Any], target: GPUTarget) -> dict[str, Any]:
    source = ASTSource(kernel, about["signature"], about["constants"], about["configs"][0])
    compiled = triton.compile(source, target=target, options={"num_warps": about["num_warps"]})
    constants = {kernel.arg_names[place]: value for (place,), value in about["constants"].items()}
    threads, block = (
        32 * about["num_warps"],
        constants.get("ROWS", 1) * constants.get("COLUMNS", constants.get("BLOCK")),
    )
    found: dict[str, Any] = {"ld": 0.0, "st": 0.0, "narrow": 0}
    for kind, form in re.findall(r"(ld|st)\.global(\S*)", compiled.asm["ptx"]):
        values, bits = re.search(r"\.v(\d)", form), re.search(r"\.b(\d+)", form)
        width = int(values[1] if values else 1) * int(bits[1]) // 8
        if width == WIDE:
            found[kind] += width * threads / (block * torch.bfloat16.itemsize)
        else:
            found["narrow"] += 1
    found["signed shifts"] = compiled.asm["ttir"].count("arith.shrsi")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
