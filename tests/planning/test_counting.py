"""Gathers, memory and traffic of a model of three tensors, worked out by hand."""

from dataclasses import replace

import pytest

from dsmemvp.planning.cluster import Cluster
from dsmemvp.planning.gathers import Gathers, simulate
from dsmemvp.planning.memory import memory, pinned_block
from dsmemvp.planning.sharding import Sharding
from dsmemvp.planning.trace import Event, Parameter, Trace
from dsmemvp.planning.traffic import Collective, Traffic, traffic

A, B, C = range(3)


def _trace(*, again: bool = False) -> Trace:
    """Modules A, B and C in a row, C trained and inside no other; no gradient goes through A."""
    events = [Event(m, fetch, forward=True) for m in (A, B, C) for fetch in (True, False)]
    events += [Event(C, True, forward=False), Event(C, False, forward=False), Event(B, True, forward=False)]
    if again:  # B's backward first runs A, B and A again
        events += [Event(m, fetch, forward=True, again=True) for m in (A, B, A) for fetch in (True, False)]
    events += [Event(B, False, forward=False)]
    sizes = (("a", 100, False), ("b", 100, False), ("c", 10, True))
    parameters = tuple(Parameter(name, numel, trained, decayed=True, item=2) for name, numel, trained in sizes)
    own = ((A,), (B,), (C,))
    return Trace(parameters, own, own, frozenset(), tuple(events), held=0, peak=1000, flops=0, item=2)


def _sharding(**more) -> Sharding:
    given = {"persistence": 10, "prefetch": 0, "max_live": 1000, "max_reuse": 20, "reduce_bucket": 5}
    return Sharding("x", 3, **{**given, **more})


def test_what_is_used_again_soon_is_not_gathered_twice():
    assert simulate(_trace(), _sharding(), 1).micro_steps == ((A, B, B),)
    assert simulate(_trace(), _sharding(max_reuse=21), 2).micro_steps == ((A, B), (A, B))


def test_nothing_persistent_means_that_the_trained_tensor_is_gathered_too():
    assert simulate(_trace(), _sharding(persistence=0, max_reuse=0), 1).micro_steps == ((A, B, C, C, B),)


def test_prefetching_gathers_together_and_keeps_more_alive():
    one_by_one = simulate(_trace(), _sharding(max_reuse=0), 1)
    assert (one_by_one.live_bytes, one_by_one.coalesced_bytes) == (200, 200)
    ahead = simulate(_trace(), _sharding(max_reuse=0, prefetch=100), 1)
    assert sorted(ahead.micro_steps[0]) == [A, B]  # B's second use is passed over while B is whole, which keeps it
    assert ahead.live_bytes == 2 * 200


def test_recomputed_tensors_are_gathered_once_more_and_kept_for_the_backward_that_wants_them():
    found = simulate(_trace(again=True), _sharding(max_reuse=0), 1)
    assert found.micro_steps == ((A, B, B, A),)  # A is not released between its two uses
    assert found.live_bytes == 2 * 200


GATHERS = Gathers(((A, B, B),), live_bytes=200, coalesced_bytes=200)


def test_memory_of_zero3_by_hand():
    found = memory(_trace(), _sharding(), Cluster(4, 2), GATHERS)
    assert found.weights == (25 + 25 + 3) * 2 + 12 * 2  # a quarter of each, padded, and c whole
    assert found.trained == 3 * 4 * (1 + 2 + 1)
    assert found.buffers == 5 * 4 + 200 * 2
    assert found.gpu == found.weights + found.trained + found.buffers + 1000
    assert found.host_per_node == 0


def test_memory_of_the_second_partition_and_of_offloading():
    hpz = memory(_trace(), _sharding(hpz=True), Cluster(4, 2), GATHERS)
    assert hpz.weights == (25 + 25 + 3) * 2 + 12 * 2 + (50 + 50) * 2
    offload = memory(_trace(), _sharding(offload=True), Cluster(4, 2), GATHERS)
    assert (offload.weights, offload.host_per_node) == (12 * 2, 2 * (25 + 25 + 3) * 2)


