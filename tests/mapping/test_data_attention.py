"""Devices with sequences of their own that share experts: what each holds, computes, reads and sends, and where requests go."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner

import sim
from models.experts import Experts
from models.graph import QUANTITIES
from sim.base.units import PS_PER_S, ceil_div
from sim.cli import cli
from sim.render.summary import summary
from sim.runs.plan import plan
from sim.runs.run import read
from sim.workload.routing import Uniform
from tests.executors import assert_same, assert_saved

DEVICES, EXPERTS, LAYERS = 4, 8, 2
LATENCY, BANDWIDTH = 1_000_000, 450 * 10**9
HIDDEN, INNER, KEYS, VOCABULARY = 4096, 14336, 1024, 32_000  # of Mixtral 8x7B
TOKEN = HIDDEN * 2  # bytes of the hidden state of a token
KV = LAYERS * 2 * KEYS * 2  # bytes that a token appends to the cache
ATTENTION, EXPERT = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS, 3 * HIDDEN * INNER
FLOPS, WEIGHT = QUANTITIES.index("flops"), QUANTITIES.index("weight")
OF_EXPERTS = {"expert_dispatch", "expert_combine", "expert_combine_send", "gate_up_proj", "act", "down_proj"}
APART = {"tensor": DEVICES, "expert": DEVICES, "attention": "data", "dispatch": "all_to_all"}
#: Prompts in chunks and sequences that decode: steps in which devices have prompts, decode, or have nothing.
MIXED = {
    "workload__sequences": "[{prompt: 19, tokens: 3, count: 3}, {context: 64, tokens: 5}, {prompt: 40, tokens: 1, count: 2}]",
    "workload__prefill__chunk": 16, "workload__batching__policy": "continuous",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("apart") / "base.yaml"
    path.write_text("model: {config: mixtral-8x7b}\n")
    return path


def scenario(base, *, parallel=None, **changes: object) -> sim.Scenario:
    """16 sequences that decode a token, on four devices or as `parallel` says; `a__b` of the changes is the key `a.b`."""
    parallel = APART if parallel is None else parallel
    given: dict[str, object] = {
        "model.layers": LAYERS, "model.scope": "block", "hardware.preset": "h100-sxm",
        "hardware.devices.count": parallel.get("tensor", 1) * parallel.get("data", 1),
        "hardware.devices.link": "{bandwidth: 450 GB/s, latency: 1 us}", "mapping.parallel": json.dumps(parallel),
        "workload.batching.policy": "static", "workload.sequences": "[{context: 64, tokens: 1, count: 16}]",
    }  # fmt: skip
    given |= {key.replace("__", "."): value for key, value in changes.items()}
    return read(base, [f"{key}={value}" for key, value in given.items()])


def run(base, *, executor="simpy", **changes: object) -> sim.Result:
    return sim.run(scenario(base, **changes), executor=executor)


def costs_of(result: sim.Result, step: int) -> np.ndarray:
    """Costs of the ops of a step, [quantity, op]."""
    log = result.log
    return np.asarray(log.graphs[log.steps.graph[step]].ops.costs_of(log.lanes(np.array([step])))[:, :, 0])


def taken(result: sim.Result, step: int, device: int) -> Counter[tuple[object, ...]]:
    """Tasks of a device in a step but those for experts: kind, layer, kinds of inputs, and times on engine and channel."""
    log = result.log
    graph, first, found = log.graphs[log.steps.graph[step]], log.rows(step).start, Counter[tuple[object, ...]]()
    for task in np.flatnonzero(graph.device == device).tolist():
        if graph.ops.ops[graph.op[task]].part != "experts" and graph.to[task] < 0:
            inputs = sorted(map(graph.kind_of, graph.inputs[graph.input_start[task] : graph.input_start[task + 1]].tolist()))
            times = int(log.tasks.compute[first + task]), int(log.tasks.work[first + task])
            found[graph.kind_of(task), int(graph.layer[task]), tuple(inputs), times] += 1
    return found


@pytest.mark.parametrize("attention", ["sequence", "batch"])
@pytest.mark.parametrize("scope", ["block", "model"])
def test_a_device_does_what_one_with_its_sequences_alone_would(base, attention, scope) -> None:
    """Four of 16 sequences that are alike: prompts, then decodes, with all weights but those of experts, and the LM head."""
    given = {"mapping__attention": attention, "model__scope": scope}
    shared = run(base, workload__sequences="[{prompt: 40, tokens: 2, count: 16}]", **given)
    alone = run(base, parallel={}, workload__sequences="[{prompt: 40, tokens: 2, count: 4}]", **given)
    assert len(shared.log.steps) == len(alone.log.steps) == 2
    for step in range(2):
        expected = taken(alone, step, 0)
        assert any(kind == "o_proj" and inputs for kind, _, inputs, _ in expected)
        for device in range(DEVICES):
            assert taken(shared, step, device) == expected


def test_experts_do_together_what_one_device_would(base) -> None:
    """The same distinct experts are read, and each choice is computed once, wherever its sequence is."""
    found = []
    for parallel in (APART, {}):
        result = run(base, parallel=parallel, **MIXED)
        of_steps = []
        for step, graph in enumerate(result.log.steps.graph.tolist()):
            ops, costs = result.log.graphs[graph].ops.ops, costs_of(result, step)
            chosen = [i for i, op in enumerate(ops) if op.experts is not None and not op.experts.shares]
            of_steps.append(costs[:, chosen].sum(axis=1)[[FLOPS, WEIGHT]].tolist())
        found.append(of_steps)
    assert found[0] == found[1]
    assert len(found[0]) > 3


def homes(result: sim.Result) -> dict[int, int]:
    """The device of each sequence."""
    members = result.log.members
    return dict(zip(members.sequence.tolist(), members.home.tolist(), strict=True))


def sent_by_pair(result: sim.Result, kind: str) -> Counter[tuple[int, int, int]]:
    """Bytes by layer, sender and receiver, in all steps."""
    log, found = result.log, Counter[tuple[int, int, int]]()
    for step, number in enumerate(log.steps.graph.tolist()):
        graph = log.graphs[number]
        moved = graph.bytes_moved(costs_of(result, step))
        for task in np.flatnonzero(graph.kind == graph.kinds.index(kind)).tolist():
            found[int(graph.layer[task]), int(graph.device[task]), int(graph.to[task])] += int(moved[task])
    return found


@pytest.mark.parametrize("attention", ["sequence", "batch"])
def test_tokens_go_from_their_device_to_those_of_their_experts(base, attention) -> None:
    """Bytes by pair and layer, of prompts and decodes, as a walk over all tokens counts them."""
    result = run(base, mapping__attention=attention, **MIXED)
    expected = Counter[tuple[int, int, int]]()
    experts, routing, at = Experts(count=EXPERTS, top_k=2, bytes=1), Uniform(result.scenario.seed), homes(result)
    assert at == {number: number % DEVICES for number in range(6)}  # round robin
    members = result.log.members
    for sequence, context, query in zip(members.sequence, members.context, members.query, strict=True):
        position = np.arange(context, context + query)
        for layer in range(LAYERS):
            chosen = routing.choose(np.full(query, layer), np.full(query, sequence), position, experts)
            for devices in (chosen // (EXPERTS // DEVICES)).tolist():
                for device in {*devices} - {at[int(sequence)]}:
                    expected[layer, at[int(sequence)], device] += TOKEN
    assert +sent_by_pair(result, "expert_dispatch_send") == expected
    back = Counter({(layer, target, source): size for (layer, source, target), size in expected.items()})
    assert +sent_by_pair(result, "expert_combine_send") == back


@pytest.mark.parametrize(("topology", "serial"), [("switch", DEVICES - 1), ("all_to_all", 1)])
def test_even_routes(base, topology, serial) -> None:
    """A token of each device for each other one: a + (n - 1) h / B over a switch, a + h / B where each pair has a link."""
    rows = []
    for i in range(16):
        device = (i // DEVICES + i) % DEVICES
        rows += [
            {"sequence": i, "position": 64, "layer": layer, "experts": [2 * device, 2 * device + 1]} for layer in range(LAYERS)
        ]
    (base.parent / "routes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run(base, workload__routing="{file: routes.jsonl}", hardware__devices__topology=topology)
    (graph,), end = result.log.graphs, result.log.tasks.end
    for kind in ("expert_dispatch", "expert_combine"):
        of_kind = [
            np.flatnonzero((graph.kind == graph.kinds.index(name)) & (graph.layer == 0)) for name in (kind, f"{kind}_send")
        ]
        launches, sends = of_kind
        assert (len(launches), len(sends)) == (DEVICES, DEVICES * (DEVICES - 1))
        assert len(set(end[launches].tolist())) == 1
        assert int(end[sends].max() - end[launches[0]]) == LATENCY + serial * ceil_div(TOKEN * PS_PER_S, BANDWIDTH)


def test_devices_without_sequences_take_part(base) -> None:
    """A lone sequence is on the first device. The others have the experts, and launch exchanges in their order."""
    result = run(base, workload__sequences="[{context: 64, tokens: 1}]", model__scope="model")
    (graph,), tasks = result.log.graphs, result.log.tasks
    kinds = [{graph.kind_of(task) for task in np.flatnonzero(graph.device == device)} for device in range(DEVICES)]
    assert kinds[1:] == [OF_EXPERTS] * (DEVICES - 1)
    assert kinds[0] >= {"embedding", "attention", "lm_head", "expert_dispatch_send"}
    launches = [
        task
        for task in range(len(graph))
        if graph.device[task] == 3 and graph.kind_of(task) in OF_EXPERTS - {"expert_combine_send"}
    ]
    start, end = tasks.start[launches], tasks.end[launches]
    assert (start[1:] >= end[:-1]).all()
    assert {graph.kind_of(task) for task in launches[:1]} == {"expert_dispatch"}
    assert result.metrics.bytes_sent == sum(
        (sent_by_pair(result, "expert_dispatch_send") + sent_by_pair(result, "expert_combine_send")).values()
    )


@pytest.mark.parametrize("attention", ["sequence", "batch"])
def test_nothing_but_tokens_to_experts_goes_to_other_devices(base, attention) -> None:
    """Samples of a prompt share what one of them loads: on their device, which is the second one here."""
    result = run(
        base, mapping__attention=attention, mapping__execution="prefetch", mapping__kv="transfers",
        workload__sequences="[{context: 70, tokens: 4}, {prompt: 40, tokens: 3, samples: 3}]",
    )  # fmt: skip
    members = result.log.members
    assert set(zip(members.sequence.tolist(), members.home.tolist(), strict=True)) == {(0, 0), (1, 1), (2, 1), (3, 1)}
    for graph in result.log.graphs:
        needs = np.repeat(np.arange(len(graph)), np.diff(graph.input_start))
        across = graph.inputs[graph.device[needs] != graph.device[graph.inputs]]
        assert {graph.kind_of(task) for task in across} == {"expert_dispatch_send", "expert_combine_send"}


def test_one_device_is_no_parallelism(base) -> None:
    """So a study may begin with one device."""
    one = {"tensor": 1, "expert": 1, "attention": "data", "dispatch": "all_to_all"}
    assert_same(run(base, parallel=one, **MIXED).log, run(base, parallel={}, **MIXED).log)


def test_a_kv_cache_for_each_device(base) -> None:
    """Each has space for one sequence of 80 tokens, so of eight the second four wait until the first have ended."""
    result = run(
        base, workload__batching__kv=f"{{capacity: {80 * KV} B}}", workload__batching__policy="continuous",
        workload__sequences="[{context: 77, tokens: 3, count: 8}]",
    )  # fmt: skip
    fed = np.bincount(result.log.members.step, result.log.members.query)
    assert fed.tolist() == [DEVICES] * 6
    started = result.log.started
    assert len(set(started[:4].tolist())) == len(set(started[4:].tolist())) == 1
    capacity = plan(scenario(base, model__scope="model", hardware__memory__capacity="5 GB")).setup.batching.capacity
    assert capacity == 5 * 10**9 - weights_of_a_device()


def weights_of_a_device() -> int:
    """Attention, two norms and the router of each layer, two of its eight experts, a last norm, embedding and LM head."""
    layer = ATTENTION + 2 * HIDDEN + HIDDEN * EXPERTS + EXPERTS // DEVICES * EXPERT
    return 2 * (LAYERS * layer + HIDDEN + 2 * VOCABULARY * HIDDEN)


def printed(tmp_path, text: str) -> str:
    (tmp_path / "one.yaml").write_text(text)
    return " ".join(CliRunner().invoke(cli, ["check", str(tmp_path / "one.yaml"), "--not-resolved"]).output.split())


def test_check_says_what_a_device_holds(tmp_path) -> None:
    text = (
        "extends: h100_mixtral_experts_dealt\nmodel: {layers: 2}\n"
        "mapping: {parallel: {attention: data, dispatch: all_to_all}}\nworkload: {router: least_loaded}\n"
    )
    found = printed(tmp_path, text)
    assert (
        "4 devices, each with sequences of its own (workload.router: least_loaded) and all weights but those of experts"
        in found
    )
    assert (
        f"device 3: layers 0 to 1, {weights_of_a_device() / 10**9:.3f} GB of weights, 8.192 kB of KV cache per token" in found
    )
    assert "sends nothing but tokens to experts in a step of one token" in found


def test_latents_are_on_one_device(tmp_path) -> None:
    """DeepSeek-V3 on eight devices, four layers: 32 experts of a layer on each; 576 numbers of a token and layer on one."""
    attention = 7168 * (1536 + 576) + 1536 + 512 + 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168 + 2 * 7168
    mixture = 33 * 3 * 7168 * 2048 + 256 * 7168  # with the shared expert, and the router
    parameters = 4 * attention + 3 * 3 * 7168 * 18_432 + mixture + 7168 + 2 * 129_280 * 7168
    found = printed(tmp_path, "\n".join([
        "model: {config: deepseek-v3, layers: 4}", "workload: {sequences: [{context: 9, tokens: 1}], batching: static}",
        "hardware: {preset: h200, devices: {count: 8}}",
        "mapping: {formats: {weights: bf16}, parallel: {tensor: 8, expert: 8, attention: data, dispatch: all_to_all}}",
    ]))  # fmt: skip
    assert (
        f"device 7: layers 0 to 3, {2 * parameters / 10**9:.3f} GB of weights, {4 * 576 * 2 / 10**3:.3f} kB of KV cache"
        in found
    )


def test_requests_go_where_a_router_says(base) -> None:
    """A fifth request comes when three of four have ended: the first device is still busy, so it goes to the second."""
    sequences = "[{context: 64, tokens: 9}, {context: 64, tokens: 1, count: 3}, {context: 64, tokens: 1, arrival: 1500 us}]"
    given = {"workload__sequences": sequences, "workload__batching__policy": "continuous"}
    assert homes(run(base, workload__router="least_loaded", **given)) == {0: 0, 1: 1, 2: 2, 3: 3, 4: 1}
    assert homes(run(base, **given))[4] == 0  # in turn


@pytest.mark.parametrize("replicas", [1, 2])
def test_what_each_device_served(base, replicas) -> None:
    """Requests and tokens of each device, of all replicas: six requests in turn; two of eight devices get none."""
    found = summary(run(base, parallel={**APART, "data": replicas}, **MIXED))["requests"]
    tokens, devices = [3, 3, 3, 5, 1, 1], DEVICES * replicas
    expected = [tokens[device::devices] for device in range(devices)]
    assert [(of["requests"], of["tokens"]) for of in found["devices"]] == [(len(each), sum(each)) for each in expected]
    assert [of["ttft_ps"] is None for of in found["devices"]] == [not each for each in expected]
    assert [of["device"] for of in found["each"]] == [number % devices for number in range(6)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mapping__attention": "batch", "model__scope": "model"},
        {"workload__batching__max_batch": 1, "workload__router": "least_loaded", "model__scope": "model"},
        {"workload__batching__kv": f"{{capacity: {64 * KV} B, full: recompute}}",
         "workload__sequences": "[{prompt: 19, tokens: 30, count: 9}]"},
        {"workload__batching__kv__prefix_cache": "true", "workload__router": "prefix_aware"},
        {"workload__sequences": "[{prompt: 40, tokens: 3, samples: 3}, {context: 9, tokens: 4}, {prompt: 9, tokens: 4}]"},
        {"mapping__parallel__micro_batches": 2},
        {"parallel": {**APART, "data": 2}, "workload__router": "least_loaded"},
        {"workload__concurrency": "{users: 3, think: 10 us}"},
        {"workload__speculative": "{draft: 2, acceptance: 0.5}", "workload__step_overhead": "5 us"},
        {"hardware__devices__topology": "ring", "hardware__devices__link__arbiter": "processor_sharing"},
        {"mapping__execution": "prefetch", "mapping__kv": "transfers", "mapping__tiles": 2, "hardware__engines__count": 2},
    ],
    ids=str,
)  # fmt: skip
def test_both_executors(base, changes) -> None:
    given = MIXED | changes
    simpy = run(base, **given)
    assert_same(simpy.log, run(base, executor="compiled", **given).log)
    tokens = np.bincount(simpy.log.members.sequence, simpy.log.members.emitted)
    assert tokens.tolist() == [request.tokens for request in plan(scenario(base, **given)).setup.sequences]


def test_a_saved_log(base, tmp_path) -> None:
    assert_saved(run(base, **MIXED), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert": 1}, "expected 'expert: 4' .as many as 'tensor'. and 'dispatch: all_to_all' with 'attention: data', found"),
        ({"tensor": 1}, "expected 'tensor' above 1 with 'attention: data', found 1"),
        ({"dispatch": "all_gather"}, "with 'attention: data', found expert: 4 and dispatch: all_gather"),
        ({"sequence": True}, "expected sequence: false with 'attention: data', found true"),
        ({"pipeline": 2}, "expected pipeline: 1 with 'attention: data', found 2"),
        ({"workload__batching__kv__full": "swap"}, "kv.full: expected wait or recompute with mapping.parallel.attention: data"),
        ({"workload__speculative": "{draft: 2, model: mixtral-8x7b, acceptance: 0.5}"}, "model: expected none with mapping"),
        ({"model__config": "llama-3.1-8b"}, "expert: expected 1: the model has no experts"),
    ],
    ids=str,
)  # fmt: skip
def test_refusals(base, changes, message) -> None:
    of_parallel = {key: value for key, value in changes.items() if "__" not in key}
    others = {key: value for key, value in changes.items() if "__" in key}
    with pytest.raises(sim.InputError, match=message):
        run(base, parallel=APART | of_parallel, **others)
