"""MITP's port to CLIP and LLaMA against recorded numbers (facts: mitp_reference.md, part b, and its tolerances)."""

import pytest
import torch
from mitp_recording import SAMPLES, MitpRecording
from recording import check_close, one_step

from dsmemvp.backbones.recompute import KEPT
from dsmemvp.data.batch import Item
from dsmemvp.data.packing import by_image, make_batch
from dsmemvp.model import VisualLanguageModel, loss_sum
from dsmemvp.prompts.interface import Site

VARIANTS = {
    "sim_dot": {"sim": "dot"},
    "activation_none": {"activation": "none"},
    "carry_false": {"carry": False},
    "hub_uniform": {"hub": "uniform"},
    "vision_cached": {"vision": "cached"},
    "hub_off": {"hub": "off"},
}
TEXT, VISION = (2, 4, 5), (1, 3)


@pytest.fixture(scope="module")
def recording(shared, tmp_path_factory) -> MitpRecording:
    made = MitpRecording(shared, tmp_path_factory.mktemp("mitp"))
    made.write()
    return made


def test_sequence_places_positions_and_masks_are_the_recorded_ones(recording):
    batch, tensors = recording.batch(), recording.tensors
    model = recording.model()
    hidden = torch.zeros(len(batch.tokens), dtype=torch.bool)
    hidden[batch.places["prompts"]] = True
    for b, (start, stop) in enumerate(batch.bounds):
        ids = tensors["in.sequence_ids"][b, : tensors["in.sequence_len"][b]]
        assert torch.equal(batch.tokens[start:stop], ids.clamp(min=0))
        assert torch.equal(hidden[start:stop], ids == recording.spec["slot_marker"])
        assert torch.equal(batch.positions[start:stop], tensors["in.position_ids"][b, : stop - start])
        size, own = stop - start, torch.eye(stop - start, dtype=torch.bool)
        causal = torch.ones_like(own).tril()
        assert torch.equal(causal, tensors["in.mask_text_points"][b, :size, :size].bool())
        other = (causal & ~hidden[start:stop]) | own
        assert torch.equal(other, tensors["in.mask_other_blocks"][b, :size, :size].bool())
    visible = [model.method.visible(Site("decoder", block)) for block in range(6)]
    assert visible == [None if block in TEXT else () for block in range(6)]


def test_logits_loss_and_gradients_are_the_recorded_ones(recording):
    logits, loss, gradients = one_step(recording.model(), recording.batch())
    assert (logits - recording.tensors["out.logits"]).abs().max() < 1e-4
    assert abs(loss - recording.tensors["out.loss"].item()) < 1e-5
    recorded = recording.gradients()
    assert gradients.keys() == recorded.keys()
    for name, gradient in gradients.items():
        check_close(gradient, recorded[name])


class _Seen:
    """Hidden states before and after every block."""

    def __init__(self, model: VisualLanguageModel):
        self.given: dict[tuple[str, int], torch.Tensor] = {}
        self.left: dict[tuple[str, int], torch.Tensor] = {}
        for tower, part in (("decoder", model.language), ("vision", model.vision)):
            for i, block in enumerate(part.layers):
                block.register_forward_hook(lambda _, given, out, at=(tower, i): self._keep(at, given[0], out))

    def _keep(self, at, given, out) -> None:
        self.given[at], self.left[at] = given.detach(), out.detach()


def test_prompts_and_hidden_states_are_the_recorded_ones_block_by_block(recording):
    """One batch in the recorded order; samples without an image are not compared in the vision tower."""
    model, batch, tensors = recording.model(), recording.batch(), recording.tensors
    seen = _Seen(model)
    with torch.no_grad():
        _, state = model._walk(batch, model.method.begin(batch), model.schedule())
    n = recording.spec["prompt_len"]
    slots, with_image = batch.places["prompts"].view(len(SAMPLES), n), tensors["in.has_image"].bool()
    for r, block in enumerate(TEXT):
        check_close(seen.given["decoder", block][0, slots], tensors[f"out.text_point.{r}.written"])
        if r < len(VISION):  # of the last block only supervised tokens are computed
            check_close(seen.left["decoder", block][0, slots], tensors[f"out.text_point.{r}.acquired"])
            check_close(state[f"similarity_{r}"][with_image], tensors[f"out.hub.{r}.similarity"][with_image])
    for r, block in enumerate(VISION):
        given = seen.given["vision", block][:, :n]
        check_close(given, tensors[f"out.vision_point.{r}.given"][with_image])
        check_close(seen.left["vision", block][:, :n], tensors[f"out.hub.{r}.vision_acquired"][with_image])
    for block in range(5):
        text = seen.left["decoder", block][0]
        for b, (start, stop) in enumerate(batch.bounds):
            words = [i for i in range(start, stop) if i not in slots]
            recorded = tensors[f"out.hidden_text.{block}"][b, [i - start for i in words]]
            check_close(text[words], recorded)
    for block in range(4):
        found = seen.left["vision", block][:, n if block in VISION else 0 :]
        check_close(found, tensors[f"out.hidden_vision.{block}"][with_image])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_differs_by_one_key_alone(recording, variant):
    model, batch = recording.model(**VARIANTS[variant]), recording.batch()
    logits, loss, gradients = one_step(model, batch)
    assert (logits - recording.tensors[f"variant.{variant}.logits"]).abs().max() < 1e-4
    assert abs(loss - recording.tensors[f"variant.{variant}.loss"].item()) < 1e-5
    assert all(gradient.abs().max() > 0 for gradient in gradients.values()), gradients.keys()


