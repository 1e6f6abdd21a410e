"""Replicas behind a router: two of them are two runs, routers by hand and against the log, both executors."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import sim
from sim.analysis.requests import Distribution
from sim.base.errors import InputError
from sim.executors import compiled, reference
from sim.log import parquet
from sim.log.tables import EventLog
from sim.render.summary import summary
from sim.runs import saved
from sim.runs.plan import plan
from sim.runs.run import run
from sim.scenario import from_dict
from sim.serving.arrivals import Arrivals
from sim.serving.batching import ResolvedBatching
from sim.serving.routed import Front, Outstanding
from sim.serving.routers import ROUTERS, Load, Router
from sim.workload.requests import Request
from tests.executors import assert_same
from tests.executors.scenarios import WHEN_FULL
from tests.guides import install

REQUESTS = [
    {"prompt": 40, "tokens": 5},
    {"prompt": 7, "tokens": 9, "arrival": "10 us"},
    {"context": 30, "prompt": 12, "tokens": 2, "arrival": "10 us"},
    {"prompt": 70, "tokens": 3, "arrival": "40 us"},
    {"context": 9, "tokens": 6, "arrival": "90 us"},
    {"prompt": 25, "tokens": 4, "arrival": "700 us"},
]

ONE = {"engines": {"count": 2}, "memory": {"bandwidth": "2 TB/s"}}
LINK = {"bandwidth": "100 GB/s"}
FEW_TASKS = {"heads": "fused", "softmax": "online"}


def scenario(
    requests: list[dict[str, Any]], data: int = 1, router: Any = "round_robin", full: str = "recompute", **parallel: int
) -> sim.scenario.Scenario:
    """Layers of Llama 3.2 1B on small devices, batches of at most two in chunks of 16 tokens."""
    devices = data * parallel.get("tensor", 1) * parallel.get("pipeline", 1)
    hardware: dict[str, Any] = ONE | ({"devices": {"count": devices, "link": LINK}} if devices > 1 else {})
    return from_dict({
        "model": {"config": "llama-3.2-1b", "layers": 2, "scope": "block"},
        "workload": {
            "sequences": requests, "router": router, "prefill": {"chunk": 16},
            "batching": {"policy": "continuous", "max_batch": 2, "kv": {"capacity": "1 MiB", "full": full}},
        },
        "hardware": hardware, "mapping": FEW_TASKS | {"parallel": {"data": data} | parallel},
    })  # fmt: skip


def served_by(result: sim.Result) -> np.ndarray[Any, Any]:
    """[request]: the replica that served it."""
    assert result.requests.by is not None
    return result.requests.by.last


def served(*columns: list[int]) -> list[tuple[int, ...]]:
    """Service intervals (channel, task, start, end, work), each whole: links between devices are planned together, so that one
    may be cut where nothing changes for it."""
    found = list[tuple[int, ...]]()
    for channel, task, start, end, work in sorted(zip(*columns, strict=True)):
        if found and found[-1][:2] == (channel, task) and found[-1][3] == start:
            *_, first, _, before = found.pop()
            found.append((channel, task, first, end, before + work))
        else:
            found.append((channel, task, start, end, work))
    return found


def alone(log: EventLog, replica: int, devices: int) -> dict[str, list[Any]]:
    """All that a replica did, as if it were the only one: its engines and channels from 0, its requests in their order."""
    first = np.array([graph.first_device for graph in log.graphs])[log.steps.graph]
    steps = np.flatnonzero(first == replica * devices)
    rows = np.isin(log.tasks.step, steps)
    mine = np.isin(log.services.task, np.flatnonzero(rows))
    members = np.isin(log.members.step, steps)
    kinds = [channel.kind for channel in log.machine.channels]
    channels = [number for number, channel in enumerate(log.machine.channels) if channel.device // devices == replica]
    place = {number: i for i, number in enumerate(sorted(channels, key=lambda number: (kinds[number] != "memory", number)))}
    numbers = np.unique(log.members.sequence[members])
    found = {f.name: getattr(log.tasks, f.name)[rows].tolist() for f in fields(log.tasks) if f.name != "step"}
    each = log.engines // log.machine.replicas
    found["engine"] = [engine if engine < 0 else engine - replica * each for engine in found["engine"]]
    found |= {f"step {name}": getattr(log.steps, name)[steps].tolist() for name in ("token", "context", "released", "end")}
    task = np.cumsum(rows)[log.services.task[mine]].tolist()
    channel = [place[channel] for channel in log.services.channel[mine].tolist()]
    times = [getattr(log.services, name)[mine].tolist() for name in ("start", "end", "work")]
    found["services"] = served(channel, task, *times)
    found["sequence"] = np.searchsorted(numbers, log.members.sequence[members]).tolist()
    found["emitted"] = log.members.emitted[members].tolist()
    return found


@pytest.mark.parametrize("parallel", [{}, {"tensor": 2, "fold": False}, {"pipeline": 2}])
def test_two_replicas_are_two_runs(parallel: dict[str, int]) -> None:
    """In turn, every other request goes to one of them. Latencies of all are those of both runs together."""
    both = run(scenario(REQUESTS, data=2, **parallel))
    halves = [run(scenario(REQUESTS[replica::2], **parallel)) for replica in range(2)]
    devices = len(halves[0].log.machine.devices)
    for replica, half in enumerate(halves):
        assert alone(both.log, replica, devices) == alone(half.log, 0, devices)
    for name in ("ttft", "e2e", "queued"):
        together = np.concatenate([getattr(half.requests, name) for half in halves])
        assert both.requests.times()[name] == Distribution.of(together)
        assert [getattr(both.requests, name)[replica::2].tolist() for replica in range(2)] == [
            getattr(half.requests, name).tolist() for half in halves
        ]
    assert both.makespan == max(half.makespan for half in halves)
    assert both.metrics.bytes_read == sum(half.metrics.bytes_read for half in halves)
    assert list(both.metrics.delivered) == [
        delivered
        for kind in ("memory", "link")
        for half in halves
        for channel, delivered in zip(half.log.machine.channels, half.metrics.delivered, strict=True)
        if channel.kind == kind
    ]


@pytest.mark.parametrize("router", ["least_loaded", {"name": "prefix_aware", "imbalance": 3}])
def test_one_replica_needs_no_router(router: Any) -> None:
    with pytest.raises(
        InputError, match=r"workload.router: expected round_robin, found '\w+': one replica \(mapping.parallel.data"
    ):
        run(scenario(REQUESTS, router=router))


@pytest.mark.parametrize("router", ["round_robin", "least_loaded"])
def test_requests_go_to_the_least_loaded(router: str) -> None:
    """At each arrival the log knows which requests had not ended. In turn, that is not always so."""
    requests = [{"prompt": 16, "tokens": 1 + 37 * i % 11, "arrival": f"{60 * i} us"} for i in range(30)]
    result = run(scenario(requests, data=3, router=router))
    arrival, last, replica = result.requests.arrival, result.requests.last, served_by(result)
    followed = []
    for number in range(len(requests)):
        there = (np.arange(len(requests)) < number) & (last > arrival[number])
        loads = np.bincount(replica[there], minlength=3)
        followed.append(replica[number] == loads.argmin())  # prompts are equal
    assert all(followed) == (router == "least_loaded")
    assert result.requests.queued.max() > 0


@pytest.mark.parametrize("executor", ["simpy", "compiled"])
def test_users_of_a_closed_loop_wake_idle_replicas(executor: Any) -> None:
    """Four users whose requests are alike, at two replicas: as two users at each. One user goes from one to the other."""
    both = run(closed(count=12, users=4, data=2, router="least_loaded"), executor=executor)
    half = run(closed(count=6, users=2))
    for replica in range(2):
        assert alone(both.log, replica, 1) == alone(half.log, 0, 1)
    one = run(closed(count=5, users=1, data=2), executor=executor).requests
    assert one.by is not None
    assert one.by.last.tolist() == [0, 1, 0, 1, 0]
    assert one.arrival.tolist() == [0, *(one.last[:-1] + 10**6)]
    assert len(set(one.e2e.tolist())) == 1


def closed(count: int, users: int, **of: Any) -> sim.scenario.Scenario:
    data = scenario([{"prompt": 20, "tokens": 3, "count": count}], full="wait", **of).to_dict()
    data["workload"]["concurrency"] = {"users": users, "think": "1 us"}
    return from_dict(data)


class Counts:
    def __init__(self, requests: int, prompts: int = 0) -> None:
        self.requests, self.prompts = requests, prompts


def chosen(router: Router, loads: list[Load], **request: Any) -> int:
    return router.choose(Request(context=0, tokens=1, arrival=0, **request), loads)


class TestByHand:
    def test_in_turn(self) -> None:
        router = ROUTERS.make("round_robin", {})
        assert [chosen(router, [Counts(9), Counts(0), Counts(0)]) for _ in range(5)] == [0, 1, 2, 0, 1]

    def test_least_loaded(self) -> None:
        router = ROUTERS.make("least_loaded", {})
        assert chosen(router, [Counts(3, 10), Counts(2, 99), Counts(2, 98), Counts(2, 98)]) == 2

    def test_prefixes(self) -> None:
        """| ids | requests of replicas | goes to | because |
        | --- | --- | --- | --- |
        | 1, 2 | 0, 0 | 0 | it is the first of two |
        | 1, 3 | 2, 0 | 0 | it was given 1 |
        | 4 | 2, 0 | 1 | it has less to do |
        | 4, 3 | 2, 2 | 1 | it was given 4; 3 after 1 is another text |
        | 1 | 3, 0 | 1 | the other has 3 more |
        | 1, 2 | 2, 0 | 0 | it was given both |
        """
        router = ROUTERS.make("prefix_aware", {"imbalance": 2})
        cases = [((1, 2), 0, 0), ((1, 3), 2, 0), ((4,), 2, 0), ((4, 3), 2, 2), ((1,), 3, 0), ((1, 2), 2, 0)]
        found = [chosen(router, [Counts(a), Counts(b)], prefix=ids, prefix_tokens=4, prompt=8) for ids, a, b in cases]
        assert found == [0, 0, 1, 1, 1, 0]

    def test_conversations(self) -> None:
        router = ROUTERS.make("prefix_aware", {})
        loads = [[Counts(0), Counts(0)], [Counts(1), Counts(0)], [Counts(1), Counts(0)], [Counts(0), Counts(1)]]
        assert [chosen(router, load, conversation=i) for load, i in zip(loads, (7, 8, 7, 8), strict=True)] == [0, 1, 0, 1]


def test_a_router_that_knows_prefixes_finds_more_of_them_in_the_cache() -> None:
    """Four texts in two replicas: in turn both replicas compute all of them, by prefix each computes its own."""

    def hits(router: str) -> int:
        result = run(from_dict({
            "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"},
            "workload": {
                "generate": {
                    "count": 20, "arrivals": {"process": "constant", "rate": "50/s"}, "prompt": 200, "tokens": 2,
                    "prefixes": {"count": 4, "tokens": 160},
                },
                "router": router, "batching": {"policy": "continuous", "kv": {"prefix_cache": True}},
            },
            "hardware": ONE | {"devices": {"count": 2, "link": LINK}}, "mapping": FEW_TASKS | {"parallel": {"data": 2}},
        }))  # fmt: skip
        assert result.log.cache is not None
        return result.log.cache.hits

    assert hits("round_robin") == (20 - 8) * 160
    assert hits("prefix_aware") == (20 - 4) * 160


@st.composite
def drawn(draw: st.DrawFn) -> dict[str, Any]:
    """Replicas of one device, of stages with micro-batches, or of two that share each layer; prompts, drafts, full caches."""
    data, parallel = draw(st.integers(2, 3)), draw(st.sampled_from(({}, {"pipeline": 2}, {"tensor": 2, "fold": False})))
    count = data * parallel.get("pipeline", 1) * parallel.get("tensor", 1)
    times = st.builds("{} us".format, st.integers(0, 300))
    request = st.fixed_dictionaries({"prompt": st.sampled_from((0, 1, 19, 40)), "tokens": st.integers(1, 6), "arrival": times})
    workload: dict[str, Any] = {
        "sequences": draw(st.lists(request, min_size=1, max_size=9)),
        "router": draw(st.sampled_from([*ROUTERS.names(), {"name": "prefix_aware", "imbalance": 0}])),
        "batching": {
            "policy": draw(st.sampled_from(("static", "continuous"))), "max_batch": draw(st.integers(2, 4)),
            "kv": {
                "capacity": "512 KiB", **draw(st.sampled_from(WHEN_FULL)),
            },
        },
        "step_overhead": draw(st.sampled_from(("0 us", "3 us"))),
    }  # fmt: skip
    if draw(st.booleans()):
        workload["concurrency"] = {"users": draw(st.integers(1, 4)), "think": draw(st.sampled_from(("0 us", "30 us")))}
        parallel = parallel | ({"micro_batches": 1} if "pipeline" in parallel else {})
        for each in workload["sequences"]:
            del each["arrival"]
    if draw(st.booleans()):
        workload["prefill"] = {"chunk": 16}
    if draw(st.booleans()):
        workload["speculative"] = {"draft": 2, "acceptance": 0.5}
    return {
        "model": {"config": "llama-3.2-1b", "layers": 2, "scope": "block"}, "workload": workload,
        "hardware": ONE | {"devices": {"count": count, "link": LINK}},
        "mapping": FEW_TASKS | {"parallel": {"data": data} | parallel},
    }  # fmt: skip


@given(drawn())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_both_executors_are_equal(data: dict[str, Any]) -> None:
    setup = plan(from_dict(data)).setup
    expected, found = reference.simulate(setup), compiled.simulate(setup)
    assert found is not None
    assert_same(expected, found)
    assert [graph.first_device for graph in expected.graphs] == [graph.first_device for graph in found.graphs]


def test_a_hash_chooses_the_same_replica_for_what_begins_alike() -> None:
    """CRC-32 (zlib) of "1" is 0x83DCEFB7, of "1,2" 0x2B0E6C9B, of "1,3" 0x5C095C0D; what has neither is given in turn."""
    loads, prompts = [Outstanding() for _ in range(5)], [{"prefix": (1, 2)}, {"prefix": (1, 3)}, {}, {"prefix": (1,)}, {}]

    def chosen(requests: list[dict[str, Any]], **options: int) -> list[int]:
        router: Router = ROUTERS.make("prefix_hash", options)
        return [router.choose(Request(context=0, tokens=1, arrival=0, prompt=9, **each), loads) for each in requests]

    one, two, three = 0x83DCEFB7 % 5, 0x2B0E6C9B % 5, 0x5C095C0D % 5
    assert chosen(prompts) == [one, one, 0, one, 1]
    assert chosen(prompts, blocks=2) == [two, three, 0, one, 1]
    assert len(set(chosen([{"conversation": 5, "prefix": (each,)} for each in range(9)]))) == 1


def test_samples_of_a_prompt_stay_together() -> None:
    requests = [
        {"prompt": 20, "tokens": 3, "samples": 2},
        {"prompt": 8, "tokens": 2},
        {"prompt": 20, "tokens": 3, "samples": 2},
    ]
    assert served_by(run(scenario(requests, data=2, full="wait"))).tolist() == [0, 0, 1, 0, 0]


def test_a_log_in_a_file_knows_replicas(tmp_path) -> None:
    result = run(scenario(REQUESTS, data=2, pipeline=2))
    saved.save(result.log, result.scenario, tmp_path / "log.parquet")
    log, _ = saved.load(tmp_path / "log.parquet")
    assert_same(result.log, log)
    assert log.machine == result.log.machine
    assert [graph.first_device for graph in log.graphs] == [graph.first_device for graph in result.log.graphs]
    assert parquet.read(tmp_path / "log.parquet")


def test_reports_name_replicas() -> None:
    result = run(scenario(REQUESTS, data=2, pipeline=2))
    found = summary(result)
    assert [each["replica"] for each in found["requests"]["each"]] == [0, 1, 0, 1, 0, 1]
    of = [sum(request["tokens"] for request in REQUESTS[replica::2]) for replica in range(2)]
    assert [(each["requests"], each["tokens"]) for each in found["requests"]["replicas"]] == [(3, of[0]), (3, of[1])]
    names = [channel["name"] for channel in found["memory"]["channels"]]
    assert names == [f"replica {r} device {d} channel 0" for r in range(2) for d in range(2)]
    assert result.log.machine.engine_name(5) == "replica 1 device 0 engine 1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mapping": {"parallel": {"data": 3}}}, "mapping.parallel: expected data x tensor x pipeline of 2"),
        ({"workload": {"batching": "independent"}}, "workload.batching.policy: expected batches where there are replicas"),
        ({"mapping": {"parallel": {"data": 2, "prefill": 2}}}, "mapping.parallel.prefill: expected fewer than 2"),
        ({"mapping": {"parallel": {"data": 2, "prefill": 1}}, "workload": {"sequences": [{}]}}, "a prompt of each request"),
        ({"workload": {"router": "rund_robin"}}, "did you mean 'round_robin'"),
        ({"workload": {"router": {"name": "round_robin", "imbalance": 2}}}, "workload.router: unknown option 'imbalance'"),
        ({"workload": {"router": {"name": "prefix_aware", "imbalance": -1}}}, "expected a number of requests, 0 or more"),
        ({"workload": {"router": {"name": "prefix_hash", "blocks": 0}}}, "blocks: expected a number of blocks, 1 or more"),
    ],
)
def test_what_cannot_be_run_is_refused(change: dict[str, Any], message: str) -> None:
    data = {
        "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"},
        "hardware": ONE | {"devices": {"count": 2, "link": LINK}},
        "workload": {"sequences": [{"prompt": 5}], "batching": "continuous"} | change.get("workload", {}),
        "mapping": {"parallel": {"data": 2}},
    } | {key: value for key, value in change.items() if key != "workload"}
    with pytest.raises(InputError, match=message):
        run(from_dict(data))


class Nowhere:
    def choose(self, request: Request, loads: list[Load]) -> int:
        return len(loads)


def test_replicas_that_send_nothing_need_no_link() -> None:
    """They run as with one; where a cache is handed over, or a layer shared, there must be one."""
    data = scenario([{"prompt": 20, "tokens": 3, "count": 4}], data=2).to_dict()
    with_link = run(from_dict(data))
    data["hardware"]["devices"]["link"] = None
    assert_same(run(from_dict(data)).log, with_link.log)
    for parallel in ({"data": 2, "prefill": 1}, {"tensor": 2}):
        with pytest.raises(InputError, match=r"hardware.devices: expected the key 'link' where devices send to each other"):
            run(from_dict(data | {"mapping": FEW_TASKS | {"parallel": parallel}}))


@pytest.mark.parametrize(("changes", "message"), [
    ({"mapping.parallel.hand_over": "layers"}, "mapping.parallel: expected 'hand_over' only with 'prefill' above 0"),
    ({"mapping.parallel.hand_overs": 3}, "mapping.parallel: expected 'hand_overs' only with 'prefill' above 0"),
    ({"workload.batching.kv.full": "wait", "workload.batching.kv.moves": "between"}, "expected 'moves: between' only with"),
    ({"hardware.devices": {"count": 2, "topology": "ring"}}, "expected 'topology' and 'islands' only with 'link'"),
])  # fmt: skip
def test_options_without_an_effect_are_errors(changes: dict[str, Any], message: str) -> None:
    data = scenario([{"prompt": 20, "tokens": 3}], data=2).to_dict()
    for path, value in changes.items():
        *sections, key = path.split(".")
        reduce(getitem, sections, data)[key] = value
    with pytest.raises(InputError, match=re.escape(message)):
        from_dict(data)


def test_a_router_that_chooses_no_replica_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROUTERS._builtin, "nowhere", Nowhere)
    with pytest.raises(InputError, match="expected a replica from 0 to 1, found 2"):
        run(scenario(REQUESTS, data=2, router="nowhere"))


def test_the_guide_adds_a_router(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = install("replicas.md", tmp_path, monkeypatch)
    assert ROUTERS.names() == ["round_robin", "least_loaded", "prefix_hash", "prefix_aware", "by_length"]
    result = run(lab / "by_length.yaml")
    assert served_by(result).tolist() == [0, 1, 1, 1, 0]


def disaggregated(requests: list[dict[str, Any]], data: int = 2, prefill: int = 1, **parallel: Any) -> sim.scenario.Scenario:
    return scenario(requests, data=data, full="wait", prefill=prefill, **parallel)


def in_islands(data: dict[str, Any]) -> dict[str, Any]:
    """The devices of a scenario for four replicas of as many each, two in an island; between islands a network."""
    parallel = data["mapping"]["parallel"]
    each = parallel.get("tensor", 1) * parallel.get("pipeline", 1)
    network = {"bandwidth": "25 GB/s", "latency": "3 us"}
    return data["hardware"]["devices"] | {"count": 4 * each, "islands": {"size": 2 * each, "link": network}}


KV = 2 * 2 * 512 * 2  # bytes of a token: keys and values of two layers, 8 heads of 64, bfloat16
LAYER = KV // 2
LATENCY = 10**6  # ps


class TestHandOver:
    def test_time_alone(self) -> None:
        """a + sum of ceil(b / B) over the layers; the first token comes from one replica, the next from the other."""
        requests = [{"prompt": 40, "tokens": 3}]
        result, mixed = run(disaggregated(requests)), run(scenario(requests, full="wait"))
        log = result.log
        sends = [i for i in range(len(log.steps)) if log.graphs[log.steps.graph[i]].kinds == ("kv_send",)]
        assert len(sends) == 1
        took = int(log.steps.end[sends[0]] - log.steps.released[sends[0]])
        assert took == LATENCY + 2 * 40 * LAYER * 10  # 100 GB/s: 10 ps a byte
        assert result.metrics.bytes_sent == 40 * KV
        assert result.requests.ttft.tolist() == mixed.requests.ttft.tolist()
        assert result.requests.e2e.tolist() == [int(mixed.requests.e2e[0]) + took]
        assert result.requests.by is not None
        assert (result.requests.by.first.tolist(), result.requests.by.last.tolist()) == ([0], [1])
        assert result.requests.by.tokens.tolist() == [1, 2]

    @pytest.mark.parametrize("parallel", [{}, {"tensor": 2, "fold": False}, {"tensor": 2}, {"pipeline": 2}])
    def test_bytes_are_those_of_the_prompts(self, parallel: dict[str, Any]) -> None:
        """Each device sends its own part; a request of one token is not sent. Collectives send beside it."""
        requests = [{"prompt": 33, "tokens": 4}, {"context": 9, "prompt": 12, "tokens": 2}, {"prompt": 7, "tokens": 1}]
        log = run(disaggregated(requests, **parallel)).log
        sends = np.array([graph.kinds[graph.kind[t]] == "kv_send" for graph in log.graphs for t in range(len(graph))])
        of_form = np.cumsum([0, *(len(graph) for graph in log.graphs)])[log.steps.graph[log.tasks.step]] + log.tasks.task
        assert int(log.bytes_moved()[sends[of_form]].sum()) * log.machine.like == (33 + 9 + 12) * KV

    def test_hand_overs_contend(self) -> None:
        """Two prompts in one step: their caches share the link, in turn under fifo; one after another with `hand_overs: 1`."""
        requests = [{"prompt": 16, "tokens": 2, "count": 2}]
        alone = LATENCY + 2 * 16 * LAYER * 10
        for hand_overs, last in ((4, alone + 2 * 16 * LAYER * 10), (1, 2 * alone)):
            log = run(disaggregated(requests, hand_overs=hand_overs)).log
            steps = [i for i in range(len(log.steps)) if log.graphs[log.steps.graph[i]].kinds == ("kv_send",)]
            ends = sorted(int(log.steps.end[i]) for i in steps)
            begin = min(int(log.steps.released[i]) for i in steps)
            assert ends[1] - begin == last

    @pytest.mark.parametrize(
        ("data", "topology", "times"), [(3, "switch", 2), (4, "switch", 1), (3, "all_to_all", 1), (3, "ring", 1)]
    )
    def test_what_goes_to_one_replica_shares_the_link_into_it(self, data: int, topology: str, times: int) -> None:
        """Two replicas end their prompts at once: over a switch one cache waits for the other, where one replica decodes."""
        given = disaggregated([{"prompt": 16, "tokens": 2, "count": 2}], data=data, prefill=2).to_dict()
        given["hardware"]["devices"]["topology"] = topology
        log = run(from_dict(given)).log
        sends = log.tasks.end[of_kind(log, "kv_send")], log.tasks.ready[of_kind(log, "kv_send")]
        assert len(sends[0]) == 2 * 2
        assert len(set(sends[1].tolist())) == 1
        assert sends[0].max() - sends[1].min() == LATENCY + times * 2 * 16 * LAYER * 10

    @pytest.mark.parametrize("topology", ["switch", "all_to_all"])
    @pytest.mark.parametrize("parallel", [{}, {"tensor": 2}, {"tensor": 2, "fold": False}, {"pipeline": 2}])
    def test_between_islands(self, parallel: dict[str, Any], topology: str) -> None:
        """Replica 0 sends to 1, of its island, over links, and to 2 and 3 over the network alone: a' + sum of ceil(b / B').

        Requests come far apart, and those that decode get them in turn; all devices of a replica send at the same time.
        """
        requests = [{"prompt": 40, "tokens": 2, "arrival": f"{9 * i} ms"} for i in range(3)]
        data = disaggregated(requests, data=4, **parallel).to_dict()
        data["hardware"]["devices"] = in_islands(data) | {"topology": topology}
        log = run(from_dict(data)).log
        assert_same(compiled.simulate(plan(from_dict(data)).setup), log)
        found = []
        for step in range(len(log.steps)):
            if log.graphs[log.steps.graph[step]].kinds == ("kv_send",):
                served = np.unique(log.services.channel[log.tasks.step[log.services.task] == step]).tolist()
                kinds = {log.machine.channels[channel].kind for channel in served}
                found.append((kinds, int(log.steps.end[step] - log.steps.released[step])))
        each = 40 * KV // (data["hardware"]["devices"]["count"] // 4)  # bytes of a device
        inside, across = ({"link"}, LATENCY + each * 10), ({"network"}, 3 * LATENCY + each * 40)  # 100 GB/s and 25 GB/s
        assert found == [inside, across, across]

    def test_free_blocks_let_prompts_in(self) -> None:
        """A cache for one prompt: the next is prefilled when the one before has been sent, and not when it was prefilled."""
        data = disaggregated([{"prompt": 40, "tokens": 2, "count": 3}]).to_dict()
        data["workload"]["batching"]["kv"] = {"capacity": f"{48 * KV} B", "full": "wait"}
        result = run(from_dict(data))
        log = result.log
        sends = [i for i in range(len(log.steps)) if log.graphs[log.steps.graph[i]].kinds == ("kv_send",)]
        ends = sorted(int(log.steps.end[i]) for i in sends)
        assert sorted(result.requests.started.tolist())[1:] == ends[:2]


def layered(
    requests: list[dict[str, Any]], bandwidth: str = "100 GB/s", chunk: int | None = None, **parallel: Any
) -> sim.Result:
    """As `disaggregated`, with prompts in one piece if no chunk is given, over a link of this bandwidth."""
    data = disaggregated(requests, **parallel).to_dict()
    data["workload"]["prefill"]["chunk"] = chunk
    data["hardware"]["devices"]["link"]["bandwidth"] = bandwidth
    return run(from_dict(data))


def of_kind(log: EventLog, kind: str) -> np.ndarray[Any, Any]:
    """[row]: whether it is a task of this kind."""
    kinds = np.array([graph.kinds[kind] for graph in log.graphs for kind in graph.kind.tolist()])
    first = np.cumsum([0, *(len(graph) for graph in log.graphs)])
    return np.asarray(kinds[first[log.steps.graph[log.tasks.step]] + log.tasks.task] == kind)


class TestHandOverByLayer:
    def test_a_lone_prompt_over_a_fast_link(self) -> None:
        """Sends end before the step does, so that all of what `whole` takes for them, a + sum of ceil(b / B), is saved."""
        requests = [{"prompt": 200, "tokens": 3}]
        whole, layers = (layered(requests, "100 GB/s", hand_over=each) for each in ("whole", "layers"))
        assert layers.requests.ttft.tolist() == whole.requests.ttft.tolist()
        assert int(whole.requests.e2e[0] - layers.requests.e2e[0]) == LATENCY + 2 * 200 * LAYER * 10
        assert layers.metrics.bytes_sent == whole.metrics.bytes_sent == 200 * KV

    def test_a_lone_prompt_over_a_slow_link(self) -> None:
        """The link is busy from the first store on: a + sum of ceil(b / B) after that, and the step lasts as long."""
        log = layered([{"prompt": 200, "tokens": 2}], "1 MB/s", hand_over="layers").log
        begin = log.tasks.end[of_kind(log, "kv_store")].min()
        assert log.tasks.end[of_kind(log, "kv_send")].max() == begin + LATENCY + 2 * 200 * LAYER * 10**6
        assert log.steps.end[0] == log.tasks.end[of_kind(log, "kv_send")].max()

    @pytest.mark.parametrize("parallel", [{}, {"tensor": 2, "fold": False}, {"tensor": 2}, {"pipeline": 2}])
    @pytest.mark.parametrize("chunk", [None, 5])
    def test_bytes_are_those_of_the_prompts(self, parallel: dict[str, Any], chunk: int | None) -> None:
        """Each device sends its own part, chunk by chunk, also of a request of one token; what was cached before follows."""
        requests = [{"prompt": 33, "tokens": 4}, {"context": 9, "prompt": 12, "tokens": 2}, {"prompt": 7, "tokens": 1}]
        log = layered(requests, chunk=chunk, hand_over="layers", **parallel).log
        assert int(log.bytes_moved()[of_kind(log, "kv_send")].sum()) * log.machine.like == (33 + 9 + 12 + 7) * KV
        after = [i for i in range(len(log.steps)) if log.graphs[log.steps.graph[i]].kinds == ("kv_send",)]
        assert [int(log.steps.context[i]) for i in after] == [9]

    @given(
        prompt=st.integers(1, 200), context=st.sampled_from((0, 20)),
        bandwidth=st.sampled_from(("1 MB/s", "300 MB/s", "10 GB/s", "1 TB/s")),
    )  # fmt: skip
    @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate])
    def test_a_prompt_in_one_piece_is_never_later_than_whole(self, prompt: int, context: int, bandwidth: str) -> None:
        requests = [{"context": context, "prompt": prompt, "tokens": 2}]
        whole, layers = (layered(requests, bandwidth, hand_over=each) for each in ("whole", "layers"))
        assert layers.makespan <= whole.makespan
        assert layers.metrics.bytes_sent == whole.metrics.bytes_sent

    @pytest.mark.parametrize(
        ("topology", "parallel"),
        [
            *((each, {}) for each in ("switch", "ring", "mesh", "all_to_all", "islands")),
            ("islands", {"tensor": 2}), ("mesh", {"tensor": 2, "fold": False}), ("ring", {"pipeline": 2, "micro_batches": 1}),
        ],
    )  # fmt: skip
    def test_each_layer_goes_to_the_replica_that_decodes(self, topology: str, parallel: dict[str, Any]) -> None:
        """Two prompts in one step: the first goes to replica 1 and the second to 2, all bytes over the links to these."""
        data = disaggregated(
            [{"prompt": 30, "tokens": 2}, {"prompt": 11, "tokens": 2}], data=4, hand_over="layers", **parallel
        ).to_dict()
        devices = in_islands(data) if topology == "islands" else data["hardware"]["devices"] | {"topology": topology}
        data["hardware"]["devices"], data["workload"]["prefill"]["chunk"] = devices, None
        for attention in ("sequence", "batch"):
            data["mapping"]["attention"] = attention
            log = run(from_dict(data)).log
            graph = log.graphs[log.steps.graph[0]]
            each = len(log.machine.devices) // 4
            assert graph.receivers == (each, 2 * each)
            moved, sent = log.bytes_moved(), dict[int, int]()
            for task in np.flatnonzero([graph.kind_of(task) == "kv_send" for task in range(len(graph))]).tolist():
                to = int(graph.to[task])
                crossed = sorted(log.services.channel[log.services.task == task].tolist())
                assert sorted({*crossed}) == sorted(log.machine.crossed(int(graph.device[task]), to))
                replica = to // (data["hardware"]["devices"]["count"] // 4)
                assert graph.name(task) == f"kv_send m{replica - 1}"
                sent[replica] = sent.get(replica, 0) + int(moved[task]) * log.machine.like
            assert sent == {1: 30 * KV, 2: 11 * KV}
            assert_same(compiled.simulate(plan(from_dict(data)).setup), log)

    @pytest.mark.parametrize("chunk", [None, 256])
    @pytest.mark.parametrize(
        ("config", "layers", "of_all"),
        [
            ("gemma-3-1b", 6, (5 * 511 + 700) * 2 * 256 * 2),  # five layers with a window of 512, and one without
            ("llama-4-scout", 4, 4 * 700 * 2 * 8 * 128 * 2),  # within a chunk of 8,192
            ("qwen3-next-80b-a3b", 4, 3 * 2_195_456 + 700 * 2 * 2 * 256 * 2),  # three states, and a layer with a KV cache
            ("deepseek-v4-flash", 3, 3 * 127 * 1024 + 700 // 4 * 1280),  # windows of 128, and a row for each 4 tokens
            ("deepseek-v3.2", 1, 700 * (576 + 128) * 2),  # latents, and keys of the indexer
            ("qwen2-1.5b", 2, 2 * 700 * 2 * 2 * 128 * 2),
        ],
    )  # fmt: skip
    def test_layers_send_what_the_whole_is(self, config: str, layers: int, of_all: int, chunk: int | None) -> None:
        """Rows that have left a window are not sent, and a state is once, as the prompt ends; 100 tokens were cached before."""
        data = disaggregated([{"context": 100, "prompt": 600, "tokens": 2}]).to_dict()
        data["model"] = {"config": config, "layers": layers, "scope": "block"}
        data["mapping"]["attention"] = "batch" if chunk else "sequence"
        data["workload"]["batching"]["kv"], data["workload"]["prefill"]["chunk"] = {}, chunk
        for each in ("whole", "layers"):
            data["mapping"]["parallel"]["hand_over"] = each
            assert run(from_dict(data)).metrics.bytes_sent == of_all

    def test_receivers_are_chosen_as_requests_arrive(self) -> None:
        """The router counts requests whose prompts are not done, until they end there: the second has one token."""
        requests = [Request(context=0, tokens=1 + (i != 1), arrival=0, prompt=9) for i in range(3)]
        router = sim.serving.settings.Router(name="least_loaded")
        batching = ResolvedBatching(replicas=3, prefilling=1, by_layer=True, router=router)
        front = Front(Arrivals(requests), batching)
        (first,) = front.pool.inboxes
        taken = [first.take(0) for _ in range(3)]
        assert [first.receiver(number) for number in range(3)] == [1, 2, 1]
        assert [load.requests for load in front.decoding.loads] == [2, 1]
        first.ended(1, 10)
        assert [(load.requests, load.prompts) for load in front.decoding.loads] == [(2, 18), (0, 0)]
        assert taken == [0, 1, 2]

    def test_a_log_in_a_file_knows_receivers(self, tmp_path) -> None:
        for hand_over in ("whole", "layers"):
            result = layered([{"prompt": 30, "tokens": 2}, {"prompt": 11, "tokens": 2}], data=3, hand_over=hand_over)
            saved.save(result.log, result.scenario, tmp_path / "log.parquet")
            log, _ = saved.load(tmp_path / "log.parquet")
            assert [graph.to.tolist() for graph in log.graphs] == [graph.to.tolist() for graph in result.log.graphs]


@st.composite
def handing_over(draw: st.DrawFn) -> dict[str, Any]:
    data = draw(drawn().filter(lambda data: "swap" not in str(data)))
    for each in data["workload"]["sequences"]:
        each["prompt"] = max(1, each["prompt"])
    data["mapping"]["parallel"] |= {"prefill": draw(st.integers(1, data["mapping"]["parallel"]["data"] - 1))}
    data["mapping"]["parallel"]["hand_overs"] = draw(st.integers(1, 3))
    data["mapping"]["parallel"]["hand_over"] = draw(st.sampled_from(("whole", "layers")))
    data["mapping"]["attention"] = draw(st.sampled_from(("sequence", "batch")))
    data["hardware"]["devices"]["topology"] = draw(st.sampled_from(("switch", "ring", "mesh", "all_to_all")))
    data["hardware"]["devices"]["link"] = LINK | {"arbiter": draw(st.sampled_from(("fifo", "processor_sharing")))}
    if draw(st.booleans()):
        data["mapping"]["parallel"]["data"], data["hardware"]["devices"] = 4, in_islands(data)
    if draw(st.booleans()):
        data["workload"]["batching"]["kv"] = {"prefix_cache": True, "capacity": "512 KiB"}
    return data


@given(handing_over())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_both_executors_hand_over_alike(data: dict[str, Any]) -> None:
    setup = plan(from_dict(data)).setup
    expected, found = reference.simulate(setup), compiled.simulate(setup)
    assert found is not None
    assert_same(expected, found)
    run(from_dict(data))  # which checks all invariants
