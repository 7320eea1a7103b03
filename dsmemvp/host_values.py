"""Numbers that the host knows, as a tensor on a device, for which the host does not wait."""

from collections.abc import Sequence
from typing import Any

import torch


def from_host(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """As `torch.tensor(values)`. With a GPU as its `device` that would copy from pageable memory, which ends only when
    all that was launched before it has run; a copy from pinned memory is one launch more."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