@pytest.mark.parametrize("vision", ["two_way", "cached"])
@pytest.mark.parametrize("hub", ["similarity", "uniform", "off"])
def test_a_gradient_reaches_every_trained_tensor(recording, hub, vision):
    """Without one training ends after its first step (training/gradients.py)."""
    model, batch = recording.model(hub=hub, vision=vision), recording.batch()
    loss_sum(model(batch)[0], batch.targets).backward()
    assert [name for name, p in model.trainables().items() if p.grad is None] == []


def test_without_images_and_from_zero_maps_the_hub_changes_nothing(recording):
    model, tensors = recording.model(), recording.tensors
    logits, loss, gradients = one_step(model, recording.batch(images=False))
    assert (logits - tensors["variant.no_image.logits"]).abs().max() < 1e-4
    assert abs(loss - tensors["variant.no_image.loss"].item()) < 1e-5
    # every gradient is there, and but for the prompts' it is zero
    assert {name for name, g in gradients.items() if g.abs().max() > 0} == {"method.text_prompt"}

    for layer in (model.method.hub.from_rank_text, model.method.hub.from_rank_vision):
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    logits, loss, gradients = one_step(model, recording.batch())
    assert (logits - tensors["variant.zero_start.logits"]).abs().max() < 1e-4
    assert abs(loss - tensors["variant.zero_start.loss"].item()) < 1e-5
    assert {name for name, g in gradients.items() if g.abs().max() > 0} == {
        "method.text_prompt",
        "method.hub.from_rank_text.weight",
        "method.hub.from_rank_text.bias",
    }


@pytest.mark.parametrize("variant", ["", *VARIANTS])
def test_the_loss_in_bfloat16(recording, variant):
    model = recording.model(torch.bfloat16, **VARIANTS.get(variant, {}))
    batch = recording.batch()
    recorded = recording.tensors[f"variant.{variant}.loss" if variant else "out.loss"].item()
    with torch.no_grad():
        loss = loss_sum(model(batch)[0], batch.targets) / batch.targets.numel()
    assert abs(loss.item() - recorded) < 0.02


def test_packed_in_any_order_and_one_by_one_is_the_same(recording):
    model = recording.model()
    ordered = by_image(recording.items())
    batch = make_batch(ordered, 28, [recording.reserved]).batch
    logits, _, gradients = one_step(model, batch)
    assert (logits - recording.rows("out.logits", tuple(i.index for i in ordered))).abs().max() < 1e-4
    total = {name: torch.zeros_like(g) for name, g in gradients.items()}
    for b in SAMPLES:
        single = recording.batch((b,))
        logits, _, own = one_step(model, single)
        assert (logits - recording.rows("out.logits", (b,))).abs().max() < 1e-4
        for name, gradient in own.items():
            total[name] += gradient * single.targets.numel() / batch.targets.numel()
    for name, gradient in gradients.items():
        check_close(total[name], gradient)


def test_samples_that_share_an_image_are_as_if_each_had_its_own(recording):
    model = recording.model()
    items = recording.items()
    shared = [Item(i.index, i.text, items[0].image if i.index != 2 else None) for i in items]
    apart = [Item(i.index, i.text, None if i.image is None else i.image.clone()) for i in shared]
    batches = [make_batch(each, 28, [recording.reserved]).batch for each in (shared, apart)]
    assert [len(batch.images) for batch in batches] == [1, 3]
    (logits, _, gradients), (wanted, _, each) = (one_step(model, batch) for batch in batches)
    check_close(logits, wanted, 1e-5)
    for name, gradient in gradients.items():
        check_close(gradient, each[name], 1e-5)


def test_no_sample_sees_another_s_tokens_or_image(recording):
    """Bit for bit."""
    model, items = recording.model(), recording.items()
    before = _each(model, recording, items)
    for changed in SAMPLES:
        item = items[changed]
        tokens = [token + 1 for token in item.text.tokens]
        text = type(item.text)(tokens, item.text.prompt, False, cue=item.text.cue)
        other = Item(item.index, text, None if item.image is None else item.image + 1.0)
        after = _each(model, recording, [other if i == changed else own for i, own in enumerate(items)])
        assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [b != changed for b in SAMPLES]


@torch.no_grad()
def _each(model, recording, items) -> list[torch.Tensor]:
    batch = make_batch(items, 28, [recording.reserved]).batch
    return list(model(batch)[0].split(batch.supervised_counts))


def test_every_policy_of_gradient_checkpointing_gives_the_same_gradients(recording):
    model, batch = recording.model(), recording.batch()
    _, _, plain = one_step(model, batch)
    for policy in KEPT:
        model.set_recompute(policy, "full" if policy == "full" else "none")
        _, _, found = one_step(model, batch)
        for name, gradient in found.items():
            check_close(gradient, plain[name], 2e-5)


def test_a_batch_without_samples_runs_all_of_it_with_weight_zero(recording):
    model = recording.model()
    batch = make_batch([], 28, [recording.reserved]).batch
    logits, _ = model(batch)
    model.zero_grad()
    (loss_sum(logits, batch.targets) + 0.0 * logits.sum()).backward()
    gradients = {name: p.grad for name, p in model.trainables().items()}
    assert all(g is not None and g.abs().max() == 0 for g in gradients.values()), gradients.keys()
