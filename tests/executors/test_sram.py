"""SRAM by hand: weights and the KV cache take it from the issue of their load to the end of their last use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from models.graph import Op, OpGraph
from sim.analysis.breakdown import breakdown
from sim.analysis.sram import most_in_use
from sim.base.errors import ConfigError, InputError
from sim.base.units import ceil_div
from sim.executors import compiled, reference
from sim.executors.setup import Setup
from sim.log import derived
from sim.log.tables import EventLog
from sim.mapping.lowering import lower
from sim.mapping.operands import operands_of
from sim.mapping.settings import ModelMapping
from sim.render.breakdown import parts
from sim.runs.plan import plan
from sim.scenario import from_dict
from tests.analysis import machine
from tests.analysis.test_random import dealt_out, graphs, machines
from tests.executors.test_equal import assert_same
from tests.graphs import GraphBuilder

GB = 10**9

several_requests = st.lists(st.tuples(st.integers(1, 2), st.integers(0, 9)), min_size=2, max_size=4)  # tokens, arrival


def ends(log: EventLog) -> list[int]:
    """When each computing task ends, ps."""
    computes = [log.graphs[0].computes[task] for task in log.tasks.task]
    return log.tasks.end[computes].tolist()


def two_layers(load: int, compute: int) -> OpGraph:
    """Attention of two layers, one after the other: each waits for a KV load of so many bytes."""
    b = GraphBuilder()
    first = b.add("scores", b.add("kv_load", layer=0, kv_read=load), layer=0, flops=compute)
    b.add("scores", first, b.add("kv_load", layer=1, kv_read=load), layer=1, flops=compute)
    return b.graph()


def on_both(setup: Setup) -> EventLog:
    log = reference.simulate(setup)
    found = compiled.simulate(setup)
    assert found is not None
    assert_same(log, found)
    return log


@pytest.mark.parametrize("execution", ["blocking", "stream", "prefetch"])
def test_the_load_of_a_later_layer_waits_until_attention_has_used_the_one_before(execution: str) -> None:
    """10 bytes of KV cache a layer, 5 of compute. SRAM for one layer: 10 + 5 + 10 + 5; for both, the second load is hidden."""
    graph = two_layers(load=10, compute=5)
    for sram, wanted in ((10, [15, 30]), (19, [15, 30]), (20, [15, 25]), (None, [15, 25])):
        log, _ = machine.run(graph, execution=execution, engines=2, sram=sram)
        assert ends(log) == wanted, sram
    with pytest.raises(
        ConfigError, match=r"kv_load of layer 0 needs 10 B at once, SRAM has 9 B; mapping\.softmax: online and "
    ):
        machine.run(graph, execution=execution, engines=2, sram=9)


def test_the_cache_stays_until_its_last_use_and_weights_wait_for_it() -> None:
    """A KV load of 6 bytes, used by scores (2 ps) and values (3 ps); 5 bytes of weights after it fit when both are over."""
    b = GraphBuilder()
    load = b.add("kv_load", kv_read=6)
    scores = b.add("scores", load, flops=2)
    b.add("weighted_values", load, scores, flops=3)
    b.add("o_proj", flops=1, weight=5)
    for sram, wanted in ((10, [8, 11, 17]), (11, [8, 11, 12])):
        log, _ = machine.run(b.graph(), sram=sram)
        assert ends(log) == wanted


@pytest.mark.parametrize("execution", ["blocking", "stream"])
def test_a_kernel_that_loads_its_own_operands_waits_for_their_space(execution: str) -> None:
    """Two kernels that read 10 bytes of KV cache each and compute for 5 ps, on two engines: with SRAM for one, in turns."""
    b = GraphBuilder()
    for layer in range(2):
        b.add("attention", layer=layer, flops=5, kv_read=10)
    wanted = {"blocking": ([15, 30], [15, 25]), "stream": ([10, 20], [10, 20])}[execution]
    for sram, times in ((10, wanted[0]), (20, wanted[1])):
        log, _ = machine.run(b.graph(), execution=execution, engines=2, sram=sram)
        assert ends(log) == times
        started = log.tasks.start.tolist()
        assert started == ([0, times[0]] if sram == 10 else [0, 0])


def test_what_waits_for_sram_before_it_starts_is_charged_to_sram() -> None:
    b = GraphBuilder()
    for layer in range(2):
        b.add("attention", layer=layer, flops=5, kv_read=10)
    log, rules = machine.run(b.graph(), execution="blocking", engines=2, sram=10)
    total = breakdown(log, rules).total
    assert parts(total) == {
        "compute": 10, "transfer": 20, "wait_engine": 0, "wait_channel": 0, "wait_input": 0, "wait_sram": 15, "wait_policy": 0,
    }  # fmt: skip


def tiled(n: int, tokens: int, sram: int | None, *, execution: str = "prefetch", flops: str = "1 TFLOP/s") -> Setup:
    """Attention of one layer of Llama-3.2-1B, in so many parts of the keys, on one engine, with weights on chip."""
    scenario: dict[str, Any] = {
        "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"},
        "workload": {"sequences": [{"context": tokens, "tokens": 1}]},
        "hardware": {"engines": {"count": 1, "flops": flops, "overhead": "0 ps"}, "memory": {"bandwidth": "100 GB/s"}},
        "mapping": {
            "softmax": "online", "heads": "fused", "kv_splits": n, "weights": "resident", "execution": execution,
        },
    }  # fmt: skip
    setup = plan(from_dict(scenario)).setup
    return setup if sram is None else machine.with_sram(setup, sram)


@pytest.mark.parametrize("flops", ["20 GFLOP/s", "4 TFLOP/s"])
@pytest.mark.parametrize(("buffers", "n"), [(1, 8), (2, 2), (2, 8), (3, 8)])
def test_tiles_of_the_cache_are_double_buffered(flops: str, buffers: int, n: int) -> None:
    """n tiles, each loaded in L and attended to in C: L + (n - 1) max(L, C) + C with two buffers, n (L + C) with one."""
    context = 16 * 1024 - 1  # with the new token 16 Ki keys; the cache that is loaded is one row short of equal tiles
    tile = -(-context * 2048 // n)  # bytes: 8 heads of 64 numbers of 2 bytes, keys and values
    log = on_both(tiled(n, context, buffers * tile, flops=flops))
    graph = log.graphs[0]
    loads, parts = ([t for t in range(len(graph)) if graph.kind_of(t) == kind] for kind in ("kv_load", "attention"))
    moved, computed = log.tasks.work[loads].tolist(), log.tasks.compute[parts].tolist()
    assert len(loads) == len(parts) == n
    assert max(moved) == -(-tile * 10**12 // (100 * GB))
    (store,) = (t for t in range(len(graph)) if graph.kind_of(t) == "kv_store")  # moved by the same DMA, in its turn
    issued, stored = int(log.tasks.start[store]), int(log.tasks.work[store])
    done, loaded, freed = int(log.tasks.ready[parts].min()), [], []
    channel = int(log.tasks.start[loads[0]])  # when it is free
    for i in range(n):
        free = freed[i - buffers] if i >= buffers else channel if not i else 0
        if stored and issued < free:
            channel, stored = max(channel, issued) + stored, 0
        channel = max(free, channel) + moved[i]
        loaded.append(channel)
        done = max(done, channel) + computed[i]
        freed.append(done)
    assert log.tasks.end[parts].tolist() == freed
    assert log.tasks.end[loads].tolist() == loaded


def test_closed_form_of_double_buffering() -> None:
    """The same without projections: tiles that need nothing but their loads."""
    for n, load, compute in ((1, 7, 3), (4, 7, 3), (4, 3, 7), (5, 4, 4)):
        b = GraphBuilder()
        for _ in range(n):
            b.add("attention", b.add("kv_load", kv_read=load), flops=compute)
        one, two, many = (machine.run(b.graph(), sram=sram)[0].makespan for sram in (load, 2 * load, None))
        assert one == n * (load + compute)
        assert two == many == load + (n - 1) * max(load, compute) + compute


def test_operands_are_admitted_in_the_order_in_which_tasks_need_them() -> None:
    """Llama has its KV load at the beginning of a layer, but attention needs it after the projections to q, k and v."""
    scenario = {"model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"}, "mapping": {"heads": "fused"}}
    graph = plan(from_dict(scenario)).setup.graph
    groups = [[graph.name(task).removeprefix("weight_load ") for task in group] for group in operands_of(graph).groups()]
    projections = [["gate_proj"], ["up_proj"], ["down_proj"]]
    assert groups == [["norm"], ["q_proj"], ["k_proj"], ["v_proj"], ["kv_load"], ["o_proj"], ["norm"], *projections]


def test_what_must_be_there_together_is_admitted_together() -> None:
    """The cache is used before and after weights of 5 bytes: it cannot be freed without them, so 11 bytes are the least."""
    b = GraphBuilder()
    load = b.add("kv_load", kv_read=6)
    scores = b.add("scores", load, flops=2)
    weights = b.add("o_proj", scores, flops=1, weight=5)
    b.add("weighted_values", load, weights, flops=3)
    for execution in ("blocking", "stream", "prefetch"):
        graph = lower(b.graph(), ModelMapping(execution=execution))
        assert [len(group) for group in operands_of(graph).groups()] == [2]
        with pytest.raises(ConfigError, match="kv_load of layer 0 and what is needed with it needs 11 B at once"):
            machine.run(b.graph(), execution=execution, sram=10)
        requests = [(2, 0), (2, 0), (1, 3)]  # sequences that each hold a part of what they need would wait for ever
        for sram in (11, 12, 16, 21):
            log, _ = machine.run(b.graph(), execution=execution, sram=sram, engines=3, requests=requests)
            assert (log.steps.end > 0).all()


def test_a_cache_that_does_not_fit_says_which_parts_of_it_do() -> None:
    """33.554 MB of KV cache a layer in 8 MiB: 8 parts of 4 MiB, of which two fit."""
    scenario: dict[str, Any] = {
        "model": {"config": "llama-3.2-1b", "layers": 2},
        "workload": {"sequences": [{"context": 16383, "tokens": 2}]},
        "hardware": {"sram": "8 MiB"},
        "mapping": {"tiles": 128},
    }
    said = r"kv_load of layer 0 needs 33\.554 MB at once, SRAM has 8\.389 MB; mapping\.softmax: online and kv_splits of 8"
    for execution in ("blocking", "stream", "prefetch"):
        scenario["mapping"] |= {"execution": execution}
        with pytest.raises(InputError, match=said + " would fit twice, so that one is loaded while another is used$"):
            sim.run(from_dict(scenario))
    plan(from_dict({**scenario, "mapping": {"tiles": 128, "softmax": "online", "kv_splits": 8}}))
    with pytest.raises(InputError, match="kv_splits of 8 would fit"):
        plan(from_dict({**scenario, "mapping": {"tiles": 128, "softmax": "online", "kv_splits": 3}}))
    kernels = {"tiles": 128, "softmax": "online", "kv": "operands", "execution": "stream", "heads": "fused"}
    with pytest.raises(InputError, match=r"attention of layer 0 needs 33\.554 MB at once.*kv_splits of 8 would fit twice"):
        plan(from_dict({**scenario, "mapping": kernels}))
    plan(from_dict({**scenario, "mapping": {**kernels, "kv_splits": 8}}))


def test_the_cache_of_the_largest_batch_fits_before_the_run() -> None:
    """Eight sequences of 1,000 tokens, one kernel: 8 x 1,000 x 2 x 8 x 64 numbers of 2 bytes are 16.4 MB, four half of it."""
    batching: dict[str, Any] = {"policy": "continuous", "max_batch": 8}
    scenario: dict[str, Any] = {
        "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"},
        "workload": {"batching": batching, "sequences": [{"context": 900, "tokens": 101, "count": 9}]},
        "hardware": {"sram": "10 MiB"},
        "mapping": {
            "tiles": 64,
            "softmax": "online",
            "kv": "operands",
            "heads": "fused",
            "execution": "stream",
            "attention": "batch",
        },
    }
    with pytest.raises(InputError, match=r"with 8 sequences in a step, attention of layer 0 needs 16\.384 MB at once"):
        plan(from_dict(scenario))
    batching["max_batch"] = 4
    plan(from_dict(scenario))


def test_requests_that_come_apart_may_meet() -> None:
    """One every 1 us: without `max_batch` all nine may decode at a time, of 2.048 MB each; five of them fit 10 MiB."""
    arrivals = {"process": "constant", "rate": "1000000/s"}
    workload: dict[str, Any] = {
        "batching": "continuous", "generate": {"count": 9, "prompt": 0, "context": 900, "tokens": 101, "arrivals": arrivals},
    }  # fmt: skip
    scenario: dict[str, Any] = {
        "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"}, "workload": workload,
        "hardware": {"sram": "10 MiB"},
        "mapping": {"tiles": 64, "softmax": "online", "kv": "operands", "heads": "fused", "execution": "stream",
                    "attention": "batch"},
    }  # fmt: skip
    with pytest.raises(InputError, match=r"with 9 sequences in a step, .*; workload\.batching\.max_batch of 5 would fit$"):
        plan(from_dict(scenario))
    workload["batching"] = {"policy": "continuous", "max_batch": 5}
    assert len(sim.run(from_dict(scenario)).requests.arrival) == 9
    with pytest.raises(InputError, match="with 6 sequences in a step"):
        plan(from_dict({**scenario, "workload": {**workload, "batching": {"policy": "continuous", "max_batch": 6}}}))


@pytest.mark.parametrize(("full", "blocks", "members", "cached"), [("wait", 56, 8, 662), ("recompute", 49, 9, 655)])
def test_blocks_that_prompts_share_leave_space_for_more_sequences(full: str, blocks: int, members: int, cached: int) -> None:
    """Prompts of 640 shared tokens and 4 of their own take 40 blocks of 16 tokens once, and until they end 2 more each.

    Of 56 blocks that is enough for 8 sequences. Where 49 are allocated as they are needed, 9 sequences have one more each
    until they have 656 tokens. In a layer a token has 2 x 8 x 64 numbers of 2 bytes. Without a prefix cache one fits.
    """
    kv: dict[str, Any] = {"prefix_cache": True, "capacity": f"{blocks * 65536} B", "full": full}
    arrivals, prefixes = {"process": "constant", "rate": "2000/s"}, {"count": 1, "tokens": 640}
    generate = {"count": 9, "prompt": 4, "tokens": 20, "prefixes": prefixes, "arrivals": arrivals}
    scenario: dict[str, Any] = {
        "model": {"config": "llama-3.2-1b", "layers": 2, "scope": "block"},
        "workload": {
            "generate": generate, "batching": {"policy": "continuous", "max_batch": 9, "kv": kv}, "prefill": {"chunk": 64},
        },
        "hardware": {"sram": f"{members * cached * 2048 - 1} B"},
        "mapping": {"attention": "batch", "tiles": 64},
    }  # fmt: skip
    with pytest.raises(InputError, match=rf"with {members} sequences in a step, kv_load of layer 0 needs"):
        plan(from_dict(scenario))
    plan(from_dict(scenario | {"hardware": {"sram": f"{members * cached * 2048} B"}}))
    kv["prefix_cache"] = False
    plan(from_dict(scenario))


def prompt(tokens: int, **mapping: object) -> dict[str, Any]:
    return {
        "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"},
        "workload": {"sequences": [{"prompt": tokens, "tokens": 1}], "batching": "continuous"},
        "hardware": {"sram": "32 MiB"},
        "mapping": {"tiles": 64, "heads": "fused", **mapping},
    }


def test_scores_that_exceed_sram_are_refused() -> None:
    """Llama-3.2-1B, 5,760 tokens, 32 heads: 1.062 G scores, which the exponential reads and writes with 4 bytes each."""
    assert 32 * 5760 * 5760 * 8 == 8_493_465_600
    said = r"softmax_exp has inputs and results of 8\.493 GB, SRAM has 33\.554 MB; mapping\.activations: off_chip would"
    with pytest.raises(
        InputError, match=said + " move these .*, softmax: online would keep no scores, a step of 22 new tokens"
    ):
        plan(from_dict(prompt(5760)))
    plan(from_dict(prompt(5760, activations="off_chip")))


def test_inputs_results_and_the_tile_of_weights_fit_sram_together() -> None:
    """Down projection of Llama-3.2-1B in 64 tiles of 32 columns: inputs 16384 T, results 64 T, weights 512 KiB, in 32 MiB."""
    most = (2**25 - 2**19) // (16384 + 64)
    said = rf"down_proj t0 has inputs and results of .* beside 524\.288 kB .* a step of {most} new tokens instead of 4000"
    with pytest.raises(InputError, match=said):
        plan(from_dict(prompt(4000, softmax="online")))
    plan(from_dict(prompt(most, softmax="online")))
    with pytest.raises(InputError, match="down_proj t0 has inputs"):
        plan(from_dict(prompt(most + 1, softmax="online")))
    plan(from_dict({**prompt(4000, softmax="online"), "hardware": {"sram": None}}))


@settings(max_examples=80, deadline=None)
@given(graphs(), machines(), st.integers(0, 6), several_requests)
def test_no_run_comes_to_a_halt(graph: OpGraph, drawn: dict[str, Any], spare: int, requests: list[tuple[int, int]]) -> None:
    """With the least SRAM that holds any operands which are needed together, several sequences all end; none exceeds SRAM."""
    made = machine.setup(graph, **{**drawn, "spare": spare, "requests": requests})
    log = on_both(made)
    assert len(log.steps) == sum(tokens for tokens, _ in requests)
    assert (log.tasks.end > log.tasks.start).all()
    assert most_in_use(log)[0] <= made.sram[0]


def on_devices(graph: OpGraph, device: Callable[[Op], int]) -> OpGraph:
    """The graph with each of its ops on a device."""
    return replace(graph, ops=tuple(replace(op, device=device(op)) for op in graph.ops))


@pytest.mark.parametrize("execution", ["blocking", "stream", "prefetch"])
def test_each_device_has_sram_of_its_own(execution: str) -> None:
    """Two copies of the attention of two layers, on a device each: both have the times of one alone, at each size."""
    one = two_layers(load=10, compute=5)
    twice = replace(one, ops=(*one.ops, *(replace(op, inputs=tuple(4 + i for i in op.inputs), device=1) for op in one.ops)))
    for sram, wanted in ((10, [15, 30]), (19, [15, 30]), (20, [15, 25]), (None, [15, 25])):
        log = on_both(machine.setup(twice, execution=execution, engines=2, sram=sram))
        assert ends(log) == 2 * wanted, sram
        assert most_in_use(log) == (min(sram or 20, 10 if sram == 19 else 20),) * 2
    with pytest.raises(ConfigError, match=r"needs 10 B at once, SRAM of device 0 has 9 B"):
        machine.run(twice, execution=execution, sram=9)


def test_a_stage_loads_ahead_while_it_waits_for_the_one_before() -> None:
    """Stage 0 loads 10 bytes and computes for 50 ps, until 60. Stage 1 has two ops of 10 bytes and 5 ps each.

    With space for one, it loads the first in [0, 10), computes in [60, 65), loads the second then: 75, 80. With space for both
    it has them at 20, and ends at 70.
    """
    b = GraphBuilder()
    first = b.add("q_proj", flops=50, weight=10)
    second = b.add("o_proj", first, layer=1, flops=5, weight=10)
    b.add("up_proj", second, layer=1, flops=5, weight=10)
    graph = on_devices(b.graph(), lambda op: op.layer)
    for sram, wanted in ((10, [60, 65, 80]), (20, [60, 65, 70])):
        log = on_both(machine.setup(graph, sram=sram))
        assert ends(log) == wanted
    assert operands_of(log.graphs[0]).before.tolist() == [[-1, -1]] * 3, "no stage waits for a later one"


def test_devices_in_turns_load_no_further_ahead_than_the_others_have_space_for() -> None:
    """q_proj on device 0, then v_proj on 1, then o_proj on 0, of 5 bytes each; on 1 also k_proj, before v_proj, for 20 ps.

    Device 1 has space for one. k_proj loads in [0, 5) and ends at 25; only then is v_proj admitted, and with it o_proj, for
    which device 0 has space all the time: they load until 30, v_proj ends at 31 and o_proj at 32.
    """
    b = GraphBuilder()
    first = b.add("q_proj", flops=1, weight=5)
    b.add("k_proj", flops=20, weight=5)
    second = b.add("v_proj", first, flops=1, weight=5)
    b.add("o_proj", second, flops=1, weight=5)
    graph = on_devices(b.graph(), lambda op: int(op.kind in ("k_proj", "v_proj")))
    made = replace(machine.setup(graph), sram=(10, 5))
    log = on_both(made)
    assert ends(log) == [6, 25, 31, 32]
    operands = operands_of(made.graph)
    assert [made.graph.name(task) for task in operands.task] == [f"weight_load {kind}_proj" for kind in "qokv"]
    assert operands.before.tolist() == [[-1, 0], [-1, 4], [0, -1], [1, -1]]


def test_operands_that_devices_need_of_each_other_at_once_are_refused() -> None:
    """Caches on two devices, each used before and after the other's: neither can be freed before both are there."""
    b = GraphBuilder()
    loads = [b.add("kv_load", layer=device, kv_read=6) for device in (0, 1)]
    scores = [b.add("scores", load, layer=device, flops=2) for device, load in enumerate(loads)]
    for device, load in enumerate(loads):
        b.add("weighted_values", load, scores[1 - device], layer=device, flops=3)
    with pytest.raises(ConfigError, match="expected null: devices need operands of each other's at once"):
        machine.run(on_devices(b.graph(), lambda op: op.layer), sram=100)


