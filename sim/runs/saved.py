"""Event logs as Parquet files: for pandas, DuckDB or Polars, and to be read again.

One row per task, in the order of the task table, with the scenario in the file's metadata. Needs pyarrow: `pip install
'decode-sim[parquet]'`.

| column | what it is |
| --- | --- |
| `step` | row of the step table |
| `sequence`, `token`, `context`, `released` | of its step |
| `task`, `name` | index in the task graph, and what it is called |
| `engine`, `ready`, `start`, `loaded`, `end`, `compute`, `work` | as in the task table; times in ps |
| `grants` | what the channels delivered to it: list of `order` (row of the grant table), `channel`, `start`, `end`, `work` |

Metadata of the file: `sim.version`, `sim.scenario` (JSON, with every default), `sim.seed`, `sim.engines`, `sim.channels`,
`sim.bandwidth` (bytes/s), `sim.arrival` (ps, of each sequence), `sim.batches` (JSON: who took part in which step). The task
graphs are not stored: `load` makes them again from the scenario, and refuses if they have other tasks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from models.graph import IntArray
from sim import __version__
from sim.base.errors import InputError
from sim.base.files import whole_file
from sim.executors import Executed, Executor, simulate
from sim.executors.setup import Setup
from sim.executors.size import Told, counted
from sim.log.tables import EventLog, GrantTable, MemberTable, StepTable, TaskTable
from sim.mapping.steps import BatchGraph, Shape
from sim.mapping.tasks import TaskGraph
from sim.runs.run import known_names, op_graphs, prepare
from sim.scenario import Scenario, from_dict

ROWS = 1 << 20  # of a row group, about
_TIMES = ("ready", "start", "loaded", "end", "compute", "work")
_TASKS = ("step", "task", "engine", *_TIMES)
_STEPS = ("sequence", "token", "context", "released")
_GRANT = ("order", "channel", "start", "end", "work")
_REPEATED = ["step", *_STEPS, "task", "name", "engine"]
_METADATA = ("sim.batches", "sim.arrival", "sim.engines", "sim.channels", "sim.bandwidth")  # beside the scenario
COLUMNS = ("step", *_STEPS, "task", "name", "engine", *_TIMES, "grants")


def save(log: EventLog, scenario: Scenario, path: str | os.PathLike[str]) -> None:
    """Write a log. The file is whole or not there. Raises OSError, and InputError if the log has no rows."""
    if not log.has_rows:
        raise scenario.error("record", f"expected all for an event log in a file, found {scenario.record}")
    with _writer(path, scenario) as write:
        write(log, np.arange(len(log.grants)))


def run_to_file(
    scenario: Scenario, path: str | os.PathLike[str], *, executor: Executor = "auto", told: Told | None = None
) -> tuple[int, Executed]:
    """Simulate and write at once, without an account; returns the makespan in ps, and which executor ran.

    Of a run of a single loop, about a quarter of a million tasks are in memory at a time, however long it is. Where loops
    overlap, all are until the end.
    """
    setup = prepare(scenario, *op_graphs(scenario))
    makespan = step = row = interval = 0
    with _writer(path, scenario) as write:

        def take(part: EventLog) -> None:
            nonlocal makespan, step, row, interval
            write(_moved(part, step, row), interval + np.arange(len(part.grants)))
            makespan = max(makespan, part.makespan)
            step, row, interval = step + len(part.steps), row + len(part.tasks), interval + len(part.grants)

        _, executed = simulate(setup, executor, counted(setup, told), take)
    return makespan, executed


def _moved(part: EventLog, step: int, row: int) -> EventLog:
    """A part of a run with its steps and rows numbered through the run."""
    if not step:
        return part
    return replace(
        part, steps=replace(part.steps, first=part.steps.first + row), tasks=replace(part.tasks, step=part.tasks.step + step),
        grants=replace(part.grants, task=part.grants.task + row),
        batched=part.batched and replace(part.batched, step=part.batched.step + step),
    )  # fmt: skip


def load(path: str | os.PathLike[str]) -> tuple[EventLog, Scenario]:
    """Read a log and the scenario that it came from. Raises InputError if the file holds no log."""
    parquet = _pyarrow("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            table, stored = file.read(), file.metadata.metadata or {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from None
    metadata = {key.decode(): value.decode() for key, value in stored.items()}
    if "sim.scenario" not in metadata:
        raise InputError(f"{path}: expected a log written by `sim run --save-log`, found other data")
    if lacking := [name for name in (*_METADATA, *COLUMNS) if name not in {*metadata, *table.column_names}]:
        version = metadata.get("sim.version", "another version")
        raise InputError(
            f"{path}: expected a log as {__version__} writes it, found one of {version} without {', '.join(lacking)}"
        )
    try:
        return _parsed(str(path), table, metadata)
    except InputError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: damaged: {' '.join(str(error).split())}") from None


def _parsed(source: str, table: Any, metadata: Mapping[str, str]) -> tuple[EventLog, Scenario]:
    """The log of a file that has all columns and metadata. Raises what comes of those that are damaged."""
    scenario = from_dict(json.loads(metadata["sim.scenario"]), source, (), known_names())
    setup = prepare(scenario, *op_graphs(scenario))
    column = {name: table[name].to_numpy() for name in (*_STEPS, *_TASKS)}
    first = np.flatnonzero(column["task"] == 0)
    graphs, graph, members = _batches(metadata, setup, len(first))
    size = np.array([len(g) for g in graphs], dtype=np.int64)[graph]
    if not np.array_equal(np.diff(np.append(first, len(table))), size):
        raise InputError(f"{source}: its steps have other tasks than the {len(setup.graph)} of the model's graph today")
    steps = StepTable(
        **{name: column[name][first] for name in _STEPS}, graph=graph, first=first,
        end=np.maximum.reduceat(column["end"], first),
    )  # fmt: skip
    arrival = np.array(json.loads(metadata["sim.arrival"]), dtype=np.int64)
    if arrival.shape != (len(setup.sequences),):
        raise ValueError(f"expected {len(setup.sequences)} times of arrival, found {arrival.size}")
    tasks = TaskTable(**{name: column[name] for name in _TASKS})
    log = EventLog(
        graphs=graphs, tasks=tasks, steps=steps, grants=_grants(table["grants"].combine_chunks()),
        engines=int(metadata["sim.engines"]), channels=int(metadata["sim.channels"]), bandwidth=int(metadata["sim.bandwidth"]),
        batched=members, arrival=arrival,
    )  # fmt: skip
    return log, scenario


_MEMBERS = ("step", "sequence", "context", "query", "loads", "logits", "emitted")


class _Batched:
    """What a batched log has beside its rows: the shape of each graph, the graph of each step, and who took part."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._graphs: list[TaskGraph] = []
        self._graph: list[int] = []
        self._members: dict[str, list[int]] = {name: [] for name in _MEMBERS}

    def add(self, log: EventLog) -> None:
        """The next steps."""
        if log.batched is None:
            return
        for graph in log.graphs:
            if self._numbers.setdefault(id(graph), len(self._graphs)) == len(self._graphs):
                self._graphs.append(graph)
        numbers = np.array([self._numbers[id(graph)] for graph in log.graphs])
        self._graph += numbers[log.steps.graph].tolist()
        for name, column in self._members.items():
            column.extend(getattr(log.batched, name).tolist())

    def data(self) -> dict[str, Any]:
        """Plain data, empty if no step was batched."""
        if not self._graphs:
            return {}
        shapes = [graph.ops.shape if isinstance(graph.ops, BatchGraph) else Shape((False,)) for graph in self._graphs]
        return {"shapes": shapes, "graph": self._graph, "members": self._members}


