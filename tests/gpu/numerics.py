"""What a device computes beside the CPU, from attention to answers: float64 there where that can be had."""

import logging
import time
from functools import partial
from pathlib import Path

import torch

TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 5e-3}
"""Largest relative error, by norm, of what a device computes in a type."""


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    found, exact = found.detach(), exact.detach()
    return float((found.cpu().double() - exact.double()).norm() / exact.double().norm())


def near(what: str, found, exact, tolerance: float) -> None:
    error = off(found, exact)
    assert error <= tolerance, f"{what}: off by {error:.2e}, allowed are {tolerance:.0e}"


def attention(device: str, work: Path) -> None:
    """Packed attention, forward and backward: three kernels of attention.py, grouped queries, hidden places."""
    from dsmemvp.backbones.attention import Packing, attend

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        if device == "cpu" and dtype == torch.float16:
            continue  # nothing runs in it there
        for lengths in ((5, 1, 7), (130, 64, 1, 257)):
            for heads, groups, width, hide in ((4, 4, 64, False), (8, 2, 128, False), (4, 2, 64, True)):
                generator, tokens = torch.Generator().manual_seed(0), sum(lengths)
                rows = [torch.randn(1, h, tokens, width, generator=generator) for h in (heads, groups, groups)]
                rows = [row.to(dtype) for row in rows]
                gradient = torch.randn(1, tokens, heads, width, generator=generator).to(dtype)
                hidden = torch.arange(tokens) % 5 == 2 if hide else None
                exact = _attention64(*rows, gradient, lengths, hidden)
                there = [row.to(device).requires_grad_() for row in rows]
                ends = torch.tensor([0, *lengths], device=device).cumsum(0).int()
                packing = Packing(ends, lengths, hidden=None if hidden is None else hidden.to(device))
                out, _ = attend(*there, packing, width**-0.5)
                found = [out, *torch.autograd.grad(out, there, gradient.to(device))]
                about = f"{dtype}, {heads}/{groups} heads of {width}, lengths {lengths}, hidden {hide}"
                for name, one, other in zip(("out", "dq", "dk", "dv"), found, exact, strict=True):
                    near(f"{name} of {about}", one, other, TOLERANCE[str(dtype).removeprefix("torch.")])
                with torch.no_grad():  # another second sample changes nothing in the first
                    changed = [torch.cat((r[:, :, : lengths[0]], -r[:, :, lengths[0] :]), 2) for r in there]
                    alone, _ = attend(*changed, packing, width**-0.5)
                assert torch.equal(alone[:, : lengths[0]], out[:, : lengths[0]]), f"a sample reads another: {about}"