def test_pinned_host_memory_comes_in_powers_of_two():
    assert [pinned_block(size) for size in (0, 1, 2, 3, 4096, 4097)] == [0, 1, 2, 4, 4096, 8192]
    found = memory(_trace(), _sharding(offload=True, pinned=True), Cluster(4, 2), GATHERS)
    # 50, 50 and 6 bytes of a rank, and 6 once more in the buffer of the trained ones, on two ranks of a node
    assert found.host_per_node == 2 * (64 + 64 + 8 + 8)
    assert found.host_gaps == found.host_per_node - 2 * (50 + 50 + 6)


def test_memory_of_the_replicated_base():
    found = memory(_trace(), Sharding("x", 1), Cluster(4, 2), GATHERS)
    assert found.weights == (200 + 16) * 2  # 10 trained elements padded to a multiple of 2 x 4
    assert found.trained == 16 * 4 + 3 * 4 * 4


def test_one_gpu_holds_everything_once_and_sends_nothing():
    one = Cluster(1, 8)
    assert memory(_trace(), _sharding(), one, GATHERS).weights == 210 * 2
    assert traffic(_trace(), _sharding(), one, GATHERS).sent_per_gpu() == 0


def test_one_gpu_that_offloads_copies_from_the_host_what_others_gather(tmp_path):
    one = Cluster(1, 8)
    sent = traffic(_trace(), _sharding(offload=True), one, GATHERS)
    assert (sent.sent_per_gpu(), sent.from_host) == (0, (3 * 100 + 10) * 2)
    held = memory(_trace(), _sharding(offload=True), one, GATHERS)
    assert (held.weights, held.host_per_node, held.buffers) == (10 * 2, 210 * 2, 5 * 4 + 200 * 2)


def test_traffic_of_zero3_by_hand():
    found = traffic(_trace(), _sharding(), Cluster(4, 2), GATHERS)
    assert {what: found.size(what) for what in ("weights", "gradients", "persistent")} == {
        "weights": 3 * 100 * 2,
        "gradients": 12 * 4,
        "persistent": 12 * 2,
    }
    assert found.sent_per_gpu() == found.across_nodes_per_node() == (600 + 48 + 24) * 3 / 4
    assert found.sent_per_gpu(hidden=True) == 450


def test_gradients_are_scattered_in_every_micro_step():
    twice = traffic(_trace(), _sharding(), Cluster(4, 2), replace(GATHERS, micro_steps=((A, B, B), (A, B))))
    assert twice.size("gradients") == 2 * 12 * 4
    assert twice.size("weights") == 5 * 100 * 2
    assert twice.size("persistent") == 12 * 2


def test_the_second_partition_keeps_weights_inside_the_node():
    found = traffic(_trace(), _sharding(hpz=True), Cluster(4, 2), GATHERS)
    assert found.across_nodes_per_node() == (48 + 24) * 3 / 4
    assert found.sent_per_gpu() == 600 / 2 + (48 + 24) * 3 / 4


def test_a_trained_tensor_that_is_not_persistent_crosses_once_per_step_with_the_second_partition():
    gathers = simulate(_trace(), _sharding(persistence=0, max_reuse=0), 2)
    found = traffic(_trace(), _sharding(persistence=0, hpz=True), Cluster(4, 2), gathers)
    over_all = [c.size for c in found.collectives if c.what == "weights" and c.ranks == 4]
    in_node = [c.size for c in found.collectives if c.what == "weights" and c.ranks == 2]
    assert (over_all, in_node) == ([12 * 2], [(2 * 300 + 3 * 12) * 2])


def test_traffic_of_the_replicated_base():
    found = traffic(_trace(), Sharding("x", 1), Cluster(4, 2), GATHERS)
    assert found.sent_per_gpu() == 16 * 4 * 2 * 3 / 4 + 16 * 2 * 3 / 4


@pytest.mark.parametrize(
    ("ranks", "kind", "share"),
    [
        # bytes that left a node / bytes of the buffer: gloo of torch 2.13 between two network namespaces, counted at
        # their interfaces, less the 0.1 to 0.4 % that TCP adds
        (2, "all_gather", 0.5),
        (2, "reduce_scatter", 1.0),
        (2, "all_reduce", 1.0),
        (4, "all_gather", 0.75),
        (4, "reduce_scatter", 1.5),
        (4, "all_reduce", 1.5),
    ],
)
def test_what_gloo_was_measured_to_send_between_two_nodes(ranks, kind, share):
    cluster = Cluster(ranks, ranks // 2, backend="gloo")
    assert Traffic((Collective("x", kind, ranks, 1000),), cluster).across_nodes_per_node() == 1000 * share
