"""Tiers beside the memory of the device: what is where, by hand; times of moves; weights; and both executors."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import sim
from sim.base.errors import InputError
from sim.base.units import PS_PER_S, ceil_div
from sim.executors import compiled, reference
from sim.render import story
from sim.render.summary import summary
from sim.runs.plan import plan
from sim.scenario import from_dict
from sim.serving.tiers import Move, Tiers
from tests.executors import assert_same, assert_saved

LAYER = 2048  # bytes of the KV cache of a token in a layer of Llama 3.2 1B
LAYERS = 2
TOKEN = LAYERS * LAYER
MLP = 3 * 2048 * 8192 * 2  # bytes of gate, up and down of a layer

HOST = {"memory": f"{5 * 16 * TOKEN} B", "link": {"bandwidth": "50 GB/s", "latency": "7 us"}}
SSD = {"name": "ssd", "bandwidth": "7 GB/s", "latency": "80 us", "link": {"bandwidth": "8 GB/s", "latency": "2 us"}}
#: Picoseconds of latency, and bytes/s, of the host and the SSD, whose own bandwidth is less than that of its link.
LINKS = [(7_000_000, 50 * 10**9), (82_000_000, 7 * 10**9)]


def test_the_coldest_moves_on() -> None:
    """Space for two items, then for one, then for any number."""
    tiers = Tiers[str]((20, 10, None))
    assert tiers.put("a", 10) == [Move("a", 0, 10)]
    assert tiers.put("b", 10) == [Move("b", 0, 10)]
    assert tiers.put("c", 10) == [Move("a", 1, 10), Move("c", 0, 10)]
    assert tiers.put("d", 10) == [Move("a", 2, 10), Move("b", 1, 10), Move("d", 0, 10)]
    assert [tiers.tier_of(item) for item in "abcdx"] == [2, 1, 0, 0, -1]
    assert tiers.take("d") == 0
    assert tiers.put("e", 10) == [Move("e", 0, 10)]
    tiers.touch("c")  # now "e" is the coldest of the first tier
    assert tiers.put("f", 10) == [Move("b", 2, 10), Move("e", 1, 10), Move("f", 0, 10)]
    assert tiers.put("large", 25) == [Move("large", 2, 25)]  # larger than the first tiers, which keep what they have
    assert tiers.used == [20, 10, 45]


def test_what_has_no_room_is_refused_or_lost() -> None:
    strict, lossy = Tiers[str]((10,)), Tiers[str]((10,), lossy=True)
    for tiers in (strict, lossy):
        tiers.put("a", 10)
    assert strict.put("b", 10) is None
    assert strict.tier_of("a") == 0
    assert lossy.put("b", 10) == [Move("a", 1, 10), Move("b", 0, 10)]  # out of the last tier
    assert (lossy.tier_of("a"), lossy.evicted) == (-1, [1])
    assert lossy.put("c", 11) is None


@pytest.mark.parametrize("lossy", [False, True])
def test_bytes_taken_are_freed_or_held(lossy: bool) -> None:
    """Over 300 random puts, takes and touches: taken = freed + used, which is what items hold, and never too much."""
    draw, held = random.Random(1), dict[int, int]()
    capacity = (70, 50, None if not lossy else 90)
    tiers = Tiers[int](capacity, lossy=lossy)
    for number in range(300):
        there = [item for item in held if tiers.tier_of(item) >= 0]
        what = draw.random()
        if what < 0.6:
            size = draw.randint(1, 30)
            moves = tiers.put(number, size)
            assert moves is not None
            assert moves[-1].item == number
            held[number] = size
        elif there and what < 0.9:
            tiers.take(draw.choice(there))
        elif there:
            tiers.touch(draw.choice(there))
        for tier, limit in enumerate(capacity):
            mine = sum(size for item, size in held.items() if tiers.tier_of(item) == tier)
            assert tiers.used[tier] == mine == tiers.taken[tier] - tiers.freed[tier]
            assert limit is None or mine <= limit


def scenario(ssd: dict[str, Any] | None = SSD, *, host: Any = HOST, **changed: Any) -> sim.Scenario:
    """Five requests of 60 tokens and 25 more, of which four fit the memory until they grow, and one the host.

    All wait for moves.
    """
    return from_dict({
        "model": {"config": "llama-3.2-1b", "layers": LAYERS, "scope": "block"},
        "hardware": {
            "engines": {"count": 1}, "memory": {"bandwidth": "3 TB/s"}, "host": host, "tiers": [] if ssd is None else [ssd],
        },
        "workload": {
            "sequences": [{"prompt": 60, "tokens": 25, "count": 5}],
            "batching": {
                "policy": "continuous", "kv": {"capacity": f"{17 * 16 * TOKEN} B", "full": "swap", "moves": "between"},
            },
        },
        "mapping": {"heads": "fused"},
    } | changed)  # fmt: skip


def moves(result: sim.Result) -> list[tuple[str, int, int, int]]:
    """Describe each step that moves a cache: direction of its tasks, tier, tokens, time."""
    log, found = result.log, []
    for step, (graph, released, end) in enumerate(zip(log.steps.graph, log.steps.released, log.steps.end, strict=True)):
        shape = log.graphs[graph].ops.shape if log.members.query[log.members.step == step].sum() == 0 else None
        if shape is not None and shape.swap:
            (tokens,) = log.members.context[log.members.step == step].tolist()
            found.append((shape.swap, shape.tier, tokens, int(end - released)))
    return found


@pytest.mark.parametrize("executor", ["simpy", "compiled"])
def test_caches_go_down_the_list(executor: Any) -> None:
    """Each move takes the latency of its tier and of its link, and the bytes of each layer over the lesser bandwidth."""
    result = sim.run(scenario(), executor=executor)
    found = moves(result)
    assert {(swap, tier) for swap, tier, *_ in found} == {("out", 0), ("spill", 1), ("in", 0), ("in", 1)}
    for _, tier, tokens, time in found:
        latency, bandwidth = LINKS[tier]
        assert time == latency + LAYERS * ceil_div(LAYER * tokens * PS_PER_S, bandwidth)
    moved = [TOKEN * sum(tokens for _, where, tokens, _ in found if where == tier) for tier in (0, 1)]
    assert list(result.metrics.bytes_tiers) == moved
    assert summary(result, timing=False)["links"]["bytes_tiers"] == {"host": moved[0], "ssd": moved[1]}
    # What went to the SSD came back from there, once each.
    assert sorted(t for swap, tier, t, _ in found if swap == "spill") == sorted(
        t for swap, tier, t, _ in found if (swap, tier) == ("in", 1)
    )
    assert [channel.name for channel in result.log.machine.channels] == ["channel 0", "host link", "ssd link"]


def test_the_story_of_a_request_says_what_moved() -> None:
    """Out to the host, from there to the SSD, and back from there; the first decodes without a move."""
    result = sim.run(scenario())
    told = [[step["moved"] for step in story.request(result, number)["steps"] if step["moved"]] for number in range(5)]
    assert told[0] == []
    out, back = "64 cached tokens moved out over the host link", "64 cached tokens moved back in over the host link"
    assert [out.replace("64", "80"), back.replace("64", "80")] in told
    assert [out, out.replace("host", "ssd"), back.replace("host", "ssd")] in told


@pytest.mark.parametrize("arbiter", ["fifo", "processor_sharing"])
@pytest.mark.parametrize("devices", [1, 2])
def test_executors_agree(arbiter: str, devices: int) -> None:
    """Also with tensor parallelism whose devices are all simulated, each with a link to each tier."""
    data = scenario({**SSD, "link": {**SSD["link"], "arbiter": arbiter}}).to_dict()  # type: ignore[dict-item]
    if devices > 1:
        data["hardware"]["devices"] = {"count": 2, "link": {"bandwidth": "450 GB/s"}}
        data["mapping"]["parallel"] = {"tensor": 2, "fold": False}
    setup = plan(from_dict(data)).setup
    log = reference.simulate(setup)
    assert_same(log, compiled.simulate(setup))
    names = [channel.name for channel in log.machine.channels if channel.kind in ("host", "tier 1")]
    of_each = [f"device {device} " for device in range(devices)] if devices > 1 else [""]
    assert names == [f"{device}{tier} link" for tier in ("host", "ssd") for device in of_each]


def test_where_no_tier_has_room_prompts_are_prefilled_again() -> None:
    """The host has space for one cache, so of two that are out one is computed again."""
    alone, with_ssd = sim.run(scenario(None)), sim.run(scenario())
    assert {swap for swap, *_ in moves(alone)} == {"out", "in"}

    def fed(result: sim.Result) -> int:
        return int(result.log.members.query.sum())

    assert fed(with_ssd) == 5 * (60 + 24)
    assert fed(alone) > fed(with_ssd)


def test_a_tier_without_a_host() -> None:
    result = sim.run(scenario({**SSD, "name": "cxl"}, host=None))
    assert result.log.machine.tiers == ("cxl",)
    found = moves(result)
    assert {(swap, tier) for swap, tier, *_ in found} == {("out", 0), ("in", 0)}
    latency, bandwidth = LINKS[1]
    assert all(time == latency + LAYERS * ceil_div(LAYER * n * PS_PER_S, bandwidth) for *_, n, time in found)
    assert "bytes_host" not in summary(result, timing=False)["links"]


def test_energy_and_a_log_know_tiers(tmp_path: Any) -> None:
    """55 fJ a byte of the SSD; that of the host is not known, and named."""
    data = scenario({**SSD, "energy": "55 pJ/B"}).to_dict()
    data["hardware"]["energy"] = {"flop": "1 pJ/FLOP", "byte": "80 pJ/B"}
    result = sim.run(from_dict(data))
    assert result.energy is not None
    assert result.energy.link == 55_000 * result.metrics.bytes_tiers[1]
    assert result.energy.unknown == ("host link",)
    assert {"host link", "ssd link"} <= set(result.critical_path.by_resource(result.log, result.plan.rules))
    assert_saved(result, tmp_path)


def test_weights_in_two_tiers() -> None:
    """The MLP of one layer on the host, and of the others on the SSD: bytes of each by hand, and what each holds."""
    kinds = ["gate_proj", "up_proj", "down_proj"]
    offload = [{"weights": kinds, "layers": 1}, {"weights": kinds, "tier": "ssd"}]
    workload = {"sequences": [{"context": 64, "tokens": 2}]}
    host = {"link": HOST["link"]}
    data = scenario(host=host, mapping={"heads": "fused", "offload": offload}, workload=workload)
    result = sim.run(data)
    assert result.metrics.bytes_tiers == (2 * MLP, 2 * (LAYERS - 1) * MLP)
    held = {(memory, what): size for memory, what, size in plan(data).held}
    assert (held["host", "weights"], held["ssd", "weights"]) == (MLP, (LAYERS - 1) * MLP)
    setup = plan(data).setup
    assert_same(reference.simulate(setup), compiled.simulate(setup))
    graph = setup.graph
    loads = np.array(graph.kinds)[graph.kind] == "host_load"
    assert graph.layer[loads].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mapping": {"offload": {"weights": "all", "tier": "sdd"}}}, r"mapping\.offload\.tier: unknown tier 'sdd'.*ssd"),
        (
            {"mapping": {"offload": [{"weights": "all"}, {"weights": ["x"]}]}, "hardware": {"host": None}},
            r"mapping\.offload\[1\]\.weights: unknown kind",
        ),
        ({"hardware": {"tiers": [{**SSD, "name": "host"}]}}, "expected names of tiers that differ"),
        ({"hardware": {"tiers": [SSD, SSD]}}, "expected names of tiers that differ"),
        ({"hardware": {"tiers": [{**SSD, "name": "network"}]}}, "expected names of tiers that differ, and none of host, link"),
        ({"hardware": {"tiers": [{**SSD, "name": "SSD 1"}]}}, r"tiers\[0\]\.name: expected a name of .* lower-case letters"),
        (
            {"hardware": {"tiers": [{**SSD, "name": f"t{number}"} for number in range(4)]}},
            r"hardware\.tiers: expected at most 3 items",
        ),
        (
            {"mapping": {"offload": {"weights": "alll"}}},
            r"mapping\.offload\.weights: expected one of all, experts, found 'alll'",
        ),
        ({"mapping": {"offload": [{"layers": 0}]}}, r"mapping\.offload\[0\]\.layers: expected a number from 1, found 0"),
        ({"mapping": {"offload": [{"teir": "ssd"}]}}, r"mapping\.offload\[0\]: unknown key 'teir' \(did you mean 'tier'\?\)"),
        (
            {"hardware": {"sram": "100 MB"}, "mapping": {"weights": {"resident": 0.5}, "offload": {"weights": "all"}}},
            r"hardware\.sram: 121\.643 MB of resident weights are 21\.643 MB more than the 100\.000 MB",
        ),
        # 84 tokens of 4,096 B: eight requests take 8 x 2 x 344,064 s out and in.
        (
            {
                "hardware": {"tiers": [{**SSD, "bandwidth": "1 B/s"}]},
                "workload": {"sequences": [{"prompt": 60, "tokens": 25, "count": 8}]},
            },
            "hardware: so slow that the run could take more than 4,611,686 s",
        ),
        ({"hardware": {"tiers": [{"name": "ssd"}]}}, r"hardware\.tiers\[0\]: the key 'link' is missing"),
        ({"hardware": {"tiers": [{"name": "ssd", "link": {"preset": "nvme"}}]}}, "unknown link 'nvme'.*nvme-pcie-4"),
        (
            {"mapping": {"offload": {"weights": "all", "tier": "ssd"}}, "hardware": {"tiers": [{**SSD, "capacity": "1 MB"}]}},
            r"hardware\.tiers\[0\]\.capacity: .* of weights are .* more than the 1\.000 MB of the ssd",
        ),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    data = scenario().to_dict()
    for section, keys in change.items():
        data[section] = {**data.get(section, {}), **keys}
    with pytest.raises(InputError, match=message):
        sim.run(data)


def test_what_moves_down_is_no_warmer_than_before() -> None:
    """`b` goes past the first tier, for which it is too large; `a` comes down after it, and is lost before it."""
    tiers: Tiers[str] = Tiers((3, 9), lossy=True)
    assert tiers.put("a", 2) == [Move("a", 0, 2)]
    assert tiers.put("b", 5) == [Move("b", 1, 5)]
    assert tiers.put("c", 2) == [Move("a", 1, 2), Move("c", 0, 2)]
    assert tiers.put("d", 3) == [Move("c", 1, 2), Move("d", 0, 3)]
    assert tiers.put("e", 2) == [Move("a", 2, 2), Move("b", 2, 5), Move("d", 1, 3), Move("e", 0, 2)]
    assert (tiers.used, tiers.evicted) == ([2, 5], [3, 2])


def test_what_is_refused_changes_nothing() -> None:
    """`a` could go down for `c`, `b` no further."""
    tiers: Tiers[str] = Tiers((5, 2))
    assert [tiers.put("a", 2), tiers.put("b", 3)] == [[Move("a", 0, 2)], [Move("b", 0, 3)]]
    assert tiers.put("c", 4) is None
    assert (tiers.used, tiers.taken, tiers.freed, tiers.evicted) == ([5, 0], [5, 0], [0, 0], [0, 0])
    assert tiers.put("d", 2) == [Move("a", 1, 2), Move("d", 0, 2)]  # which is still the coldest
