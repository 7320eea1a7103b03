"""The same mathematics as the published implementation: its recorded features, logits, loss and gradients."""

import pytest
import torch
from reference import Recording

from dsmemvp.backbones.recompute import KEPT
from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.model import loss_sum


@pytest.fixture(scope="module")
def recording(shared, tmp_path_factory):
    recording = Recording(shared, tmp_path_factory.mktemp("reference"))
    recording.write(shared)
    return recording


@pytest.fixture(scope="module")
def model(recording):
    recipe = recording.recipe()
    configs = read_configs(recipe)
    model = build_frozen(recipe, configs)
    Base(recipe).load(model)
    add_trainables(model, recipe, configs)
    trained = recording.trained()
    assert trained.keys() == model.trainables().keys()
    model.load_state_dict(trained, strict=False)
    return model


def test_vision_features_and_projection_are_the_recorded_ones(model, recording):
    hidden = model.vision.start(recording.images)
    for block in model.vision.layers:
        hidden = block(hidden)
    features = model.vision.finish(hidden)
    torch.testing.assert_close(features, recording.tensors["out.features"], atol=1e-5, rtol=0)
    projected = model.method.projector(features)
    torch.testing.assert_close(projected, recording.tensors["out.projected"], atol=1e-5, rtol=0)


def test_logits_and_loss_are_the_recorded_ones(model, recording):
    batch = recording.batch()
    logits, _ = model(batch)
    padded = recording.tensors["out.logits"]
    recorded = torch.cat([padded[b, :length] for b, length in enumerate(batch.lengths)])[batch.supervised]
    torch.testing.assert_close(logits, recorded, atol=1e-5, rtol=0)
    loss = loss_sum(logits, batch.targets) / batch.targets.numel()
    torch.testing.assert_close(loss, recording.tensors["out.loss"][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("policy", ["none", *KEPT])
def test_every_gradient_is_the_recorded_one(model, recording, policy):
    model.set_recompute(policy, "full" if policy == "full" else "none")
    model.zero_grad(set_to_none=True)
    batch = recording.batch()
    (loss_sum(model(batch)[0], batch.targets) / batch.targets.numel()).backward()
    recorded = recording.gradients()
    assert recorded.keys() == model.trainables().keys()
    for name, parameter in model.trainables().items():
        error = (parameter.grad - recorded[name]).norm() / recorded[name].norm()
        assert error < 1e-4, name


def test_a_sample_alone_has_the_logits_it_has_in_the_batch(model, recording):
    together, _ = model(recording.batch())
    alone = torch.cat([model(recording.batch((b,)))[0] for b in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_one_sample_never_reads_another_samples_image(model, recording):
    batch = recording.batch()
    before, _ = model(batch)
    batch.images[1] += 1  # the image of sample 2
    after, _ = model(batch)
    batch.images[1] -= 1
    owner = torch.bucketize(batch.supervised, batch.cu_seqlens[1:], right=True)
    torch.testing.assert_close(before[owner != 2], after[owner != 2], atol=0, rtol=0)
    assert not torch.allclose(before[owner == 2], after[owner == 2])