def block(parallel: dict[str, Any], *, devices: int, sram: str, layers: int = 2, **rest: Any) -> EventLog:
    """Some layers of Llama-3.2-1B, in tiles, for a batch of two sequences or two on their own."""
    scenario: dict[str, Any] = {
        "model": {"config": "llama-3.2-1b", "layers": layers, "scope": "block"},
        "workload": {"sequences": [{"context": 100, "tokens": 2, "count": 2}], **rest},
        "hardware": {"sram": sram},
        "mapping": {"heads": "fused", "tiles": 8, "parallel": parallel},
    }
    if devices > 1:
        scenario["hardware"]["devices"] = {"count": devices, "link": {"bandwidth": "450 GB/s", "latency": "1 us"}}
    return on_both(plan(from_dict(scenario)).setup)


@pytest.mark.parametrize("policy", ["independent", "continuous"])
@pytest.mark.parametrize("sram", ["5 MiB", "20 MiB"])
def test_devices_that_do_the_same_have_the_times_of_the_one_that_stands_for_them(policy: str, sram: str) -> None:
    one = block({"tensor": 2}, devices=2, sram=sram, batching=policy)
    both = block({"tensor": 2, "fold": False}, devices=2, sram=sram, batching=policy)
    device = derived.device(both)
    for column in ("ready", "start", "loaded", "end"):
        for number in range(2):
            mine = getattr(both.tasks, column)[device == number]
            assert sorted(mine.tolist()) == sorted(getattr(one.tasks, column).tolist())


