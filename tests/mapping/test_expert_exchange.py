"""Experts that get their tokens from the devices that have these: bytes by routes, closed forms, and both executors."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from click.testing import CliRunner

import models.library
import sim
from models.experts import Experts, Tokens, counted
from models.graph import QUANTITIES
from models.rewrites import shard, unfolded
from sim.analysis.parts import PARTS
from sim.base.errors import ConfigError
from sim.base.units import PS_PER_S, ceil_div
from sim.cli import cli
from sim.runs.holdings import others_of
from sim.runs.run import read
from sim.workload.routing import Uniform
from tests.executors import assert_same

DEVICES, EXPERTS, LAYERS = 4, 8, 2
LATENCY, BANDWIDTH = 1_000_000, 450 * 10**9
TOKEN = 4096 * 2  # bytes of the hidden state of a token of Mixtral
WORK = ceil_div(TOKEN * PS_PER_S, BANDWIDTH)
FLOPS = QUANTITIES.index("flops")
SHARED = {"hardware__devices__link__arbiter": "processor_sharing"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("exchange") / "base.yaml"
    path.write_text("model: {config: mixtral-8x7b}\n")
    return path


def run(base, *, executor="simpy", routes=None, **changes: object) -> sim.Result:
    """16 sequences that decode a token on four devices; `a__b` of the changes is the key `a.b`. routes: as `written`."""
    given: dict[str, object] = {
        "model.layers": LAYERS, "model.scope": "block", "hardware.preset": "h100-sxm", "hardware.devices.count": DEVICES,
        "hardware.devices.link": "{bandwidth: 450 GB/s, latency: 1 us}", "mapping.parallel.tensor": DEVICES,
        "mapping.parallel.expert": DEVICES, "mapping.parallel.sequence": "true", "mapping.parallel.dispatch": "all_to_all",
        "workload.batching.policy": "static", "workload.sequences": "[{context: 64, tokens: 1, count: 16}]",
    }  # fmt: skip
    given |= {key.replace("__", "."): value for key, value in changes.items()}
    if routes is not None:
        given["workload.routing"] = f"{{file: {written(base, routes)}}}"
    return sim.run(read(base, [f"{key}={value}" for key, value in given.items()]), executor=executor)


def written(base, routes) -> str:
    """A file of the experts of token i of 16, `routes(i)`, in each layer."""
    rows = [{"sequence": i, "position": 64, "layer": layer, "experts": routes(i)} for layer in range(LAYERS) for i in range(16)]
    (base.parent / "routes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "routes.jsonl"


def to_each(i: int) -> list[int]:
    """Two experts of one device: the four tokens of each device go to one device each, its own included."""
    device = (i // 4 + i) % DEVICES
    return [2 * device, 2 * device + 1]


def tasks_of(result: sim.Result, kind: str, layer: int = 0) -> np.ndarray:
    (graph,) = result.log.graphs
    return np.flatnonzero((graph.kind == graph.kinds.index(kind)) & (graph.layer == layer))


def sent_by_pair(result: sim.Result, kind: str) -> Counter[tuple[int, int, int]]:
    """Bytes by layer, sender and receiver, in all steps."""
    log, found = result.log, Counter[tuple[int, int, int]]()
    for step, number in enumerate(log.steps.graph.tolist()):
        graph = log.graphs[number]
        moved = graph.bytes_moved(graph.ops.costs_of(log.lanes(np.array([step]))))[:, 0]
        for task in np.flatnonzero(graph.kind == graph.kinds.index(kind)).tolist():
            found[int(graph.layer[task]), int(graph.device[task]), int(graph.to[task])] += int(moved[task])
    return found


@pytest.mark.parametrize("kind", ["expert_dispatch", "expert_combine"])
@pytest.mark.parametrize(("topology", "serial"), [("switch", DEVICES - 1), ("all_to_all", 1)])
def test_even_routes(base, kind, topology, serial) -> None:
    """Each device has a token for each other: a + (n - 1) h / B over a switch, a + h / B where each pair has a link."""
    result = run(base, routes=to_each, hardware__devices__topology=topology)
    launches, sends = tasks_of(result, kind), tasks_of(result, f"{kind}_send")
    assert len(launches) == DEVICES
    assert len(sends) == DEVICES * (DEVICES - 1)
    end = result.log.tasks.end
    assert len(set(end[launches].tolist())) == 1
    assert int(end[sends].max() - end[launches[0]]) == LATENCY + serial * WORK
    assert set(sent_by_pair(result, f"{kind}_send").values()) == {TOKEN}


def test_a_favorite_device_holds_up_all(base) -> None:
    """All 16 tokens choose the experts of device 0, so four of each other one go over its link, one device after another."""
    result, even = run(base, routes=lambda i: [0, 1]), run(base, routes=to_each)
    end, four = result.log.tasks.end, ceil_div(4 * TOKEN * PS_PER_S, BANDWIDTH)
    for kind in ("expert_dispatch", "expert_combine"):
        launches, sends = tasks_of(result, kind), tasks_of(result, f"{kind}_send")
        began = end[launches].max()  # of the combine, the end of the launch of device 0, whose experts work
        assert end[sends].max() - began == LATENCY + (DEVICES - 1) * four
        found = sent_by_pair(result, f"{kind}_send")
        there = {pair: 4 * TOKEN for pair in found if pair[1 if kind == "expert_combine" else 2] == 0}
        assert found == Counter(there)
    assert result.metrics.bytes_sent == even.metrics.bytes_sent  # 12 tokens go to other devices in both
    assert result.makespan > even.makespan


def test_bytes_are_those_of_the_tokens_that_choose(base) -> None:
    """Bytes by pair and layer, of prompts and decodes in steps of many sizes, as a walk over all tokens counts them."""
    requests = "[{prompt: 37, tokens: 3, count: 3}, {context: 64, tokens: 5, count: 2}]"
    result = run(base, workload__sequences=requests, workload__batching__policy="continuous", workload__prefill__chunk=16)
    log, expected = result.log, Counter[tuple[int, int, int]]()
    experts, routing = Experts(count=EXPERTS, top_k=2, bytes=1), Uniform(result.scenario.seed)
    for step in range(len(log.steps)):
        members = log.lanes(np.array([step])).members
        tokens = Tokens.of(members.sequence, members.context, members.query)
        many = len(tokens.lane)
        for layer in range(LAYERS):
            chosen = routing.choose(np.full(many, layer), tokens.sequence, tokens.position, experts) // (EXPERTS // DEVICES)
            for token, devices in enumerate(chosen.tolist()):
                source = next(d for d in range(DEVICES) if token < -(-many * (d + 1) // DEVICES))
                for device in {*devices} - {source}:
                    expected[layer, source, device] += TOKEN
    assert sent_by_pair(result, "expert_dispatch_send") == expected
    back = Counter({(layer, target, source): size for (layer, source, target), size in expected.items()})
    assert sent_by_pair(result, "expert_combine_send") == back


def flops_of_experts(result: sim.Result) -> np.ndarray:
    """FLOPs of products with experts by device, in all steps and layers."""
    log, found = result.log, np.zeros(DEVICES, dtype=np.int64)
    for step, number in enumerate(log.steps.graph.tolist()):
        ops = log.graphs[number].ops
        flops = ops.costs_of(log.lanes(np.array([step])))[FLOPS, :, 0]
        for i, op in enumerate(ops.ops):
            if op.experts is not None:
                found[op.device] += flops[i]
    return found


@pytest.mark.parametrize("dispatch", ["all_gather", "all_to_all"])
def test_arithmetic_is_that_of_the_choices_of_each_device(base, dispatch) -> None:
    """Two choices of each of 16 tokens: evenly on all devices, or all on the first. In all as much as with experts cut."""
    each = 2 * (4096 * 2 * 14336 + 14336 * 4096)  # of a choice: gate and up projections, and the down projection
    given = {"mapping__parallel__dispatch": dispatch}
    even, first = (flops_of_experts(run(base, routes=routes, **given)) for routes in (to_each, lambda i: [0, 1]))
    assert even.tolist() == [LAYERS * 2 * 16 // DEVICES * each] * DEVICES
    assert first.tolist() == [LAYERS * 2 * 16 * each, 0, 0, 0]
    drawn = flops_of_experts(run(base, **given))
    assert drawn.sum() == even.sum()
    assert len(set(drawn.tolist())) > 1


@pytest.mark.parametrize("kind", ["expert_dispatch", "expert_combine"])
def test_a_step_of_one_token(base, kind) -> None:
    """The first device has it, and the others send none."""
    result = run(base, workload__sequences="[{context: 64, tokens: 1}]")
    pairs = {pair for pair, size in sent_by_pair(result, f"{kind}_send").items() if size}
    assert pairs
    assert {pair[2 if kind == "expert_combine" else 1] for pair in pairs} == {0}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hardware__devices__topology": "ring", **SHARED},
        {"hardware__devices__topology": "all_to_all", "mapping__parallel__algorithm": "ring"},
        {"hardware__devices__islands": "{size: 2, link: {preset: network-400g}}", **SHARED},
        {"mapping__parallel__pipeline": 2, "hardware__devices__count": 8, "mapping__attention": "sequence"},
        {"mapping__parallel__data": 2, "hardware__devices__count": 8, "mapping__parallel__overlap_chunks": 2},
    ],
    ids=str,
)  # fmt: skip
def test_both_executors(base, changes) -> None:
    """Prompts in chunks, and sequences that decode, so that steps have tokens of all numbers, even fewer than devices."""
    given = {
        "workload__sequences": "[{prompt: 19, tokens: 3, count: 3}, {context: 64, tokens: 5}]", "workload__prefill__chunk": 16,
        "workload__batching__policy": "continuous", **changes,
    }  # fmt: skip
    assert_same(run(base, **given).log, run(base, executor="compiled", **given).log)


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "llama-4-scout", "qwen1.5-moe-a2.7b", "gpt-oss-20b"])
def test_every_family(name) -> None:
    """Products with experts, and combinations, need what all devices send; other ops their own device; routers no gathering."""
    model = models.library.load(name)
    ops = unfolded(shard(model.step(), 2, dealt=True, sequence=True, exchange=True), 2).ops
    mixtures = {op.layer for op in ops if op.experts is not None}
    for kind in ("expert_dispatch_send", "expert_combine_send"):
        assert Counter(op.layer for op in ops if op.kind == kind) == dict.fromkeys(mixtures, 2)
    for op in ops:
        from_others = [ops[j].kind for j in op.inputs if ops[j].device != op.device]
        if op.layer in mixtures and op.kind in ("router", "dispatch"):
            assert not any(ops[j].kind == "all_gather" for j in op.inputs)
        expected = {"gate_up_proj": ["expert_dispatch_send"], "combine": ["expert_combine_send"]}
        assert from_others == (expected[op.kind] if op.kind == "combine" or (op.experts and op.kind in expected) else [])
    hidden = model.hidden * 2
    assert {op.experts.bytes for op in ops if op.kind == "expert_dispatch_send" and op.experts} == {hidden}


def test_more_devices_that_a_token_goes_to_by_the_formula() -> None:
    """(n - 1) (1 - C(E - E/n, k) / C(E, k)): of 100,000 even choices of 2 of 8 experts on four devices 1.393."""
    experts = Experts(count=8, top_k=2, bytes=1, held=2, shares=4)
    assert others_of(experts) == 3 * Fraction(13, 28) == 3 * (1 - Fraction(comb(6, 2), comb(8, 2)))
    many = 100_000
    tokens = Tokens(np.zeros(many, np.int64), np.arange(many), np.zeros(many, np.int64), 1)
    each = (Experts(count=8, top_k=2, bytes=1, first=2 * device, held=2, share=0, shares=4) for device in (1, 2, 3))
    found = sum(int(counted(Uniform(1), there, [0], tokens, "sent")[0, 0]) for there in each)
    assert found / (many / 4) == pytest.approx(3 * 13 / 28, rel=0.02)


def test_without_routes_all_tokens_count() -> None:
    tokens = Tokens(*np.zeros((3, 10), np.int64), 1)
    each = (Experts(count=8, top_k=2, bytes=1, held=2, share=share, shares=4) for share in range(4))
    found = [int(counted(None, there, [0, 1], tokens, "sent")[1, 0]) for there in each]
    assert found == [3, 2, 3, 2]


def test_waits_for_links_are_caused_by_what_others_send(base) -> None:
    """Where all send to one device, or it to all, they wait for one another: 4 tokens, then 8. And for nothing else."""
    result, even, four = (
        run(base, routes=lambda i: [0, 1]),
        run(base, routes=to_each),
        ceil_div(4 * TOKEN * PS_PER_S, BANDWIDTH),
    )
    caused = result.blame.channel_by_kind
    for kind in ("expert_dispatch_send", "expert_combine_send"):
        row = dict(zip(caused.names, caused.wait[caused.names.index(kind)].tolist(), strict=True))
        assert row.pop(kind) >= LAYERS * (1 + 2) * four
        assert not any(row.values())
    waits = [dict(zip(PARTS, each.breakdown.tokens.sum(axis=0).tolist(), strict=True))["wait_link"] for each in (result, even)]
    assert waits[0] > waits[1]


def test_check_prints_it(base, tmp_path) -> None:
    text = "\n".join(
        [
            "extends: h100_mixtral_experts_dealt", "model: {layers: 2}",
            "mapping: {parallel: {sequence: true, dispatch: all_to_all}}",
        ]
    )  # fmt: skip
    (tmp_path / "one.yaml").write_text(text + "\n")
    printed = " ".join(CliRunner().invoke(cli, ["check", str(tmp_path / "one.yaml")]).output.split())
    assert (
        "a token goes to the devices of its experts in 2 layers, 8.192 kB to each and back; "
        "evenly chosen ones are on 1.39 of the 3 other devices on average" in printed
    )


@pytest.mark.parametrize("changes", [{"mapping__parallel__sequence": "false"}, {"mapping__parallel__expert": 1}])
def test_needs_tokens_on_devices_and_whole_experts(base, changes) -> None:
    with pytest.raises(
        sim.InputError,
        match=r"mapping.parallel.*: expected 'dispatch: all_to_all' only with 'expert' above 1 and 'sequence: true'",
    ):
        run(base, **changes)


def test_ops_that_are_no_norms() -> None:
    """Where a model's router reads sums of its own kind of norm, tokens are on all devices."""
    ops = models.library.load("llama-3.1-8b").step()
    with pytest.raises(ConfigError, match=r"dispatch: expected all_gather: no experts read what a norm makes of some tokens"):
        shard(ops, 2, sequence=True, exchange=True)
