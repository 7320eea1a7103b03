"""P-Former's stages on small random models: what takes part, what no sample may see, and decoding."""

from dataclasses import replace

import pytest
import small
import torch
from transformers import BertConfig, BertForMaskedLM

from dsmemvp.backbones import shapes
from dsmemvp.data.batch import Captions, Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.errors import UserError
from dsmemvp.generation.generate import Sampling, generate
from dsmemvp.model import VisualLanguageModel, loss_sum
from dsmemvp.prompts.pformer import qformer, weights
from dsmemvp.prompts.pformer.bert import Noise, own_tokens
from dsmemvp.prompts.pformer.contrast import hard_negatives
from dsmemvp.prompts.pformer.weights import text_config

LENGTH, MASK = 9, 4
BERT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
STAGES = ("text", "align", "generate", "finetune")
TEXTS = [[1, 5, 9, 3, 7, 30, 2], [1, 8, 4, 2], [1, 11, 2], [1, 7, 7, 50, 12, 2]]


@pytest.fixture(autouse=True)
def tiny_bert(monkeypatch):
    monkeypatch.setitem(shapes.LANGUAGE, "bert-test", {"model_type": "bert", **BERT, "max_position_embeddings": 12})


def model(stage: str, **settings) -> VisualLanguageModel:
    given = {"text_shape": "bert-test", "prompts": 3, "features": 8, "text_length": LENGTH, "stages": list(STAGES)}
    small.SETTINGS["pformer"] = given | settings
    try:
        made = small.model("pformer")
    finally:
        del small.SETTINGS["pformer"]
    begin(made, stage)
    return made


def begin(made: VisualLanguageModel, name: str) -> None:
    stage = next(stage for stage in made.method.stages() if stage.name == name)
    made.method.begin_stage(stage, made.method.teacher(stage), made.language.embed_tokens.weight.detach().clone())


def captions(lengths: list[int], first: int = 0) -> Captions:
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(5, 40, (len(lengths) + first, LENGTH), generator=generator)[first:]
    tokens[:, 0] = 1
    mask = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    drawn = torch.rand(tokens.shape, generator=generator) < 0.3
    return Captions(tokens, mask, drawn & mask & (tokens != 1), tuple(lengths), MASK)


def batch(made: VisualLanguageModel, rows=(0, 1, 2, 3), images: bool = True, read=(9, 4, 6, 2)):
    pictures = small.pictures(len(TEXTS))
    items = [Item(b, EncodedText(TEXTS[b], 1, False), pictures[b] if images else None) for b in rows]
    whole = captions(list(read))
    if not rows:
        own = captions([0])
    else:
        own = replace(
            whole,
            tokens_BL=whole.tokens_BL[list(rows)],
            mask_BL=whole.mask_BL[list(rows)],
            drawn_BL=whole.drawn_BL[list(rows)],
            lengths=tuple(read[b] for b in rows),
        )
    packed = make_batch(items, small.RESOLUTION, made.method.reserved()).batch
    return replace(packed, captions=own)


def total(made: VisualLanguageModel, given) -> torch.Tensor:
    """What the stage trains on."""
    stage = made.method.stage
    logits, losses = made(given)
    parts = [losses[name] * weight for name, weight in stage.losses.items()]
    if stage.decoder:
        parts.append(stage.language_loss * loss_sum(logits, given.targets))
    return torch.stack(parts).sum()


VARIANTS = [
    ("text", {}),
    ("text", {"views": 2, "layout": "prompts_bos"}),
    ("align", {}),
    ("align", {"align_weight": 0.0}),
    ("align", {"schedule": "cheap"}),
    ("generate", {}),
    ("generate", {"generate_weight": 0.0, "layout": "prompts_bos"}),
    ("generate", {"schedule": "cheap"}),
    ("finetune", {}),
    ("finetune", {"align_text": "answer", "target_dropout": True}),
]


