"""Event logs as Parquet files: for pandas, DuckDB or Polars, and to be read again.

One row per task, in the order of the task table, with the scenario in the file's metadata. Needs pyarrow: `pip install
'decode-sim[parquet]'`.

| column | content |
| --- | --- |
| `step` | row of the step table |
| `sequence`, `token`, `context`, `released` | of its step |
| `task`, `name` | index in the task graph, and its name |
| `kind`, `layer`, `head` | kind of task; decoder layer and head, -1 if it is of none |
| `bytes` | bytes that it moves through the channels |
| `engine`, `ready`, `start`, `loaded`, `end`, `compute`, `work`, `launched` | as in the task table; times in ps |
| `services` | its service intervals: list of `order` (row of `EventLog.services`), `channel`, `start`, `end`, `work` |

Metadata of the file: `sim.version`, `sim.scenario` (JSON, with every default), `sim.seed`, `sim.engines`, `sim.channels`,
`sim.bandwidth` (bytes/s), `sim.step_overhead` (ps), `sim.sram` (bytes of each device, or null), `sim.arrival`
(ps, of each sequence), `sim.batches` (JSON: the members of each step). The task graphs are not stored: they are made again from
the scenario when a log is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from models.graph import IntArray
from sim import __version__
from sim.base.errors import InputError
from sim.base.files import check_parquet, check_readable, whole_file
from sim.log.tables import EventLog, MemberTable, ServiceTable, StepTable, TaskTable, in_loop_order
from sim.machine.machine import TIER_PATHS, Machine, alike_devices
from sim.machine.network import Network
from sim.mapping.steps import BatchGraph, Shape
from sim.mapping.tasks import TaskGraph
from sim.serving.cache import CacheUse, TierUse
from sim.serving.queue import Reason

#: Gives the task graph of a step.
Graphs = Callable[[Shape], TaskGraph]

ROWS = 1 << 20  # of a row group, about
_TIMES = ("ready", "start", "loaded", "end", "compute", "work", "launched")
_TASKS = ("step", "task", "engine", *_TIMES)
_STEPS = ("sequence", "token", "context", "released")
_SERVICE = ("order", "channel", "start", "end", "work")
_FORM = ("layer", "head")  # of the task in its graph
_NAMES = ("name", "kind")
_ADDED = ("kind", *_FORM, "bytes")  # for readers of the file; the log is made without them
_REPEATED = ["step", *_STEPS, "task", *_NAMES, *_FORM, "engine"]
_METADATA = ("sim.batches", "sim.arrival", "sim.engines", "sim.channels", "sim.bandwidth")  # beside the scenario
COLUMNS = ("step", *_STEPS, "task", "name", *_ADDED, "engine", *_TIMES, "services")


@dataclass(frozen=True, slots=True)
class Stored:
    """A log as it is in a file. source: its path. scenario: plain data."""

    source: str
    scenario: Mapping[str, Any]
    _table: Any
    _metadata: Mapping[str, str]

    def log(self, graphs: Graphs) -> EventLog:
        """The event log. Raises InputError if its steps have other tasks than the graphs, or the file is damaged."""
        with _undamaged(self.source):
            return _parsed(self.source, self._table, self._metadata, graphs)


def read(path: str | os.PathLike[str]) -> Stored:
    """Read the file of a log. Raises InputError if it holds no log."""
    parquet = _pyarrow("pyarrow.parquet")
    check_readable(path)
    try:
        with parquet.ParquetFile(path) as file:
            check_parquet(path, file.metadata)
            table, stored = file.read(), file.metadata.metadata or {}
    except (OSError, ValueError, NotImplementedError, MemoryError) as error:
        raise InputError(f"{path}: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    with _undamaged(path):
        metadata = {key.decode(): value.decode() for key, value in stored.items()}
    if "sim.scenario" not in metadata:
        raise InputError(f"{path}: expected a log written by `sim run --save-log`, found other data")
    if lacking := [name for name in (*_METADATA, *COLUMNS) if name not in {*metadata, *table.column_names, *_ADDED}]:
        version = metadata.get("sim.version", "another version")
        raise InputError(
            f"{path}: expected a log as {__version__} writes it, found one of {version} without {', '.join(lacking)}"
        )
    with _undamaged(path):
        return Stored(str(path), json.loads(metadata["sim.scenario"]), table, metadata)


@contextmanager
def _undamaged(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the errors that damaged data cause into InputErrors."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, TypeError, NotImplementedError, LookupError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: damaged: {' '.join(str(error).split())}") from None


def _parsed(source: str, table: Any, metadata: Mapping[str, str], graphs_of: Graphs) -> EventLog:
    """The log of a file that has all columns and metadata. Raises various errors if these are damaged."""
    column = {name: table[name].to_numpy() for name in (*_STEPS, *_TASKS)}
    first = np.flatnonzero(column["task"] == 0)
    graphs, graph, members = _batches(metadata, graphs_of, len(first))
    size = np.array([len(g) for g in graphs], dtype=np.int64)[graph]
    if not np.array_equal(np.diff(np.append(first, len(table))), size):
        raise InputError(f"{source}: its steps have other tasks than the {len(graphs[0])} of the model's graph today")
    steps = StepTable(
        **{name: column[name][first] for name in _STEPS}, graph=graph, first=first,
        end=np.maximum.reduceat(column["end"], first),
    )  # fmt: skip
    arrival = np.array(json.loads(metadata["sim.arrival"]), dtype=np.int64)
    sequences = 1 + int((steps.sequence if members is None else members.sequence).max(initial=-1))
    if arrival.ndim != 1 or len(arrival) < sequences:
        raise ValueError(f"expected {sequences} times of arrival, found {arrival.size}")
    tasks = TaskTable(**{name: column[name] for name in _TASKS})
    log = EventLog(
        graphs=graphs, tasks=tasks, steps=steps, services=_services(table["services"].combine_chunks()),
        machine=_machine(metadata),
        bandwidth=int(metadata["sim.bandwidth"]),
        sram=_sram(metadata), step_overhead=int(metadata.get("sim.step_overhead", 0)),
        batched=members, arrival=arrival, cache=_cache(metadata), queue=_queue(metadata, len(arrival)),
    )  # fmt: skip
    return in_loop_order(log)


def _sram(metadata: Mapping[str, str]) -> tuple[int, ...] | None:
    """Bytes of SRAM for operands on each device; older files have a number, because only one device could have it."""
    found = json.loads(metadata.get("sim.sram", "null"))
    return None if found is None else tuple(found) if isinstance(found, list) else (found,)


def _machine(metadata: Mapping[str, str]) -> Machine:
    """The machine. Raises various errors if metadata are damaged."""
    several = json.loads(metadata.get("sim.devices", "{}"))
    count = int(several.get("count", 1))
    return alike_devices(
        count, engines=int(metadata["sim.engines"]) // count, channels=int(metadata["sim.channels"]) // count,
        like=several.get("like", 1), link=several.get("link", 0),
        tiers=several.get("tiers", {"host": several["host"]} if "host" in several else {}),
        replicas=several.get("replicas", 1), linked="link" in several, between=several.get("network", 0),
        network=Network(**several["paths"]) if "paths" in several else None,
    )  # fmt: skip


def _cache(metadata: Mapping[str, str]) -> CacheUse | None:
    """Use of the prefix cache, if there was one."""
    if "sim.cache" not in metadata:
        return None
    tokens, hits, evicted, *tiers = json.loads(metadata["sim.cache"])
    return CacheUse(
        int(tokens), int(hits), int(evicted), tuple(TierUse(*map(int, each)) for each in (tiers[0] if tiers else ()))
    )


def _queue(metadata: Mapping[str, str], requests: int) -> IntArray | None:
    """Times in the queue, if anything was batched. Raises ValueError if they are not those of so many requests."""
    if "sim.queue" not in metadata:
        return None
    return np.array(json.loads(metadata["sim.queue"]), dtype=np.int64).reshape(requests, len(Reason))


_MEMBERS = ("step", "sequence", "context", "query", "loads", "logits", "emitted", "home")


class _Batched:
    """Collects the shape of each graph of a batched log, the graph of each step, and its members."""

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
        shapes = [
            (graph.ops.shape if isinstance(graph.ops, BatchGraph) else Shape((False,)))._replace(
                draft=graph.draft, device=graph.first_device, to=graph.receivers
            )
            for graph in self._graphs
        ]
        return {"shapes": shapes, "graph": self._graph, "members": self._members}


def _shape(stored: Sequence[Any]) -> Shape:
    """A shape, from its fields as JSON has them."""
    parts: list[Any] = [tuple(part) if isinstance(part, list) else part for part in stored]
    return Shape(*parts)


def _batches(
    metadata: Mapping[str, str], graphs_of: Graphs, steps: int
) -> tuple[tuple[TaskGraph, ...], npt.NDArray[np.int32], MemberTable | None]:
    """The graphs of a log, the graph of each step [step], and the members of steps."""
    stored = json.loads(metadata["sim.batches"])
    if not stored:
        return (graphs_of(Shape((False,))),), np.zeros(steps, dtype=np.int32), None
    graphs = tuple(graphs_of(_shape(shape)) for shape in stored["shapes"])
    wide, members = ("context", "loads"), stored["members"]
    columns: dict[str, Any] = {name: np.array(members[name], dtype=np.int64 if name in wide else np.int32) for name in _MEMBERS}
    return graphs, np.array(stored["graph"], dtype=np.int32), MemberTable(**columns)


def _services(lists: Any) -> ServiceTable:
    task = np.repeat(np.arange(len(lists), dtype=np.int64), lists.value_lengths().to_numpy())
    each = lists.flatten()
    column = {name: each.field(name).to_numpy() for name in _SERVICE}
    order = np.argsort(column.pop("order"), kind="stable")
    return ServiceTable(task=task[order], **{name: values[order] for name, values in column.items()})


def _pyarrow(module: str) -> Any:
    """Import pyarrow, which is large and optional, only when a log is written or read."""
    try:
        return import_module(module)
    except ImportError:
        raise InputError("event logs as Parquet need pyarrow: pip install 'decode-sim[parquet]'") from None


@contextmanager
def writing(path: str | os.PathLike[str], scenario: Mapping[str, Any], seed: int) -> Iterator[Writer]:
    """Write a log part by part. The file is whole, or not there. scenario: plain data. Raises OSError."""
    arrow, parquet = _pyarrow("pyarrow"), _pyarrow("pyarrow.parquet")
    schema = _schema(arrow).with_metadata({
        "sim.version": __version__, "sim.scenario": json.dumps(scenario), "sim.seed": str(seed),
    })  # fmt: skip
    with (
        whole_file(path) as file,
        parquet.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=_REPEATED,
            column_encoding=dict.fromkeys(_TIMES, "DELTA_BINARY_PACKED"),
        ) as sink,
    ):  # fmt: skip
        writer = Writer(arrow, schema, sink)
        yield writer
        sink.add_key_value_metadata(writer.metadata())  # of the file: some is known only now


class Writer:
    """Appends the parts of a run, consecutive whole steps whose rows begin at 0. makespan: ps, of all so far."""

    def __init__(self, arrow: Any, schema: Any, sink: Any) -> None:
        self._arrow, self._schema, self._sink = arrow, schema, sink
        self._batched = _Batched()
        self._facts = dict[str, str]()
        self._steps = self._rows = self._intervals = self.makespan = 0

    def add(self, part: EventLog) -> None:
        """Append the next part."""
        intervals = self._intervals + np.arange(len(part.services))
        moved = _moved(part, self._steps, self._rows)
        for rows in _row_groups(self._arrow, self._schema, moved, intervals, part.bytes_moved()):
            self._sink.write_table(rows)
        self._batched.add(moved)
        self._facts = {
            "sim.arrival": json.dumps(part.arrival.tolist()), "sim.engines": str(part.engines),
            "sim.channels": str(part.machine.memories), "sim.bandwidth": str(part.bandwidth),
            "sim.sram": json.dumps(part.sram), "sim.step_overhead": str(part.step_overhead),
        }  # fmt: skip
        if part.cache is not None:
            self._facts["sim.cache"] = json.dumps(part.cache)
        if part.queue is not None:
            self._facts["sim.queue"] = json.dumps(part.queue.ravel().tolist())
        if part.machine.links or part.machine.replicas > 1:
            links = [part.machine.channels[number] for number in part.machine.links]
            bandwidth = {link.kind: link.bandwidth for link in links if link.kind not in TIER_PATHS}
            of_tiers = [next((link.bandwidth for link in links if link.kind == kind), 0) for kind in TIER_PATHS]
            tiers = {"tiers": dict(zip(part.machine.tiers, of_tiers, strict=False))} if part.machine.tiers else {}
            several = {"like": part.machine.like, "count": len(part.machine.devices), "replicas": part.machine.replicas}
            paths = {} if part.machine.network is None else {"paths": asdict(part.machine.network)}
            self._facts["sim.devices"] = json.dumps({**several, **bandwidth, **tiers, **paths})
        self._steps += len(part.steps)
        self._rows += len(part.tasks)
        self._intervals += len(part.services)
        self.makespan = max(self.makespan, part.makespan)

    def metadata(self) -> dict[str, str]:
        """Metadata of the file, of all parts."""
        return {"sim.batches": json.dumps(self._batched.data()), **self._facts}


def _moved(part: EventLog, step: int, row: int) -> EventLog:
    """A part of a run with its steps and rows numbered through the run."""
    if not step:
        return part
    return replace(
        part, steps=replace(part.steps, first=part.steps.first + row), tasks=replace(part.tasks, step=part.tasks.step + step),
        services=replace(part.services, task=part.services.task + row),
        batched=part.batched and replace(part.batched, step=part.batched.step + step),
    )  # fmt: skip


def _schema(arrow: Any) -> Any:
    types = dict.fromkeys(_NAMES, arrow.dictionary(arrow.int32(), arrow.string()))
    types |= dict.fromkeys(("step", "sequence", "token", "task"), arrow.int32())
    types |= dict.fromkeys(("engine", "channel", *_FORM), arrow.int16())
    service = [(name, types.get(name, arrow.int64())) for name in _SERVICE]
    types["services"] = arrow.list_(arrow.struct(service))
    return arrow.schema([(name, types.get(name, arrow.int64())) for name in COLUMNS])


def _coded(log: EventLog) -> dict[str, tuple[list[str], npt.NDArray[np.int32]]]:
    """`name` and `kind`: all texts that occur, and the number of the text of each task of all graphs."""
    found = {}
    for column, of in (("name", TaskGraph.name), ("kind", TaskGraph.kind_of)):
        texts, code = np.unique([of(graph, task) for graph in log.graphs for task in range(len(graph))], return_inverse=True)
        found[column] = (texts.tolist(), code.astype(np.int32))
    return found


def _row_groups(arrow: Any, schema: Any, log: EventLog, served: IntArray, amounts: IntArray) -> Iterator[Any]:
    """Rows of a log, some steps at a time. served: numbers of its service intervals in the run. amounts: bytes of each task."""
    size = np.array([len(graph) for graph in log.graphs], dtype=np.int64)
    offset = np.cumsum(size) - size  # of the names of each graph
    coded = _coded(log)
    of_form = {name: np.concatenate([getattr(graph, name) for graph in log.graphs]) for name in _FORM}
    order = np.argsort(log.services.task, kind="stable")
    owner = log.services.task[order]
    ends = np.cumsum(size[log.steps.graph])  # rows of this log, which may be a part of a run
    begin = 0
    while begin < len(log.steps):
        row = int(ends[begin - 1]) if begin else 0
        steps = slice(begin, max(begin + 1, int(np.searchsorted(ends, row + ROWS, side="right"))))
        rows = slice(row, int(ends[steps.stop - 1]))
        each = size[log.steps.graph[steps]]
        columns = {name: np.repeat(getattr(log.steps, name)[steps], each) for name in _STEPS}
        columns |= {name: getattr(log.tasks, name)[rows] for name in _TASKS}
        form = np.repeat(offset[log.steps.graph[steps]], each) + columns["task"]
        columns |= {name: values[form] for name, values in of_form.items()} | {"bytes": amounts[rows]}
        bounds = np.searchsorted(owner, log.steps.first[begin] + np.arange(rows.stop - rows.start + 1))
        mine = order[bounds[0] : bounds[-1]]
        service = {name: getattr(log.services, name)[mine] for name in _SERVICE[1:]} | {"order": served[mine]}
        fields = list(schema.field("services").type.value_type)
        items = arrow.StructArray.from_arrays([service[name] for name in _SERVICE], fields=fields)
        arrays = {name: arrow.array(column) for name, column in columns.items()}
        for name, (texts, code) in coded.items():
            arrays[name] = arrow.DictionaryArray.from_arrays(code[form], texts)
        arrays["services"] = arrow.ListArray.from_arrays((bounds - bounds[0]).astype(np.int32), items)
        yield arrow.table([arrays[name] for name in COLUMNS], schema=schema)
        begin = steps.stop