@pytest.mark.parametrize("sram", ["5 MiB", "20 MiB"])
def test_the_first_stage_has_the_times_of_a_device_alone(sram: str) -> None:
    """One layer each: what stage 0 does in its first step, but for sending the result, is a run of one layer."""
    alone = block({}, devices=1, layers=1, sram=sram, batching={"policy": "continuous", "max_batch": 1})
    stages = block({"pipeline": 2, "micro_batches": 1}, devices=2, sram=sram, batching={"policy": "continuous", "max_batch": 1})
    first = range(len(alone.graphs[0]))
    mine = [row for row in range(len(stages.graphs[0])) if not derived.device(stages)[row] and "p2p" not in stages.name(row)]
    for column in ("ready", "start", "loaded", "end"):
        assert getattr(stages.tasks, column)[mine].tolist() == getattr(alone.tasks, column)[list(first)].tolist()


def test_two_replicas_are_two_devices() -> None:
    """Requests 0 and 1 on a replica each: both take as long as one alone."""
    both = block({"data": 2}, devices=2, sram="5 MiB", batching="continuous")
    one = block({}, devices=1, sram="5 MiB", batching={"policy": "continuous", "max_batch": 1})
    assert both.steps.end[both.steps.sequence == 0].tolist() == both.steps.end[both.steps.sequence == 1].tolist()
    assert both.makespan == one.steps.end[1]


