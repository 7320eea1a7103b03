"""The model as transformers' `generate` needs it: from its loop come new tokens, which become a batch of one token per
sample (steps.py). Keys, values and the method's state are kept in a `Decoding` of ours (model.py), not in transformers'
cache.

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

from dsmemvp.backbones.key_value_cache import KeyValueCache
from dsmemvp.backbones.partitioned import is_partitioned
from dsmemvp.data.batch import Batch
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.generation.steps import Record, Steps, cuda_graph
from dsmemvp.model import Decoding, VisualLanguageModel
from dsmemvp.prompts.interface import State


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
    same time, and each continues until the last one is done. `record` as in `Steps`."""

    config_class = LlamaConfig
    _supports_sdpa = True

    def __init__(
        self,
        config: LlamaConfig,
        forward: Callable[..., Any],
        place: torch.device,
        eos: int,
        in_step: bool,
        record: Record | None = None,
    ):
        super().__init__(LlamaConfig(**{name: getattr(config, name) for name in SIZES if hasattr(config, name)}))
        self._run, self._place, self._record = forward, place, record
        self.eos, self.in_step = eos, in_step

    @property
    def device(self) -> torch.device:
        return self._place

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def steps(self, prompts: Batch, state: State | None = None) -> Steps:
        """What `generate` is given as its `steps`; `state` as in `Decoding`."""
        return Steps(self._run, prompts, Decoding(KeyValueCache(), state), self._record)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: torch.Tensor, steps: Steps, **_: Any
    ) -> dict[str, Any]:
        """`input_ids`, [B, 1 + new tokens], begins with a column without meaning."""
        return {"tokens_B": input_ids[:, -1], "steps": steps}

    def forward(self, tokens_B: torch.Tensor, steps: Steps, **_: Any) -> StepOutput:
        return StepOutput(steps(tokens_B)[:, None])


def build_decoder(model: VisualLanguageModel, forward: Callable[..., Any], ranks: Ranks, eos: int) -> Decoder:
    """For a model and its forward. If the weights are cut over ranks, all ranks generate together. What
    transformers logs is for those who call its `generate`, not for users; TRANSFORMERS_VERBOSITY brings it back."""
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    cut = any(map(is_partitioned, model.parameters()))
    # gathers of weights cannot be recorded
    record = None if cut or ranks.device.type != "cuda" or os.environ.get("DSMEMVP_GRAPHS") == "0" else cuda_graph
    return Decoder(model.language.config, forward, ranks.device, eos, cut and ranks.world > 1, record)
