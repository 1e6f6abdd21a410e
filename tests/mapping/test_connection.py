"""Collectives over rings, meshes, links of each pair and islands: closed forms where they are alone, and both executors."""

from __future__ import annotations

import numpy as np
import pytest

import sim
from sim.base.units import ceil_div
from sim.mapping.collectives import phases
from sim.render import terminal
from sim.render.trace.canvas import Canvas
from sim.render.trace.machine import machine
from sim.runs.holdings import holdings
from sim.runs.machine import network_of
from sim.runs.model import models_of
from sim.runs.run import read
from tests.executors import assert_same, assert_saved
from tests.render.test_links import printed

LLAMA = "llama-3.1-8b"
LATENCY, BANDWIDTH = 1_000_000, 450 * 10**9
NETWORK_LATENCY, NETWORK = 3_700_000, 50 * 10**9
SIZE = 4 * 2**20  # bytes of an all-reduce of a prompt of 512 tokens
ISLANDS = "{size: 4, link: {preset: network-400g}}"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("connection") / "base.yaml"
    path.write_text(f"model: {{config: {LLAMA}}}\n")
    return path


def scenario(base, **changes: object) -> sim.Scenario:
    """One layer of Llama 8B on eight devices, a prompt of 512 tokens; `a__b` of the changes is the key `a.b`."""
    given: dict[str, object] = {
        "model.layers": 1, "model.scope": "block", "hardware.devices.count": 8, "mapping.parallel.tensor": 8,
        "hardware.devices.link": "{bandwidth: 450 GB/s, latency: 1 us}",
        "workload.sequences": "[{prompt: 512, tokens: 1}]", "hardware.preset": "h100-sxm",
    }  # fmt: skip
    short = {
        "topology": "hardware.devices.topology", "islands": "hardware.devices.islands", "fold": "mapping.parallel.fold",
        "algorithm": "mapping.parallel.algorithm", "arbiter": "hardware.devices.link.arbiter",
    }  # fmt: skip
    given |= {short.get(key, key.replace("__", ".")): value for key, value in changes.items()}
    return read(base, [f"{key}={value}" for key, value in given.items()])


def run(base, **changes: object) -> sim.Result:
    return sim.run(scenario(base, **changes), executor="simpy")


def sends(result: sim.Result) -> set[int]:
    """Times from the first send of an all-reduce to the end of the last, of all devices, ps."""
    (graph,), tasks = result.log.graphs, result.log.tasks
    rows = np.flatnonzero(graph.kind == graph.kinds.index("all_reduce_send"))
    op = graph.op[rows]
    return {int(tasks.end[rows[op == each]].max() - tasks.ready[rows[op == each]].min()) for each in np.unique(op)}


def time(amount: int, bandwidth: int = BANDWIDTH) -> int:
    return ceil_div(amount * 10**12, bandwidth)


