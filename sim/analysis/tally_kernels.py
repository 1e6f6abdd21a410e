"""Kernels of `sim.analysis.tally`: faults and sums of the rows of a step, and what follows from step to step."""

from __future__ import annotations

from enum import IntEnum

from sim.analysis.engines import Work, by_start, sweep_engines
from sim.analysis.longest_path import extend_path
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
from sim.analysis.sram_waits import Causes, queued, served
from sim.analysis.sums import LOW, carry
from sim.base.integers import LARGEST
from sim.base.kernel import kernel
from sim.log.columns import NONE, Forms, Ints, Steps, Tasks
from sim.log.inputs import last_input, last_of_step

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
            device = f.device[form + row - first]
            by_channel = served(waited_for, device, ready[row], start[row])
            by_engine = queued(waited_for, device, ready[row], start[row])
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
            device = f.device[form + row - first]
            by_channel = served(waited_for, device, ready[row], start[row])
            by_engine = queued(waited_for, device, ready[row], start[row])
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
