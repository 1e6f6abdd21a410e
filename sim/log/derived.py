"""Columns that follow from the tables of a log: one definition of each, for all that analyze or show it.

Each function takes a log and returns one column or several, with an entry per row of the task table unless it says otherwise.
A column is computed when it is first asked for and kept with the log, so callers must not write to it. No function keeps
Python objects per task; the widest scratch space is a block of `BLOCK` steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from models.graph import QUANTITIES, IntArray
from sim.base.kernel import launch
from sim.log.columns import NONE, FormTable, forms_of, is_large, steps_of, tasks_of, viewed
from sim.log.inputs import last_inputs, mark_chains, stores_before
from sim.mapping.tasks import TaskGraph

if TYPE_CHECKING:  # the log offers what is derived from it
    from sim.log.tables import EventLog

Rows = npt.NDArray[np.int64]
Times = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
T = TypeVar("T")

BLOCK = 64  # steps costed at once: a matrix [quantity, op, step] of a large graph then stays within the cache
FLOPS = QUANTITIES.index("flops")
NEVER = np.iinfo(np.int64).max


def _kept(column: Callable[[EventLog], T]) -> Callable[[EventLog], T]:
    """Compute a column once for each log."""

    @wraps(column)
    def kept(log: EventLog) -> T:
        if column.__name__ not in log.made:
            log.made[column.__name__] = column(log)
        found: T = log.made[column.__name__]
        return found

    return kept


# Facts about the task of a row, whatever its step


@_kept
def forms(log: EventLog) -> FormTable:
    """All tasks of all graphs in one table [form]; `form` gives the entry of a row."""
    return forms_of(log)


@_kept
def form(log: EventLog) -> npt.NDArray[np.int32]:
    """Entry in the table of forms."""
    first = forms(log).columns.first.astype(np.int32)
    return np.asarray(first[log.steps.graph[log.tasks.step]] + log.tasks.task, dtype=np.int32)


@_kept
def kind(log: EventLog) -> npt.NDArray[np.int16 | np.int32]:
    """Kind of task, as an index into `forms(log).kinds`."""
    of_group = np.array(
        [number for number, _ in forms(log).groups], dtype=np.int16 if len(forms(log).kinds) < 1 << 15 else np.int32
    )
    return np.asarray(of_group[forms(log).columns.group][form(log)])


@_kept
def layer(log: EventLog) -> npt.NDArray[np.int16]:
    """Decoder layer, -1 outside of layers."""
    of_group = np.array([layer for _, layer in forms(log).groups], dtype=np.int16)
    return np.asarray(of_group[forms(log).columns.group][form(log)])


@_kept
def device(log: EventLog) -> npt.NDArray[np.int32]:
    """Number of the device on which the task runs."""
    return np.asarray(forms(log).columns.device[form(log)])


def drafts(log: EventLog) -> Mask:
    """[step]: whether it is one of a draft model."""
    return np.isin(log.steps.graph, [number for number, graph in enumerate(log.graphs) if graph.draft])


def between_tiers(log: EventLog) -> Mask:
    """[step]: whether it moves blocks and caches to a tier because they are cold, or blocks back from one."""
    moving = [any(kind.endswith(("_spill", "_fetch")) for kind in graph.kinds) for graph in log.graphs]
    return np.isin(log.steps.graph, np.flatnonzero(moving))


@_kept
def prefills(log: EventLog) -> Mask:
    """Whether a step feeds in a part of a prompt, tokens without logits [step]; a draft has logits."""
    steps = log.members.step[log.members.query > log.members.logits]
    return np.asarray(np.bincount(steps, minlength=len(log.steps)) > 0)


# Amounts


def cost_blocks(log: EventLog) -> Iterator[tuple[TaskGraph, Rows, IntArray]]:
    """Blocks of steps of one graph each: the graph, the steps, and their costs [quantity, op, step of the block]."""
    for number, graph in enumerate(log.graphs):
        steps = np.flatnonzero(log.steps.graph == number)
        for start in range(0, len(steps), BLOCK):
            block = steps[start : start + BLOCK]
            yield graph, block, graph.ops.costs_of(log.lanes(block))


@_kept
def _amounts(log: EventLog) -> tuple[Rows, Rows]:
    """FLOPs, and bytes moved."""
    flops, moved = np.zeros((2, len(log.tasks)), dtype=np.int64)
    for graph, steps, costs in cost_blocks(log):
        first = log.steps.first[steps]  # [step]
        computing, moving = np.flatnonzero(graph.computes), np.flatnonzero(graph.moves)
        flops[first + computing[:, None]] = graph.share(costs[FLOPS], computing)  # [task, step]
        moved[first + moving[:, None]] = graph.bytes_moved(costs, moving)
    return flops, moved


def flops(log: EventLog) -> Rows:
    """Floating-point operations."""
    return _amounts(log)[0]


def bytes_moved(log: EventLog) -> Rows:
    """Bytes through the channels, links included."""
    return _amounts(log)[1]


def path_bytes(log: EventLog, path: int) -> Rows:
    """Bytes through one of `sim.machine.machine.PATHS`, 0 for tasks that move theirs through another."""
    link, moved = tasks_of(log).link, bytes_moved(log)
    if not len(link):
        return moved if path == 0 else np.zeros_like(moved)
    return np.asarray(np.where(link == path, moved, 0))


# Service by the channels


class Service(NamedTuple):
    """Transfers. moves: the task has one. first: ps, when a channel first served it; last: ps, when its last byte arrived; both
    equal `start` if it has none. channel: the one that served it last, or the first link of a path of several.
    """

    moves: Mask
    first: Times
    last: Times
    channel: npt.NDArray[np.int16]


@_kept
def issued(log: EventLog) -> Times:
    """When the transfer of each task was issued, ps: at its start, or once an engine had launched it."""
    return np.asarray(log.tasks.start + log.tasks.launched)


@_kept
def service(log: EventLog) -> Service:
    """When and where each transfer was served."""
    tasks, services = log.tasks, log.services
    moves = tasks.work > 0
    last = np.where(moves, np.where(tasks.engine >= 0, tasks.loaded, tasks.end), tasks.start)
    begin = np.full(len(tasks), NEVER)
    np.minimum.at(begin, services.task, services.start)
    served = moves & (begin != NEVER)
    # At least 1 ps is left for the service itself, also where a transfer ended as it was issued.
    first = np.where(served, np.maximum(np.minimum(begin, last - 1), issued(log)), tasks.start)
    channel = np.zeros(len(tasks), dtype=np.int16)
    channel[services.task] = services.channel
    if log.machine.paths:
        out = first_links(log)
        channel = np.where(served & (out >= 0), out, channel)
    return Service(moves, first, last, channel)


# Causes of waiting


def links_crossed(log: EventLog) -> npt.NDArray[np.int16] | int:
    """How many channels the transfer of a task crosses at once, on each of which it moves all of its bytes."""
    return _of_transfers(log, lambda path: len(path) or 1) if log.machine.paths else 1


def first_links(log: EventLog) -> npt.NDArray[np.int16]:
    """[row]: the first channel that the transfer of a task crosses of several at once, -1 if it crosses one."""
    return _of_transfers(log, lambda path: path[0] if path else NONE)


def _of_transfers(log: EventLog, of_path: Callable[[tuple[int, ...]], int]) -> npt.NDArray[np.int16]:
    """[row]: a number of the path that the transfer of a task crosses; of an empty one if it has none."""
    crossed = log.machine.crossed
    of_graph = [
        np.array([of_path(crossed(*ends)) for ends in zip(graph.device.tolist(), graph.to.tolist(), strict=True)], np.int16)
        for graph in log.graphs
    ]
    return np.concatenate([np.zeros(0, np.int16), *(of_graph[number] for number in log.steps.graph.tolist())])


@_kept
def previous_on_engine(log: EventLog) -> Rows:
    """Row of the task that the engine ran before, -1 if it is the first there or no engine ran it."""
    engine = log.tasks.engine
    rows = np.flatnonzero(engine >= 0)
    return _previous(len(engine), rows[np.lexsort((log.tasks.start[rows], engine[rows]))], engine)


@_kept
def previous_on_channel(log: EventLog) -> Rows:
    """Row of the transfer that the channel began to serve before, -1 if it is the first there or the task moves nothing."""
    of = service(log)
    rows = np.flatnonzero(of.moves)
    return _previous(len(of.moves), rows[np.lexsort((of.first[rows], of.channel[rows]))], of.channel)


def _previous(count: int, order: Rows, resource: npt.NDArray[np.integer]) -> Rows:
    """For each row the one before it in the order given, if both are of one resource; -1 otherwise."""
    before = np.full(count, NONE, dtype=np.int64)
    same = resource[order[1:]] == resource[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    return before


@_kept
def last_stores(log: EventLog) -> Rows:
    """[step, layer]: see `sim.log.inputs.stores_before`."""
    return stores_before(log, forms(log), compiled=is_large(log))


@_kept
def last_input(log: EventLog) -> Rows:
    """Row of the input that ended last, -1 if the task has none: see `sim.log.inputs.last_input`."""
    compiled, source = is_large(log), np.full(len(log.tasks), NONE, dtype=np.int64)
    launch(last_inputs, compiled=compiled)(*_dependencies(log, compiled=compiled), source)
    return source


def _dependencies(log: EventLog, *, compiled: bool) -> tuple[Any, Any, Any, Any]:
    """Steps, forms, ends and stores, as the kernels of `sim.log.inputs` take them."""
    steps, columns = viewed(steps_of(log), compiled=compiled), viewed(forms(log).columns, compiled=compiled)
    return steps, columns, tasks_of(log).end, last_stores(log)


class Chains(NamedTuple):
    """Tasks that decided when their step ended, each the last input of the next, in order of row: so by step, and in time.

    step, row: of the tables. begin: ps, the end of the task before, or the release of the step. cause: row of the task of
    another step that the task waited for in [begin, ready), -1 if there is none or the log does not hold it.
    """

    step: Rows
    row: Rows
    begin: Times
    cause: Rows

    def of(self, steps: Rows) -> Chains:
        """Chains of some steps, ascending."""
        first, after = np.searchsorted(self.step, steps), np.searchsorted(self.step, steps, side="right")
        count = after - first
        chosen = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(int(count.sum()))
        return Chains(*(column[chosen] for column in self))


@_kept
def chains(log: EventLog) -> Chains:
    """The chain of each step. `sim.analysis.breakdown` splits the time of a token along the same one."""
    tasks, compiled = log.tasks, is_large(log)
    on_chain, awaited = np.zeros(len(tasks), dtype=np.int8), np.full(len(log.steps), NONE, dtype=np.int64)
    launch(mark_chains, compiled=compiled)(*_dependencies(log, compiled=compiled), on_chain, awaited)
    row = np.flatnonzero(on_chain)
    step = tasks.step[row].astype(np.int64)
    head = np.append(True, step[1:] != step[:-1])[: len(step)]
    begin = np.append(0, tasks.end[row[:-1]])[: len(row)]
    begin[head] = np.minimum(log.steps.released[step[head]], tasks.ready[row[head]])
    # A log of some steps may lack the store that ended last: then one that it holds ended too early to be the cause.
    source = np.where(head, awaited[step], NONE)
    return Chains(step, row, begin, np.where((source != NONE) & (tasks.end[source] == tasks.ready[row]), source, NONE))
