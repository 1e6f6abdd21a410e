"""Analyses of a run in parts are those of the whole, sums may pass int64, and each check can fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim.runs.run
from models.graph import OpGraph
from sim.analysis.blame import blame
from sim.analysis.bounds import _gaps, bounds
from sim.analysis.channels import busy_runs, deliver_over_time, union
from sim.analysis.checks import CHECKS, check
from sim.analysis.findings import Analysis, Findings, analyze
from sim.analysis.metrics import metrics
from sim.analysis.moved import _op_totals, moved_by_kind
from sim.analysis.rules import Rules
from sim.analysis.sorting import sort_pairs
from sim.analysis.sums import HIGH, LOW, carry, narrow, sum_by, whole
from sim.analysis.tally import BINS
from sim.base.errors import SimulationError
from sim.base.integers import LARGEST
from sim.base.kernel import launch
from sim.log import columns
from sim.log.columns import Services
from sim.log.tables import EventLog
from sim.scenario.shipped import find_scenario
from tests.analysis.machine import run
from tests.analysis.test_breakdown import chain, kv_block
from tests.analysis.test_random import graphs, machines, plain
from tests.graphs import GraphBuilder


def rows(table, here, **changes):
    """Some rows of a table."""
    names = [each.name for each in dataclasses.fields(table)]
    return type(table)(**{name: changes.get(name, getattr(table, name)[here]) for name in names})


def part(log: EventLog, begin: int, end: int) -> EventLog:
    """The steps from one to another as a log of their own."""
    first, after = (int(np.append(log.steps.first, len(log.tasks))[step]) for step in (begin, end))
    served = (log.services.task >= first) & (log.services.task < after)
    return dataclasses.replace(
        log,
        steps=rows(log.steps, slice(begin, end), first=log.steps.first[begin:end] - first),
        tasks=rows(log.tasks, slice(first, after), step=log.tasks.step[first:after] - begin),
        services=rows(log.services, served, task=log.services.task[served] - first),
    )


def without_rows(log: EventLog) -> EventLog:
    nothing = slice(0, 0)
    return dataclasses.replace(log, tasks=rows(log.tasks, nothing), services=rows(log.services, nothing))


def in_parts(log: EventLog, rules: Rules, cuts: list[int]) -> Findings:
    made = Analysis(rules, engines=log.engines, channels=log.channels)
    for begin, end in pairwise([0, *cuts, len(log.steps)]):
        made.add(part(log, begin, end))
    return made.result(without_rows(log))


@settings(max_examples=60, deadline=None)
@given(graphs(), machines(), st.integers(1, 6), st.integers(0, 9), st.data())
def test_parts_add_up_to_the_whole(
    graph: OpGraph, machine: dict[str, object], tokens: int, arrival: int, data: st.DataObject
) -> None:
    log, rules = run(graph, **{**machine, "dependency": "sampled", "requests": [(tokens, arrival)]})
    cuts = sorted(data.draw(st.sets(st.integers(1, tokens - 1)))) if tokens > 1 else []
    one, several = analyze(log, rules), in_parts(log, rules, cuts)
    for name in ("bounds", "checks", "breakdown", "metrics", "requests"):
        assert plain(getattr(several, name)) == plain(getattr(one, name)), name
    delivered = sum(one.metrics.delivered) * log.bandwidth
    assert several.series.bytes_per_s.sum() * several.series.width == pytest.approx(delivered, rel=1e-6, abs=1)
    assert several.series.width * len(several.series.batch) >= log.makespan
    assert len(several.series.batch) <= BINS


def test_parts_that_overlap_are_refused() -> None:
    log, rules = run(chain({"flops": 5}), engines=2, requests=[(1, 0), (1, 0)])
    with pytest.raises(SimulationError, match="overlap in time"):
        in_parts(log, rules, [1])


def test_parts_bring_graphs_of_their_own() -> None:
    log, rules = run(chain({"flops": 5}, {"kind": "act", "flops": 2}), requests=[(3, 0)])
    other = dataclasses.replace(log.graphs[0], kinds=("act", "rope"))
    both = dataclasses.replace(log, graphs=(log.graphs[0], other))
    made = Analysis(rules, engines=1, channels=1)
    made.add(part(log, 0, 2))
    made.add(part(dataclasses.replace(both, steps=rows(both.steps, slice(None), graph=np.array([0, 0, 1]))), 2, 3))
    found = made.result(without_rows(dataclasses.replace(both, steps=rows(both.steps, slice(None), graph=np.array([0, 0, 1])))))
    kinds = {kind.kind: (kind.tasks, kind.compute) for kind in found.metrics.kinds}
    first, second = log.graphs[0].kinds
    assert kinds[first][0] + kinds[second][0] + kinds["rope"][0] == 6
    assert sum(compute for _, compute in kinds.values()) == 3 * 7
    with pytest.raises(ValueError, match="graphs that are there already"):
        made.add(dataclasses.replace(log, graphs=(other,)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("execution", ["blocking", "stream", "prefetch"])
def test_sums_pass_int64(execution: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that are 2^54 times as long give sums that are, too, beyond what int64 holds."""
    if compiled:
        monkeypatch.setattr(columns, "MANY_TASKS", 0)
    factor = 2**54
    graph = chain(*[{"flops": 4, "weight": 3}] * 3, repeat=8)
    log, rules = run(graph, execution=execution, engines=2, latency=1, requests=[(2, 0)])
    long_tasks = {name: getattr(log.tasks, name) * factor for name in ("ready", "start", "loaded", "end", "compute", "work")}
    long = dataclasses.replace(
        log,
        tasks=rows(log.tasks, slice(None), **long_tasks),
        services=rows(log.services, slice(None), **{n: getattr(log.services, n) * factor for n in ("start", "end", "work")}),
        steps=rows(log.steps, slice(None), **{n: getattr(log.steps, n) * factor for n in ("released", "end")}),
    )
    assert long.makespan < LARGEST
    short, scaled = analyze(log, rules), analyze(long, dataclasses.replace(rules, latency=factor))
    assert int(short.breakdown.total.sum()) * factor > 2**63
    for name in ("total", "by_kind", "by_layer", "by_sequence", "by_step", "tokens"):
        expected = getattr(short.breakdown, name).astype(object) * factor
        assert getattr(scaled.breakdown, name).tolist() == expected.tolist(), name
    times = [(kind.kind, kind.compute * factor, kind.transfer * factor) for kind in short.metrics.kinds]
    assert [(kind.kind, kind.compute, kind.transfer) for kind in scaled.metrics.kinds] == times
    blamed = blame(long, dataclasses.replace(rules, latency=factor), scaled.breakdown)
    assert sum(blamed.engine_by_kind.wait.ravel().tolist()) == int(short.breakdown.total[2]) * factor


