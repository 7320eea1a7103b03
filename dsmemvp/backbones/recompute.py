"""Gradient checkpointing of one block: keep its activations, or only its inputs and run it again in the backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def run_block(block: Callable[..., Any], recompute: bool, *inputs: Any) -> Any:
    """`block(*inputs)`."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
