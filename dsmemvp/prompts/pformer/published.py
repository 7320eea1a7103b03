"""The authors' checkpoints (BLIText, on LAVIS): names of their tensors and ours. Files are read, not written."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dsmemvp.errors import UserError
from dsmemvp.prompts.pformer.weights import bert_name

OF_STAGES = ("Qformer.", "query_tokens", "ln_vision.", "opt_proj.", "vision_proj.", "text_proj.", "itm_head.", "temp")
"""Beginnings of what stages 1 and 2 have trained."""
OF_PFORMER = ("embeddings.", "encoder.layer.", "cls_proj.", "pooler.0.", "opt_proj.", "text_proj.", "temp")
"""The same of stage 0."""


class Published:
    options: Mapping[str, str] = {}
    fixed: Mapping[str, Any] = {"method.layout": "prompts_bos", "method.alignment": "raw"}
    unused: Sequence[str] = ("embeddings.position_ids", "Qformer.bert.embeddings.position_ids")

    def trained_tensors(self, published: Mapping[str, Any]) -> dict[str, Any]:
        """Of a P-Former, or of a Q-Former with what stands beside it; a temperature becomes [1]."""
        found: dict[str, Any] = {}
        if "query_tokens" in published:
            for theirs, tensor in published.items():
                ours = stage_names(theirs) if theirs.startswith(OF_STAGES) and theirs not in self.unused else None
                if ours is not None:
                    found[f"method.{ours}"] = tensor
        elif {"cls_proj.weight", "embeddings.word_embeddings.weight"} <= published.keys():
            for theirs, tensor in published.items():
                if theirs.startswith(OF_PFORMER) and theirs not in self.unused:
                    found[f"method.pformer.{pformer_names(theirs)}"] = tensor
        for name, tensor in found.items():
            if name.endswith("temperature.value"):
                found[name] = tensor.changed(lambda t: t.reshape(1), (1,))
        return found

    def published_names(self, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        raise UserError("--published: P-Former's published layout is read by dsmemvp convert, and not written")

    def needs(self, recipe: Any) -> str:
        return ""


def pformer_names(theirs: str) -> str:
    """The authors' name of a tensor of P-Former -> ours, inside of `pformer`."""
    for begins, ours in (
        ("cls_proj.", "head.spread."),
        ("pooler.0.", "head.inner."),
        ("opt_proj.", "head.out."),
        ("text_proj.", "contrast.projection."),
    ):
        if theirs.startswith(begins):
            return ours + theirs.removeprefix(begins)
    return "contrast.temperature.value" if theirs == "temp" else f"encoder.{bert_name(theirs)}"


def stage_names(theirs: str) -> str | None:
    """The authors' name of a tensor of their stages 1 and 2 -> ours, inside of the method; None for one that is stored
    a second time (the head's weight is that of the word embeddings)."""
    for begins, ours in (
        ("query_tokens", "qformer.queries"),
        ("ln_vision.", "qformer.vision_norm."),
        ("opt_proj.", "projection."),
        ("vision_proj.", "pairs.image."),
        ("text_proj.", "pairs.text."),
        ("itm_head.", "pairs.matching."),
        ("temp", "pairs.temperature.value"),
        ("Qformer.bert.embeddings.LayerNorm.", "qformer.norm."),
        ("Qformer.bert.embeddings.word_embeddings.", "text.words."),
        ("Qformer.bert.embeddings.position_embeddings.", "text.positions."),
        ("Qformer.cls.predictions.transform.dense.", "text.transform."),
        ("Qformer.cls.predictions.transform.LayerNorm.", "text.transform_norm."),
        ("Qformer.cls.predictions.bias", "text.words.bias"),
    ):
        if theirs.startswith(begins):
            return ours + theirs.removeprefix(begins)
    if theirs.startswith("Qformer.cls.predictions.decoder."):
        return None
    name = bert_name(theirs.removeprefix("Qformer.bert."))
    if ".feed_forward." in name and "_query." not in theirs:
        return f"text.{name.replace('.feed_forward.', '.')}"
    return f"qformer.{name}"
