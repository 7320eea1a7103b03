"""What P-Former and the Q-Former begin with: a BERT in Hugging Face layout, whose names stand here beside ours, or
values drawn as BERT's were."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsmemvp.backbones.configs import folder_config
from dsmemvp.backbones.filling import fill_from_files, matched
from dsmemvp.backbones.safetensors_file import folder_tensors
from dsmemvp.backbones.shapes import language_config
from dsmemvp.backbones.stored import encoder_tensors
from dsmemvp.backbones.text_encoder import ENCODERS
from dsmemvp.data.captions import WordPieces
from dsmemvp.errors import UserError
from dsmemvp.prompts.pformer.bert import ClassEncoder, Embeddings, FeedForward, initialise
from dsmemvp.prompts.pformer.qformer import QFormer, TextBranch
from dsmemvp.prompts.pformer.settings import Settings

KEY = "method.text_encoder"
PARTS = (
    (r"^embeddings\.word_embeddings\.", "embeddings.words."),
    (r"^embeddings\.position_embeddings\.", "embeddings.positions."),
    (r"^embeddings\.token_type_embeddings\.", "embeddings.kinds."),
    (r"^(encoder\.layer|layers)\.", "layers."),
    (r"\.attention\.self\.", ".attention."),
    (r"\.attention\.output\.dense\.", ".attention.out."),
    (r"\.attention\.output\.LayerNorm\.", ".attention.norm."),
    (r"\.crossattention\.self\.", ".cross_attention."),
    (r"\.crossattention\.output\.dense\.", ".cross_attention.out."),
    (r"\.crossattention\.output\.LayerNorm\.", ".cross_attention.norm."),
    (r"\.intermediate(_query)?\.dense\.", ".feed_forward.up."),
    (r"\.output(_query)?\.dense\.", ".feed_forward.down."),
    (r"\.output(_query)?\.LayerNorm\.", ".feed_forward.norm."),
    (r"\.LayerNorm\.", ".norm."),
)
"""Of a BERT's names, in this order."""
HEAD = {
    "cls.predictions.transform.dense.weight": "transform.weight",
    "cls.predictions.transform.dense.bias": "transform.bias",
    "cls.predictions.transform.LayerNorm.weight": "transform_norm.weight",
    "cls.predictions.transform.LayerNorm.bias": "transform_norm.bias",
}
"""BERT's own head for words, but for its bias, which is as long as the vocabulary."""


def bert_name(name: str) -> str:
    """transformers' name inside of a BERT -> ours."""
    for theirs, ours in PARTS:
        name = re.sub(theirs, ours, name)
    return name


def text_config(folder: str, shape: str) -> Any:
    """BERT's configuration; of a folder that is not there its shape, to count and to plan. Raises UserError for another
    model's."""
    config = folder_config(folder, KEY, ENCODERS) if folder and Path(folder).exists() else language_config(shape)
    if config.model_type not in ENCODERS:
        raise UserError(f"method.text_shape: {shape} is the shape of a {config.model_type!r} model, not of a BERT")
    return config


def text_tokenizer(settings: Settings) -> str:
    """The file of BERT's tokenizer, which need not be there to plan. Raises UserError if none is named."""
    if settings.text_tokenizer:
        return settings.text_tokenizer
    if not settings.text_encoder:
        raise UserError("method.text_tokenizer: give the file of BERT's tokenizer, a vocab.txt or tokenizer.json")
    named = [Path(settings.text_encoder) / name for name in ("vocab.txt", "tokenizer.json")]
    return str(next((path for path in named if path.is_file()), named[0]))


@cache
def check_vocabulary(tokenizer: str, rows: int) -> None:
    """Raises UserError for a tokenizer with more pieces than the BERT's `rows`."""
    if Path(tokenizer).is_file() and (found := WordPieces(tokenizer).vocabulary) > rows:
        raise UserError(f"method.text_tokenizer: {tokenizer} has {found} pieces, the text encoder {rows}; take its own")


def load_encoder(encoder: ClassEncoder, config: Any, folder: str) -> None:
    """Raises UserError for what the folder lacks."""
    stored = encoder_tensors(folder_tensors(Path(folder), KEY), config, folder, KEY)
    fill_from_files(matched(encoder, {bert_name(name): t for name, t in stored.items()}, folder, KEY), tell=False)


def load_words_head(text: TextBranch, folder: str) -> None:
    """BERT's head for words, if the folder has one."""
    files = folder_tensors(Path(folder), KEY)
    named = {name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
             for name, tensor in files.items()}  # fmt: skip
    if not HEAD.keys() <= named.keys():
        return
    head = nn.ModuleDict({"transform": text.transform, "transform_norm": text.transform_norm})
    fill_from_files(matched(head, {ours: named[theirs] for theirs, ours in HEAD.items()}, folder, KEY), tell=False)


@torch.no_grad()
def begin_from(qformer: QFormer, text: TextBranch, encoder: ClassEncoder) -> None:
    """The Q-Former's layers, queries' and texts' alike, with the values of a BERT; cross-attention keeps its own."""
    embeddings: Embeddings = encoder.embeddings
    rows = embeddings.words.weight.shape[0]
    text.words.weight[:rows] = embeddings.words.weight
    text.positions.weight.copy_(embeddings.positions.weight)
    _copy(embeddings.norm, qformer.norm)
    for layer, shared, own in zip(encoder.layers, qformer.layers, text.layers, strict=True):
        _copy(layer.attention, shared.attention)
        feed_forward: FeedForward = layer.feed_forward
        _copy(feed_forward, shared.feed_forward)
        _copy(feed_forward, own)


def _copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict())


def begin(encoder: ClassEncoder, qformer: QFormer, text: TextBranch, config: Any, folder: str) -> None:
    """Values to begin with: BERT's where it has them, else drawn as BERT's were. Nothing on the meta device."""
    if encoder.embeddings.words.weight.is_meta:
        return
    for part in (encoder, qformer, text):
        initialise(part, config.initializer_range)
    if not folder:
        return
    load_encoder(encoder, config, folder)
    begin_from(qformer, text, encoder)
    load_words_head(text, folder)