def test_a_low_word_is_carried() -> None:
    sums = np.array([[[LARGEST + 5, 3], [7, 0]]], dtype=np.int64)
    carry(sums, 0)
    assert sums.tolist() == [[[5, 4], [7, 0]]]
    assert whole(sums).tolist() == [[4 * LARGEST + 5, 7]]
    sums[..., HIGH] = 0
    assert whole(sums).dtype == np.int64
    assert narrow(np.array([[1, 2**63 - 1]], dtype=object)).dtype == np.int64
    assert narrow(np.array([[1, 2**63]], dtype=object)).dtype == object
    assert sums[0, 0, LOW] == 5


def test_sums_by_group() -> None:
    assert sum_by(np.array([5, 6, 7]), np.array([1, 0, 1]), 3).tolist() == [6, 12, 0]
    large = sum_by(np.full(5, LARGEST - 1), np.array([0, 0, 0, 1, 1]), 2)
    assert large.tolist() == [3 * (LARGEST - 1), 2 * (LARGEST - 1)]


def late(name: str, row: int, by: int) -> Callable[[EventLog], EventLog]:
    def change(log: EventLog) -> EventLog:
        column = getattr(log.tasks, name).copy()
        column[row] += by
        return dataclasses.replace(log, tasks=rows(log.tasks, slice(None), **{name: column}))

    return change


def served(**changes: list[int]) -> Callable[[EventLog], EventLog]:
    def change(log: EventLog) -> EventLog:
        return dataclasses.replace(
            log, services=rows(log.services, slice(None), **{n: np.array(v, dtype=np.int64) for n, v in changes.items()})
        )

    return change


