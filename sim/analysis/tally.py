"""One pass over the rows of a log that finds faults and sums times, step by step while a step is in cache.

`Tally.add` takes a log, or a part of it: consecutive whole steps with their service intervals. In parts that are separate in
time, as those of a single decode loop are, sums and faults are those of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.analysis import channels
from sim.analysis.channels import follow_channels
from sim.analysis.engines import Work, by_start, room_for, sweep_engines
from sim.analysis.longest_path import arrivals_of, extend_path
from sim.analysis.parts import (
    COMPUTE,
    LINK,
    PART_COUNT,
    TRANSFER,
    WAIT_CHANNEL,
    WAIT_ENGINE,
    WAIT_INPUT,
    WAIT_LINK,
    WAIT_POLICY,
    WAIT_SRAM,
    Latency,
    alone,
    on_link,
    service,
)
from sim.analysis.rules import Rules
from sim.analysis.sram import most_in_use
from sim.analysis.sram_waits import Causes, causes, queued, served
from sim.analysis.sums import LOW, carry, whole
from sim.base.cores import cores
from sim.base.errors import SimulationError
from sim.base.integers import LARGEST
from sim.base.kernel import kernel, launch
from sim.base.units import ceil_div
from sim.log import derived
from sim.log.columns import (
    NO_FORMS,
    NONE,
    Forms,
    FormTable,
    Ints,
    Steps,
    Tasks,
    in_order,
    is_large,
    services_of,
    steps_of,
    tasks_of,
    viewed,
    with_graphs,
)  # fmt: skip
from sim.log.inputs import last_input, last_of_step, stores_before
from sim.log.tables import EventLog

Times = npt.NDArray[np.int64]

BINS = 200  # at most, of a run, for means over time
MANY = 1 << 16  # tasks from which a second thread pays

#: Columns of `totals` beside the parts: from ready to end, time on engines, channel time, number of tasks that move something.
SPENT, COMPUTED, MOVED, TRANSFERS = range(PART_COUNT, PART_COUNT + 4)
COLUMNS = PART_COUNT + 4

#: Columns of sums of a step beside the parts: time on engines, channel time.
STEP_COMPUTED, STEP_MOVED = range(PART_COUNT, PART_COUNT + 2)
STEP_COLUMNS = PART_COUNT + 2


class Fault(IntEnum):
    """Faults of a run. `bad` [fault] holds the first row of the first kinds, or -1."""

    OUT_OF_ORDER = 0
    BEFORE_INPUT = 1
    ENGINE_SHARED = 2
    TOO_FAST = 3
    KV_ORDER = 4
    NOT_DELIVERED = 5
    ABOVE_BANDWIDTH = 6
    IDLE = 7
    SRAM = 8


OUT_OF_ORDER, BEFORE_INPUT, ENGINE_SHARED, TOO_FAST = range(4)


@kernel
def note(bad: Ints, fault: int, row: int) -> None:
    """Note a row that is wrong, if it is one and the first."""
    if row != NONE and bad[fault] == NONE:
        bad[fault] = row


@kernel
def times_in_order(t: Tasks, first: int, after: int, released: int, until: int) -> int:
    """A row for which released <= ready <= start <= loaded <= end <= until does not hold, or -1; of a step that ends then."""
    ready, start, loaded, end = t.ready, t.start, t.loaded, t.end
    for row in range(first, after):
        if not (released <= ready[row] <= start[row] <= loaded[row] <= end[row] <= until and start[row] < end[row]):
            return row
    return NONE


@kernel
def after_inputs(t: Tasks, f: Forms, first: int, after: int, form: int) -> int:
    """A row that was ready before one of its inputs had ended, or -1. form: of the first row."""
    ready, end, inputs, input_start = t.ready, t.end, f.inputs, f.input_start
    edge = input_start[form]
    for row in range(first, after):
        last_edge = input_start[form + row - first + 1]
        while edge < last_edge:
            if end[first + inputs[edge]] > ready[row]:
                return row
            edge += 1
    return NONE


@kernel
def split_step(
    t: Tasks, f: Forms, first: int, after: int, form: int, base: int, latency: Latency, stripes: int, stream: bool,
    for_sram: bool, all_busy: Ints, waited_for: Causes,
    spent: int, totals: Ints, step: int, by_step: Ints, busy: Ints,
) -> tuple[int, int]:  # fmt: skip
    """Add the times of the tasks of one step to all sums; returns `spent`, and a row that ran faster than it can, or -1.

    base: row of `all_busy[0]`. totals: [group, column, 2], by_step: [step, column, 2], busy: [engine], ps. spent: what tasks
    took since the last carry; no sum has grown by more, but that of channel time, to which each stripe adds as much.
    for_sram: a task that loads its own operands and waits while an engine is idle waits for SRAM.
    """
    engine, ready, start, loaded, end, compute, work = t.engine, t.ready, t.start, t.loaded, t.end, t.compute, t.work
    group, limit = f.group, LARGEST // stripes
    for row in range(first, after):
        mine, held, whole_time = group[form + row - first], engine[row] >= 0, end[row] - ready[row]
        transfer = alone(t, row, latency, stripes)
        first_part = t.launched[row]
        computed, moved = service(held, start[row], loaded[row], end[row], compute[row], transfer, first_part, stream)
        channel, waited = end[row] - start[row] - computed - moved, start[row] - ready[row]
        for_engine = all_busy[row - base] if held else 0
        if channel < 0 or computed < 0 or waited < 0 or for_engine > waited:
            return spent, row
        if spent + whole_time >= limit:
            for each in range(len(totals)):
                carry(totals, each)
            carry(by_step, step)
            spent = 0
        spent += whole_time
        totals[mine, SPENT, LOW] += whole_time
        totals[mine, COMPUTED, LOW] += compute[row]
        by_step[step, STEP_COMPUTED, LOW] += compute[row]
        add(totals, by_step, mine, step, COMPUTE, computed)
        if work[row] > 0:
            totals[mine, MOVED, LOW] += work[row]
            by_step[step, STEP_MOVED, LOW] += work[row]
            totals[mine, TRANSFERS, LOW] += 1
            add(totals, by_step, mine, step, LINK if on_link(t, row) else TRANSFER, moved)
            add(totals, by_step, mine, step, WAIT_LINK if on_link(t, row) else WAIT_CHANNEL, channel)
        elif channel > 0:
            add(totals, by_step, mine, step, WAIT_CHANNEL, channel)
        if held:
            busy[engine[row]] += end[row] - start[row]
            add(totals, by_step, mine, step, WAIT_ENGINE, for_engine)
            add(totals, by_step, mine, step, WAIT_SRAM if for_sram and work[row] > 0 else WAIT_POLICY, waited - for_engine)
        elif waited > 0:
            by_channel, by_engine = served(waited_for, ready[row], start[row]), queued(waited_for, ready[row], start[row])
            add(totals, by_step, mine, step, WAIT_CHANNEL, by_channel)
            add(totals, by_step, mine, step, WAIT_ENGINE, by_engine)
            add(totals, by_step, mine, step, WAIT_SRAM, waited - by_channel - by_engine)
    return spent, NONE


@kernel
def add(totals: Ints, by_step: Ints, group: int, step: int, part: int, time: int) -> None:
    """Add a time to the sums of a group and of a step."""
    totals[group, part, LOW] += time
    by_step[step, part, LOW] += time


@kernel
def follow_chain(
    t: Tasks, f: Forms, first: int, after: int, form: int, base: int, latency: Latency, stripes: int, stream: bool,
    for_sram: bool, all_busy: Ints, waited_for: Causes,
    step: int, released: int, stored: Ints, tokens: Ints,
) -> None:  # fmt: skip
    """Fill `tokens` [step, part]: back from the task that ended last to its last input, and so on. See `split_step`."""
    engine, ready, start, loaded, end, compute, work = t.engine, t.ready, t.start, t.loaded, t.end, t.compute, t.work
    row = last_of_step(end, first, after)
    while row != NONE:
        held, waited = engine[row] >= 0, start[row] - ready[row]
        transfer = alone(t, row, latency, stripes)
        first_part = t.launched[row]
        computed, moved = service(held, start[row], loaded[row], end[row], compute[row], transfer, first_part, stream)
        tokens[step, COMPUTE] += computed
        tokens[step, LINK if on_link(t, row) else TRANSFER] += moved
        tokens[step, WAIT_LINK if on_link(t, row) else WAIT_CHANNEL] += end[row] - start[row] - computed - moved
        if held:
            tokens[step, WAIT_ENGINE] += all_busy[row - base]
            tokens[step, WAIT_SRAM if for_sram and work[row] > 0 else WAIT_POLICY] += waited - all_busy[row - base]
        elif waited > 0:
            by_channel, by_engine = served(waited_for, ready[row], start[row]), queued(waited_for, ready[row], start[row])
            tokens[step, WAIT_CHANNEL] += by_channel
            tokens[step, WAIT_ENGINE] += by_engine
            tokens[step, WAIT_SRAM] += waited - by_channel - by_engine
        row = last_input(form + row - first, first, step, end, f, stored)
        if row != NONE and not first <= row < after:  # a task of another token
            tokens[step, WAIT_INPUT] += max(0, end[row] - released)
            row = NONE


@kernel
def tally_steps(
    t: Tasks, s: Steps, f: Forms, cuts: Ints, latency: Latency, stripes: int, stream: bool, for_sram: bool,
    stored: Ints, waited_for: Causes, work: Work, engines: int, until: Ints, busy: Ints, totals: Ints, by_step: Ints,
    tokens: Ints, bad: Ints,
) -> None:  # fmt: skip
    """Go through all steps, in batches that are separate in time: those from cuts[i] to cuts[i + 1].

    engines: of each device.
    """
    all_busy, spent = work.all_busy, 0
    for i in range(len(cuts) - 1):
        base = s.first[cuts[i]]
        after = base
        for step in range(cuts[i], cuts[i + 1]):
            first, form = s.first[step], f.first[s.graph[step]]
            after = first + f.first[s.graph[step] + 1] - form
            note(bad, OUT_OF_ORDER, times_in_order(t, first, after, s.released[step], s.end[step]))
            note(bad, BEFORE_INPUT, after_inputs(t, f, first, after, form))
        for device in range(len(until) // engines):
            count = by_start(t, base, after, engines, device, work)
            note(bad, ENGINE_SHARED, sweep_engines(t, base, count, until, engines, device, work))
        for step in range(cuts[i], cuts[i + 1]):
            first, form, released = s.first[step], f.first[s.graph[step]], s.released[step]
            after = first + f.first[s.graph[step] + 1] - form
            spent, wrong = split_step(
                t, f, first, after, form, base, latency, stripes, stream, for_sram, all_busy, waited_for, spent, totals,
                step, by_step, busy,
            )  # fmt: skip
            note(bad, TOO_FAST, wrong)
            follow_chain(
                t, f, first, after, form, base, latency, stripes, stream, for_sram, all_busy, waited_for, step,
                released, stored, tokens,
            )  # fmt: skip
            carry(by_step, step)
    for group in range(len(totals)):
        carry(totals, group)


@kernel
def loads_too_early(t: Tasks, f: Forms, graph: int, first: int, ended: Ints) -> int:
    """A layer whose KV cache a step loads before earlier tokens have stored it, or -1; then its own stores count, too.

    ended: [layer], when the last store of a layer ended, kept from step to step of a sequence.
    """
    for i in range(f.kv_first[graph], f.kv_first[graph + 1]):
        if f.kv_stores[i] == 0 and t.start[first + f.kv_task[i]] < ended[f.kv_layer[i]]:
            return int(f.kv_layer[i])
    for i in range(f.kv_first[graph], f.kv_first[graph + 1]):
        if f.kv_stores[i] == 1:
            ended[f.kv_layer[i]] = max(ended[f.kv_layer[i]], t.end[first + f.kv_task[i]])
    return NONE


@kernel
def follow_sequences(
    order: Ints, t: Tasks, s: Steps, f: Forms, latency: Latency, stripes: int, numerator: int, denominator: int,
    stream: bool, known: bool, arrival: Ints, reached: Ints, stored: Ints, ended: Ints, finish: Ints, early: Ints, paths: Ints,
) -> None:  # fmt: skip
    """Go through the steps by sequence and token: the longest path of each sequence, and the order that the KV cache imposes.

    order: steps. numerator / denominator: the largest share of a channel that a transfer can get. arrival, reached: [sequence],
    ps. stored, ended: [layer], finish: [task], to work with. early: (step, layer) of the first load before a store, if any.
    paths: [step], by how much each step lengthens the path.
    """
    sequence = NONE
    for position in range(len(order)):
        step = order[position]
        graph, first = s.graph[step], s.first[step]
        if s.sequence[step] != sequence:
            sequence = s.sequence[step]
            for layer in range(len(stored)):
                stored[layer], ended[layer] = 0, 0
        before = reached[sequence]
        reached[sequence] = extend_path(
            t, f, graph, first, arrival[sequence], reached[sequence], latency, stripes, numerator, denominator, stream,
            known, stored, finish,
        )  # fmt: skip
        paths[step] = reached[sequence] - before
        layer = loads_too_early(t, f, graph, first, ended)
        if layer != NONE and early[0] == NONE:
            early[0], early[1] = step, layer


class _Tables(NamedTuple):
    """Tables of a log as kernels take them."""

    tasks: Tasks
    steps: Steps
    forms: Forms


class Tally:
    """Sums over the rows of a run, and what is wrong with them.

    forms: the tasks of all graphs. engine_busy: [engine], delivered: [channel], ps. channel_busy: ps in which some channel
    served. services, tasks: rows. runs: [graph], how often it ran. width, bins: work in parts of `width` ps each, from 0.
    reached: [sequence], ps, the end of the longest path. faults: a sentence for each kind of fault that was found.
    """

    def __init__(self, rules: Rules, *, engines: int, channels: int, compiled: bool = False) -> None:
        """compiled: also where few rows come at a time."""
        self._rules, self._compiled = rules, compiled
        self.forms: FormTable = NO_FORMS
        self.engine_busy = np.zeros(engines, dtype=np.int64)
        self.delivered = np.zeros(channels, dtype=np.int64)
        self.channel_busy = self.services = self.tasks = 0
        self.runs = np.zeros(0, dtype=np.int64)
        self.width, self.bins = 1, np.zeros(BINS + 1, dtype=np.int64)
        self.reached = np.array(rules.arrivals, dtype=np.int64)
        self.faults: dict[Fault, str] = {}
        self._sums = np.zeros((0, COLUMNS, 2), dtype=np.int64)
        self._steps: list[Times] = []  # [(sequence, token), step]
        self._by_step: list[npt.NDArray[Any]] = []
        self._tokens: list[Times] = []
        self._paths: list[Times] = []
        self._latest = NONE

    @classmethod
    def of(cls, log: EventLog, rules: Rules) -> Tally:
        """The tally of a whole log."""
        tally = cls(rules, engines=log.engines, channels=log.channels)
        tally.add(log)
        return tally

    @property
    def totals(self) -> npt.NDArray[Any]:
        """[group, column], groups as in `forms`."""
        return whole(self._sums)

    @property
    def by_step(self) -> npt.NDArray[Any]:
        """[step, part], all tasks of each step."""
        return self._in_loop_order(self._by_step)[:, :PART_COUNT]

    @property
    def work_of_steps(self) -> npt.NDArray[Any]:
        """[step, 2]: time on engines and channel time of all tasks of each step."""
        return self._in_loop_order(self._by_step)[:, [STEP_COMPUTED, STEP_MOVED]]

    @property
    def paths(self) -> Times:
        """[step]: by how much each step lengthens the longest path of its loop."""
        return self._in_loop_order([path[:, None] for path in self._paths])[:, 0]

    @property
    def tokens(self) -> Times:
        """[step, part], the chain of each step."""
        return self._in_loop_order(self._tokens)

    def _in_loop_order(self, parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """[step, column] of all parts, with steps in order of sequences and tokens, as in the log of a whole run."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return np.zeros((0, STEP_COLUMNS), dtype=np.int64)
        return np.concatenate(parts)[np.lexsort(np.concatenate(self._steps, axis=1)[::-1])]

    def runs_of_groups(self) -> Times:
        """[group]: how many tasks of it ran."""
        counts = np.zeros(len(self.forms.groups), dtype=np.int64)
        first, group = self.forms.columns.first, self.forms.columns.group
        np.add.at(counts, group, np.repeat(self.runs, np.diff(first)))
        return counts

    def add(self, log: EventLog) -> None:
        """Take in a whole log, or the next part of one, which must begin when all before has ended."""
        compiled = self._compiled or is_large(log)
        self.forms = with_graphs(self.forms, log.graphs)
        if self._latest != NONE and int(log.steps.released.min(initial=self._latest)) < self._latest:
            raise SimulationError("steps that are analyzed apart overlap in time")
        grown = len(self.forms.groups) - len(self._sums)
        self._sums = np.concatenate([self._sums, np.zeros((grown, COLUMNS, 2), dtype=np.int64)])
        self.tasks += len(log.tasks)
        self.services += len(log.services)
        runs = np.bincount(log.steps.graph, minlength=len(log.graphs))
        runs[: len(self.runs)] += self.runs
        self.runs = runs
        passes = (self._add_steps, self._add_services, self._follow_sequences)  # none reads what another writes
        tables = _Tables(*(viewed(each, compiled=compiled) for each in (tasks_of(log), steps_of(log), self.forms.columns)))
        if compiled and len(log.tasks) >= MANY and cores() > 1:
            with ThreadPoolExecutor(2) as pool:  # as long as the first takes the others are done
                list(pool.map(lambda each: each(log, tables, compiled=True), passes))
        else:
            for each in passes:
                each(log, tables, compiled=compiled)
        self._latest = max(self._latest, log.makespan)

    def _note(self, kind: Fault, sentence: str) -> None:
        self.faults.setdefault(kind, sentence)

    def _add_services(self, log: EventLog, tables: _Tables, *, compiled: bool) -> None:
        self._widen(log.makespan)
        g = viewed(services_of(log), compiled=compiled)
        state = np.zeros((channels.STATE_ROWS, log.channels), dtype=np.int64)
        state[channels.LATEST_START] = state[channels.IDLE_ROW] = NONE
        delivered = np.zeros(len(log.tasks), dtype=np.int64)
        wrong = launch(follow_channels, compiled=compiled)(
            g, tables.tasks, self._rules.latencies, self._rules.conserving, log.machine.memories, state, delivered,
            self.width, self.bins, np.empty((2, len(log.services) + 1), dtype=np.int64),
        )  # fmt: skip
        if wrong != channels.NOTHING:
            self._note(Fault.ABOVE_BANDWIDTH, channels.SENTENCES[wrong])
            return
        wrong_rows = np.flatnonzero(log.tasks.work * derived.links_crossed(log) != delivered)
        if len(wrong_rows):
            self._note(Fault.NOT_DELIVERED, f"{log.name(int(wrong_rows[0]))} asked for one amount and got another")
        for channel, idle in enumerate(state[channels.IDLE_ROW].tolist()):
            if idle != NONE:
                self._note(Fault.IDLE, f"{log.machine.channels[channel].name} was idle while {log.name(idle)} was eligible")
        self.delivered += state[channels.DELIVERED]
        self.channel_busy += int(state[channels.ANY_BUSY, 0])

    def _widen(self, makespan: int) -> None:
        """Make bins wide enough to reach so far, twice as wide again and again."""
        if self._latest == NONE:
            self.width = width_of(makespan)
        while self.width < width_of(makespan):
            self.width *= 2
            self.bins = np.append(self.bins[:-1].reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2 + 1, dtype=np.int64))

    def _add_steps(self, log: EventLog, tables: _Tables, *, compiled: bool) -> None:
        rules, count, cuts = self._rules, len(log.steps), _cuts(log)
        rows = np.append(log.steps.first, len(log.tasks))[cuts]
        by_step, tokens = np.zeros((count, STEP_COLUMNS, 2), dtype=np.int64), np.zeros((count, PART_COUNT), dtype=np.int64)
        bad = np.full(len(_SENTENCES), NONE, dtype=np.int64)
        launch(tally_steps, compiled=compiled)(
            *tables, cuts, rules.latencies, rules.stripes,
            rules.execution == "stream", rules.waits_for_sram, stores_before(log, self.forms, compiled=compiled),
            viewed(causes(log, bounded_sram=rules.sram is not None, compiled=compiled), compiled=compiled),
            viewed(room_for(int(np.diff(rows).max(initial=0))), compiled=compiled),
            log.machine.engines_each, np.zeros(len(self.engine_busy), dtype=np.int64), self.engine_busy, self._sums, by_step,
            tokens, bad,
        )  # fmt: skip
        tokens[:, WAIT_INPUT] += log.step_overhead  # the chain of a step begins when the host has prepared it
        self._steps.append(np.array([log.steps.sequence, log.steps.token], dtype=np.int64))
        self._by_step.append(whole(by_step))
        self._tokens.append(tokens)
        for fault, sentence in _SENTENCES.items():
            if bad[fault] != NONE:
                row = int(bad[fault])
                self._note(fault, sentence.format(name=log.name(row), engine=log.machine.engine_name(log.tasks.engine[row])))
        if rules.sram is not None and (most := most_in_use(log)) > rules.sram:
            self._note(Fault.SRAM, f"operands of {most} B were in use, with SRAM of {rules.sram} B")

    def _follow_sequences(self, log: EventLog, tables: _Tables, *, compiled: bool) -> None:
        rules, steps, layers = self._rules, log.steps, len(self.forms.layers)
        arrivals = arrivals_of(log, rules)
        self.reached = np.append(self.reached, arrivals[len(self.reached) :])
        numerator, denominator = rules.fastest.as_integer_ratio()
        largest = max((len(graph) for graph in log.graphs), default=0)
        stored, ended, paths = (np.zeros(size, dtype=np.int64) for size in (layers, layers, len(steps)))
        early = np.full(2, NONE, dtype=np.int64)
        launch(follow_sequences, compiled=compiled)(
            in_order(log), *tables, rules.latencies, rules.stripes, numerator, denominator,
            rules.execution == "stream", rules.dependency == "known", arrivals, self.reached, stored, ended,
            np.empty(largest, dtype=np.int64), early, paths,
        )  # fmt: skip
        self._paths.append(paths)
        if early[0] != NONE:
            token = f"{steps.sequence[early[0]]}.{steps.token[early[0]]}"
            self._note(Fault.KV_ORDER, f"token {token} loaded layer {self.forms.layers[early[1]]} before it was stored")


def width_of(makespan: int) -> int:
    """The width of a bin, ps: the least power of two of which `BINS` reach so far, whatever the parts in which a log comes."""
    return 1 << (max(1, ceil_div(makespan, BINS)) - 1).bit_length()


_SENTENCES = {
    Fault.OUT_OF_ORDER: "{name}",
    Fault.BEFORE_INPUT: "{name} was ready before an input ended",
    Fault.ENGINE_SHARED: "{engine} ran two tasks at once",
    Fault.TOO_FAST: "{name} ran faster than it can",
}


def _cuts(log: EventLog) -> Times:
    """The steps at which all before have ended, and none of them or later was released before; with 0 and the end."""
    released, end = log.steps.released, log.steps.end
    first_from = np.minimum.accumulate(released[::-1])[::-1]
    cuts = np.flatnonzero(np.maximum.accumulate(end)[:-1] <= first_from[1:]) + 1
    return np.concatenate([[0], cuts, [len(end)]] if len(end) else [[0]]).astype(np.int64)
