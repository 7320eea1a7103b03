"""On every rank: gradients under ZeRO-3 of the recorded batch, of batches without any image, and under every policy of
gradient checkpointing; MemVP's recording first, then MITP's with what it decodes, then that of its two encoders.

Arguments: folder of the converted recordings, the shared folder, a DeepSpeed configuration, where to write the
findings.
"""

import json
import os
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_grad
from mitp_encoders_recording import EncodersRecording
from mitp_recording import MitpRecording
from reference import Recording
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsmemvp.backbones.recompute import KEPT
from dsmemvp.backbones.weights import read_configs
from dsmemvp.data.batch import Item
from dsmemvp.data.packing import make_batch
from dsmemvp.distributed.ranks import join_ranks, leave_ranks
from dsmemvp.generation.decoder import build_decoder
from dsmemvp.generation.generate import Sampling, generate
from dsmemvp.training.engine import build_trainer

POLICIES = ("none", *KEPT)


def main(folder: str, shared: str, settings: str, out: str) -> None:
    ranks = join_ranks(seconds=600)
    recording = Recording(Path(shared), Path(folder))
    recipe = recording.recipe()
    recipe.training.deepspeed = settings
    recipe.training.global_batch, recipe.training.micro_batch = ranks.world, 1
    recipe.training.weight_decay = 0.0
    trainer = build_trainer(recipe, read_configs(recipe), ranks)
    held = sum(p.ds_tensor.numel() for p in trainer.model.parameters())
    whole = sum(p.ds_numel for p in trainer.model.parameters())

    trained = recording.trained()
    trainer.master_weights.set(trained)
    kept = all(torch.equal(value, trained[name]) for name, value in trainer.master_weights.values().items())
    findings = {"held": held, "whole": whole, "values_kept": kept, "norm": [], "gathered": []}

    # sample 1 has no image: rank 0 of 2 sees only text, rank 1 only images
    own = {1: [(0, 1, 2)], 2: [(1,), (0, 2)]}[ranks.world][ranks.rank]
    findings["features_error"], findings["logits_error"] = forward_errors(trainer, ranks, recording, own)
    for name in POLICIES:
        trainer.model.set_recompute(name, "full" if name == "full" else "none")
        with Gathered() as gathered:
            loss, gradients = step(trainer, ranks, recording.batch(own))
        findings["gathered"].append(gathered.elements)
        findings[f"{name}_loss"] = loss
        findings[f"{name}_errors"] = {
            n: float((gradients[n] - g).norm() / g.norm()) for n, g in recording.gradients().items()
        }
        findings["norm"].append(trainer.update(0.0))
        findings[f"{name}_recorded_norm"] = float(torch.stack([g.norm() for g in gradients.values()]).norm())

    # now no rank has an image: whatever sees only images must have a gradient of zero, not its last one
    _, gradients = step(trainer, ranks, recording.batch((1,)))
    findings["without_images"] = {n: float(g.abs().max()) for n, g in gradients.items()}
    trainer.update(0.0)
    trainer.engine.destroy()
    findings["mitp"] = mitp(ranks, MitpRecording(Path(shared), Path(folder) / "mitp"), settings)
    findings["encoders"] = encoders(ranks, EncodersRecording(Path(shared), Path(folder) / "encoders"), settings)
    if ranks.first:
        Path(out).write_text(json.dumps(findings))
    leave_ranks()
    os._exit(0)  # as dsmemvp/__main__.py does, and why


