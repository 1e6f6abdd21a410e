"""The real trace_processor finds in a trace exactly the contents of the event log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.base.errors import InputError
from sim.log import derived
from sim.log.tables import EventLog, ServiceTable, StepTable, TaskTable
from sim.machine.machine import one_device
from sim.render.trace import write_perfetto
from sim.render.trace.tracks import to_ns
from tests.render.trace.logs import decoder, repeat, run
from tests.tools.trace_processor import TraceProcessor

Load = Callable[[Path], TraceProcessor]

FACTS = {"scenario": "toy", "seed": "0", "version": "1.0"}

ARGS = ("start_ps", "end_ps", "ready_ps", "sequence", "token", "layer", "flops", "bytes", "wait_engine_ps", "wait_channel_ps")
OWNER_WAITED_FOR = ("waited_for_sequence", "waited_for_token")
BEHIND = tuple(f"{resource}_behind{part}" for resource in ("engine", "channel") for part in ("", "_sequence", "_token"))
TEXTS = ("op", "path", "shape", "waited_for", *OWNER_WAITED_FOR, *BEHIND)
SLICES = f"""
SELECT slice.id, ts, dur, slice.name, category, track.name AS track, up.name AS parent, depth, {
    ", ".join(f"extract_arg(slice.arg_set_id, 'debug.{name}') AS {name}" for name in ARGS + TEXTS)
}
FROM slice JOIN track ON slice.track_id = track.id LEFT JOIN track up ON track.parent_id = up.id ORDER BY slice.id
"""


@pytest.fixture(scope="module")
def trace(log: EventLog, load: Load, tmp_path_factory: pytest.TempPathFactory) -> TraceProcessor:
    path = tmp_path_factory.mktemp("trace") / "toy.pftrace"
    write_perfetto(log, path, metadata=FACTS)
    return load(path)


@pytest.fixture(scope="module")
def slices(trace: TraceProcessor) -> list[dict[str, Any]]:
    return trace.query(SLICES)


def spans(start: np.ndarray, end: np.ndarray, rows: np.ndarray, log: EventLog) -> Counter[tuple[Any, ...]]:
    """How often each (name, ns, duration, exact start, exact end) should be there."""
    ns, until = to_ns(start), to_ns(end)
    return Counter(
        (log.name(int(row)), int(ns[i]), int(until[i] - ns[i]), int(start[i]), int(end[i])) for i, row in enumerate(rows)
    )


def seen(slices: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    return Counter((s["name"], s["ts"], s["dur"], s["start_ps"], s["end_ps"]) for s in slices)


def test_is_healthy(trace: TraceProcessor) -> None:
    assert trace.problems() == []


def test_every_task_is_on_its_engine(log: EventLog, slices: list[dict[str, Any]]) -> None:
    for engine in range(log.engines):
        rows = np.flatnonzero(log.tasks.engine == engine)
        ran = [s for s in slices if s["track"] == f"engine {engine}" and s["depth"] == 0]
        assert seen(ran) == spans(log.tasks.start[rows], log.tasks.end[rows], rows, log)


def test_every_transfer_is_on_the_channel(log: EventLog, slices: list[dict[str, Any]]) -> None:
    rows = np.flatnonzero(log.tasks.work > 0)
    first = np.full(len(log.tasks), np.iinfo(np.int64).max)
    np.minimum.at(first, log.services.task, log.services.start)
    moved = [s for s in slices if s["category"] == "memory" and "channel" in (s["track"], s["parent"])]
    assert seen(moved) == spans(first[rows], log.tasks.loaded[rows], rows, log)


def test_every_task_is_in_the_lanes_of_its_token(log: EventLog, slices: list[dict[str, Any]]) -> None:
    ops = [s for s in slices if s["category"] == "op" and s["parent"] == "ops"]
    assert len(ops) == len(log.tasks)
    rows = np.flatnonzero(log.tasks.engine >= 0)
    held = [s for s in ops if s["op"] not in ("kv_load", "kv_store")]
    mine = rows[[not log.name(int(row)).startswith("kv_") for row in rows]]
    assert seen(held) == spans(log.tasks.start[mine], log.tasks.end[mine], mine, log)


def test_a_token_is_shown_without_a_gap(log: EventLog, slices: list[dict[str, Any]]) -> None:
    tokens = [s for s in slices if s["category"] == "token"]
    assert Counter((s["start_ps"], s["end_ps"]) for s in tokens) == Counter(
        zip(log.steps.released.tolist(), log.steps.end.tolist(), strict=True)
    )
    for token in tokens:
        at = token["start_ps"]
        chain = [
            s for s in slices
            if s["parent"] == token["parent"] and s["track"] == token["track"] and s["depth"] in (1, 2)
            and s["category"] in ("op", "wait") and token["start_ps"] <= s["start_ps"] and s["end_ps"] <= token["end_ps"]
        ]  # fmt: skip
        whole = [s for s in sorted(chain, key=lambda s: (s["start_ps"], -s["end_ps"])) if s["start_ps"] >= at]
        for link in whole:
            if link["start_ps"] == at:
                at = link["end_ps"]
        assert at == token["end_ps"]


def test_arguments_are_those_of_the_log(log: EventLog, slices: list[dict[str, Any]]) -> None:
    ran = {(s["start_ps"], s["track"]): s for s in slices if (s["track"] or "").startswith("engine ") and s["depth"] == 0}
    moved = log.bytes_moved()
    for row in np.flatnonzero(log.tasks.engine >= 0):
        tasks, step = log.tasks, log.tasks.step[row]
        graph = log.graphs[log.steps.graph[step]]
        task = int(tasks.task[row])
        op = graph.ops.ops[graph.op[task]]
        found = ran[int(tasks.start[row]), f"engine {tasks.engine[row]}"]
        flops = graph.share(graph.ops.costs(int(log.steps.context[step]))[0])[task] * graph.computes[task]
        assert (found["op"], found["path"], found["shape"]) == (op.kind, op.path, f"[{', '.join(op.shape)}]")
        assert (found["ready_ps"], found["start_ps"], found["end_ps"]) == (tasks.ready[row], tasks.start[row], tasks.end[row])
        assert (found["sequence"], found["token"]) == (log.steps.sequence[step], log.steps.token[step])
        assert found["layer"] == (op.layer if op.layer >= 0 else None)
        assert (found["flops"] or 0, found["bytes"] or 0) == (flops, moved[row])
        assert (found["wait_engine_ps"] or 0) == tasks.start[row] - tasks.ready[row]
        transfer = tasks.loaded[row] - tasks.start[row] - tasks.work[row]
        assert (found["wait_channel_ps"] or 0) == (transfer if tasks.work[row] else 0)


def test_one_arrow_per_dependency(log: EventLog, trace: TraceProcessor) -> None:
    arrows = trace.query(
        """SELECT a.name AS producer, b.name AS consumer, extract_arg(a.arg_set_id, 'debug.end_ps') AS ended,
                  extract_arg(b.arg_set_id, 'debug.start_ps') AS started
           FROM flow JOIN slice a ON slice_out = a.id JOIN slice b ON slice_in = b.id"""
    )
    expected: Counter[tuple[str, str]] = Counter()
    for step in range(len(log.steps)):
        graph = log.graphs[log.steps.graph[step]]
        for task in range(len(graph)):
            for i in graph.inputs[graph.input_start[task] : graph.input_start[task + 1]]:
                expected[graph.name(int(i)), graph.name(task)] += 1
    assert Counter((arrow["producer"], arrow["consumer"]) for arrow in arrows) == expected
    assert all(arrow["ended"] <= arrow["started"] for arrow in arrows)


def named_waits(slices: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    """Waits: from, until, and the name, sequence and token of the task waited for."""
    return Counter(tuple(s[key] for key in ("start_ps", "end_ps", "waited_for", *OWNER_WAITED_FOR)) for s in slices)


def expected_waits(log: EventLog, waits: dict[int, tuple[int, int, int]]) -> Counter[tuple[Any, ...]]:
    """The same from the log. waits: row that waits -> from, until, row waited for."""
    steps, step = log.steps, log.tasks.step
    return Counter(
        (begin, end, log.name(cause), int(steps.sequence[step[cause]]), int(steps.token[step[cause]]))
        for begin, end, cause in waits.values()
    )


def test_waits_for_an_engine_name_the_task_that_held_it(log: EventLog, slices: list[dict[str, Any]]) -> None:
    tasks, waits = log.tasks, {}
    for row in np.flatnonzero((tasks.engine >= 0) & (tasks.ready < tasks.start)).tolist():
        (before,) = np.flatnonzero((tasks.engine == tasks.engine[row]) & (tasks.end == tasks.start[row]))
        waits[row] = (int(tasks.ready[row]), int(tasks.start[row]), int(before))
    shown = [s for s in slices if s["name"] == "engine wait"]
    in_lanes, of_chains = (named_waits([s for s in shown if (s["parent"] == "ops") == lanes]) for lanes in (True, False))
    assert waits
    assert in_lanes == expected_waits(log, waits)
    assert of_chains <= in_lanes


def test_tasks_name_those_that_they_waited_behind(log: EventLog, slices: list[dict[str, Any]]) -> None:
    tasks, steps, step = log.tasks, log.steps, log.tasks.step
    row_of = {(int(tasks.start[row]), int(tasks.engine[row])): row for row in range(len(tasks))}
    waited = [s for s in slices if s["track"].startswith("engine ") and s["depth"] == 0 and s["wait_engine_ps"]]
    assert waited
    for each in waited:
        engine = int(each["track"].split()[1])
        (before,) = np.flatnonzero((tasks.engine == engine) & (tasks.end == each["start_ps"]))
        assert row_of[each["start_ps"], engine] != before
        found = tuple(each[name] for name in BEHIND[:3])
        assert found == (log.name(int(before)), steps.sequence[step[before]], steps.token[step[before]])
    served = derived.previous_on_channel(log)
    slowed = [s for s in slices if s["track"].startswith("engine ") and s["depth"] == 0 and s["wait_channel_ps"]]
    assert slowed
    for each in slowed:
        before = served[row_of[each["start_ps"], int(each["track"].split()[1])]]
        assert each["channel_behind"] == (log.name(int(before)) if before >= 0 else None)


def test_waits_for_the_kv_cache_name_the_store(load: Load, tmp_path: Path) -> None:
    log = run(decoder())
    write_perfetto(log, tmp_path / "known.pftrace", metadata=FACTS)
    shown = [s for s in load(tmp_path / "known.pftrace").query(SLICES) if s["name"] == "input wait"]
    first, second = (log.rows(step) for step in range(2))
    stores = [row for row in range(first.start, first.stop) if log.name(row) == "kv_store"]
    loads = [row for row in range(second.start, second.stop) if log.name(row) == "kv_load"]
    by_layer = dict(zip(log.tasks.ready[loads].tolist(), stores, strict=True))
    assert shown
    for wait in shown:
        assert log.tasks.end[by_layer[wait["end_ps"]]] == wait["end_ps"]
        assert (wait["waited_for"], wait["waited_for_sequence"], wait["waited_for_token"]) == ("kv_store", 0, 0)


def test_counters_return_to_zero(log: EventLog, trace: TraceProcessor) -> None:
    rows = trace.query(
        "SELECT track.name AS track, ts, value FROM counter JOIN track ON track_id = track.id ORDER BY counter.id"
    )
    values = {name: [row["value"] for row in rows if row["track"] == name] for name in {row["track"] for row in rows}}
    assert set(values) == {"busy engines", "ready queue", "GB/s delivered", "outstanding transfers"}
    assert all(min(each) == 0 < max(each) and each[-1] == 0 for each in values.values())
    assert max(values["busy engines"]) <= log.engines
    assert max(values["GB/s delivered"]) <= log.bandwidth / 1e9 * (1 + 1e-9)
    rates = [row for row in rows if row["track"] == "GB/s delivered"]
    delivered = sum(a["value"] * (b["ts"] - a["ts"]) for a, b in zip(rows_of(rates), rows_of(rates)[1:], strict=False))
    served = int(log.services.work.sum()) / 1000 * log.bandwidth / 1e9
    # Each change is off by half a nanosecond at most.
    assert delivered == pytest.approx(served, abs=len(rates) * log.bandwidth / 1e9)


def rows_of(rates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rates, key=lambda row: row["ts"])


def test_tracks_stand_in_order(log: EventLog, trace: TraceProcessor) -> None:
    tracks = trace.query(
        """SELECT track.name AS name, up.name AS parent, extract_arg(track.source_arg_set_id, 'sibling_order_rank') AS rank,
                  extract_arg(track.source_arg_set_id, 'description') AS description
           FROM track LEFT JOIN track up ON track.parent_id = up.id"""
    )
    engines = {t["name"]: t for t in tracks if t["parent"] == "Engines"}
    order = sorted(engines, key=lambda name: engines[name]["rank"])
    assert order == ["busy engines", "ready queue", *(f"engine {n}" for n in range(log.engines))]
    assert all(t["description"] for t in tracks if not t["name"].startswith("lane "))


def test_facts_about_the_run(trace: TraceProcessor) -> None:
    rows = trace.query("SELECT name, str_value FROM metadata WHERE name GLOB 'cr-*'")
    assert {row["name"]: row["str_value"] for row in rows} == {f"cr-{key}": value for key, value in FACTS.items()}


# Options


def count(load: Load, path: Path, sql: str) -> int:
    trace = load(path)
    assert trace.problems() == []
    return int(trace.query(f"SELECT count(*) AS n FROM {sql}")[0]["n"])


def test_detail_levels(load: Load, tmp_path: Path) -> None:
    log = run(decoder())
    found = {}
    for detail in ("full", "ops", "engines"):
        path = tmp_path / f"{detail}.pftrace"
        found[detail] = write_perfetto(log, path, metadata=FACTS, detail=detail)
        assert count(load, path, "slice") == found[detail]
        assert (count(load, path, "flow") > 0) == (detail == "full")
        assert (count(load, path, "args WHERE key GLOB 'debug.*'") > 0) == (detail == "full")
        assert (count(load, path, "slice WHERE category = 'token'") > 0) == (detail != "engines")
    assert found["full"] == found["ops"] > found["engines"]


def test_flows(load: Load, tmp_path: Path) -> None:
    log = run(decoder())
    last = int(log.tasks.end.argmax())
    path = np.array([0, last // 2, last])
    path = path[np.argsort(log.tasks.start[path])]
    write_perfetto(log, tmp_path / "critical.pftrace", metadata=FACTS, flows="critical", critical=path)
    write_perfetto(log, tmp_path / "none.pftrace", metadata=FACTS, flows="none")
    assert count(load, tmp_path / "critical.pftrace", "flow") == 2
    assert count(load, tmp_path / "critical.pftrace", "slice WHERE category = 'critical path'") == 3
    assert count(load, tmp_path / "none.pftrace", "flow") == 0


def test_window(load: Load, tmp_path: Path) -> None:
    log = run(decoder(), tokens=4, overlap=False)
    middle = log.makespan // 2
    window = (middle, middle + log.makespan // 20)
    path = tmp_path / "window.pftrace"
    write_perfetto(log, path, metadata=FACTS, window=window)
    rows = np.flatnonzero((log.tasks.engine >= 0) & (log.tasks.start < window[1]) & (log.tasks.end > window[0]))
    assert 0 < len(rows) < len(log.tasks) / 4
    assert count(load, path, "slice WHERE category = 'engine'") == len(rows)
    outside = f"slice WHERE ts >= {window[1] // 1000 + 1} OR ts + dur < {window[0] // 1000}"
    assert count(load, path, outside) == 0
    assert count(load, path, f"counter WHERE ts < {window[0] // 1000}") == 0
    assert count(load, path, "counter") > 0


def test_an_empty_log(load: Load, tmp_path: Path) -> None:
    log = run(decoder())
    write_perfetto(log, tmp_path / "empty.pftrace", metadata=FACTS, window=(log.makespan * 2, log.makespan * 3))
    assert count(load, tmp_path / "empty.pftrace", "slice") == 0


def test_a_log_without_tasks(load: Load, tmp_path: Path) -> None:
    none = np.zeros(0, dtype=np.int64)
    columns = {table: {f.name: none for f in fields(table)} for table in (TaskTable, ServiceTable, StepTable)}
    log = EventLog(
        graphs=(), tasks=TaskTable(**columns[TaskTable]), services=ServiceTable(**columns[ServiceTable]),
        steps=StepTable(**columns[StepTable]), machine=one_device(engines=2), bandwidth=1,
    )  # fmt: skip
    write_perfetto(log, tmp_path / "none.pftrace", metadata=FACTS)
    assert count(load, tmp_path / "none.pftrace", "slice") == 0


@pytest.mark.slow
def test_a_million_slices(load: Load, tmp_path: Path) -> None:
    log = repeat(run(decoder(layers=4, heads=32), tokens=1), 800)
    written = write_perfetto(log, tmp_path / "big.pftrace", metadata=FACTS)
    assert written > 1_000_000
    assert count(load, tmp_path / "big.pftrace", "slice") == written


@pytest.mark.parametrize("option", [{"detail": "fall"}, {"flows": "al"}, {"flows": "critical"}])
def test_options_that_do_not_exist(tmp_path: Path, option: dict[str, str]) -> None:
    with pytest.raises(InputError):
        write_perfetto(run(decoder()), tmp_path / "x.pftrace", metadata=FACTS, **option)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
