"""Names of tensors' types -> torch's types."""

import torch

NAMED = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""As recipes and options name them."""
STORED = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""As safetensors names them."""
STORED_AS = {dtype: name for name, dtype in STORED.items()}
WEIGHTS = {name: STORED[name] for name in ("F16", "BF16", "F32", "F64")}
"""Of STORED, those from which frozen weights and checkpoints are loaded, converted to the model's."""
