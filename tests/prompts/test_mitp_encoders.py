"""MITP with two encoders against recorded numbers (facts: mitp_reference.md, part a, and its tolerances)."""

import pytest
import torch
from mitp_encoders_recording import SAMPLES, EncodersRecording
from recording import check_close, one_step
from safetensors.torch import save_file
from transformers import BertModel

from dsmemvp.backbones.recompute import KEPT
from dsmemvp.data.batch import Item
from dsmemvp.model import loss_sum

VARIANTS = {
    "hub_off": {"hub": "off"},
    "hub_uniform": {"hub": "uniform"},
    "text_to_vision_only": {"direction": "text_to_vision"},
    "vision_to_text_only": {"direction": "vision_to_text"},
    "late_concat": {"prompts": False},
}


@pytest.fixture(scope="module")
def recording(shared, tmp_path_factory) -> EncodersRecording:
    made = EncodersRecording(shared, tmp_path_factory.mktemp("encoders"))
    made.write()
    return made


@pytest.mark.parametrize(("several", "loss"), [(False, "cross_entropy"), (True, "binary_cross_entropy")])
def test_logits_loss_and_gradients_are_the_recorded_ones(recording, several, loss):
    model = recording.model(loss="multi_label" if several else "cross_entropy")
    logits, found, gradients = one_step(model, recording.batch(several=several))
    assert (logits - recording.tensors["out.logits"]).abs().max() < 1e-4
    assert abs(found - recording.tensors[f"out.{loss}"].item()) < 1e-5
    recorded = recording.gradients(several)
    assert gradients.keys() == recorded.keys()
    for name, gradient in gradients.items():
        check_close(gradient, recorded[name])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_control_differs_by_one_key_alone(recording, variant):
    model, batch = recording.model(**VARIANTS[variant]), recording.batch(prompts=variant != "late_concat")
    logits, loss, gradients = one_step(model, batch)
    assert (logits - recording.tensors[f"variant.{variant}.logits"]).abs().max() < 1e-4
    assert abs(loss - recording.tensors[f"variant.{variant}.cross_entropy"].item()) < 1e-5
    assert all(gradient.abs().max() > 0 for gradient in gradients.values()), gradients.keys()


def test_prompts_and_hidden_states_are_the_recorded_ones_block_by_block(recording):
    model, batch, tensors = recording.model(), recording.batch(), recording.tensors
    seen: dict = {}
    for tower, part in (("text", model.language), ("vision", model.vision)):
        for i, block in enumerate(part.layers):
            block.register_forward_hook(
                lambda _, given, out, at=(tower, i): seen.update({at: (given[0].detach(), out.detach())})
            )
    with torch.no_grad():
        _, state = model._walk(batch, model.method.begin(batch), model.schedule())
    n, points = recording.spec["prompt_len"], recording.spec["points"]
    slots = batch.places["prompts"].view(len(SAMPLES), n)
    for r, block in enumerate(points):
        given, left = seen["vision", block]
        check_close(given[:, :n], tensors[f"out.point.{r}.vision_given"])
        check_close(left[:, :n], tensors[f"out.point.{r}.vision_acquired"])
        given, left = seen["text", block]
        check_close(given[0, slots], tensors[f"out.point.{r}.text_given"])
        if block < 4:  # of the last block only supervised tokens are kept
            check_close(left[0, slots], tensors[f"out.point.{r}.text_acquired"])
            check_close(state[f"similarity_{block}"], tensors[f"out.hub.{r}.similarity"])
    for block in range(5):
        check_close(seen["vision", block][1][:, n if block in points else 0 :], tensors[f"out.hidden_vision.{block}"])
    for block in range(4):
        for b, (start, stop) in enumerate(batch.bounds):
            found = seen["text", block][1][0, start + n : stop]
            check_close(found, tensors[f"out.hidden_text.{block}"][b, : stop - start - n])


def test_the_text_tower_is_transformers_own_model(recording):
    model, batch = recording.model(prompts=False), recording.batch(prompts=False)
    theirs = BertModel.from_pretrained(recording.folder / "text", add_pooling_layer=False).eval()
    hidden = model.language.start(batch.tokens, batch.text_positions)
    with torch.no_grad():
        logits, _ = model(batch)
        own = theirs(recording.tensors["in.input_ids"], recording.tensors["in.attention_mask"])[0]
    assert hidden.shape[1] == recording.tensors["in.attention_mask"].sum()
    classes = model.vision(recording.tensors["in.pixel_values"])[:, 0]
    check_close(logits, model.method.classifier(torch.cat((classes, own[:, 0]), dim=-1)).detach(), 1e-5)


def test_packed_and_one_by_one_is_the_same_and_so_are_shared_images(recording):
    model = recording.model()
    items = recording.items()
    items[2] = Item(2, items[2].text, items[0].image, labels=items[2].labels)
    items[3] = Item(3, items[3].text, None, labels=items[3].labels)
    batch = recording.pack(items)
    assert len(batch.images) == 2
    logits, _, gradients = one_step(model, batch)
    total = {name: torch.zeros_like(g) for name, g in gradients.items()}
    for b, item in enumerate(items):
        single, _, own = one_step(model, recording.pack([item]))
        check_close(single, logits[b : b + 1], 1e-5)
        for name, gradient in own.items():
            total[name] += gradient / len(items)
    for name, gradient in gradients.items():
        check_close(total[name], gradient, 1e-5)


def test_recomputing_changes_nothing_and_a_batch_without_samples_weighs_nothing(recording):
    model, batch = recording.model(), recording.batch()
    _, _, plain = one_step(model, batch)
    for policy in KEPT:
        model.set_recompute(policy, "full" if policy == "full" else "none")
        for name, gradient in one_step(model, batch)[2].items():
            check_close(gradient, plain[name], 2e-5)
    model.zero_grad()
    lone = recording.pack([])
    loss_sum(model(lone)[0], lone.targets).backward()
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in model.trainables().values())


def test_the_loss_in_bfloat16(recording):
    model, batch = recording.model(torch.bfloat16), recording.batch()
    with torch.no_grad():
        loss = loss_sum(model(batch)[0], batch.targets) / len(SAMPLES)
    assert abs(loss.item() - recording.tensors["out.cross_entropy"].item()) < 0.02


VIT = {
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}
"""transformers' names -> those in published files"""


def _published(name: str) -> str:
    if name.startswith("text."):
        name = "bert." + name.removeprefix("text.")
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    name = name.removeprefix("vision.").replace("layers.", "encoder.layer.", 1)
    for ours, theirs in VIT.items():
        name = name.replace(ours, theirs)
    return name


def test_weights_under_the_names_of_published_files_are_the_same(recording, shared, tmp_path):
    """bert-base-uncased has a prefix, gamma and beta, and heads; ViT's files have the names of older versions."""
    again = EncodersRecording(shared, tmp_path)
    again.write()
    for part in ("text", "vision"):
        named = {_published(n): t for n, t in again.tensors.items() if n.startswith(f"{part}.")}
        more = {"bert.pooler.dense.weight", "cls.predictions.bias"} if part == "text" else {"pooler.dense.weight"}
        save_file(named | {name: torch.zeros(3) for name in more}, tmp_path / part / "model.safetensors")
    batch = recording.batch()
    with torch.no_grad():
        assert torch.equal(again.model()(batch)[0], recording.model()(batch)[0])