# Two loads of 4 and 3 by two engines, one after the other, and a task that needs both.
BROKEN: list[tuple[str, str, Callable[[EventLog], EventLog]]] = [
    ("ready <= start <= loaded <= end", "first", late("loaded", 0, 9)),
    ("ready <= start <= loaded <= end", "third", late("ready", 2, -10)),  # before its step was released
    ("tasks start after all their inputs end", "third was ready before an input ended", late("ready", 2, -1)),
    ("no engine runs two tasks at once", "engine 0 ran two tasks at once", late("engine", 1, -1)),
    ("bytes requested = bytes delivered", "second asked for one amount and got another", served(work=[4, 2])),
    ("channel never above its bandwidth", "more than its bandwidth", served(work=[4, 3], start=[1, 5], end=[4, 7])),
    ("channel never above its bandwidth", "intervals of service overlap", served(start=[0, 3], end=[4, 7])),
    ("channel never above its bandwidth", "not in order", served(start=[0, 4], end=[8, 7])),
    ("channel never idle while a transfer is eligible", "channel 0 was idle while second", served(start=[0, 5], end=[4, 8])),
]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("name", "message", "change"), BROKEN)
def test_each_check_can_fail(
    name: str, message: str, change: Callable[[EventLog], EventLog], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled:
        monkeypatch.setattr(columns, "MANY_TASKS", 0)
    log, rules = three_tasks()
    assert check(log, rules, bounds(log, rules)) == list(CHECKS)
    broken = change(log)
    with pytest.raises(SimulationError, match=f"{name}: .*{message}"):
        check(broken, rules, bounds(broken, rules))


def test_bounds_that_do_not_hold_are_found() -> None:
    log, rules = three_tasks()
    limits = bounds(log, rules)
    with pytest.raises(SimulationError, match="below the lower bound 14 ps"):
        check(log, rules, dataclasses.replace(limits, memory=14))
    with pytest.raises(SimulationError, match="above the upper bound"):
        check(log, rules, dataclasses.replace(limits, upper=9))


def test_time_without_requests_is_that_of_the_loop_that_had_most() -> None:
    """Loop 0 goes on without a gap; loop 1 has none from 10 to 30 and from 40 to 45; steps of loop 2 overlap."""
    log, _ = run(chain({"flops": 5}), requests=[(7, 0)])
    sequence, released, end = np.array(
        [[0, 0, 1, 1, 1, 2, 2], [0, 5, 0, 30, 45, 50, 52], [5, 10, 10, 40, 50, 55, 57]], dtype=np.int64
    )  # fmt: skip
    steps = rows(log.steps, slice(None), sequence=sequence, released=released, end=end)
    assert _gaps(dataclasses.replace(log, steps=steps)) == 25


def test_kinds_by_the_time_they_took() -> None:
    """An op that loads for 3 and computes for 5 takes longer than one that computes for 7, and 6 is the least."""
    ops = chain({"kind": "act", "flops": 7}, {"flops": 5, "weight": 3}, {"kind": "rope", "flops": 6})
    log, _ = run(ops, execution="blocking")
    found = [(kind.kind, kind.compute, kind.transfer, kind.bytes) for kind in metrics(log).kinds]
    assert found == [("norm", 5, 3, 3), ("act", 7, 0, 0), ("rope", 6, 0, 0)]


def test_sequences_have_caches_of_their_own() -> None:
    """Sequence 1 comes first, and loads before sequence 0 has stored anything. See `kv_block` for the path of the other."""
    log, rules = run(kv_block(), dependency="known", requests=[(2, 30), (2, 0)], engines=4)
    limits = bounds(log, rules)
    assert limits.critical_path == 30 + 10 + 2 + 3 + 4
    assert check(log, rules, limits) == list(CHECKS)


def three_tasks() -> tuple[EventLog, Rules]:
    from tests.graphs import GraphBuilder

    b = GraphBuilder()
    first = b.add("first", flops=2, weight=4)
    second = b.add("second", flops=1, weight=3)
    b.add("third", first, second, flops=5)
    log, rules = run(b.graph(), execution="blocking", engines=2)
    assert (log.tasks.end.tolist(), log.services.end.tolist()) == ([6, 8, 13], [4, 7])
    return log, rules


def test_a_load_before_the_store_of_an_earlier_token_is_found() -> None:
    log, rules = run(kv_block(), dependency="known", requests=[(2, 0)], engines=4)
    start = log.tasks.start.copy()
    start[4] = 11  # the store of token 0 ends at 12
    early = dataclasses.replace(log, tasks=rows(log.tasks, slice(None), start=start, ready=np.minimum(log.tasks.ready, start)))
    with pytest.raises(SimulationError, match=r"KV order per sequence and layer: token 0\.1 loaded layer 0 before it was"):
        check(early, rules, bounds(early, rules))


def test_a_step_that_is_released_too_early_is_found() -> None:
    log, rules = run(chain({"flops": 5}), requests=[(2, 0)])
    early = dataclasses.replace(log, steps=rows(log.steps, slice(None), released=np.array([0, 4])))
    with pytest.raises(SimulationError, match="sampled steps are barriers"):
        check(early, rules, bounds(early, rules))


@given(st.lists(st.integers(0, 20), max_size=60))
def test_sorting_is_stable(keys: list[int]) -> None:
    key, value = np.array(keys, dtype=np.int64), np.arange(len(keys))
    spare = np.zeros((2, len(keys)), dtype=np.int64)
    launch(sort_pairs, compiled=False)(key, value, spare[0], spare[1], len(keys))
    assert value.tolist() == sorted(range(len(keys)), key=lambda i: keys[i])
    assert key.tolist() == sorted(keys)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=20), st.integers(1, 7))