def test_resident_weights_of_each_stage_leave_the_rest_of_its_sram() -> None:
    """Layers of 60,821,504 parameters of 2 bytes, and the last norm of 2,048 on the second stage: 40 % of them, rounded up."""
    scenario = {
        "model": {"config": "llama-3.2-1b", "layers": 2, "scope": "block"},
        "hardware": {"sram": "60 MB", "devices": {"count": 2, "link": {"bandwidth": "450 GB/s"}}},
        "mapping": {"tiles": 8, "weights": {"resident": 0.4}, "parallel": {"pipeline": 2}},
    }
    layer = 2 * 60_821_504
    assert plan(from_dict(scenario)).setup.sram == tuple(60_000_000 - ceil_div(2 * size, 5) for size in (layer, layer))
    scenario["hardware"]["sram"] = "40 MB"
    with pytest.raises(InputError, match=r"48\.657 MB of resident weights of device 0 are 8\.657 MB more than the 40\.000"):
        plan(from_dict(scenario))


@settings(max_examples=80, deadline=None)
@given(dealt_out(), machines(), st.integers(0, 6), several_requests)
def test_devices_that_wait_for_each_other_do_not_halt(
    graph: OpGraph, drawn: dict[str, Any], spare: int, requests: list[tuple[int, int]]
) -> None:
    """Ops anywhere on several devices, several sequences that each want a part of the least SRAM: all end."""
    made = machine.setup(graph, **{**drawn, "spare": spare, "requests": requests})
    log = on_both(made)
    assert len(log.steps) == sum(tokens for tokens, _ in requests)
    assert (log.tasks.end > log.tasks.start).all()
    assert all(most <= sram for most, sram in zip(most_in_use(log), made.sram, strict=True))
