"""The longest path through the data of a run: when each sequence could end if no task waited for an engine or a channel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sim.analysis.columns import NONE, Forms, FormTable, Ints, Steps, Tasks, in_order, steps_of, tasks_of, viewed
from sim.analysis.context import Rules
from sim.base.integers import ceil_div, mul_div_up
from sim.base.kernel import kernel, launch
from sim.eventlog import EventLog


@kernel
def shortest_time(
    work: int, compute: int, latency: int, stripes: int, numerator: int, denominator: int, stream: bool
) -> int:  # fmt: skip
    """The least time from start to end of a task: alone on the machine, where a transfer gets numerator / denominator."""
    if work == 0:
        return compute
    transfer = work if stripes == 1 else ceil_div(work, stripes)
    if numerator != denominator:
        transfer = mul_div_up(transfer, denominator, numerator)
    transfer += latency
    return max(transfer, compute) if stream else transfer + compute


@kernel
def finish_step(
    t: Tasks, f: Forms, first: int, form: int, released: int, latency: int, stripes: int, numerator: int, denominator: int,
    stream: bool, stored: Ints, finish: Ints, size: int,
) -> None:  # fmt: skip
    """Fill `finish` [task] with the earliest end of each task; loads of a layer wait for `stored` [layer]."""
    work, compute, inputs, input_start, loads = t.work, t.compute, f.inputs, f.input_start, f.loads
    edge = input_start[form]
    for task in range(size):
        ready = released
        last_edge = input_start[form + task + 1]
        while edge < last_edge:
            ready = max(ready, finish[inputs[edge]])
            edge += 1
        if loads[form + task] >= 0:
            ready = max(ready, stored[loads[form + task]])
        finish[task] = ready + shortest_time(
            work[first + task], compute[first + task], latency, stripes, numerator, denominator, stream
        )


@kernel
def follow_paths(
    order: Ints, t: Tasks, s: Steps, f: Forms, latency: int, stripes: int, numerator: int, denominator: int, stream: bool,
    known: bool, arrival: Ints, stored: Ints, finish: Ints, reached: Ints,
) -> None:  # fmt: skip
    """Extend `reached` [sequence] by the longest paths of its steps: one after the other, or of known tokens all from arrival.

    order: steps by sequence and token. stored: [layer], finish: [task], to work with.
    """
    sequence = NONE
    for position in range(len(order)):
        step = order[position]
        graph = s.graph[step]
        first, form, size = s.first[step], f.first[graph], f.first[graph + 1] - f.first[graph]
        if s.sequence[step] != sequence:
            sequence = s.sequence[step]
            for layer in range(len(stored)):
                stored[layer] = 0
        released = arrival[sequence] if known else 0
        finish_step(t, f, first, form, released, latency, stripes, numerator, denominator, stream, stored, finish, size)
        longest = 0
        for task in range(size):
            longest = max(longest, finish[task])
        if not known:
            reached[sequence] += longest
            continue
        reached[sequence] = max(reached[sequence], longest)
        for i in range(f.kv_first[graph], f.kv_first[graph + 1]):
            if f.kv_stores[i] == 1:
                stored[f.kv_layer[i]] = max(stored[f.kv_layer[i]], finish[f.kv_task[i]])


def arrivals_of(log: EventLog, rules: Rules) -> npt.NDArray[np.int64]:
    """[sequence], ps: 0 of those that the rules do not know."""
    arrivals = np.array(rules.arrivals, dtype=np.int64)
    return np.append(arrivals, np.zeros(max(0, int(log.steps.sequence.max(initial=-1)) + 1 - len(arrivals)), dtype=np.int64))


def extend_paths(log: EventLog, rules: Rules, table: FormTable, reached: npt.NDArray[np.int64], *, compiled: bool) -> None:
    """Extend `reached` [sequence], ps, which begins with the arrivals, by the steps of a log."""
    numerator, denominator = rules.fastest.as_integer_ratio()
    largest = max((len(graph) for graph in log.graphs), default=0)
    launch(follow_paths, compiled=compiled)(
        in_order(log), viewed(tasks_of(log), compiled=compiled), viewed(steps_of(log), compiled=compiled),
        viewed(table.columns, compiled=compiled), rules.latency, rules.stripes, numerator, denominator,
        rules.execution == "stream", rules.dependency == "known", arrivals_of(log, rules),
        np.zeros(len(table.layers), dtype=np.int64), np.empty(largest, dtype=np.int64), reached,
    )  # fmt: skip