PART = time(SIZE // 8)
RING = 14 * (LATENCY + PART)


class TestTopologies:
    @pytest.mark.parametrize("fold", ["true", "false"])
    @pytest.mark.parametrize(
        ("topology", "algorithm", "expected"),
        [
            ("switch", "ring", RING), ("switch", "two_shot", 2 * (LATENCY + 7 * PART)),
            ("switch", "one_shot", LATENCY + 7 * time(SIZE)),
            ("ring", "ring", RING), ("mesh", "ring", RING), ("all_to_all", "ring", RING),
            ("all_to_all", "two_shot", 2 * (LATENCY + PART)), ("all_to_all", "one_shot", LATENCY + time(SIZE)),
            ("all_to_all", "tree", 6 * (LATENCY + time(SIZE))),
        ],
    )  # fmt: skip
    def test_closed_forms(self, base, topology, algorithm, expected, fold):
        assert sends(run(base, topology=topology, algorithm=algorithm, fold=fold)) == {expected}

    def test_a_transfer_draws_no_more_than_its_demand(self, base):
        demand = "{name: proportional, demand: {all_reduce_send: 150 GB/s}}"
        found = sends(run(base, topology="all_to_all", algorithm="two_shot", fold="false", arbiter=demand))
        assert found == {2 * (LATENCY + 3 * PART)}

    def test_two_shot_on_a_ring_that_shares(self, base):
        """Forward go parts to devices 1, 2, 3 and 4 further, one after the other: k of them cross each link at a time."""
        result = run(base, topology="ring", fold="false", arbiter="processor_sharing")
        alone = 2 * (LATENCY + (1 + 2 + 3 + 4) * PART)
        cuts = 2 * 2 * 7  # ends of transfers forward and back, at each of which less than 1 ps of work is lost to rounding
        assert all(alone <= each <= alone + cuts for each in sends(result))

    def test_bytes_on_each_link(self, base):
        """The same on all links forward, and on all links back."""
        result = run(base, topology="ring", fold="false", arbiter="processor_sharing")
        network = result.log.machine.network
        assert network is not None
        each = dict.fromkeys((1, -1), 0)
        for port, delivered in zip(network.ports, result.metrics.delivered[8:], strict=True):
            way = 1 if int(port.name.split()[-1]) == (port.device + 1) % 8 else -1
            each[way] = each[way] or delivered
            assert delivered == each[way] == 2 * 2 * sum(range(5 if way > 0 else 4)) * PART

    def test_a_transfer_has_all_links_of_its_path_at_once(self, base):
        log = run(base, topology="mesh", fold="false", algorithm="one_shot").log
        paths = [log.machine.crossed(int(d), int(to)) for d, to in zip(log.graphs[0].device, log.graphs[0].to, strict=True)]
        assert max(map(len, paths)) == 4
        spans: dict[int, dict[int, list[tuple[int, int, int]]]] = {}
        g = log.services
        for task, channel, *interval in zip(g.task, g.channel, g.start, g.end, g.work, strict=True):
            spans.setdefault(int(task), {}).setdefault(int(channel), []).append(tuple(map(int, interval)))
        for task, path in enumerate(paths):
            if path:
                assert set(spans[task]) == set(path)
                assert len({str(each) for each in spans[task].values()}) == 1


class TestIslands:
    def hierarchical(self, algorithm: str, island: int) -> int:
        """Reduce-scatter in the island, all-reduce over the network, all-gather in the island."""
        islands, share = 8 // island, SIZE // island
        inner, across = time(share), time(share // islands, NETWORK)
        whole = time(share, NETWORK)
        within = (island - 1) * (LATENCY + inner) if algorithm == "ring" else LATENCY + (island - 1) * inner
        between = {
            "ring": 2 * (islands - 1) * (NETWORK_LATENCY + across),
            "two_shot": 2 * (NETWORK_LATENCY + (islands - 1) * across),
            "one_shot": NETWORK_LATENCY + (islands - 1) * whole,
            "tree": 2 * (islands - 1).bit_length() * (NETWORK_LATENCY + whole),
        }[algorithm]
        return within + between + within

    @pytest.mark.parametrize("fold", ["true", "false"])
    @pytest.mark.parametrize("island", [2, 4])
    @pytest.mark.parametrize("algorithm", ["ring", "two_shot", "one_shot", "tree"])
    def test_closed_forms(self, base, algorithm, island, fold):
        islands = ISLANDS.replace("4", str(island), 1)
        assert sends(run(base, islands=islands, algorithm=algorithm, fold=fold)) == {self.hierarchical(algorithm, island)}

    def test_one_island_is_none(self, base):
        assert_same(run(base, islands=ISLANDS.replace("4", "8", 1)).log, run(base).log)

    def test_phases_by_hand(self):
        """Eight devices in islands of four: 3 quarters, an eighth twice, 3 quarters; device 5 is with 4, 6, 7 and with 1."""
        within, across, _ = phases("all_reduce", "two_shot", 8, 4)
        assert (within.rounds.sends, within.parts, across.rounds.sends, across.parts) == (3, 4, 1, 8)
        assert [within.target(0, send, 5) for send in range(3)] == [6, 7, 4]
        assert within.received(0, 5) == [(4, 0), (7, 1), (6, 2)]
        assert (across.target(0, 0, 5), across.received(0, 5)) == (1, [(1, 0)])
        gather = phases("all_gather", "two_shot", 8, 4)
        assert [(each.apart, each.parts, each.rounds.sends) for each in gather] == [(4, 8, 1), (1, 4, 3)]

    def test_a_pipeline_over_the_network(self, base):
        """Two stages, each an island of four: only what goes from one to the other crosses the network."""
        stages = {
            "model__layers": 2, "model__scope": "model", "mapping__parallel__tensor": 4, "mapping__parallel__pipeline": 2,
            "workload__batching__policy": "static",
        }  # fmt: skip
        result = run(base, islands=ISLANDS, **stages)
        tasks, graph = result.log.tasks, result.log.graphs[0]
        (row,) = np.flatnonzero(graph.kind == graph.kinds.index("p2p_send"))[:1]
        assert tasks.end[row] - tasks.start[row] == NETWORK_LATENCY + time(SIZE, NETWORK)
        kinds = [channel.kind for channel in result.log.machine.channels]
        assert kinds == ["memory"] * 2 + ["link"] * 4 + ["network"] * 4

    def test_what_a_device_sends(self, base):
        """All-reduces of 8 KiB: two eighths over the network, and twice three quarters in the island."""
        given = scenario(base, islands=ISLANDS, **{"workload.sequences": "[{context: 8}]"})
        (held,) = holdings(models_of(given))
        assert held.sends["all_reduce"] == (2, 2 * (2 * 3 * 2048 + 2 * 1024))

    def test_the_network_is_a_channel_of_its_own(self, base):
        result = run(base, islands=ISLANDS)
        assert [channel.name for channel in result.log.machine.channels] == ["channel 0", "link", "network"]
        sent = result.metrics.delivered
        assert sent[2] == 2 * 2 * time(SIZE // 8, NETWORK)
        assert sent[1] == 2 * 2 * 3 * time(SIZE // 4)
        assert f"between islands at 50 GB/s, {sent[2] / result.makespan:.0%}; collectives are" in printed(
            terminal.render(result)
        )

    def test_a_trace_has_the_network(self, base):
        folded, whole = run(base, islands=ISLANDS), run(base, islands=ISLANDS, fold="false")
        assert {"Links of one of 8 devices", "Network of one of 8 devices"} <= set(tracks(folded))
        assert {"Device 3/Link", "Device 3/Network"} <= set(tracks(whole))
        assert "Network/GB/s, device 3 network in" in tracks(whole)


def tracks(result: sim.Result) -> list[str]:
    """Names of the tracks of the machine, each with that of its group, if this is a group of a device."""
    canvas = Canvas(result.log, None)
    machine(canvas, None, powered=False)
    name = {track.uuid: track.name for track in canvas.tracks.all}
    return [
        f"{name[track.parent]}/{track.name}" if track.parent and name[track.parent] != "Machine" else track.name
        for track in canvas.tracks.all
    ]


VARIANTS: list[dict[str, object]] = [
    {"topology": "all_to_all"},
    {"topology": "all_to_all", "fold": "false", "arbiter": "processor_sharing", "algorithm": "one_shot"},
    {"topology": "ring", "fold": "false", "algorithm": "tree"},
    {"topology": "mesh", "fold": "false", "arbiter": "processor_sharing"},
    {"topology": "mesh", "fold": "false", "arbiter": "{name: weighted, weights: [3, 1]}"},
    {"topology": "ring", "fold": "false", "arbiter": "{name: priority, preemptive: true}", "algorithm": "two_shot"},
    {"fold": "false", "islands": ISLANDS, "arbiter": "{name: priority, classes: [all_gather_send]}"},
    {"topology": "ring", "fold": "false", "islands": ISLANDS},
    {"topology": "mesh", "fold": "false", "arbiter": "proportional", "algorithm": "one_shot"},
    {"topology": "ring", "fold": "false", "arbiter": "{name: proportional, demand: {all_reduce_send: 200 GB/s}}"},
]  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_both_executors_are_equal(base, changes):
    """Three sequences that decode in loops of their own, so that their collectives contend."""
    loops = {"workload__sequences": "[{context: 512, tokens: 2, count: 3}]", "scheduler": "oldest_token"}
    given = scenario(base, **loops, **changes)
    assert_same(sim.run(given, executor="simpy").log, sim.run(given, executor="compiled").log)


def test_both_executors_are_equal_where_experts_are_dealt_out(base):
    """Devices that differ, so that two may send to one at a time."""
    given = scenario(
        base, model__config="mixtral-8x7b", mapping__parallel__expert=8, workload__batching__policy="static",
        workload__sequences="[{context: 64, tokens: 3, count: 6}]", arbiter="processor_sharing",
    )  # fmt: skip
    assert_same(sim.run(given, executor="simpy").log, sim.run(given, executor="compiled").log)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"topology": "ring"}, r"fold: expected false: on a ring of 8 devices transfers cross several links, .*ring"),
            ({"topology": "mesh", "algorithm": "tree"}, r"parallel.fold: expected false: on a mesh of 8 devices"),
            (
                {"topology": "mesh", "algorithm": "ring", "hardware__devices__count": 9, "mapping__parallel__tensor": 9},
                r"mapping.parallel.tensor",
            ),
            ({"islands": ISLANDS.replace("4", "3", 1)}, r"islands of a size that divides the 8 devices, found 3"),
            (
                {"topology": "all_to_all", "arbiter": "round_robin"},
                r"link.arbiter: expected fifo, .*, weighted or proportional where transfers cross .* round_robin, whose turns",
            ),
            (
                {
                    "model__layers": 3, "hardware__devices__count": 12, "mapping__parallel__tensor": 4,
                    "mapping__parallel__pipeline": 3, "islands": ISLANDS.replace("4", "6", 1),
                },
                r"islands.size: expected a divisor or a multiple of 4 \(mapping.parallel.tensor\), found 6",
            ),
            ({"hardware__devices__link": "{preset: nvlink}"}, r"link.preset: unknown link 'nvlink' .*did you mean 'nvlink-4'"),
        ],
    )  # fmt: skip
    def test_messages(self, base, changes, message):
        with pytest.raises(sim.InputError, match=message):
            run(base, **changes)


class TestNamedLinks:
    def test_figures_of_a_name_hold_where_none_are_written(self, base):
        given = scenario(base, hardware__devices__link="{preset: infinity-fabric, latency: 3 us}").hardware.devices.link
        assert given is not None
        assert (given.bandwidth, given.latency) == (64 * 10**9, 3_000_000)

    def test_a_name_holds_instead_of_the_link_of_the_device(self, base):
        given = scenario(base, hardware__devices__link="{preset: network-400g}", hardware__host="{link: {preset: pcie-4}}")
        assert given.hardware.devices.link.bandwidth == NETWORK
        assert given.hardware.host.link.bandwidth == 25 * 10**9

    def test_a_network_is_that_of_the_scenario(self, base):
        network = network_of(scenario(base, islands=ISLANDS))
        assert (network.count, network.each, network.island, network.plain) == (8, 8, 4, True)


def test_a_log_keeps_its_links(base, tmp_path):
    pytest.importorskip("pyarrow")
    result = run(base, topology="mesh", fold="false", islands=ISLANDS)
    assert_saved(result, tmp_path)
