"""The longest path through the data of a run: when each sequence could end if no task waited for an engine or a channel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sim.analysis.parts import Latency, on_link
from sim.analysis.rules import Rules
from sim.base.integers import ceil_div, mul_div_up
from sim.base.kernel import kernel
from sim.log.columns import Forms, Ints, Tasks
from sim.log.tables import EventLog


@kernel
def shortest_time(
    t: Tasks, row: int, latency: Latency, stripes: int, numerator: int, denominator: int, stream: bool
) -> int:  # fmt: skip
    """The least time from start to end of a task: alone on the machine, where a transfer gets numerator / denominator."""
    work, compute = t.work[row], t.compute[row]
    if work == 0:
        return int(compute)
    link = on_link(t, row)
    transfer = work if link or stripes == 1 else ceil_div(work, stripes)
    if numerator != denominator and not link:
        transfer = mul_div_up(transfer, denominator, numerator)
    transfer += latency[link]
    return int(max(t.launched[row] + transfer, compute) if stream else transfer + compute)


@kernel
def finish_step(
    t: Tasks, f: Forms, first: int, form: int, released: int, latency: Latency, stripes: int, numerator: int,
    denominator: int, stream: bool, stored: Ints, finish: Ints, size: int,
) -> None:  # fmt: skip
    """Fill `finish` [task] with the earliest end of each task; loads of a layer wait for `stored` [layer]."""
    inputs, input_start, loads = f.inputs, f.input_start, f.loads
    edge = input_start[form]
    for task in range(size):
        ready = released
        last_edge = input_start[form + task + 1]
        while edge < last_edge:
            ready = max(ready, finish[inputs[edge]])
            edge += 1
        if loads[form + task] >= 0:
            ready = max(ready, stored[loads[form + task]])
        finish[task] = ready + shortest_time(t, first + task, latency, stripes, numerator, denominator, stream)


@kernel
def extend_path(
    t: Tasks, f: Forms, graph: int, first: int, arrival: int, reached: int, latency: Latency, stripes: int,
    numerator: int, denominator: int, stream: bool, known: bool, stored: Ints, finish: Ints,
) -> int:  # fmt: skip
    """The end of the longest path of a sequence that reached so far, with one more step: after the others, or if known beside.

    stored: [layer], when the path to the stores of a layer ended, kept from step to step. finish: [task], to work with.
    """
    form = f.first[graph]
    size = f.first[graph + 1] - form
    released = arrival if known else reached
    finish_step(t, f, first, form, released, latency, stripes, numerator, denominator, stream, stored, finish, size)
    for task in range(size):
        reached = max(reached, finish[task])
    for i in range(f.kv_first[graph], f.kv_first[graph + 1]):
        if f.kv_stores[i] == 1:
            stored[f.kv_layer[i]] = max(stored[f.kv_layer[i]], finish[f.kv_task[i]])
    return int(reached)


def arrivals_of(log: EventLog, rules: Rules) -> npt.NDArray[np.int64]:
    """[sequence], ps: 0 of those that the rules do not know."""
    arrivals = np.array(rules.arrivals, dtype=np.int64)
    return np.append(arrivals, np.zeros(max(0, int(log.steps.sequence.max(initial=-1)) + 1 - len(arrivals)), dtype=np.int64))
