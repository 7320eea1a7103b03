"""The kernels under the names of backbones/elementwise.py. Needs triton."""

from dsmemvp.backbones.kernels.activation import silu_mul, silu_mul_backward
from dsmemvp.backbones.kernels.norm import rms_norm, rms_norm_backward
from dsmemvp.backbones.kernels.rotary import rotate
from dsmemvp.backbones.kernels.slots import slot_activation, slot_activation_backward

__all__ = [
    "rms_norm",
    "rms_norm_backward",
    "rotate",
    "silu_mul",
    "silu_mul_backward",
    "slot_activation",
    "slot_activation_backward",
]
