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
from dsmemvp.errors import UserError
from dsmemvp.training.validation import examine, validation_loss

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
        rows = torch.full((batch.size * batch.length,), -1)
        rows[batch.place] = batch.tokens
        return self.table[rows[batch.supervised]]


class Alone(Ranks):
    """One of several ranks, which hears nothing of the others and keeps what it would tell them."""

    told: tuple[float, ...] = ()

    def any(self, own):
        return own

    def sums(self, *numbers):
        object.__setattr__(self, "told", numbers)
        return list(numbers)


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
        validation_loss(SimpleNamespace(engine=engine), ranks, data, collator, batch, 0, lambda: None)
        told.append(ranks.told)
    total, tokens = (sum(column) for column in zip(*told, strict=True))

    # all samples as one batch of training
    order = Order([Source(data.counts)], 0, 1, SAMPLES)
    ((whole,),) = training_steps([data], order, collator, Share(0, 1, SAMPLES), range(1), 0)
    ends = whole.offsets.tolist()
    assert whole.indices.numel() == SAMPLES and len(ends) == SAMPLES + 1
    engine.eval()
    with torch.no_grad():
        wanted = -engine(whole).double().log_softmax(-1)[torch.arange(whole.targets.numel()), whole.targets].sum()
    assert tokens == whole.targets.numel()
    assert total == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_trains_again_after_its_scores_whatever_happens(data, collator, tokenizer, fails):
    engine = Engine(tokenizer.vocabulary)

    def scoring(recipe, ranks, manifest, collator, model, forward, poll, step):
        poll()
        ((batch,),) = training_steps(
            [data], Order([Source(data.counts)], 0, 1, 4), collator, Share(0, 1, 4), range(1), 0
        )
        return {"Avg": float(forward(batch).shape[0])}

    def poll():
        if fails:
            raise UserError("enough")

    trainer = SimpleNamespace(engine=engine, model=None)
    given = (trainer, None, Alone(0, 1, torch.device("cpu")), data, collator, poll, 3, scoring)
    if fails:
        with pytest.raises(UserError, match="enough"):
            examine(*given)
    else:
        assert examine(*given)["Avg"] > 0
    assert engine.modes == ["eval", "train"] and torch.is_grad_enabled()
