"""Our model as transformers' `generate` wants one: what its loop hands over at each step becomes a batch and a Step.

The adapter owns no parameter. It calls the model's forward, which under ZeRO-3 is the engine's, since DeepSpeed's
hooks at the root begin and end every forward.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, GenerationMixin, LlamaConfig, PreTrainedModel
from transformers.utils import ModelOutput, logging

from dsmemvp.backbones.language import Step
from dsmemvp.backbones.partitioned import is_partitioned
from dsmemvp.data.batch import Batch
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.generation.layout import next_tokens
from dsmemvp.model import VisualLanguageModel
from dsmemvp.prompts.interface import State


@dataclass
class StepOutput(ModelOutput):
    logits: torch.Tensor | None = None
    """[B, 1, vocabulary], float32"""
    past_key_values: Cache | None = None
    state: State | None = None


SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
"""What `generate` needs of a configuration. Others of a base's settings are not for it: `use_cache` false, which those
who have trained it leave there, would end in an error."""


class Decoder(PreTrainedModel, GenerationMixin):
    """`forward(batch, step)` is that of training/inference.py's `Inference`, on `place`. Where `in_step`, all
    ranks generate at the same time, and each goes on until the last one is done."""

    config_class = LlamaConfig
    _supports_sdpa = True

    def __init__(self, config: LlamaConfig, forward: Callable[..., Any], place: torch.device, eos: int, in_step: bool):
        super().__init__(LlamaConfig(**{name: getattr(config, name) for name in SIZES}))
        self._run, self._place = forward, place
        self.eos, self.in_step = eos, in_step

    @property
    def device(self) -> torch.device:
        return self._place

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        batch: Batch | None = None,
        state: State | None = None,
        **_: Any,
    ) -> StepOutput:
        """`batch` is that of the prompts, left-padded; `state` what was made of its images, if it was made already."""
        assert batch is not None and past_key_values is not None and position_ids is not None
        now = next_tokens(input_ids[:, 0], batch) if past_key_values.get_seq_length() else batch
        logits_BV, state = self._run(now, Step(past_key_values, position_ids, attention_mask, state))
        return StepOutput(logits_BV[:, None], past_key_values, state)

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **more: Any):
        model_kwargs["state"] = outputs.state
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **more)


def build_decoder(model: VisualLanguageModel, forward: Callable[..., Any], ranks: Ranks, eos: int) -> Decoder:
    """For what `open_for_inference` returns. Where the weights are cut over ranks, all ranks generate together. What
    transformers logs is for those who call its `generate`, not for users; TRANSFORMERS_VERBOSITY brings it back."""
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    in_step = ranks.world > 1 and any(map(is_partitioned, model.parameters()))
    return Decoder(model.language.config, forward, ranks.device, eos, in_step)
