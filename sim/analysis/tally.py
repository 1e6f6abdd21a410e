"""One pass over the rows of a log that finds faults and sums times, step by step while a step is in cache.

`Tally.add` takes a log, or a part of it: consecutive whole steps with their service intervals. In parts that are separate in
time, as those of a single decode loop are, sums and faults are those of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.analysis import channels
from sim.analysis.channels import follow_channels, union
from sim.analysis.engines import room_for
from sim.analysis.longest_path import arrivals_of
from sim.analysis.parts import PART_COUNT, WAIT_INPUT
from sim.analysis.rules import Rules
from sim.analysis.sram import most_in_use
from sim.analysis.sram_waits import causes
from sim.analysis.sums import carry, whole
from sim.analysis.tally_kernels import (
    COLUMNS,
    STEP_COLUMNS,
    STEP_COMPUTED,
    STEP_MOVED,
    Fault,
    follow_sequences,
    tally_steps,
)  # fmt: skip
from sim.base.cores import cores
from sim.base.errors import SimulationError
from sim.base.kernel import launch
from sim.base.units import ceil_div
from sim.log import derived
from sim.log.columns import (
    NO_FORMS,
    NONE,
    Forms,
    FormTable,
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
from sim.log.inputs import stores_before
from sim.log.tables import EventLog
from sim.mapping.tasks import TaskGraph

Times = npt.NDArray[np.int64]

BINS = 200  # at most, of a run, for means over time
MANY = 1 << 16  # tasks from which a second thread pays


class _Tables(NamedTuple):
    """Tables of a log as kernels take them."""

    tasks: Tasks
    steps: Steps
    forms: Forms


class Tally:
    """Sums over the rows of a run, and what is wrong with them.

    forms: the tasks of all graphs. engine_busy: [engine], delivered: [channel], ps. channel_busy: ps in which some channel
    served. services, tasks: rows. runs: [graph], how often it ran. width, bins: work in parts of `width` ps each, from 0.
    busy_runs: [start or end, run], ps, the stretches in which some channel of the memory served, if they are kept. reached:
    [sequence], ps, the end of the longest path. faults: a sentence for each kind of fault that was found.
    """

    def __init__(self, rules: Rules, *, engines: int, channels: int, compiled: bool = False, keep_runs: bool = False) -> None:
        """compiled: also where few rows come at a time. keep_runs: keep `busy_runs`, so that `beside` can take it."""
        self._rules, self._compiled = rules, compiled
        self.busy_runs: list[Times] | None = [] if keep_runs else None
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

    @classmethod
    def beside(cls, tallies: Sequence[Tally], graphs: Sequence[TaskGraph], rules: Rules) -> Tally:
        """The tally of a run of several that share no loop, engine or channel, each of which has kept its `busy_runs`.

        graphs: of the log of all, those of each tally after those of the one before.
        """
        first = tallies[0]
        made = cls(rules, engines=len(first.engine_busy), channels=len(first.delivered))
        made.forms = with_graphs(made.forms, graphs)
        made._sums = np.zeros((len(made.forms.groups), COLUMNS, 2), dtype=np.int64)
        number = {made.forms.name(group): i for i, group in enumerate(made.forms.groups)}
        made.width = max(each.width for each in tallies)
        for each in tallies:
            made.engine_busy += each.engine_busy
            made.delivered += each.delivered
            made.tasks, made.services = made.tasks + each.tasks, made.services + each.services
            made.runs = np.append(made.runs, each.runs)
            each._widen_to(made.width)
            made.bins += each.bins
            made.reached = np.maximum(made.reached, each.reached)
            made.faults |= each.faults
            for group, sums in zip(each.forms.groups, each._sums, strict=True):
                mine = number[each.forms.name(group)]
                made._sums[mine] += sums
                carry(made._sums, mine)
            made._steps, made._by_step = made._steps + each._steps, made._by_step + each._by_step
            made._tokens, made._paths = made._tokens + each._tokens, made._paths + each._paths
        made._latest = max(each._latest for each in tallies)
        made.channel_busy = union([runs for each in tallies for runs in each.busy_runs or []])
        return made

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
        runs = np.empty((2, len(log.services) + 1), dtype=np.int64)
        wrong = launch(follow_channels, compiled=compiled)(
            g, tables.tasks, self._rules.latencies, self._rules.conserving, log.machine.memories, state, delivered,
            self.width, self.bins, runs,
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
        if self.busy_runs is not None:
            self.busy_runs.append(runs[:, : int(state[channels.BUSY_RUNS, 0])].copy())

    def _widen(self, makespan: int) -> None:
        """Make bins wide enough to reach so far."""
        if self._latest == NONE:
            self.width = width_of(makespan)
        self._widen_to(width_of(makespan))

    def _widen_to(self, width: int) -> None:
        """Make bins so wide, twice as wide again and again."""
        while self.width < width:
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
        if rules.sram is not None:
            for device, most, sram in zip(log.machine.devices, most_in_use(log), rules.sram, strict=True):
                if most > sram:
                    self._note(Fault.SRAM, f"operands of {most} B were in use on {device.name}, with SRAM of {sram} B")

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