def _batches(
    metadata: Mapping[str, str], setup: Setup, steps: int
) -> tuple[tuple[TaskGraph, ...], npt.NDArray[np.int32], MemberTable | None]:
    """The graphs of a log, that of each step, and who took part."""
    stored = json.loads(metadata["sim.batches"])
    if not stored or setup.graphs is None:
        return (setup.graph,), np.zeros(steps, dtype=np.int32), None
    graphs = tuple(setup.graphs(Shape(tuple(a), b, tuple(c), d)) for a, b, c, d in stored["shapes"])
    wide = ("context", "loads")
    columns: dict[str, Any] = {
        name: np.array(stored["members"][name], dtype=np.int64 if name in wide else np.int32) for name in _MEMBERS
    }
    return graphs, np.array(stored["graph"], dtype=np.int32), MemberTable(**columns)


def _grants(lists: Any) -> GrantTable:
    task = np.repeat(np.arange(len(lists), dtype=np.int64), lists.value_lengths().to_numpy())
    each = lists.flatten()
    column = {name: each.field(name).to_numpy() for name in _GRANT}
    order = np.argsort(column.pop("order"), kind="stable")
    return GrantTable(task=task[order], **{name: values[order] for name, values in column.items()})


def _pyarrow(module: str) -> Any:
    """Pyarrow is large and optional, so it is imported when a log is written or read, and not before."""
    try:
        return import_module(module)
    except ImportError:
        raise InputError("event logs as Parquet need pyarrow: pip install 'decode-sim[parquet]'") from None