@pytest.mark.parametrize(("stage", "settings"), VARIANTS, ids=str)
def test_a_gradient_reaches_all_that_the_stage_trains_and_nothing_else(stage, settings):
    made = model(stage, **settings).train()
    trains = made.method.stage.trains
    for rows, images in (((0, 1, 2, 3), stage != "text"), ((), False), ((0, 2), False)):
        made.zero_grad(set_to_none=True)
        given = batch(made, rows, images)
        loss = total(made, given)
        loss.backward()
        named = {name: p for name, p in made.named_parameters() if name.startswith("method.")}
        reached = {name for name, p in named.items() if p.grad is not None}
        wanted = {name for name in named if name.startswith(trains)}
        assert reached == wanted
        moved = {name for name in reached if named[name].grad.abs().max() > 0}
        # a key's bias moves all scores alike, which a softmax does not see
        idle = {name for name in wanted if not name.endswith("key.bias")} - moved
        whole = images or (stage == "text" and rows)
        assert idle <= ({"method.text.positions.weight"} if whole else wanted), idle
        assert whole or not moved or stage == "text"


@pytest.mark.parametrize(("stage", "settings"), VARIANTS, ids=str)
def test_what_takes_no_part_is_not_touched(stage, settings):
    """Without the modules that the stage does not name, and with the teacher outside of the method."""
    made = model(stage, **settings)
    given = batch(made, images=stage != "text")
    with torch.no_grad():
        wanted = total(made, given)
        for name, _ in list(made.method.named_children()):
            if not name.startswith(made.method.stage.modules):
                setattr(made.method, name, None)
        assert torch.equal(total(made, given), wanted)
    sites = made.schedule()
    assert {site.tower for site in sites} == {
        *(("vision",) if stage != "text" else ()),
        *(("decoder",) if stage != "align" else ()),
    }


@pytest.mark.parametrize(("stage", "settings"), VARIANTS, ids=str)
def test_dropout_follows_from_the_step_alone(stage, settings):
    made = model(stage, **settings).train()
    given = batch(made, images=stage != "text")
    with torch.no_grad():
        first = total(made, given)
        assert torch.equal(first, total(made, given))
        assert not torch.equal(first, total(made, replace(given, dropout_seed=5)))
        made.eval()
        assert not torch.equal(first, total(made, given))


@pytest.mark.parametrize(("stage", "settings"), VARIANTS, ids=str)
def test_padding_and_the_order_of_samples_change_nothing(stage, settings):
    made = model(stage, **settings)
    given = batch(made, images=stage != "text")
    with torch.no_grad():
        wanted = total(made, given)
        read = given.captions
        other = replace(read, tokens_BL=torch.where(read.mask_BL, read.tokens_BL, 33))
        torch.testing.assert_close(total(made, replace(given, captions=other)), wanted, rtol=1e-5, atol=1e-5)
        turned = batch(made, (3, 1, 0, 2), images=stage != "text")
        if "itm" not in made.method.stage.losses:  # whose wrong pairs are drawn by place
            torch.testing.assert_close(total(made, turned), wanted, rtol=1e-4, atol=1e-4)


def test_a_text_is_written_from_what_stands_before_it():
    """ITG: a later token of a caption changes no logit before it; ITC and ITM read both ways."""
    made = model("align")
    seen = []
    words = made.method.text.words
    words.register_forward_hook(lambda module, given, out: seen.append(out) if given[0].is_floating_point() else None)
    given = batch(made)
    read = given.captions
    changed = read.tokens_BL.clone()
    changed[0, 5] = 38
    with torch.no_grad():
        first, second = made(given)[1], made(replace(given, captions=replace(read, tokens_BL=changed)))[1]
    assert torch.equal(seen[0][0, :5], seen[1][0, :5]) and not torch.equal(seen[0][0, 5:], seen[1][0, 5:])
    assert torch.equal(seen[0][1:], seen[1][1:])
    assert all(not torch.equal(first[name], second[name]) for name in ("itc", "itm", "itg"))


def test_with_two_views_the_dropout_decides_whether_they_are_alike():
    made = model("text", views=2, contrast_weight=1.0)
    given = batch(made, images=False)
    with torch.no_grad():
        quiet = made(given)[1]["contrast"]
        begin(made, "text")
        one = model("text")
        torch.testing.assert_close(one(given)[1]["contrast"], quiet)
        assert made.train()(given)[1]["contrast"] > quiet


def test_scaled_alignment_does_not_see_the_scale():
    found = {}
    for form in ("raw", "scaled"):
        made = model("generate", alignment=form)
        given = batch(made)
        for factor in (1.0, 3.0):
            with torch.no_grad():
                for part in (made.method.pformer.head.out, made.method.projection):
                    part.weight *= factor
                    part.bias *= factor
                found[form, factor] = made(given)[1]["align"].item()
    assert found["scaled", 3.0] == pytest.approx(found["scaled", 1.0], rel=1e-4)
    assert found["raw", 3.0] == pytest.approx(9 * found["raw", 1.0], rel=1e-4)


