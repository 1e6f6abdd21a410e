"""The tables of an event log as kernels take them: named columns of one dtype each, and the tasks of all graphs in one table.

A kernel reads a column down to one item. Compiled, columns are arrays; as Python they are memoryviews of the same arrays.
`log` here is always an `EventLog`, `row` a row of its task table, and `form` a row of `Forms`: a task of a graph, whichever
step it runs in. The rows of a step follow one another in the order of its graph, so `form - row` is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.base.kernel import MANY_TASKS, loaded
from sim.base.memo import Memo
from sim.mapping.tasks import TaskGraph, path_of

if TYPE_CHECKING:  # the log offers what is derived from it
    from sim.log.tables import EventLog

#: A column of a table inside of kernels: an array or a memoryview of integers, indexed down to one item.
Ints = Any

NONE = -1


class Tasks(NamedTuple):
    """The task table [row]; times in ps. See `sim.log.tables.TaskTable`."""

    engine: Ints  # int16, -1 for a transfer that a DMA issued
    ready: Ints  # int64, like all that follow
    start: Ints
    loaded: Ints
    end: Ints
    compute: Ints
    work: Ints
    launched: Ints
    link: Ints  # int8: index of `PATHS`, of the link that a transfer crosses; 0 if none, empty where there are no links


class Services(NamedTuple):
    """The table of service intervals, in order of end; times in ps. See `sim.log.tables.ServiceTable`."""

    task: Ints  # int64: row of the task table
    channel: Ints  # int16
    start: Ints  # int64, like all that follow
    end: Ints
    work: Ints


class Steps(NamedTuple):
    """The step table [step], int64; times in ps. See `sim.log.tables.StepTable`."""

    sequence: Ints
    graph: Ints
    first: Ints  # row of its first task
    released: Ints
    end: Ints


class Forms(NamedTuple):
    """The tasks of all graphs, graph after graph [form].

    first: int64 [graph + 1], the first form of each graph.
    input_start: int64 [form + 1], inputs: int32 [edge]: CSR of the tasks it needs, as indices within its graph, ascending.
    group: int32 [form], its kind and layer, see `FormTable.groups`. device: int32 [form], on which it runs. loads: int32
    [form], the layer (an index into `FormTable.layers`) whose KV cache it loads, -1 if none.
    kv_first: int64 [graph + 1] into kv_task, kv_layer, kv_stores: int64, the tasks of a graph that load or store KV cache
    (an index within the graph), of which layer, and 1 for a store.
    """

    first: Ints
    input_start: Ints
    inputs: Ints
    group: Ints
    device: Ints
    loads: Ints
    kv_first: Ints
    kv_task: Ints
    kv_layer: Ints
    kv_stores: Ints


class Places(NamedTuple):
    """Kinds and layers of the groups of a table, ascending, and for each group [group] which of them it has."""

    kinds: tuple[str, ...]
    kind: npt.NDArray[np.int64]
    layers: tuple[int, ...]
    layer: npt.NDArray[np.int64]


class FormTable:
    """Makes `Forms` of the graphs of a log, and of more graphs when they come.

    kinds: names. groups: (index into kinds, layer) of each group of tasks. layers: those with KV cache.
    """

    def __init__(self) -> None:
        self.graphs: tuple[TaskGraph, ...] = ()
        self.groups: list[tuple[int, int]] = []
        self._kind: dict[str, int] = {}
        self._kinds: list[str] = []
        self._layer: dict[int, int] = {}
        self._number: dict[tuple[int, int], int] = {}  # of a group
        self._parts: dict[str, list[npt.NDArray[np.integer]]] = {name: [] for name in Forms._fields}
        self._forms = self._edges = self._kv = 0
        self.columns = self._whole()
        self._places: Places | None = None

    @property
    def kinds(self) -> list[str]:
        """One list until there are more kinds, since loops over kinds ask for it."""
        if len(self._kinds) < len(self._kind):
            self._kinds = list(self._kind)
        return self._kinds

    def name(self, group: tuple[int, int]) -> tuple[str, int]:
        """The kind and layer of a group."""
        return self.kinds[group[0]], group[1]

    @property
    def layers(self) -> list[int]:
        return list(self._layer)

    def add(self, graphs: Sequence[TaskGraph]) -> None:
        """Take in the graphs that are not there yet. Those that are come first, in the same order."""
        known = len(self.graphs)
        if any(a is not b for a, b in zip(graphs, self.graphs, strict=False)) or len(graphs) < known:
            raise ValueError("expected the graphs that are there already, and then new ones")
        for graph in graphs[known:]:
            self._add(graph)
        if len(graphs) > known:
            self.graphs = tuple(graphs)
            self.columns = self._whole()
            self._places = None

    def places(self) -> Places:
        """Kinds and layers in order, and those of each group."""
        if self._places is None:
            kinds, layers = tuple(sorted(self._kind)), tuple(sorted({layer for _, layer in self.groups}))
            place_of, layer_of = ({each: i for i, each in enumerate(names)} for names in (kinds, layers))
            names = self.kinds
            self._places = Places(
                kinds, np.array([place_of[names[number]] for number, _ in self.groups], dtype=np.int64),
                layers, np.array([layer_of[layer] for _, layer in self.groups], dtype=np.int64),
            )  # fmt: skip
        return self._places

    def _add(self, graph: TaskGraph) -> None:
        parts, size = self._parts, len(graph)
        parts["first"].append(np.array([self._forms]))
        parts["input_start"].append(graph.input_start[:-1].astype(np.int64) + self._edges)
        parts["inputs"].append(graph.inputs)
        parts["group"].append(self._group(graph))
        parts["device"].append(graph.device)
        loads = np.full(size, NONE, dtype=np.int32)
        parts["kv_first"].append(np.array([self._kv]))
        for stores, of_layer in ((0, graph.kv_loads), (1, graph.kv_stores)):
            for layer, tasks in of_layer.items():
                index = self._layer.setdefault(layer, len(self._layer))
                if not stores:
                    loads[list(tasks)] = index
                parts["kv_task"].append(np.array(tasks, dtype=np.int64))
                parts["kv_layer"].append(np.full(len(tasks), index))
                parts["kv_stores"].append(np.full(len(tasks), stores))
                self._kv += len(tasks)
        parts["loads"].append(loads)
        self._forms += size
        self._edges += len(graph.inputs)

    def _group(self, graph: TaskGraph) -> npt.NDArray[np.int32]:
        """[task]: the number of its kind and layer."""
        kind_of = np.array([self._kind.setdefault(name, len(self._kind)) for name in graph.kinds], dtype=np.int64)
        both, which = np.unique(kind_of[graph.kind] << 16 | (graph.layer.astype(np.int64) + 1), return_inverse=True)
        numbers = []
        for each in both.tolist():
            group = (each >> 16, (each & 0xFFFF) - 1)
            if group not in self._number:
                self._number[group] = len(self.groups)
                self.groups.append(group)
            numbers.append(self._number[group])
        return np.array(numbers, dtype=np.int32)[which]

    def _whole(self) -> Forms:
        ends = {"first": self._forms, "input_start": self._edges, "kv_first": self._kv}
        columns = {}
        for name, parts in self._parts.items():
            dtype = np.int32 if name in {"inputs", "group", "device", "loads"} else np.int64
            last = [np.array([ends[name]])] if name in ends else []
            columns[name] = np.concatenate([np.zeros(0, dtype=dtype), *parts, *last], dtype=dtype, casting="unsafe")
        return Forms(**columns)


#: The table without graphs.
NO_FORMS = FormTable()

#: Tables of one graph, of earlier logs: the runs of a sweep share their graphs.
ONE_GRAPH: Memo[FormTable] = Memo(2**20, lambda table: len(table.columns.inputs))


def with_graphs(table: FormTable, graphs: Sequence[TaskGraph]) -> FormTable:
    """A table with all of the graphs, of which those of `table` come first. One of a single graph is shared, never changed."""
    if len(table.graphs) > 1 and len(graphs) > 1:
        table.add(graphs)
        return table
    if len(graphs) == 1:
        one = ONE_GRAPH.of(graphs[0], None, lambda: _made(graphs))
        if table.graphs and table.graphs[0] is not graphs[0]:
            raise ValueError("expected the graphs that are there already, and then new ones")
        return one
    made = _made(table.graphs)
    made.add(graphs)
    return made


def _made(graphs: Sequence[TaskGraph]) -> FormTable:
    table = FormTable()
    table.add(graphs)
    return table


def forms_of(log: EventLog) -> FormTable:
    """The forms of the tasks of a log."""
    table = FormTable()
    table.add(log.graphs)
    return table


#: Tasks of a log from which compiled code pays where Numba has been imported: then it has only to be read from the cache.
SOME_TASKS = 5_000


def is_large(log: EventLog) -> bool:
    """Whether compiled code pays for a log: sooner if Numba is there already."""
    return len(log.tasks) >= (SOME_TASKS if loaded() else MANY_TASKS)


def tasks_of(log: EventLog) -> Tasks:
    """The task table as arrays for kernels."""
    columns = Tasks._fields[:-1]
    if "on_links" not in log.made:  # kept with the log, like what is derived from it
        log.made["on_links"] = _on_links(log) if log.machine.links else np.zeros(0, dtype=np.int8)
    rows = [_column(getattr(log.tasks, name), np.int16 if name == "engine" else np.int64) for name in columns]
    return Tasks._make([*rows, log.made["on_links"]])


def _on_links(log: EventLog) -> npt.NDArray[np.int8]:
    """[row]: the link on which the task moves bytes, as in `Tasks`."""
    of_graph = [path_of(graph.moves) for graph in log.graphs]
    return np.concatenate([np.zeros(0, dtype=np.int8), *(of_graph[number] for number in log.steps.graph.tolist())])


def services_of(log: EventLog) -> Services:
    """The table of service intervals as arrays for kernels."""
    g = log.services
    return Services(*(_column(getattr(g, name), np.int16 if name == "channel" else np.int64) for name in Services._fields))


def steps_of(log: EventLog) -> Steps:
    """The step table as arrays for kernels."""
    return Steps(*(_column(getattr(log.steps, name), np.int64) for name in Steps._fields))


def viewed(columns: Any, *, compiled: bool) -> Any:
    """A named tuple of arrays as a kernel takes it: as it is, or of memoryviews."""
    return columns if compiled else type(columns)(*(memoryview(column) for column in columns))


def _column(column: npt.NDArray[np.integer], dtype: Any) -> npt.NDArray[np.integer]:
    """Contiguous and writable, so that a kernel is compiled for one type; most columns are so already."""
    if column.dtype == dtype and column.flags.c_contiguous and column.flags.writeable:
        return column  # what `require` finds, too, but takes several microseconds for
    return np.require(column, dtype, ["C", "W"])


def in_order(log: EventLog) -> npt.NDArray[np.int64]:
    """The steps in order of sequence and token. It is kept: callers must not write to it."""
    if "in_order" not in log.made:
        log.made["in_order"] = _in_order(log)
    found: npt.NDArray[np.int64] = log.made["in_order"]
    return found


def _in_order(log: EventLog) -> npt.NDArray[np.int64]:
    sequence, token = log.steps.sequence, log.steps.token
    same = sequence[1:] == sequence[:-1]
    if ((sequence[1:] > sequence[:-1]) | (same & (token[1:] > token[:-1]))).all():
        return np.arange(len(log.steps), dtype=np.int64)
    return np.lexsort((token, sequence)).astype(np.int64)
