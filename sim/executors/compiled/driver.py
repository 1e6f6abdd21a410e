"""Serve the event loop with steps, durations and space for rows; then make the event log of the rows that it wrote."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.base.kernel import compile_kernel, kernel
from sim.base.errors import SimulationError
from sim.log.tables import EventLog, ServiceTable, StepTable, TaskTable
from sim.executors.compiled.build import MemoryPlan, Words, requesters
from sim.executors.compiled.costs import costs_of
from sim.executors.compiled.forms import Forms, kv_lists
from sim.executors.compiled.heaps import push
from sim.executors.compiled.loop import advance
from sim.executors.compiled.rules import Disciplines
from sim.executors.compiled.state import (
    COST, C_COMPUTE, C_END, C_ENGINE, C_LAUNCHED, C_LOADED, C_READY, C_START, C_WORK, DONE, I_CHANNEL, I_END, I_START, I_TASK,
    I_WORK, KV, LAYERS, LOG_FIELDS, LOOP_TABLE, LOOP_WORDS, L_BASE, L_CELLS_OF, L_COST, L_COST_FIRST, L_COST_LANES,
    L_COST_ROWS, L_FIRST, L_FIRST_END, L_FORM, L_FRONTIER, L_KEY, L_MISSING, L_NODES, L_NUMBER, L_OPERANDS, L_OPERANDS_END,
    L_ROW, L_SLOT, L_STEP, L_TASKS, L_TOKEN, L_TOKENS, NONE, NOW, OUT_OF_RANGE, SERVICES, SERVICE_FIELDS, SLOT_WORDS,
    TURN, TURN_LIST, WAKES, WANTS_COSTS, WANTS_GRANTS,
)  # fmt: skip
from sim.executors.setup import Progress, Setup
from models.graph import StepLanes

INSTANTS = 1 << 20  # between reports of progress, with a chance for Ctrl-C: about a tenth of a second
COSTED = 1 << 17  # rows of durations in memory at once, of all sequences together, about
MANY_IN_ONE = 1 << 10  # rows of one instant that one passes as they are sorted: beyond it, another way is faster
PART = 1 << 18  # tasks that a sink takes at a time, about: few enough that their columns stay in the processor's cache

#: Takes a part of a log: consecutive steps, whose rows begin at 0. Its arrays are used again when it returns.
Sink = Callable[[EventLog], None]


class OutOfRangeError(Exception):
    """A number exceeds 62 bits; the reference executor has no such limit."""


class Run(ABC):
    """Base of `Sequences` and `Batches`: the memory of a run, and the calls of the event loop.

    m, log and `service`: see `sim.executors.compiled.state`. sink: takes the log in parts, None to keep it whole.
    """

    m: Words
    log: Words
    service: Words

    def __init__(self, setup: Setup, disciplines: Disciplines, progress: Progress | None, sink: Sink | None) -> None:
        self.setup, self.disciplines, self.progress, self.sink = setup, disciplines, progress, sink
        self.forms = Forms(setup, disciplines)
        self.reported = 0  # output tokens

    def execute(self) -> None:
        """Run to the end. Raises SimulationError if it ends with work left, OutOfRangeError."""
        go = compile_kernel(advance)
        while (status := go(self.m, self.forms.pool, self.log, self.service, INSTANTS, NONE)) != DONE:
            self.serve(status)
            self.report()
        self.report()
        self.verify()

    def serve(self, status: int) -> None:
        """Serve a request of the event loop: a status that it returned."""
        if status == WANTS_GRANTS:
            rows = int(self.m[SERVICES])
            self.service = widened(self.service, rows, 3 * rows + self.setup.channels * requesters(self.setup))
        elif status == OUT_OF_RANGE:
            raise OutOfRangeError

    def report(self) -> None:
        """Report progress: the output tokens since the last report, and the time."""
        if self.progress is None:
            return
        done = self.tokens()
        if done > self.reported:
            self.progress(done - self.reported, int(self.m[NOW]))
            self.reported = done

    @abstractmethod
    def tokens(self) -> int:
        """Output tokens so far."""

    @abstractmethod
    def verify(self) -> None:
        """Raise SimulationError if there is work left."""

    # For a run that is a span of another

    @abstractmethod
    def last(self) -> int:
        """The end of its last step, ps."""

    @abstractmethod
    def own_rows(self) -> slice:
        """Its own rows in the log of all spans."""

    def move(self, by: int) -> None:
        """Delay everything by so many ps."""
        rows = self.own_rows()
        for column in (C_READY, C_START, C_LOADED, C_END):
            self.log[column, rows] += by
        self.service[I_START : I_END + 1, : int(self.m[SERVICES])] += by

    def wake(self, loop: int, time: int) -> None:
        """Schedule a loop to go on at a time."""
        push(self.m, int(self.m[WAKES]), time, loop, 0)

    def services(self) -> ServiceTable:
        """Service intervals in order of their ends, and at one time in order of channels."""
        count = int(self.m[SERVICES])
        table = in_order(self.service, count) if self.setup.channels > 1 else self.service[:, :count]
        return ServiceTable(
            task=table[I_TASK], channel=table[I_CHANNEL].astype(np.int16), start=table[I_START], end=table[I_END],
            work=table[I_WORK],
        )  # fmt: skip

    def reorder(self, rows: Sequence[Words]) -> None:
        """Put rows into another order, and number the tasks of service intervals accordingly.

        rows: all that were used, in pieces.
        """
        source = np.concatenate(rows)
        self.log = np.take(self.log, source, axis=1)  # row-major, where an index of columns would give column-major
        target = np.empty(int(source.max(initial=-1)) + 1, dtype=np.int64)
        target[source] = np.arange(len(source))
        tasks = self.service[I_TASK, : int(self.m[SERVICES])]
        tasks[:] = target[tasks]

    def tasks(self, step: npt.NDArray[np.int32], task: npt.NDArray[np.int32]) -> TaskTable:
        """The task table of all rows, in their order."""
        log = self.log[:, : len(step)]
        return TaskTable(
            step=step, task=task, engine=log[C_ENGINE].astype(np.int16), ready=log[C_READY], start=log[C_START],
            loaded=log[C_LOADED], end=log[C_END], compute=log[C_COMPUTE], work=log[C_WORK], launched=log[C_LAUNCHED],
        )  # fmt: skip


def in_order(table: Words, count: int) -> Words:
    """The first rows of a table of service intervals [field, row], so many, by end, then channel; equal ones as they are.

    Intervals are recorded as they end, so that only those of one instant are not in order yet: they are sorted in place.
    """
    if compile_kernel(sort_instants)(table, count):
        return table[:, :count]
    return np.take(table, np.lexsort((table[I_CHANNEL, :count], table[I_END, :count])), axis=1)


@kernel
def sort_instants(table: Words, count: int) -> bool:
    """Sort the rows of each instant by channel, by insertion; False if ends are not in order, or an instant has very many."""
    for i in range(1, count):
        end, channel, j = table[I_END, i], table[I_CHANNEL, i], i
        if end < table[I_END, i - 1]:
            return False
        while j > 0 and i - j < MANY_IN_ONE and table[I_END, j - 1] == end and table[I_CHANNEL, j - 1] > channel:
            j -= 1
        if i - j == MANY_IN_ONE:
            return False
        if j < i:
            for field in range(SERVICE_FIELDS):
                moved = table[field, i]
                for k in range(i, j, -1):
                    table[field, k] = table[field, k - 1]
                table[field, j] = moved
    return True


def widened(table: Words, used: int, wanted: int) -> Words:
    """A table [field, row] with so many rows, of which the first are kept."""
    grown = np.empty((table.shape[0], wanted), dtype=np.int64)
    grown[:, :used] = table[:, :used]
    return grown


def intervals(setup: Setup, tasks: int, ports: int) -> int:
    """Service intervals to have space for at first: those of so many tasks, if each is a transfer that is served in one piece.

    On all channels that one may go to, and one for each port at each channel. Pages that are never written take no memory.
    """
    return tasks * max(setup.memory_channels_each, *map(len, setup.machine.paths), 1) + setup.channels * ports


class Span(NamedTuple):
    """A span of steps of the only sequence of a run, simulated from time 0. log: that of all steps."""

    tokens: range
    log: Words


class Stretch(NamedTuple):
    """Consecutive steps of a loop whose rows are in memory. loop: its number. row: the first of the rows."""

    loop: int
    token: int
    steps: int
    row: int

    def after(self, size: int) -> int:
        """The row after them. size: tasks of a step."""
        return self.row + self.steps * size

    def tokens(self) -> Words:
        return np.arange(self.token, self.token + self.steps)


class Sequences(Run):
    """Steps that are one sequence each, which decodes one token; sampled or known."""

    def __init__(
        self, setup: Setup, disciplines: Disciplines, progress: Progress | None, sink: Sink | None, span: Span | None = None
    ) -> None:  # fmt: skip
        super().__init__(setup, disciplines, progress, sink)
        self.span = span
        self.costs = costs_of(setup, setup.graph)
        self.form = self.forms.add(setup.graph, self.costs.row_of)
        self.count = np.array([request.tokens for request in setup.sequences], dtype=np.int64)
        self.begin, self.total = np.cumsum(self.count) - self.count, int(self.count.sum())
        self.known = setup.dependency == "known"
        lanes = max(1, COSTED // (self.costs.rows * len(self.count)))
        self.in_parts = sink is not None and not self.known
        if self.in_parts:
            lanes = max(1, min(lanes, PART // self.form.size))
        self.lanes = self.count if self.known else np.minimum(self.count, lanes)
        self.stretches: list[Stretch] = []  # in parts: those whose rows are in memory
        plan = self._lay_out_memory()
        self._lay_out_rows(ports=plan.ports)
        self._start_loops()

    def _lay_out_memory(self) -> MemoryPlan:
        """After the registers, channels and heaps of every run, in this order.

        Slots and cells: of each step if all may be in progress at once, else of each loop. Release and end of each step.
        Durations: of as many steps of each loop as are costed at a time. The KV order of known tokens. The table of loops has
        its place among the registers' areas.
        """
        loops, steps, first = len(self.count), self.total, self.begin
        slots = steps if self.known else loops
        plan = MemoryPlan(self.setup, self.disciplines, loops=loops, cells=slots * self.form.nodes)
        layout = plan.layout
        slot, cell = layout.take(slots * SLOT_WORDS), layout.take(slots * self.form.nodes * plan.cell)
        self.steps, costs = layout.take(2 * steps), layout.take(int(self.lanes.sum()) * self.costs.rows * COST)
        place = first if self.known else np.arange(loops)
        table = self._loop_table(first)
        table[L_BASE], table[L_SLOT] = cell + place * self.form.nodes * plan.cell, slot + place * SLOT_WORDS
        table[L_COST] = costs + (np.cumsum(self.lanes) - self.lanes) * self.costs.rows * COST
        if self.known:
            self._lay_out_kv_order(plan, table, first)
        self.table = plan.registers[LOOP_TABLE]
        layout.put(self.table, table.T.ravel())
        self.m = plan.memory()
        return plan

    def _loop_table(self, first: Words) -> Words:
        """The table of loops [word, loop], but for addresses of slots, cells and durations. first: [loop], its first step."""
        table = np.zeros((len(self.count), LOOP_WORDS), dtype=np.int64).T
        table[L_NUMBER], table[L_TOKENS], table[L_KEY] = np.arange(len(self.count)), self.count, first
        table[L_FORM], table[L_TASKS], table[L_NODES] = self.form.at, self.form.size, self.form.nodes
        table[L_FIRST], table[L_FIRST_END] = self.form.first, self.form.first_end
        table[L_OPERANDS], table[L_OPERANDS_END] = self.form.operands, self.form.operands_end
        table[L_ROW], table[L_STEP] = first * self.form.size, self.steps + 2 * first
        table[L_CELLS_OF], table[L_COST_ROWS] = NONE, self.costs.rows
        return table

    def _lay_out_rows(self, *, ports: int) -> None:
        """Rows of the log: of all steps, or of as many as are costed at a time if a sink takes them; of a span, its part.

        In parts this table grows while loops overlap. Service intervals: see `intervals`; the table grows.
        """
        steps = int(self.lanes.sum()) if self.in_parts else self.total
        if self.span is not None:
            steps, self.log = len(self.span.tokens), self.span.log
        else:
            self.log = np.empty((LOG_FIELDS, steps * self.form.size), dtype=np.int64)
        self.service = np.empty((SERVICE_FIELDS, intervals(self.setup, steps * self.form.size, ports)), dtype=np.int64)

    def _start_loops(self) -> None:
        """Wake each loop when its request arrives; a span begins at 0, with its own tokens."""
        if self.span is not None:
            self.m[self.table + L_TOKEN], self.m[self.table + L_TOKENS] = self.span.tokens.start, self.span.tokens.stop
        for number, request in enumerate(self.setup.sequences):
            self.wake(self.table + number * LOOP_WORDS, request.arrival if self.span is None else 0)

    def _lay_out_kv_order(self, plan: MemoryPlan, table: Words, first: Words) -> None:
        """The order that the KV cache imposes on known tokens: stores that are missing, tokens that have stored, loads."""
        layout, graph, loops = plan.layout, self.setup.graph, len(self.count)
        stores = [len(graph.kv_stores[layer]) for layer in sorted(graph.kv_stores)]
        missing = layout.take(self.total * len(stores), np.tile(stores, self.total))
        table[L_MISSING] = missing + first * len(stores)
        table[L_FRONTIER] = layout.take(loops * len(stores)) + np.arange(loops) * len(stores)
        lists = kv_lists(graph, layout.words)
        plan.registers |= {LAYERS: len(stores), KV: layout.take(len(lists), lists)}

    def serve(self, status: int) -> None:
        if status == WANTS_COSTS:
            self._cost(int(self.m[self.m[TURN_LIST] + self.m[TURN]]))
        else:
            super().serve(status)

    def _cost(self, loop: int) -> None:
        """Durations of the next steps of a sequence, whose steps before have ended; in parts, also rows."""
        first, number = int(self.m[loop + L_TOKEN]), int(self.m[loop + L_NUMBER])
        count = min(int(self.lanes[number]), int(self.count[number]) - first)
        if self.in_parts:
            self.m[loop + L_ROW] = self._rows_for(number, first, count) - first * self.form.size
        token = np.arange(first, first + count, dtype=np.int64)
        lanes = StepLanes(
            sequence=np.full_like(token, number), token=token, context=self.setup.sequences[number].context + token
        )  # fmt: skip
        at, words = int(self.m[loop + L_COST]), count * self.costs.rows * COST
        self.costs.fill(self.m[at : at + words].reshape(count, self.costs.rows, COST), lanes)
        self.m[loop + L_COST_FIRST] = first
        self.m[loop + L_COST_LANES] = count

    def last(self) -> int:
        return int(self._own_ends()[1, -1])

    def own_rows(self) -> slice:
        assert self.span is not None
        return slice(self.span.tokens.start * self.form.size, self.span.tokens.stop * self.form.size)

    def move(self, by: int) -> None:
        super().move(by)
        self._own_ends()[:] += by

    def append(self, later: Sequences) -> None:
        """Append the steps of the span after it."""
        assert later.span is not None
        self.ends()[:, later.span.tokens.start : later.span.tokens.stop] = later._own_ends()

    def _own_ends(self) -> Words:
        """Release and end of each step of its span, [2, step]; a view."""
        assert self.span is not None
        return self.ends()[:, self.span.tokens.start : self.span.tokens.stop]

    def _loops(self) -> Words:
        return self.m[self.table : self.table + len(self.count) * LOOP_WORDS].reshape(-1, LOOP_WORDS).T

    def ends(self) -> Words:
        """Release and end of each step, [2, step]; a view."""
        return self.m[self.steps : self.steps + 2 * self.total].reshape(-1, 2).T

    def tokens(self) -> int:
        if self.known:
            return int((self.ends()[1] > 0).sum())
        token = self._loops()[L_TOKEN]
        last = self.steps + 2 * (self.begin + np.maximum(token - 1, 0)) + 1
        return int(token.sum()) - int(((token > 0) & (self.m[last] == 0)).sum())

    def verify(self) -> None:
        ends = self.ends()[1]
        if (ends if self.span is None else ends[self.span.tokens.start : self.span.tokens.stop]).min() == 0:
            raise SimulationError("the simulation ended with work left")

    def _rows_for(self, number: int, first: int, count: int) -> int:
        """The first of free rows for steps of a loop. The sink takes all before if no step is in progress."""
        size = self.form.size
        row = self.stretches[-1].after(size) if self.stretches else 0
        if row + count * size > PART and not self._others_run(number):
            self._give()
            row = 0
        self.stretches.append(Stretch(number, first, count, row))
        after = self.stretches[-1].after(size)
        if after > self.log.shape[1]:
            self.log = widened(self.log, row, 2 * after)
        return row

    def _others_run(self, number: int) -> bool:
        """Whether a loop other than this one has begun and has not ended."""
        begun = {each.loop for each in self.stretches} - {number}
        last = self.begin + self.count - 1
        return any(self.ends()[1, last[each]] == 0 for each in begun)

    def _give(self) -> None:
        """Pass to the sink the steps that have ended since; their rows are free then."""
        assert self.sink is not None
        size, begin = self.form.size, self.begin
        stretches = sorted(self.stretches)
        if stretches != self.stretches:
            self.reorder([np.arange(each.row, each.after(size)) for each in stretches])
        if stretches:
            self.sink(self._part(np.concatenate([begin[each.loop] + each.tokens() for each in stretches]), rows=True))
        self.stretches, self.m[SERVICES] = [], 0

    def event_log(self) -> EventLog:
        """The event log, whose columns are the arrays themselves; without rows if a sink took them."""
        every = slice(0, self.total)
        if self.in_parts:
            self._give()
            return self._part(every, rows=False)
        log = self._part(every, rows=True)
        if self.sink is None:
            return log
        self.sink(log)
        return replace(log, tasks=TaskTable.empty(), services=ServiceTable.empty())

    def _part(self, steps: slice | Words, *, rows: bool) -> EventLog:
        """The log of some steps, whose rows begin at 0, with rows or without."""
        size, requests = self.form.size, self.setup.sequences
        sequence = np.repeat(np.arange(len(requests), dtype=np.int32), self.count)
        token = np.arange(len(sequence), dtype=np.int64) - np.repeat(self.begin, self.count)
        context = np.repeat(np.array([request.context for request in requests], dtype=np.int64), self.count) + token
        released, end = self.ends()[:, steps].copy()
        count = len(end)
        number, task = np.arange(count, dtype=np.int32), np.arange(size, dtype=np.int32)
        return EventLog(
            graphs=(self.setup.graph,),
            tasks=self.tasks(np.repeat(number, size), np.tile(task, count)) if rows else TaskTable.empty(),
            services=self.services() if rows else ServiceTable.empty(),
            steps=StepTable(
                sequence=sequence[steps], token=token[steps].astype(np.int32), context=context[steps],
                graph=np.zeros(count, dtype=np.int32), first=np.arange(count, dtype=np.int64) * size, released=released,
                end=end,
            ),
            machine=self.setup.machine, bandwidth=self.setup.bandwidth, sram=self.setup.sram,
            arrival=np.array([request.arrival for request in requests], dtype=np.int64),
        )  # fmt: skip
