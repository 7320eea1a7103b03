"""The numbers that the log and TensorBoard have of a run's speed."""

import time

import pytest
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config

from dsmemvp.backbones.configs import Configs
from dsmemvp.data.batch import Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.model import VisualLanguageModel, loss_sum
from dsmemvp.training.throughput import Throughput, multiplied


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_s_products_are_those_of_the_layers(tied):
    sizes = {"vocab_size": 3000, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    model = VisualLanguageModel(Configs(Qwen2Config(**sizes), None), sees_images=False).requires_grad_(False)
    # as a trained memory beside every layer makes it: the hidden states have a gradient
    model.language.layers[0].register_forward_pre_hook(lambda layer, given: (given[0].requires_grad_(), *given[1:]))
    longer, shorter = (_products(model, tokens) for tokens in (9, 8))
    # attention multiplies a little more for each token before
    assert longer - shorter == pytest.approx(4 * multiplied(model.language), rel=0.01)


def _products(model: VisualLanguageModel, tokens: int) -> int:
    batch = make_batch([Item(0, EncodedText([1] * tokens, tokens - 1, False), None)], 8).batch
    with FlopCounterMode(display=False) as counter:
        loss_sum(model(batch)[0], batch.targets).backward()
    return counter.get_total_flops()


def test_a_pause_is_no_time_of_training():
    throughput = Throughput()
    start = throughput.start
    with throughput.paused():
        time.sleep(0.01)
    assert throughput.start >= start + 0.01


def test_the_numbers_are_means_over_steps_and_sums_over_time():
    throughput = Throughput(start=time.monotonic() - 10)
    throughput.add(2.0, samples=8, tokens=100, imbalance=1.5)
    throughput.add(4.0, samples=8, tokens=300, imbalance=1.0)
    numbers = throughput.numbers(language_parameters=1000)
    assert numbers["loss/train"] == 3 and numbers["training/imbalance"] == 1.25
    tokens = numbers["speed/tokens_per_second"]
    assert numbers["speed/samples_per_second"] * 400 == pytest.approx(tokens * 16)
    assert numbers["speed/tflops"] == pytest.approx(4 * 1000 * tokens / 1e12)
