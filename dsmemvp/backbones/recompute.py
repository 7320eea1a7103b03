"""Gradient checkpointing of one layer: keep its activations, or only its inputs and run it again in the backward."""

import torch
from torch.utils.checkpoint import checkpoint


def run_layer(layer, recompute: bool, *inputs):
    """`layer(*inputs)`. Tensors reach a checkpointed layer as arguments, so that gradients flow to all of them."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