@contextmanager
def _writer(path: str | os.PathLike[str], scenario: Scenario) -> Iterator[Callable[[EventLog, IntArray], None]]:
    """Gives a function that appends the next steps of a run, with the place of each grant among all."""
    arrow, parquet = _pyarrow("pyarrow"), _pyarrow("pyarrow.parquet")
    schema = _schema(arrow).with_metadata({
        "sim.version": __version__, "sim.scenario": json.dumps(scenario.to_dict()), "sim.seed": str(scenario.seed),
    })  # fmt: skip
    with (
        whole_file(path) as file,
        parquet.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=_REPEATED,
            column_encoding=dict.fromkeys(_TIMES, "DELTA_BINARY_PACKED"),
        ) as sink,
    ):  # fmt: skip
        batched = _Batched()
        last: EventLog | None = None

        def write(part: EventLog, grants: IntArray) -> None:
            nonlocal last
            for rows in _row_groups(arrow, schema, part, grants):
                sink.write_table(rows)
            batched.add(part)
            last = part

        yield write
        assert last is not None
        sink.add_key_value_metadata({  # of the file: some is known only now
            "sim.batches": json.dumps(batched.data()), "sim.arrival": json.dumps(last.arrival.tolist()),
            "sim.engines": str(last.engines), "sim.channels": str(last.channels), "sim.bandwidth": str(last.bandwidth),
        })  # fmt: skip


def _schema(arrow: Any) -> Any:
    types = {"name": arrow.dictionary(arrow.int32(), arrow.string())}
    types |= dict.fromkeys(("step", "sequence", "token", "task"), arrow.int32())
    types |= dict.fromkeys(("engine", "channel"), arrow.int16())
    grant = [(name, types.get(name, arrow.int64())) for name in _GRANT]
    types["grants"] = arrow.list_(arrow.struct(grant))
    return arrow.schema([(name, types.get(name, arrow.int64())) for name in COLUMNS])


def _row_groups(arrow: Any, schema: Any, log: EventLog, granted: IntArray) -> Iterator[Any]:
    """The rows of a log, some steps at a time. granted: rows of the grant table before it."""
    size = np.array([len(graph) for graph in log.graphs], dtype=np.int64)
    offset = np.cumsum(size) - size  # of the names of each graph
    names, code = np.unique([graph.name(task) for graph in log.graphs for task in range(len(graph))], return_inverse=True)
    order = np.argsort(log.grants.task, kind="stable")
    owner = log.grants.task[order]
    ends = np.cumsum(size[log.steps.graph])  # rows of this log, which may be a part of a run
    begin = 0
    while begin < len(log.steps):
        row = int(ends[begin - 1]) if begin else 0
        steps = slice(begin, max(begin + 1, int(np.searchsorted(ends, row + ROWS, side="right"))))
        rows = slice(row, int(ends[steps.stop - 1]))
        each = size[log.steps.graph[steps]]
        columns = {name: np.repeat(getattr(log.steps, name)[steps], each) for name in _STEPS}
        columns |= {name: getattr(log.tasks, name)[rows] for name in _TASKS}
        named = code[np.repeat(offset[log.steps.graph[steps]], each) + columns["task"]].astype(np.int32)
        bounds = np.searchsorted(owner, log.steps.first[begin] + np.arange(rows.stop - rows.start + 1))
        mine = order[bounds[0] : bounds[-1]]
        grant = {name: getattr(log.grants, name)[mine] for name in _GRANT[1:]} | {"order": granted[mine]}
        fields = list(schema.field("grants").type.value_type)
        items = arrow.StructArray.from_arrays([grant[name] for name in _GRANT], fields=fields)
        arrays = {name: arrow.array(column) for name, column in columns.items()}
        arrays["name"] = arrow.DictionaryArray.from_arrays(named, names.tolist())
        arrays["grants"] = arrow.ListArray.from_arrays((bounds - bounds[0]).astype(np.int32), items)
        yield arrow.table([arrays[name] for name in COLUMNS], schema=schema)
        begin = steps.stop
