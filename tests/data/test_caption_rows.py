"""Captions: a method's own tokenizer, places drawn for [MASK], the language model's text, and what is a bad sample."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dsmemvp.config.recipe import Recipe
from dsmemvp.data.captions import CaptionReader, CaptionText, WordPieces, drawn_places
from dsmemvp.data.collator import Collator
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.layout import Reserved
from dsmemvp.data.sample import EncodedSample, SampleError
from dsmemvp.errors import UserError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "##bird", "ball", "."]
LENGTH = 8


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return path


def _collator(vocabulary, tokenizer_path, **given) -> Collator:
    reader = CaptionReader(CaptionText(str(vocabulary), LENGTH, **given), seed=3)
    image = ImageTransform(32, Recipe().vision.max_pixels)
    return Collator(str(tokenizer_path), image, False, 64, False, caption_reader=reader)


def _entry(index: int, **row) -> tuple[int, EncodedSample]:
    return index, EncodedSample({"json": json.dumps(row).encode()}, f"shard, s{index}", index)


def test_pieces_are_those_of_transformers_own_bert_tokenizer(vocabulary):
    from transformers import BertTokenizer

    theirs = BertTokenizer(str(vocabulary))
    ours = WordPieces(vocabulary)
    for text in ("a Red ball.", "a bluebird", "a green ball"):
        assert ours.encode(text) == theirs(text)["input_ids"]
    theirs.backend_tokenizer.save(str(vocabulary.with_name("tokenizer.json")))
    assert WordPieces(vocabulary.with_name("tokenizer.json")).encode("a bluebird") == ours.encode("a bluebird")
    assert (ours.cls, ours.sep, ours.mask, ours.pad) == (2, 3, 4, 0)
    vocabulary.write_text("a\nb\n")
    with pytest.raises(UserError, match=r"vocab.txt has no \[CLS\], \[SEP\]"):
        WordPieces(vocabulary)


def test_a_batch_holds_each_samples_caption_padded_and_its_drawn_places(vocabulary, tokenizer_path, tokenizer):
    collator = _collator(vocabulary, tokenizer_path, mask=0.5)
    asked = {"question": "What?", "choices": ["a", "b"], "answer": 0, "caption": "a bluebird"}
    entries = [_entry(0, caption="a red ball ."), _entry(1, **asked)]
    captions = collator.batch(tokenizer, entries, epoch=2).batch.captions
    assert captions is not None and captions.lengths == (6, 5) and captions.mask_token == 4
    assert captions.tokens_BL.tolist() == [[2, 5, 6, 9, 10, 3, 0, 0], [2, 5, 7, 8, 3, 0, 0, 0]]
    assert captions.mask_BL.sum(1).tolist() == [6, 5] and captions.mask_BL[0, :6].all()
    for row, length in enumerate(captions.lengths):
        assert captions.drawn_BL[row, :length].tolist() == drawn_places(length, 0.5, 3, 2, row).tolist()
        assert not captions.drawn_BL[row, length:].any()
    empty = collator.batch(tokenizer, []).batch.captions
    assert empty is not None and empty.lengths == (0,) and not empty.mask_BL.any() and not empty.tokens_BL.any()
    moved = captions.map(lambda tensor: tensor + 0 if tensor.dtype == torch.int64 else tensor)
    assert moved.lengths == captions.lengths and torch.equal(moved.tokens_BL, captions.tokens_BL)


def test_drawn_places_follow_from_seed_epoch_and_sample_alone():
    draws = np.array([drawn_places(32, 0.25, 0, epoch, index) for epoch in range(4) for index in range(200)])
    assert not draws[:, 0].any() and draws[:, 1:].mean() == pytest.approx(0.25, abs=0.01)
    assert len({row.tobytes() for row in draws}) == len(draws)
    assert not np.array_equal(drawn_places(32, 0.25, 1, 0, 0), draws[0])
    assert "".join(map(str, drawn_places(16, 0.5, 7, 1, 5).astype(int))) == PINNED
    assert not drawn_places(32, 0.0, 0, 0, 0).any()


PINNED = "0100001000100001"


def test_the_language_models_text_is_the_caption_and_its_end(vocabulary, tokenizer_path, tokenizer):
    text = "a red ball."
    wanted = [*tokenizer.encode(text), tokenizer.eos]
    for bos_too, anchor in ((False, "front"), (True, "start")):
        collator = _collator(vocabulary, tokenizer_path, target=True, supervise_bos=bos_too)
        prompt = Reserved("prompt", 2, anchor, without_image=True)
        batch = replace(collator, reserved=(prompt,)).batch(tokenizer, [_entry(0, caption=text)]).batch
        tokens = [0, 0, *wanted] if bos_too else [wanted[0], 0, 0, *wanted[1:]]
        assert batch.tokens.tolist() == tokens
        assert batch.targets.tolist() == (wanted if bos_too else wanted[1:])
        assert batch.supervised.tolist() == list(range(1 if bos_too else 2, len(tokens) - 1))
        asked = replace(collator, reserved=(prompt,), answers=True).batch(tokenizer, [_entry(0, caption=text)]).batch
        assert asked.tokens.tolist() == tokens[:3] if not bos_too else [0, 0, tokenizer.bos]
        assert asked.captions is None
    # without anything before it, the first token cannot be predicted
    alone = _collator(vocabulary, tokenizer_path, target=True, supervise_bos=True)
    batch = alone.batch(tokenizer, [_entry(0, caption=text)]).batch
    assert batch.targets.tolist() == wanted[1:] and batch.supervised.tolist() == list(range(len(wanted) - 1))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"question": "What?", "answer": "a ball"}, "shard, s0: has no caption"),
        ({"caption": "  "}, "shard, s0: its caption is empty"),
        ({"caption": "a red ball . a red ball ."}, "its caption has 10 tokens, more than the text length of 8"),
    ],
)
def test_captions_that_are_empty_or_too_long_are_bad_samples(vocabulary, tokenizer_path, tokenizer, row, why):
    collator = _collator(vocabulary, tokenizer_path)
    with pytest.raises(SampleError, match=why):
        collator.batch(tokenizer, [_entry(0, **row)])
    micro = replace(collator, skip_bad=True).batch(tokenizer, [_entry(0, **row), _entry(1, caption="a ball")])
    assert len(micro.skipped) == 1 and micro.batch.captions is not None and micro.batch.captions.lengths == (4,)
    if "." in str(row):
        with pytest.raises(SampleError, match=r"more than data.max_length = 5"):
            replace(_collator(vocabulary, tokenizer_path, target=True), max_length=5).batch(
                tokenizer, [_entry(0, **row)]
            )
