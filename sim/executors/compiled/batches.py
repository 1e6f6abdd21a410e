"""Batched runs: the event loop stops for a step that a batcher makes up, and goes on with the graph of its shape.

Steps in which the same members decode on need no batcher: their durations are worked out with those of the first, and the event
loop goes through them by itself until a request arrives.
"""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from sim.base.kernel import compile_kernel
from sim.mapping.steps import Shape
from sim.base.errors import InputError, SimulationError
from sim.log.tables import EventLog, ServiceTable, MemberTable, StepTable, TaskTable
from sim.executors.compiled.build import MemoryPlan, Words, ring_size
from sim.executors.compiled.costs import Costs, costs_of
from sim.executors.compiled.driver import INSTANTS, PART, Run, Sink, intervals, widened
from sim.executors.compiled.forms import Form
from sim.executors.compiled.heaps import ENTRY
from sim.executors.compiled.loop import advance
from sim.executors.compiled.rules import Disciplines
from sim.executors.compiled.state import (
    CHANNEL_TABLE, CHANNEL_WORDS, COST, DONE, K_ARRIVALS, K_ARRIVED, K_HEADS, K_NEW, K_RING, K_RING_HEAD, K_RING_SIZE,
    K_RING_TAIL, LOG_FIELDS, LOOP_TABLE, LOOP_WORDS, L_BATCHED, L_CELLS_OF, L_NUMBER, L_SLOT, NEVER, NONE, NOW, READY,
    READY_WORDS, RING_ENTRY, SERVICES, SERVICE_FIELDS, SLOT_WORDS, S_AHEAD, S_BASE, S_COST, S_FIRST, S_FIRST_END, S_FORM, S_KEY,
    S_LOOP, S_MEMBERS, S_NEXT, S_NODES, S_OPERANDS, S_OPERANDS_END, S_OWNER, S_QUEUE, S_ROW, S_STEP, S_TASKS, S_TOKEN, S_UNTIL,
    TIMES, TURN, TURNS, TURN_LIST, WAKES, WANTS_STEP,
)  # fmt: skip
from sim.executors.size import tasks_in_all
from sim.executors.setup import Progress, Setup, lanes_of
from models.experts import M_SEQUENCE
from sim.serving.batch import ONE_MORE, Batch, Member
from sim.serving.batcher import Batcher
from sim.serving.loops import loops
from sim.serving.queue import queue_times
from sim.serving.cache import in_all
from sim.mapping.tasks import TaskGraph

LOOP_BITS = 40  # the key of a step is (loop << 40) + step: 10^12 steps, 4 million loops
FIRST_ROWS = 1 << 16
MOST_AT_FIRST = 1 << 26  # rows; 6 GB of addresses
MEMBER_FIELDS = len(Member._fields)
LEAST_AHEAD, MOST_AHEAD = 4, 32  # steps that are worked out at once, where members decode on
AHEAD = 1 << 17  # their durations

# Fields of a step that has ended. E_GRAPH: number of its graph. E_ROW: the first row of its tasks
E_LOOP, E_TOKEN, E_CONTEXT, E_GRAPH, E_ROW, E_RELEASED, E_END = range(7)
ENDED_FIELDS = 7


class Entry(NamedTuple):
    """A task graph in the pool, its number among those of the run, and its costs."""

    number: int
    form: Form
    costs: Costs


class Area:
    """Memory of a loop that grows: its address, and its capacity in items."""

    __slots__ = ("at", "capacity")

    def __init__(self) -> None:
        self.at = self.capacity = 0


class Loop:
    """A loop of batched steps. slot: the address of its step. batch: the one in progress, None between steps. coming: the next
    one while the host prepares it.

    The step may be the first of several in which its members decode on; token, row: of this first one. steps: how many they are
    at most. ahead: how many the next are. shape: of its last step. entry: of the graph for this shape. listens: it has
    nothing to do, and looks again when a step of another loop has ended. wakes: when it goes on by itself, None if it does not.
    """

    entry: Entry

    def __init__(self, number: int, batcher: Batcher) -> None:
        self.number, self.batcher = number, batcher
        self.slot = self.token = self.row = 0
        self.ahead, self.steps = LEAST_AHEAD, 0
        self.listens = False
        self.wakes: int | None = None
        self.batch: Batch | None = None
        self.coming: Batch | None = None
        self.shape: Shape | None = None
        self.cells, self.costs, self.members, self.times = Area(), Area(), Area(), Area()