def test_class_vectors_that_are_given_take_the_encoder_s_place():
    made = model("generate")
    given = batch(made)
    read, encoder = given.captions, made.method.pformer.encoder
    with torch.no_grad():
        wanted = made(given)[1]["align"]
        vectors = encoder(read.tokens_BL, read.mask_BL, made.method._noise(given, "", LENGTH))
        made.method.pformer.encoder = None
        assert torch.equal(made(replace(given, captions=replace(read, vectors_BH=vectors)))[1]["align"], wanted)


@pytest.mark.parametrize("layout", ["bos_prompts", "prompts_bos"])
def test_with_a_cache_the_tokens_are_those_without_and_nothing_of_p_former_is_there(layout):
    made = model("finetune", layout=layout)
    made.method.pformer = made.method.text = made.method.pairs = None
    looks = []
    made.method.projection.register_forward_hook(lambda *_: looks.append(1))
    wanted = small.without_cache(made, 8)
    looks.clear()
    assert generate(small.decoder(made), small.prompts(made), Sampling(max_new_tokens=8)) == wanted
    assert len(looks) == 1 and max(map(len, wanted)) > 1
    others = [small.pictures(9)[-1] if image else None for image in small.PICTURES]
    assert small.without_cache(made, 8, images=others) != wanted


def test_metrics_of_stage_text():
    made = model("text")
    given = batch(made, images=False)
    with torch.no_grad():
        logits, losses = made(given)
        state = made.method.begin(given)
    counts = made.method.loss_counts(given)
    assert counts["token_accuracy"] == given.targets.numel() and counts["variance"] == counts["reconstructed"] == 4
    assert losses["token_accuracy"].item() == (logits.argmax(-1) == given.targets).sum().item()
    prompts = state["prompts"].double()
    assert losses["variance"].item() == pytest.approx(prompts.flatten(1).var(1).sum().item(), rel=1e-5)
    distance = torch.cdist(prompts, made.language.embed_tokens.weight.double()).amin(-1)
    assert losses["distance"].item() == pytest.approx(distance.mean(1).sum().item(), rel=1e-4)
    assert losses["vocabulary"].item() == pytest.approx((distance.square() / 32).mean(1).sum().item(), rel=1e-4)


def _greedy(made: VisualLanguageModel, b: int, steps: int) -> list[int]:
    """BOS and what the language model writes behind sample b's reference prompts, token by token."""
    text = [1]
    for _ in range(steps):
        item = Item(b, EncodedText([*text, 0], 1, False), None)
        packed = make_batch([item], small.RESOLUTION, made.method.reserved()).batch
        read = batch(made, (b,), images=False).captions
        text.append(int(made(replace(packed, captions=read))[0][-1].argmax()))
    return text


@pytest.mark.parametrize("layout", ["bos_prompts", "prompts_bos"])
def test_captions_count_as_reconstructed_if_greedy_decoding_writes_them(layout):
    made = model("text", layout=layout)
    with torch.no_grad():
        texts = [_greedy(made, b, steps=5) for b in range(4)]
        assert len({tuple(text) for text in texts}) > 1
        texts[1][4] += 1  # behind it the true beginning is another one, but the text is wrong already
        items = [Item(b, EncodedText(text, 1, False), None) for b, text in enumerate(texts)]
        given = batch(made, images=False)
        packed = make_batch(items, small.RESOLUTION, made.method.reserved()).batch
        assert made(replace(packed, captions=given.captions))[1]["reconstructed"].item() == 3
        empty = batch(made, (), images=False)
        assert made(empty)[1]["reconstructed"].item() == 0


def test_by_the_teacher_the_language_model_reads_the_captions_own_prompts():
    made = model("generate")
    given = batch(made, (0, 1, 2))
    teacher = made.method._teacher[0]
    with torch.no_grad():
        reference = teacher(given.captions, Noise())
        taught, losses = made(given, None, True)
        other = made(given)[0]
        hook = made.method.projection.register_forward_hook(lambda *_: reference)
        wanted = made(given)[0]
        hook.remove()
    assert torch.equal(taught, wanted) and not losses and not torch.equal(taught, other)
    assert [made.method.settings.reference_steps, made.method.stage.reference_every] == [100, 100]
    assert model("generate", generate_weight=0.0).method.stage.reference_every == 0
    with torch.no_grad():  # without an image nothing is there to be replaced
        alone = batch(made, (0, 2), images=False)
        assert torch.equal(made(alone, None, True)[0], made(alone)[0])


