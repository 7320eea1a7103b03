"""P-Former against the recording of its authors' modules (pformer_reference.safetensors): every stage's losses and
gradients, its prompts, and what belongs to no recording."""

import json
from pathlib import Path

import pytest
import torch
from launch import run_on_ranks
from pformer_recording import Recording
from programs import pformer_on_ranks
from safetensors.torch import load_file

from dsmemvp.cli.main import main
from dsmemvp.model import loss_sum
from dsmemvp.planning.meter import Meter
from dsmemvp.prompts.pformer import text
from dsmemvp.prompts.pformer.published import pformer_names, stage_names
from dsmemvp.prompts.pformer.text import nearest

ALL = [0, 1, 2, 3]


@pytest.fixture
def recording(shared, tmp_path) -> Recording:
    return Recording(shared, tmp_path)


def begin(model, name: str, teaches: bool = True) -> None:
    method = model.method
    stage = next(stage for stage in method.stages() if stage.name == name)
    vocabulary = model.language.embed_tokens.weight.detach().clone() if stage.vocabulary else None
    method.begin_stage(stage, method.teacher(stage) if teaches else None, vocabulary)


def check_gradients(recording: Recording, model, stage: str, our_name) -> None:
    named = dict(model.named_parameters())
    recorded = [name for name in recording.tensors if name.startswith(f"{stage}.grad.")]
    assert recorded
    for name in recorded:
        own = named["method." + our_name(name.removeprefix(f"{stage}.grad."))].grad
        wanted = recording.tensors[name].reshape(own.shape)
        assert (own - wanted).norm() < 1e-4 * wanted.norm(), name


def check_losses(recording: Recording, stage: str, found: dict[str, torch.Tensor]) -> None:
    for name, value in found.items():
        wanted = recording.tensors[f"{stage}.{name}"].item()
        assert abs(value.item() - wanted) < 1e-5 * max(1.0, abs(wanted)), (name, value.item(), wanted)


def test_reference_prompts_and_nearest_words_are_the_recorded_ones(recording):
    model = recording.model()
    captions = recording.captions(ALL, masked=False)
    with torch.no_grad():
        pformer = model.method.pformer
        vector = pformer.encoder(captions.tokens_BL, captions.mask_BL, model.method._noise(None, "", 8))
        prompts = pformer(captions, model.method._noise(None, "", 8))
        found = nearest(prompts.flatten(0, 1), model.language.embed_tokens.weight)
    torch.testing.assert_close(vector, recording.tensors["pf_out.cls"], atol=1e-5, rtol=0)
    torch.testing.assert_close(prompts, recording.tensors["pf_out.ref_prompts"], atol=1e-5, rtol=0)
    assert torch.equal(found.view(4, 8), recording.tensors["pf_out.nearest_vocab"])


def test_stage_text(recording):
    model = recording.model(stages=["text"])
    begin(model, "text")
    batch = recording.batch(model, ALL, masked=True, images=False)
    logits, losses = model(batch)
    counts = model.method.loss_counts(batch)
    found = {
        "loss_lm": loss_sum(logits, batch.targets) / batch.targets.numel(),
        "loss_c": losses["contrast"] / counts["contrast"],
        "loss_vq": losses["vocabulary"] / counts["vocabulary"],
    }
    found["loss"] = sum(found.values())
    check_losses(recording, "s0", found)
    found["loss"].backward()
    check_gradients(recording, model, "s0", lambda name: f"pformer.{pformer_names(name)}")


def _seen(recording: Recording, model, batch):
    """The state behind the vision tower, with the recorded image tokens in its place."""
    visual = recording.tensors["in.image_embeds"][batch.sample_ids]
    return model.method.finish("vision", visual, model.method.begin(batch), batch)


def test_stage_align(recording):
    model = recording.model(stages=["align"])
    begin(model, "align")
    batch = recording.batch(model, [0, 1])
    sums = model.method.losses(_seen(recording, model, batch), batch)
    counts = model.method.loss_counts(batch)
    means = {name: value / counts[name] for name, value in sums.items()}
    found = {"loss_itc": means["itc"], "loss_itm": means["itm"], "loss_lm": means["itg"]}
    found["loss_align_weighted"] = model.method.stage.losses["align"] * means["align"]
    found["loss"] = sum(found.values())
    check_losses(recording, "s1", found)
    found["loss"].backward()
    check_gradients(recording, model, "s1", stage_names)


