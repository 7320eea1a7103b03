"""The walk over the towers: a schedule that interleaves them, state passed on, gradient checkpointing."""

import pytest
import small
import torch

from dsmemvp.data.batch import Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.model import VisualLanguageModel, loss_sum
from dsmemvp.prompts.interface import Site, VisualPrompt


class Interleaved(VisualPrompt):
    """Decoder block i reads the mean over patches of what vision block i gave, of the sample's own image."""

    def __init__(self, log: list):
        super().__init__()
        self.to_text = torch.nn.Linear(16, 32)
        self.log = log

    def schedule(self, depths):
        order = [Site("vision", 0), Site("decoder", 0), Site("vision", 1), Site("decoder", 1)]
        return order + [Site("decoder", i) for i in range(2, depths["decoder"])]

    def collect(self, site, hidden, state, batch):
        return state | {"seen": hidden[:, 1:].mean(1)} if site.tower == "vision" else state

    def enter(self, site, hidden, state, batch):
        if torch.is_grad_enabled():
            self.log.append(site)
        if site.tower == "vision":
            return hidden
        own = self.to_text(state["seen"])[batch.image_of.clamp(min=0)] * (batch.image_of >= 0)[:, None]
        lengths = torch.tensor(batch.lengths)
        return hidden + own.repeat_interleave(lengths, 0)[None]


def _model(log: list) -> VisualLanguageModel:
    model = small.model("none")
    full = VisualLanguageModel(small.configs(), sees_images=True)
    small.enliven(full)
    full.language.load_state_dict(model.language.state_dict())
    full.requires_grad_(False)
    torch.manual_seed(1)
    full.method = Interleaved(log)
    return full.eval()


def _batch():
    pictures = small.pictures(2)
    items = [
        Item(0, EncodedText([1, 5, 9, 3], 2, False), pictures[0]),
        Item(1, EncodedText([1, 8, 4], 1, False), None),
        Item(2, EncodedText([1, 7, 7, 50, 12], 3, False), pictures[1]),
    ]
    return make_batch(items, small.RESOLUTION).batch


def _gradients(model, batch):
    model.zero_grad(set_to_none=True)
    logits, _ = model(batch)
    loss_sum(logits, batch.targets).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.trainables().items()}


def test_a_method_interleaves_the_towers_and_recomputing_them_changes_nothing():
    log: list = []
    model, batch = _model(log), _batch()
    logits, gradients = _gradients(model, batch)
    order = ["vision 0", "decoder 0", "vision 1", "decoder 1", "decoder 2"]
    assert [f"{tower} {block}" for tower, block in log] == order
    model.set_recompute("full", "full")
    again, recomputed = _gradients(model, batch)
    assert torch.equal(again, logits)
    assert gradients.keys() == {"method.to_text.weight", "method.to_text.bias"}
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        assert (recomputed[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_what_an_interleaving_method_sees_cannot_be_looked_at_before():
    assert _model([]).look(_batch()) is None


@pytest.mark.parametrize("method", ["memvp", "input_space", "dvp"])
def test_what_was_looked_at_before_serves_the_first_step_of_decoding(method):
    from dsmemvp.backbones.key_value_cache import KeyValueCache
    from dsmemvp.model import Decoding

    model = small.model(method)
    batch = small.prompts(model).batch
    with torch.no_grad():
        looked = model.look(batch)
        own, _ = model(batch, Decoding(KeyValueCache()))
        given, _ = model(batch, Decoding(KeyValueCache(), looked))
    assert torch.equal(own, given)