def test_a_row_of_padding_has_a_value():
    assert own_tokens(torch.zeros(2, 3, dtype=torch.bool)).tolist() == [[True, False, False]] * 2


def test_a_bert_s_folder_fills_p_former_and_both_branches_of_the_q_former(tmp_path):
    """Against transformers' own BERT and its head for words, on rows with padding."""
    torch.manual_seed(1)
    bert = BertForMaskedLM(BertConfig(**BERT, max_position_embeddings=12, initializer_range=0.3)).eval()
    bert.save_pretrained(tmp_path)
    method = model("align", text_encoder=str(tmp_path)).method
    config = text_config(str(tmp_path), "")
    weights.begin(method.pformer.encoder, method.qformer, method.text, config, str(tmp_path))  # as it was built
    read = captions([9, 4, 6])
    with torch.no_grad():
        hidden = bert.bert(read.tokens_BL, attention_mask=read.mask_BL.long()).last_hidden_state
        vector = method.pformer.encoder(read.tokens_BL, read.mask_BL, Noise())
        torch.testing.assert_close(vector, hidden[:, 0], atol=1e-5, rtol=1e-5)
        bert.bert.embeddings.token_type_embeddings.weight.zero_()  # which a Q-Former has not
        hidden = bert.bert(read.tokens_BL, attention_mask=read.mask_BL.long()).last_hidden_state
        found = qformer.read(method.qformer, method.text, read.tokens_BL, read.mask_BL, Noise())
        torch.testing.assert_close(found[read.mask_BL], hidden[read.mask_BL], atol=1e-5, rtol=1e-5)
        own = bert.cls.predictions
        wanted = own.transform(hidden) @ bert.bert.embeddings.word_embeddings.weight.T
        torch.testing.assert_close(method.text.logits(hidden)[..., :40], wanted, atol=1e-4, rtol=1e-4)
    layer, shared = method.pformer.encoder.layers[1], method.qformer.layers[1]
    assert torch.equal(layer.feed_forward.up.weight, shared.feed_forward.up.weight)
    assert method.text.words.weight.shape[0] == 41 and method.qformer.layers[1].cross_attention is None
    assert method.qformer.layers[2].cross_attention is not None


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(36))]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    made = model("generate", text_tokenizer=str(tmp_path / "vocab.txt"))
    with pytest.raises(UserError, match="has 41 pieces, the text encoder 40; take its own"):
        made.method.captions()
    with pytest.raises(UserError, match="give the file of BERT's tokenizer"):
        model("generate").method.captions()
    (tmp_path / "fits.txt").write_text("\n".join(pieces[:40]) + "\n")
    path = str(tmp_path / "fits.txt")
    for stage, settings, wanted in (
        ("text", {}, (0.25, True, "caption")),
        ("align", {}, (0.0, True, "caption")),
        ("generate", {}, (0.0, True, "caption")),
        ("finetune", {"align_text": "question+answer"}, (0.0, False, "question+answer")),
    ):
        read = model(stage, text_tokenizer=path, **settings).method.captions()
        assert (read.mask, read.target, read.of) == wanted and read.length == LENGTH
    assert model("finetune", text_tokenizer=path).method.captions() is None


def test_hard_negatives_are_others_by_their_weights():
    """Drawn often: by softmax + 1e-4 with the own row left out."""
    scores = torch.tensor([[5.0, 1.0, 0.0, -30.0], [0.0, 9.0, 0.0, 1.0]])
    keys = torch.arange(20_000).view(-1, 2)
    drawn = torch.stack([hard_negatives(scores, 1, own) for own in keys])
    chances = scores.double().softmax(1) + 1e-4
    chances[0, 1] = chances[1, 2] = 0.0
    for row in (0, 1):
        shares = torch.bincount(drawn[:, row], minlength=4) / len(keys)
        torch.testing.assert_close(shares.double(), chances[row] / chances[row].sum(), atol=0.02, rtol=0)
    assert not (drawn[:, 0] == 1).any() and not (drawn[:, 1] == 2).any()