def test_stage_generate(recording):
    model = recording.model(stages=["generate"])
    begin(model, "generate")
    batch = recording.batch(model, ALL)
    state = _seen(recording, model, batch)
    torch.testing.assert_close(state["seen"], recording.tensors["s1.prompts"], atol=1e-5, rtol=0)
    sites = [site for site in model.schedule() if site.tower == "decoder"]
    logits, state = model._walk(batch, state, sites)
    align = model.method.losses(state, batch)["align"] / model.method.loss_counts(batch)["align"]
    found = {"loss_lm": loss_sum(logits, batch.targets) / batch.targets.numel()}
    found["loss_align_weighted"] = model.method.stage.losses["align"] * align
    found["loss"] = sum(found.values())
    check_losses(recording, "s2", found)
    found["loss"].backward()
    check_gradients(recording, model, "s2", stage_names)


@pytest.mark.ranks
def test_contrast_and_pairs_on_two_ranks(recording, shared, tmp_path):
    """The contrast's numbers are recorded; pairs give the same sums and gradients however they are spread."""
    out = tmp_path / "found.json"
    run_on_ranks(
        Path(__file__).parents[1] / "programs" / "pformer_on_ranks.py", 2, str(shared), str(tmp_path), str(out)
    )
    found = json.loads(out.read_text())
    recorded = json.loads((shared / "reference" / "pformer_reference.json").read_text())["world2"]
    for rank, own in enumerate(found):
        for name, wanted in recorded[f"rank{rank}"].items():
            tolerance = 1e-5 if name == "loss_c" else 1e-4 * max(abs(wanted), 1.0)
            assert abs(own["contrast"][name] - wanted) < tolerance, (rank, name)

    alone = pformer_on_ranks.pairs(recording, ALL)
    assert alone["counts"] == {"itc": 4, "itm": 12, "itg": sum(alone_tokens(recording)), "align": 4, "cosine": 4}
    for spread in pformer_on_ranks.SPREAD:
        for kind in ("losses", "counts", "gradients"):
            for name, wanted in alone[kind].items():
                total = sum(own[spread][kind][name] for own in found)
                assert total == pytest.approx(wanted, rel=1e-4, abs=2e-4), (spread, name)
    for own in found:
        assert "holds a single pair" in own["one pair"]["error"]
        assert set(own["none"]["losses"].values()) == {0.0} and set(own["none"]["gradients"].values()) == {0.0}


def alone_tokens(recording: Recording) -> list[int]:
    """What is written of each caption: all but [CLS]."""
    return [length - 1 for length in recording.captions(ALL, masked=False).lengths]


def test_the_search_in_the_vocabulary_holds_less_than_300_mb():
    """Counted without memory, at true sizes: beside its inputs and without the differences from what it finds."""
    with Meter() as meter:
        prompts = torch.empty(4096, 5120, dtype=torch.bfloat16, device="meta")
        vocabulary = torch.empty(50_000, 5120, dtype=torch.bfloat16, device="meta")
        before = meter.now
        nearest(prompts, vocabulary)
    assert before > 500e6 and 50e6 < meter.peak - before < 300e6


def test_the_search_goes_on_over_all_chunks(monkeypatch):
    monkeypatch.setattr(text, "VOCABULARY_ROWS", 7)
    monkeypatch.setattr(text, "PROMPT_ROWS", 3)
    torch.manual_seed(0)
    prompts, vocabulary = torch.randn(11, 5), torch.randn(40, 5)
    vocabulary[33] = vocabulary[8]  # the first of equal ones
    wanted = torch.cdist(prompts.double(), vocabulary.double()).argmin(1)
    assert torch.equal(nearest(prompts, vocabulary), wanted)


def test_convert_reads_the_authors_files(recording, tmp_path):
    """As LAVIS stores them; all that a stage of ours takes is there."""
    for part, prefix, stages in (("pf", "pf.", ["text"]), ("s1w", "s1w.", ["align"]), ("s2", "s1w.", ["generate"])):
        tensors = {n.removeprefix(prefix): t for n, t in recording.tensors.items() if n.startswith(prefix)}
        if part == "s2":  # the text branch is dropped
            heads = ("vision_proj", "text_proj", "itm_head", "temp", "Qformer.cls")
            own = ("intermediate.", ".output.dense", ".output.LayerNorm")
            gone = {n for n in tensors if "_embeddings." in n or n.startswith(heads)}
            gone |= {n for n in tensors if "att" not in n and any(o in n for o in own)}
            tensors = {n: t for n, t in tensors.items() if n not in gone}
        torch.save({"model": tensors, "epoch": 1}, tmp_path / f"{part}.pth")
        assert main(["convert", str(tmp_path / f"{part}.pth"), "--out", str(tmp_path / part)]) == 0
        found = load_file(tmp_path / part / "trained.safetensors")
        model = recording.model(stages=stages)
        wanted = {n: p for n, p in model.trainables().items() if n.startswith(model.method.stages()[0].trains)}
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], parameter) for name, parameter in wanted.items())
