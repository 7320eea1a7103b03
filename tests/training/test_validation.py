"""The loss on data.validation, with a model that knows only the token before."""

from types import SimpleNamespace

import pytest
import torch
from making import good_rows

from data_prep.shards import write_shards
from dsmemvp.data.collator import Collator
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.loader import Share, training_steps
from dsmemvp.data.order import Order, Source
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.distributed.stopping import Stop
from dsmemvp.training.context import RunContext
from dsmemvp.training.validation import validation_loss, validation_scores

SAMPLES = 23


class Engine:
    def __init__(self, vocabulary: int):
        self.table = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(0))
        self.modes: list[str] = []

    def eval(self):
        self.modes.append("eval")

    def train(self):
        self.modes.append("train")

    def __call__(self, batch):
        assert self.modes[-1] == "eval" and not torch.is_grad_enabled()
        return self.table[batch.tokens[batch.supervised]], {}


class Alone(Ranks):
    """One of several ranks, which hears nothing of the others and keeps what it would tell them."""

    told: tuple[float, ...] = ()

    def any(self, own):
        return own

    def sums(self, *numbers):
        object.__setattr__(self, "told", numbers)
        return list(numbers)


def _context(ranks: Ranks, batch: int, polled=lambda phase, step: None) -> RunContext:
    """A context of which validation reads the ranks and two settings, and which it polls."""
    recipe = SimpleNamespace(evaluation=SimpleNamespace(batch=batch), data=SimpleNamespace(workers=0))
    return RunContext(recipe, ranks, Stop(), SimpleNamespace(at=polled))


@pytest.fixture
def collator(tokenizer_path):
    return Collator(str(tokenizer_path), ImageTransform(4, 10_000), False, 200, skip_bad=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shards(good_rows(SAMPLES), tmp_path_factory.mktemp("validation") / "v", "validation", per_shard=5)


@pytest.mark.parametrize(("world", "batch"), [(1, 1), (1, 4), (2, 4), (3, 4), (5, 4), (3, 8)])
def test_it_is_the_mean_over_all_supervised_tokens_on_any_number_of_ranks(data, collator, tokenizer, world, batch):
    engine = Engine(tokenizer.vocabulary)
    told = []
    for rank in range(world):
        ranks = Alone(rank, world, torch.device("cpu"))
        validation_loss(_context(ranks, batch), SimpleNamespace(engine=engine), collator, data, 7)
        told.append(ranks.told)
    total, tokens = (sum(column) for column in zip(*told, strict=True))

    # all samples as one batch of training
    order = Order([Source(data.counts)], 0, 1, SAMPLES)
    ((whole,),) = training_steps([data], order, collator, Share(0, 1, SAMPLES), range(1), 0)
    assert len(whole.indices) == SAMPLES and whole.batch.size == SAMPLES
    engine.eval()
    with torch.no_grad():
        logits, targets = engine(whole.batch)[0], whole.batch.targets
        wanted = -logits.double().log_softmax(-1)[torch.arange(targets.numel()), targets].sum()
    assert tokens == targets.numel()
    assert total == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_trains_again_after_its_scores_whatever_happens(data, collator, tokenizer, fails):
    engine = Engine(tokenizer.vocabulary)

    def scoring(context, opened, manifest, step):
        context.poll("validating", step)
        ((micro,),) = training_steps(
            [data], Order([Source(data.counts)], 0, 1, 4), opened.collator, Share(0, 1, 4), range(1), 0
        )
        return {"Avg": float(opened.forward(micro.batch)[0].shape[0])}

    def polled(phase, step):
        assert (phase, step) == ("validating", 3)
        if fails:
            raise ValueError("enough")

    context = _context(Alone(0, 1, torch.device("cpu")), 4, polled)
    given = (context, SimpleNamespace(engine=engine, model=None), collator, data, 3, scoring)
    if fails:
        with pytest.raises(ValueError, match="enough"):
            validation_scores(*given)
    else:
        assert validation_scores(*given)["Avg"] > 0
    assert engine.modes == ["eval", "train"] and torch.is_grad_enabled()