class Part(NamedTuple):
    """A span of steps of the only loop of a run, simulated from time 0.

    batcher: returns these steps. token: number of the first. row, rows: the first row of its tasks in the log of all steps, and
    the number of rows. log: that of all steps.
    """

    batcher: Batcher
    token: int
    row: int
    rows: int
    log: Words


class Batches(Run):
    """Loops of batched steps."""

    def __init__(
        self, setup: Setup, disciplines: Disciplines, progress: Progress | None, sink: Sink | None, part: Part | None = None
    ) -> None:  # fmt: skip
        super().__init__(setup, disciplines, progress, sink)
        assert setup.batching is not None
        if part is None:
            batchers = loops(setup.batching, setup.sequences, concurrency=setup.concurrency, think=setup.think)
        else:
            batchers = [part.batcher]
        self.loops = [Loop(number, batcher) for number, batcher in enumerate(batchers)]
        self.first_loop = setup.batching.first_loop
        self.in_parts = sink is not None and len(batchers) == 1
        self.kept = array("q")  # [step, field] of those that have ended
        self.counts, self.member_rows = array("q"), array("q")  # members of each step, and their columns one after another
        self.given = self.given_members = 0  # steps that the sink has taken, and their members
        self.graphs: list[TaskGraph] = []  # by number
        self.entries: dict[int, Entry] = {}  # of each, by id
        self.done = 0  # output tokens
        self.woken: list[int] = []  # loops that take another turn in this instant, after those whose turn it is
        self.woken_at, self.woken_from = NONE, 0  # that instant, and the place of the first in the list of turns
        plan = self._lay_out_memory()
        self._lay_out_rows(part, ports=plan.ports)
        self._start_loops()

    def _lay_out_memory(self) -> MemoryPlan:
        """After the registers, channels and heaps of every run a slot for each loop.

        Cells, durations and members of a loop come behind them, as its steps need them: `_reserve` moves what is too small to
        the end, and the lists that may hold every cell with it.
        """
        plan = MemoryPlan(self.setup, self.disciplines, loops=len(self.loops), cells=1)
        self.cells, self.cell_words = 1, plan.cell  # how many the lists have a place for, and words of one
        for loop in self.loops:
            loop.slot = plan.layout.take(SLOT_WORDS)
        self.m, self.table = plan.memory(), plan.registers[LOOP_TABLE]
        self.used = len(self.m)  # words
        return plan

    def _lay_out_rows(self, part: Part | None, *, ports: int) -> None:
        """Rows of the log: those of a part, or at first about as many as the run will take; and of service intervals."""
        if part is not None:
            self.log, rows, self.rows, self.loops[0].token = part.log, part.rows, part.row, part.token
        else:
            # Capacity for three times the least rows: pages that are never written take no memory, and copies take time. In
            # parts, for one that is nearly full, and for the steps of a batch behind it.
            least, most = tasks_in_all(self.setup)
            rows, self.rows = 2 * PART if self.in_parts else min(min(3 * least, most) + FIRST_ROWS, MOST_AT_FIRST), 0
            self.log = np.empty((LOG_FIELDS, rows), dtype=np.int64)
        self.service = np.empty((SERVICE_FIELDS, intervals(self.setup, rows, ports)), dtype=np.int64)

    def _start_loops(self) -> None:
        """Wake all loops at once: their batchers know when requests come."""
        for loop in self.loops:
            place = self.table + loop.number * LOOP_WORDS
            self.m[place + L_NUMBER], self.m[place + L_BATCHED], self.m[place + L_SLOT] = loop.number, 1, loop.slot
            self._wake(loop, 0)

    def execute(self) -> None:
        go, slot = compile_kernel(advance), NONE
        while (status := go(self.m, self.forms.pool, self.log, self.service, INSTANTS, slot)) != DONE:
            slot = NONE
            if status == WANTS_STEP:
                slot = self._turn()
                if slot == NONE:
                    self.m[TURN] += 1
            else:
                self.serve(status)
        self.verify()

    def _turn(self) -> int:
        """End the step of the loop whose turn it is, and make up the next; returns its slot, NONE if there is none now."""
        now = int(self.m[NOW])
        loop = self.loops[(int(self.m[self.m[TURN_LIST] + self.m[TURN]]) - self.table) // LOOP_WORDS]
        loop.listens, loop.wakes = False, None
        if loop.batch is not None:
            self._end(loop, loop.batch, now)
            self._tell(now)
        batch, prepared = (loop.batcher.next(now), False) if loop.coming is None else (loop.coming, True)
        loop.coming = None
        if not prepared and loop.batcher.queued:
            self._tell(now)
        if batch is not None and self.setup.step_overhead and not prepared:
            loop.coming = batch
            self._wake(loop, now + self.setup.step_overhead)
            return NONE
        if batch is not None:
            if self.in_parts and self.rows >= PART:  # the last part is left for the end
                self._give()
            self._begin(loop, batch)
            return loop.slot
        arrival = loop.batcher.next_arrival
        if arrival is not None and arrival <= now:
            raise SimulationError(f"{len(loop.batcher.waiting)} requests wait and none can be served")
        if arrival is not None:
            self._wake(loop, arrival)
        loop.listens = loop.batcher.listens
        return NONE

    def _wake(self, loop: Loop, time: int) -> None:
        """Have a loop go on at a time."""
        loop.wakes = time
        self.wake(self.table + loop.number * LOOP_WORDS, time)

    def _tell(self, now: int) -> None:
        """Let loops that have nothing to do look again: in this instant, in order of number, after those whose turn it is."""
        m, turn = self.m, int(self.m[TURN])
        if now > self.woken_at or turn >= self.woken_from:  # no loop was woken yet, or the loops that were take their turns
            first, turns = int(m[TURN_LIST]), int(m[TURNS])
            m[first : first + turns - turn] = m[first + turn : first + turns].copy()  # the list is as long as two rounds
            m[TURN], m[TURNS] = 0, turns - turn
            self.woken, self.woken_at, self.woken_from = [], now, turns - turn
        for loop in self.loops:
            if loop.listens and loop.wakes != now:
                loop.listens = False
                if loop.wakes is not None:
                    self._sleep_on(loop)
                self.woken.append(loop.number)
        self.woken.sort()
        first = int(m[TURN_LIST]) + self.woken_from
        for i, number in enumerate(self.woken):
            m[first + i] = self.table + number * LOOP_WORDS
        m[TURNS] = self.woken_from + len(self.woken)

    def _sleep_on(self, loop: Loop) -> None:
        """Take back the time at which a loop would go on by itself, since it goes on before."""
        heap, place = int(self.m[WAKES]), self.table + loop.number * LOOP_WORDS
        entries = self.m[heap + 1 : heap + 1 + ENTRY * int(self.m[heap])].reshape(-1, ENTRY)
        kept = sorted(entry for entry in entries.tolist() if entry[1] != place)  # in order they are a heap
        entries[: len(kept)] = np.reshape(kept, (-1, ENTRY))
        loop.wakes, self.m[heap] = None, len(kept)

    def _end(self, loop: Loop, batch: Batch, now: int) -> None:
        steps, members, (graph, form, _) = int(self.m[loop.slot + S_TOKEN]) - loop.token + 1, len(batch), loop.entry
        times = self.m[loop.times.at : loop.times.at + TIMES * steps].tolist()
        for i in range(steps):
            step = self.first_loop + loop.number, loop.token + i, batch.context + i * members, graph
            self.kept.extend((*step, loop.row + i * form.size))
            self.kept.extend((times[TIMES * i] - self.setup.step_overhead, times[TIMES * i + 1]))
        self.counts.extend([members + len(batch.forks)] * steps)
        self.member_rows.frombytes((batch.table + ONE_MORE * np.arange(steps)[:, None, None]).tobytes())
        for fork in batch.forked:
            self.member_rows.extend(fork)
        self.done += batch.emitted * steps
        self.report()
        self.m[loop.slot + S_AHEAD] = 0
        loop.batch, loop.token = None, loop.token + steps
        if loop.row + loop.steps * form.size == self.rows:  # else other loops have the rows behind those that are not used
            self.rows = loop.row + steps * form.size
        loop.ahead = min(2 * loop.ahead, MOST_AHEAD) if steps == loop.ahead else LEAST_AHEAD
        loop.batcher.ended(batch, now, steps)

    def _begin(self, loop: Loop, batch: Batch) -> None:
        """Fill in the slot of a step."""
        if batch.shape is not loop.shape:
            assert self.setup.graphs is not None
            loop.shape, loop.entry = batch.shape, self._entry(self.setup.graphs(batch.shape))
        _, form, costs = loop.entry
        loop.row, loop.steps, members = self.rows, self._work_out(loop, batch, self._steps_at_once(loop)), len(batch)
        self.rows += loop.steps * form.size
        m, slot, members_at, until = self.m, loop.slot, loop.members.at, loop.batcher.until
        m[members_at : members_at + members] = batch.table[:, M_SEQUENCE]
        first, others = m[members_at], len(self.setup.sequences) + self.first_loop + loop.number
        m[slot + S_LOOP] = self.table + loop.number * LOOP_WORDS
        m[slot + S_KEY] = (loop.number << LOOP_BITS) + loop.token
        m[slot + S_FORM], m[slot + S_TASKS], m[slot + S_NODES] = form.at, form.size, form.nodes
        m[slot + S_FIRST], m[slot + S_FIRST_END] = form.first, form.first_end
        m[slot + S_OPERANDS], m[slot + S_OPERANDS_END] = form.operands, form.operands_end
        m[slot + S_BASE], m[slot + S_ROW] = loop.cells.at, loop.row
        m[slot + S_COST], m[slot + S_STEP] = loop.costs.at, loop.times.at
        m[slot + S_AHEAD], m[slot + S_UNTIL] = loop.steps - 1, NEVER if until is None else until
        m[slot + S_NEXT] = costs.rows * COST
        m[slot + S_QUEUE] = first if form.graph.ops.members is None else others
        m[slot + S_OWNER] = first if members == 1 else others
        m[slot + S_MEMBERS], m[slot + S_TOKEN] = members_at, loop.token
        loop.batch = batch

    def _steps_at_once(self, loop: Loop) -> int:
        """How many steps to work out with this one: more each time that its members go through all of them."""
        _, form, costs = loop.entry
        if self.setup.step_overhead:
            return 1
        most = min(loop.ahead, AHEAD // max(1, costs.rows), PART // max(1, form.size))
        return max(1, min(most, 1 + loop.batcher.steps_ahead()))

    def _work_out(self, loop: Loop, batch: Batch, steps: int) -> int:
        """Fill in the durations of a step and of those that may follow; returns how many they are."""
        _, form, costs = loop.entry
        self._reserve(loop, form, costs, len(batch), steps)
        out = self.m[loop.costs.at : loop.costs.at + steps * costs.rows * COST].reshape(steps, costs.rows, COST)
        try:
            costs.fill(out, lanes_of(self.first_loop + loop.number, loop.token, batch, steps))
        except InputError:  # maybe of a step that will not come
            if steps == 1:
                raise
            return self._work_out(loop, batch, 1)
        return steps

    def _entry(self, graph: TaskGraph) -> Entry:
        if id(graph) not in self.entries:
            costs = costs_of(self.setup, graph)
            self.entries[id(graph)] = Entry(len(self.graphs), self.forms.add(graph, costs.row_of), costs)
            self.graphs.append(graph)
        return self.entries[id(graph)]

    # Memory

    def _reserve(self, loop: Loop, form: Form, costs: Costs, members: int, steps: int) -> None:
        """Grow the memory so that so many steps fit: their cells, costs, members and times, and their rows."""
        if form.nodes > loop.cells.capacity:
            self._grow_lists(form.nodes - loop.cells.capacity)
            self._grow(loop.cells, form.nodes, self.cell_words)
            self.m[self.table + loop.number * LOOP_WORDS + L_CELLS_OF] = NONE
        if steps * costs.rows > loop.costs.capacity:
            self._grow(loop.costs, steps * costs.rows, COST)
        if members > loop.members.capacity:
            self._grow(loop.members, members, 1)
        if steps > loop.times.capacity:
            self._grow(loop.times, steps, TIMES)
        if self.rows + steps * form.size > self.log.shape[1]:
            # Pages that are not written cost nothing, and copies do.
            self.log = widened(self.log, self.rows, self.rows + steps * form.size + 3 * self.rows)

    def _grow(self, area: Area, wanted: int, words: int) -> None:
        """Move an area to a larger one; it holds nothing between steps."""
        area.capacity = max(wanted, 2 * area.capacity)
        area.at = self._take(area.capacity * words)

    def _take(self, words: int) -> int:
        at, self.used = self.used, self.used + words
        if self.used > len(self.m):
            self.m = np.concatenate([self.m, np.zeros(self.used - len(self.m) + len(self.m) // 4, dtype=np.int64)])
        return at

    def _grow_lists(self, more: int) -> None:
        """Grow all lists that may hold every cell, for so many more cells."""
        self.cells += 2 * more
        self._move_ready(1 + ENTRY * self.cells)
        for number, unit in enumerate(self.setup.units):
            channel = int(self.m[CHANNEL_TABLE]) + number * CHANNEL_WORDS
            self._move(channel + K_ARRIVALS, self.cells, int(self.m[channel + K_ARRIVED]))
            self._move(channel + K_HEADS, self.cells, int(self.m[channel + K_NEW]))
            if unit.latency:
                self._move_ring(channel, ring_size(self.cells))

    def _move_ready(self, words: int) -> None:
        """Move the heaps of ready tasks of all devices to larger ones, each of so many words."""
        at, old, to = int(self.m[READY]), int(self.m[READY_WORDS]), self._take(self.setup.devices * words)
        for device in range(self.setup.devices):
            here, there = to + device * words, at + device * old
            used = 1 + ENTRY * int(self.m[there])
            self.m[here : here + used] = self.m[there : there + used]
        self.m[READY], self.m[READY_WORDS] = to, words

    def _move(self, pointer: int, words: int, used: int) -> None:
        """Move a list to a larger area of so many words, of which the first are used. pointer: address of its address."""
        to, at = self._take(words), int(self.m[pointer])
        self.m[to : to + used] = self.m[at : at + used]
        self.m[pointer] = to

    def _move_ring(self, channel: int, size: int) -> None:
        to, at, old = self._take(RING_ENTRY * size), int(self.m[channel + K_RING]), int(self.m[channel + K_RING_SIZE])
        for i in range(int(self.m[channel + K_RING_HEAD]), int(self.m[channel + K_RING_TAIL])):
            here, there = to + RING_ENTRY * (i % size), at + RING_ENTRY * (i % old)
            self.m[here : here + RING_ENTRY] = self.m[there : there + RING_ENTRY]
        self.m[channel + K_RING], self.m[channel + K_RING_SIZE] = to, size

    # Results

    def last(self) -> int:
        return self.kept[E_END - ENDED_FIELDS]

    def own_rows(self) -> slice:
        return slice(self.kept[E_ROW], self.rows)

    def ended(self) -> Words:
        """Steps that have ended [step, field]; a view, in which they may be changed."""
        return np.frombuffer(self.kept, dtype=np.int64).reshape(-1, ENDED_FIELDS)

    def move(self, by: int) -> None:
        super().move(by)
        self.ended()[:, [E_RELEASED, E_END]] += by

    def append(self, later: Batches) -> None:
        """Append the steps of another part."""
        number, steps = np.array([self._entry(graph).number for graph in later.graphs]), later.ended()
        steps[:, E_GRAPH] = number[steps[:, E_GRAPH]]
        self.kept.extend(later.kept)
        self.counts.extend(later.counts)
        self.member_rows.extend(later.member_rows)
        self.rows, self.done = later.rows, self.done + later.done

    def tokens(self) -> int:
        return self.done

    def verify(self) -> None:
        if any(loop.batch is not None for loop in self.loops):
            raise SimulationError("the simulation ended with work left")

    def _give(self, queue: Words | None = None) -> None:
        """Pass to the sink the steps that have ended since; their rows are free then. queue: of the log, known at the end."""
        assert self.sink is not None
        if self.given < len(self.ended()):
            self.sink(replace(self._part(slice(self.given, len(self.ended())), rows=True), queue=queue))
        self.given, self.given_members = len(self.ended()), len(self.member_rows) // MEMBER_FIELDS
        self.rows = self.m[SERVICES] = 0

    def event_log(self) -> EventLog:
        """The event log, in order of loops and their steps; without rows if a sink took them."""
        every = slice(0, len(self.ended()))
        if self.sink is None:
            return self._with_queue(self._part(every, rows=True))
        given, self.given, self.given_members = (self.given, self.given_members), 0, 0
        log = self._with_queue(self._part(every, rows=False))
        self.given, self.given_members = given
        self._give(log.queue)
        return log

    def _with_queue(self, log: EventLog) -> EventLog:
        """The log of all steps with what requests waited for in queues."""
        queues = [part.queue for loop in self.loops for part in loop.batcher.parts]
        return replace(log, queue=queue_times(queues, log.arrival, log.started, log.steps.released))

    def _part(self, steps: slice, *, rows: bool) -> EventLog:
        """The log of some steps, whose rows begin at 0, with rows or without."""
        order = np.lexsort(self.ended()[steps, [E_TOKEN, E_LOOP]].T) + steps.start
        loop, token, context, graph, row, released, end = self.ended()[order].T
        # Graphs in the order in which the log needs them: with one loop that in which they were made.
        used = list(range(len(self.graphs))) if self.in_parts else list(dict.fromkeys(graph.tolist()))
        place = np.zeros(len(self.graphs), dtype=np.int32)
        place[used] = np.arange(len(used))
        size = np.array([len(each) for each in self.graphs], dtype=np.int64)[graph]
        first = np.cumsum(size) - size
        if rows and (first != row).any():
            self.reorder([np.arange(begin, begin + tasks) for begin, tasks in zip(row.tolist(), size.tolist(), strict=True)])
        return EventLog(
            graphs=tuple(self.graphs[i] for i in used), tasks=self._tasks(size) if rows else TaskTable.empty(),
            services=self.services() if rows else ServiceTable.empty(),
            steps=StepTable(
                sequence=loop.astype(np.int32), token=token.astype(np.int32), context=context, graph=place[graph], first=first,
                released=released, end=end,
            ),
            machine=self.setup.machine, bandwidth=self.setup.bandwidth, sram=self.setup.sram,
            step_overhead=self.setup.step_overhead,
            batched=self._members(order), arrival=self._arrival(),
            cache=in_all(part.blocks.use for loop in self.loops for part in loop.batcher.parts),
        )  # fmt: skip

    def _tasks(self, size: Any) -> TaskTable:
        number = np.repeat(np.arange(len(size), dtype=np.int32), size)
        task = np.arange(size.max(initial=0), dtype=np.int32)
        return self.tasks(number, np.concatenate([task[:0], *(task[:each] for each in size.tolist())]))

    def _members(self, order: Words) -> MemberTable:
        """Members of steps in this order; column by column, since those of a long run are most of its memory."""
        begin = int(order[0]) if self.in_parts and len(order) else 0
        counts = np.array(self.counts[begin:], dtype=np.int64)
        rows = np.frombuffer(self.member_rows, dtype=np.int64).reshape(-1, MEMBER_FIELDS)[self.given_members :]  # a view
        source: Any = slice(None)
        if (np.diff(order) != 1).any():
            first = np.cumsum(counts) - counts
            counts = counts[order - begin]
            source = np.arange(len(rows)) + np.repeat(first[order - begin] - (np.cumsum(counts) - counts), counts)
        short, long = np.int32, np.int64
        columns = {
            name: rows[source, field].astype(long if name in ("context", "loads") else short)
            for field, name in enumerate(Member._fields)
            if name != "leader"
        }
        return MemberTable(step=np.repeat(np.arange(len(counts), dtype=np.int32), counts), **columns)

    def _arrival(self) -> Any:
        times: dict[int, int] = {}
        for loop in self.loops:
            times |= loop.batcher.arrivals.times
        requests = enumerate(self.setup.sequences)  # of other replicas, where one runs alone, too
        return np.array([times.get(number, request.arrival) for number, request in requests], dtype=np.int64)
