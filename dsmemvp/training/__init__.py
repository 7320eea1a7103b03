"""Batches -> steps: ranks, engine, loop, checkpoint, monitor. The room that knows DeepSpeed."""

import os
import warnings

import torch

from dsmemvp.distributed.gpus import lost_gpus

if not torch.cuda.is_available() and not lost_gpus(os.environ):
    # DeepSpeed otherwise warns that it found no GPU, on every rank, while it is imported
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# DeepSpeed calls collectives under names that torch 2.13 has renamed; that is not the user's business
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