def _attention64(query, key, value, gradient, lengths, hidden):
    rows = [row.double().requires_grad_() for row in (query, key, value)]
    repeat = query.shape[1] // key.shape[1]
    q, k, v = rows[0], *(row.repeat_interleave(repeat, 1) for row in rows[1:])
    tokens = query.shape[2]
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seen = (sample[:, None] == sample) & torch.ones(tokens, tokens, dtype=torch.bool).tril()
    if hidden is not None:
        seen &= ~hidden | torch.eye(tokens, dtype=torch.bool)
    scores = (q @ k.transpose(2, 3) * query.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    out = (scores.softmax(-1) @ v).transpose(1, 2)
    return [out.detach(), *torch.autograd.grad(out, rows, gradient.double())]


def layer(device: str, work: Path) -> None:
    """One frozen decoder layer with its memory branch and dropout, under every policy, beside float64 on the CPU."""
    from dsmemvp.backbones.recompute import KEPT

    exact = _layer("cpu", torch.float64, "none")
    for dtype in (torch.float32, torch.bfloat16):
        for policy in ("none", *KEPT):
            found, tolerance = _layer(device, dtype, policy), TOLERANCE[str(dtype).removeprefix("torch.")]
            for name, one, other in zip(("out", "hidden", "key", "value"), found, exact, strict=True):
                near(f"{name} in {dtype} under {policy}", one, other, tolerance)


def _layer(device: str, dtype, policy: str) -> list:
    from transformers import LlamaConfig

    from dsmemvp.backbones.attention import Packing
    from dsmemvp.backbones.decoder import DecoderTower
    from dsmemvp.dropout import Dropout, token_keys
    from dsmemvp.prompts.memvp.branch import LayerMemory, hand_out, memory_branch

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4, "num_key_value_heads": 2}
    tower = DecoderTower(LlamaConfig(vocab_size=16, num_hidden_layers=1, **sizes)).requires_grad_(False)
    tower = tower.to(torch.float32).to(device, dtype)
    lengths, generator = (40, 1, 75), torch.Generator().manual_seed(1)
    shapes = ((1, sum(lengths), 256), (2, 24, 256), (2, 24, 256), (1, 3, 256))
    hidden, key, value, weights = (torch.randn(*s, generator=generator).to(torch.bfloat16) for s in shapes)
    hidden = hidden.to(device, dtype).requires_grad_()
    wide = torch.promote_types(dtype, torch.float32)
    key, value = (t.to(device, wide).requires_grad_() for t in (key, value))
    positions = torch.cat([torch.arange(n) for n in lengths]).to(device)
    ends = torch.tensor([0, *lengths], device=device).cumsum(0)
    dropout = Dropout(token_keys(torch.arange(3, device=device), lengths, positions, seed=1))
    rows = ends[1:] - 1
    behind = Dropout(dropout.keys[rows])
    sums = (torch.zeros_like(key), torch.zeros_like(value))
    low, token = (key.detach().to(dtype), value.detach().to(dtype)), hand_out(key, value, sums)
    memory = LayerMemory(*low, [1, 2], 0.5, token, sums)
    branch = partial(memory_branch, memory=memory, dropout=behind.at("memory"), p=0.1)
    out = tower.layers[0](
        *(hidden, tower.rotary(positions, dtype), Packing(ends.int(), lengths), branch, dropout, policy, rows)
    )
    return [out, *torch.autograd.grad((out * weights.to(device, dtype)).sum(), [hidden, key, value])]


def model(device: str, work: Path) -> None:
    """Loss and gradients of whole tiny models, dropout on, beside the CPU's."""
    for method in ("memvp", "input_space"):
        loss, exact = _trained(method, "cpu", torch.float32)
        found, gradients = _trained(method, device, torch.float32)
        near(f"loss of {method}", found, loss, 1e-4)
        near(f"gradients of {method}", gradients, exact, 1e-3)
        # these weights are large, so that little is left of the gradients' direction in 16 bits
        found, gradients = _trained(method, device, torch.bfloat16)
        near(f"loss of {method} in bfloat16", found, loss, 1e-1)
        assert bool(gradients.isfinite().all()), f"gradients of {method} in bfloat16 are not finite"


def _trained(method: str, device: str, dtype):
    import small

    from dsmemvp.model import loss_sum

    made = small.model(method).to(device, dtype).train()
    made.set_recompute("elementwise")
    batch = small.prompts(made).batch.to(next(made.parameters()).device)
    logits, _ = made(batch)
    loss = loss_sum(logits, batch.targets)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.detach().cpu().flatten() for p in made.trainables().values()])


def decoding(device: str, work: Path) -> None:
    """Greedy answers of tiny models with a key/value cache are the CPU's, token by token; on a GPU most steps are
    replayed from a CUDA graph."""
    import small

    from dsmemvp.distributed.ranks import Ranks
    from dsmemvp.generation.decoder import build_decoder
    from dsmemvp.generation.generate import Sampling, generate

    said: list[logging.LogRecord] = []
    logging.getLogger("dsmemvp.generation.steps").addFilter(lambda record: said.append(record) or True)
    for method in small.METHODS:
        tokens = []
        for place in ("cpu", device):
            ranks = Ranks(0, 1, torch.device(place, 0 if place == "cuda" else None))
            made = small.model(method).to(ranks.device)
            decoder = build_decoder(made, made, ranks, small.EOS)
            began = time.perf_counter()
            tokens.append(generate(decoder, small.prompts(made), Sampling(80)))
            seconds = time.perf_counter() - began
        assert tokens[0] == tokens[1], f"{method}: {tokens[1]} and not {tokens[0]}"
        assert not said, f"{method}: {said[0].getMessage()}"
        print(f"{method}: {sum(map(len, tokens[1]))} tokens, {seconds:.2f} s")