def mitp(ranks, recording: MitpRecording, settings: str) -> dict:
    recipe = recording.recipe()
    recipe.training.deepspeed = settings
    recipe.training.global_batch, recipe.training.micro_batch = ranks.world, 1
    trainer = build_trainer(recipe, read_configs(recipe), ranks)
    values = recording.trained()
    trainer.master_weights.set({name: values[name] for name in trainer.model.trainables()})
    # of 2 ranks the first sees only a text; lengths and numbers of samples differ
    own = {1: [(0, 1, 2, 3)], 2: [(2,), (3, 0, 1)]}[ranks.world][ranks.rank]
    findings = {}
    for name in POLICIES:
        trainer.model.set_recompute(name, "full" if name == "full" else "none")
        findings[f"{name}_loss"], gradients = step(trainer, ranks, recording.batch(own))
        findings[f"{name}_errors"] = {
            n: float((gradients[n] - g).abs().max() / g.abs().max()) for n, g in recording.gradients().items()
        }
        trainer.update(0.0)
    with torch.no_grad():
        logits, _ = trainer.engine(recording.batch(own))
    errors = ranks.gather([str(float((logits - recording.rows("out.logits", own)).abs().max()))])
    findings["logits_error"] = max(map(float, errors))
    _, gradients = step(trainer, ranks, recording.batch((2,)))
    findings["without_images"] = {n: float(g.abs().max()) for n, g in gradients.items()}
    trainer.update(0.0)
    prompts = make_batch(recording.items(own, answers=False), 28, [recording.reserved], last_only=True)
    decoder = build_decoder(trainer.model.eval(), trainer.engine, ranks, eos=64)  # beyond the vocabulary
    said = generate(decoder, prompts, Sampling(max_new_tokens=5))
    right = said == recording.tensors["out.greedy_tokens"][list(own)].tolist()
    findings["decoded"] = ranks.sums(float(right))[0] == ranks.world
    trainer.engine.destroy()
    return findings


def encoders(ranks, recording: EncodersRecording, settings: str) -> dict:
    recipe = recording.recipe()
    recipe.training.deepspeed = settings
    recipe.training.global_batch, recipe.training.micro_batch = ranks.world, 1
    trainer = build_trainer(recipe, read_configs(recipe), ranks)
    trainer.master_weights.set(recording.trained())
    own = {1: [(0, 1, 2, 3)], 2: [(2,), (3, 0, 1)]}[ranks.world][ranks.rank]
    loss, gradients = step(trainer, ranks, recording.batch(own))
    errors = {n: float((gradients[n] - g).abs().max() / g.abs().max()) for n, g in recording.gradients().items()}
    trainer.update(0.0)
    without = [Item(i.index, i.text, None, labels=i.labels) for i in recording.items(own)]
    _, gradients = step(trainer, ranks, recording.pack(without))
    largest = {n: float(g.abs().max()) for n, g in gradients.items()}
    trainer.update(0.0)
    return {"loss": loss, "errors": errors, "without_images": largest}


class Gathered(TorchDispatchMode):
    """Counts the elements that are gathered."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d" and "allgather" in func._opname:
            self.elements += max(t.numel() for t in tree_leaves(args) if isinstance(t, torch.Tensor))
        return func(*args, **(kwargs or {}))


def forward_errors(trainer, ranks, recording, own: tuple[int, ...]) -> tuple[float, float]:
    """Largest difference of features and logits from the recorded ones, over all ranks."""
    batch, features = recording.batch(own), []
    hook = trainer.model.vision.post_layernorm.register_forward_hook(
        lambda module, inputs, output: features.append(output)
    )
    with torch.no_grad():
        logits, _ = trainer.engine(batch)
    hook.remove()
    with_image = [b for b in own if recording.tensors["in.indicators"][b]]
    recorded = recording.tensors["out.features"][with_image]
    of_features = (features[0][: len(with_image)] - recorded).abs().flatten().tolist()
    padded = recording.tensors["out.logits"]
    packed = torch.cat([padded[b, :length] for b, length in zip(own, batch.lengths, strict=True)])
    recorded = packed[batch.supervised]
    largest = [max(of_features, default=0.0), float((logits - recorded).abs().max())]
    return tuple(max(map(float, ranks.gather([str(error)]))) for error in largest)


def step(trainer, ranks, batch):
    supervised = ranks.sums(batch.targets.numel())[0]
    loss = ranks.sums(trainer.accumulate([batch], 1 / supervised)["language"])[0] / supervised
    return loss, {n: safe_get_full_grad(p).clone() for n, p in trainer.model.trainables().items()}


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