def test_busy_and_work_over_time(intervals: list[tuple[int, int]], width: int) -> None:
    """Against a count of each picosecond. Intervals of several channels overlap in any way; each is served at full speed."""
    spans = sorted(((begin, begin + length) for begin, length in intervals), key=lambda span: span[1])
    start, end = (np.array([span[i] for span in spans], dtype=np.int64) for i in (0, 1))
    services = Services(*(memoryview(column) for column in (start, start, start, end, end - start)))
    instants = [time for span in spans for time in range(*span)]
    runs = np.zeros((2, len(spans) + 1), dtype=np.int64)
    runs = runs[:, : busy_runs(services, 0, 2**15, runs)]
    assert (runs[1] - runs[0]).sum() == len(set(instants))
    assert union([np.array([start, end])]) == union([runs[:, ::2], runs[:, 1::2]]) == len(set(instants))
    bins = np.zeros(60 // width + 1, dtype=np.int64)
    deliver_over_time(services, 2**15, width, bins)
    assert bins.tolist() == np.bincount(np.array(instants, dtype=np.int64) // width, minlength=len(bins)).tolist()


@settings(max_examples=60, deadline=None)
@given(graphs(), machines())
def test_bytes_by_kind(graph: OpGraph, machine: dict[str, object]) -> None:
    """From ops, and from each task; also of a graph in which one share of an op moves nothing."""
    log, _ = run(graph, **machine)
    assert sum_of_tasks(log) == {kind: sum(both) for kind, both in moved_by_kind(log).items()}
    moves = log.graphs[0].moves.copy()
    moves[: len(moves) // 2] = 0
    fewer = dataclasses.replace(log, graphs=(dataclasses.replace(log.graphs[0], moves=moves),))
    assert sum_of_tasks(fewer) == {kind: sum(both) for kind, both in moved_by_kind(fewer).items()}


def sum_of_tasks(log: EventLog) -> dict[str, int]:
    sums: dict[str, int] = {}
    moved = log.bytes_moved()
    for row in range(len(log.tasks)):
        graph, task = log.graphs[log.steps.graph[log.tasks.step[row]]], int(log.tasks.task[row])
        if graph.moves[task]:
            sums[graph.kind_of(task)] = sums.get(graph.kind_of(task), 0) + int(moved[row])
    return sums


@pytest.mark.parametrize("changes", [(), ("mapping.attention=batch",)])
@pytest.mark.parametrize("name", ["moe_batch_32", "kv_full_swap", "prefill_chunks_of_512"])
def test_bytes_of_batches(name: str, changes: tuple[str, ...]) -> None:
    """The costs of all steps at once are the sum of the costs of each."""
    log = sim.runs.run.run(sim.runs.run.read(find_scenario(name), list(changes))).log
    for number, graph in enumerate(log.graphs):
        lanes = log.lanes(np.flatnonzero(log.steps.graph == number))
        if len(lanes.context):
            assert (_op_totals(graph.ops, lanes) == graph.ops.costs_of(lanes).sum(axis=2)).all()


def test_no_schedule_ends_before_the_last_arrival_and_what_follows() -> None:
    """Chains of 5 ps that arrive at 0, 100 and 103: on one engine the last two take until 110, on two until 108."""
    b = GraphBuilder()
    b.add("norm", flops=5)
    for engines, last in ((1, 110), (2, 108)):
        log, rules = run(b.graph(), engines=engines, requests=[(1, 0), (1, 100), (1, 103)])
        limits = bounds(log, rules)
        assert log.makespan == limits.arrivals == limits.lower == last
        closed = dataclasses.replace(rules, open_loop=False)
        assert bounds(log, closed).arrivals == 0


def test_what_arrives_late_must_still_be_loaded() -> None:
    """Three loads of 4 ps that arrive at 10 take the channel until 22; then the last of them computes for 1."""
    b = GraphBuilder()
    b.add("o_proj", flops=1, weight=4)
    log, rules = run(b.graph(), engines=4, requests=[(1, 0), (1, 10), (1, 10), (1, 10)])
    assert (bounds(log, rules).memory, bounds(log, rules).arrivals, log.makespan) == (16, 22, 23)


def test_steps_of_a_loop_wait_for_their_members() -> None:
    """Two requests of one loop, the second 1 s later: the bound is its arrival and the longest paths of the steps after it."""
    sequences = "workload.sequences=[{prompt: 8, tokens: 2}, {prompt: 8, tokens: 2, arrival: 1 s}]"
    changes = ["model.layers=1", "workload.generate=null", sequences]
    result = sim.runs.run.run(sim.runs.run.read(find_scenario("batching_continuous"), changes))
    alone = result.makespan - 10**12  # two steps that nothing delays
    late = int(result.bounds.arrivals - 10**12)
    assert 0 < late <= alone
    assert result.bounds.gap(result.makespan) < 1e-4
    assert result.bounds.critical_path < 0.01 * result.makespan, "without arrivals nearly all of the run would seem wasted"
