"""The model as transformers' `generate` needs it: from its loop come new tokens, which become a batch of one token per
sample. Keys, values and the method's state are kept in a `Decoding` of ours (model.py), not in transformers' cache.

The adapter owns no parameter. It calls the model's forward, which under ZeRO-3 is the engine's, since DeepSpeed's
hooks at the root begin and end every forward.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationMixin, LlamaConfig, PreTrainedModel
from transformers.utils import ModelOutput, logging

from dsmemvp.backbones.partitioned import is_partitioned
from dsmemvp.data.batch import Batch
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.model import Decoding, VisualLanguageModel


@dataclass
class StepOutput(ModelOutput):
    logits: torch.Tensor | None = None
    """[B, 1, vocabulary], float32"""


SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
"""What `generate` may ask of a configuration (Qwen2's has no head_dim). Others of a base's settings are not for it."""


class Decoder(PreTrainedModel, GenerationMixin):
    """`forward(batch, decoding)` is the model's or its engine's, on `place`. With `in_step`, all ranks generate at the
    same time, and each continues until the last one is done."""

    config_class = LlamaConfig
    _supports_sdpa = True

    def __init__(self, config: LlamaConfig, forward: Callable[..., Any], place: torch.device, eos: int, in_step: bool):
        super().__init__(LlamaConfig(**{name: getattr(config, name) for name in SIZES if hasattr(config, name)}))
        self._run, self._place = forward, place
        self.eos, self.in_step = eos, in_step

    @property
    def device(self) -> torch.device:
        return self._place

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: torch.Tensor, batch: Batch, decoding: Decoding, **_: Any
    ) -> dict[str, Any]:
        """`batch` is that of the prompts; `input_ids`, [B, 1 + new tokens], begins with a column without meaning."""
        if decoding.cache.lengths:
            batch = next_tokens(input_ids[:, -1], batch, decoding.cache.lengths)
        return {"batch": batch, "decoding": decoding}

    def forward(self, batch: Batch, decoding: Decoding, **_: Any) -> StepOutput:
        logits_BV, decoding.state = self._run(batch, decoding)
        return StepOutput(logits_BV[:, None])


def next_tokens(tokens_B: torch.Tensor, before: Batch, positions: list[int]) -> Batch:
    """One new token of every sample, without images and reserved places; each is its own memory group."""
    B, device = tokens_B.shape[0], tokens_B.device
    each = torch.arange(B, device=device)
    return Batch(
        tokens=tokens_B,
        cu_seqlens=torch.arange(B + 1, dtype=torch.int32, device=device),
        positions=torch.tensor(positions, device=device),
        spans=torch.zeros(B, 2, 2, dtype=torch.long, device=device),
        places={name: place[:0] for name, place in before.places.items()},
        supervised=each,
        targets=torch.zeros_like(each),
        images=before.images[:0],
        image_of=each,
        lengths=(1,) * B,
        image_rows=tuple(range(B)),
    )


def build_decoder(model: VisualLanguageModel, forward: Callable[..., Any], ranks: Ranks, eos: int) -> Decoder:
    """For a model and its forward. If the weights are cut over ranks, all ranks generate together. What
    transformers logs is for those who call its `generate`, not for users; TRANSFORMERS_VERBOSITY brings it back."""
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    in_step = ranks.world > 1 and any(map(is_partitioned, model.parameters()))
    return Decoder(model.language.config, forward, ranks.device, eos, in_step)
