"""Batches reach the device one step ahead, and on a CPU untouched."""

import pytest
import torch

from dsmemvp.data.batch import Item, MicroBatch
from dsmemvp.data.layout import Reserved
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.training.prefetch import Copies, on_device, one_ahead

CPU = torch.device("cpu")
R = 64
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="streams need a GPU")


def batch_of(samples: int, seed: int = 0) -> MicroBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (samples, 3, R, R), generator=generator).to(torch.uint8)
    items = [Item(i, EncodedText([1, 5, 9, seed + i], 2, False), image) for i, image in enumerate(images)]
    return make_batch(items, R, [Reserved("front", 2)])


def noted(calls: list[str], what: str):
    def note(item):
        calls.append(f"{what} {item}")
        return item

    return note


def test_the_next_one_is_started_before_one_is_computed():
    calls: list[str] = []

    def read():
        for i in (1, 2, 3):
            calls.append(f"read {i}")
            yield i

    for i in one_ahead(read(), noted(calls, "start"), noted(calls, "finish")):
        calls.append(f"compute {i}")
    assert calls[:4] == ["read 1", "start 1", "read 2", "start 2"]
    assert calls[4:8] == ["finish 1", "compute 1", "read 3", "start 3"]
    assert calls[8:] == ["finish 2", "compute 2", "finish 3", "compute 3"]


def test_an_error_comes_after_all_that_was_read_before_it():
    def read():
        yield 1
        yield 2
        raise OSError("the third")

    computed = []
    with pytest.raises(OSError, match="the third"):
        computed.extend(one_ahead(read(), str, int))  # extend takes what it is given before the error
    assert computed == [1, 2]
    assert list(one_ahead(iter(()), str, int)) == []


def test_closing_it_closes_the_source():
    closed = []

    def read():
        try:
            yield from range(9)
        finally:
            closed.append(True)

    ahead = one_ahead(read(), str, int)
    assert next(ahead) == 0
    del ahead
    assert closed == [True]


def test_on_a_cpu_batches_pass_through_untouched():
    steps = [[batch_of(1)], [batch_of(2), batch_of(1)]]
    source = iter(steps)
    assert on_device(source, CPU) is source
    batch = steps[0][0].batch
    moved = batch.to(CPU)  # as the step does it
    assert all(moved.__dict__[name] is value for name, value in vars(batch).items() if name != "places")
    assert all(moved.places[name] is place for name, place in batch.places.items())


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_batches_are_the_same_and_a_step_still_computing_keeps_its_own():
    """The device is kept busy, so every batch is read long after the host has let it go and later ones were copied."""
    device = torch.device("cuda", torch.cuda.current_device())
    steps = [[batch_of(1 + (3 * i) % 7, i).pin_memory(), batch_of(2, 100 + i).pin_memory()] for i in range(40)]
    sums, expected = [], [[int(micro.batch.images.long().sum()) for micro in step] for step in steps]
    for step, given in zip(on_device(iter(steps), device), steps, strict=True):
        torch.cuda._sleep(10_000_000)
        sums.append([micro.batch.images.long().sum() for micro in step])
        for moved, micro in zip(step, given, strict=True):
            assert moved.indices == micro.indices and moved.batch.lengths == micro.batch.lengths
            assert moved.batch.to(device).images is moved.batch.images  # the step copies nothing again
        del moved, step
    assert [[int(total) for total in pair] for pair in sums] == expected
    (first,) = next(on_device(iter([[steps[0][0]]]), device))
    for name, value in vars(steps[0][0].batch).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(vars(first.batch)[name].cpu(), value), name
    assert first.batch.places["front"].tolist() == steps[0][0].batch.places["front"].tolist()


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_the_next_step_is_copied_while_one_computes():
    device = torch.device("cuda", torch.cuda.current_device())
    copies = Copies(device)
    step = [batch_of(8).pin_memory()]
    copies.start(step).copied.synchronize()  # takes memory from the device once, for which it might wait
    torch.cuda._sleep(4_000_000_000)  # seconds of work on the stream of the steps
    busy = torch.cuda.current_stream(device).record_event()
    started = copies.start(step)
    started.copied.synchronize()
    assert not busy.query(), "the copy waited for the step"
    (moved,) = copies.finish(started)
    total = moved.batch.images.long().sum()
    assert not busy.query(), "the host waited for the copy"
    assert int(total) == int(step[0].batch.images.long().sum())
