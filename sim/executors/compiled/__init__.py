"""The compiled executor: the state machine of `sim.executors.reference` in one event loop over integers.

Read `state.py` first: what the memory of a run consists of. Then `loop.py`: `advance` goes from instant to instant, and each
phase of an instant is a function: `steps.py` releases steps and admits operands to SRAM, `engines.py` dispatches tasks,
`tasks.py` is what happens to a task, and `channels.py` divides a channel, in one of five disciplines (`exclusive.py`,
`turns.py`, `classes.py`, `rest.py`, `written.py`) over the queues of `ports.py`. These are kernels, and run as plain Python as
well.

`build.py` lays out the memory, `forms.py` the task graphs, `costs.py` the durations; `driver.py` and `batches.py` feed the loop
with sequences or batches, and make the event log; `spans.py` runs steps side by side.
"""

from __future__ import annotations

from dataclasses import replace

from sim.log.tables import EventLog, GrantTable, TaskTable
from sim.executors.compiled import spans
from sim.executors.compiled.batches import Batches
from sim.executors.compiled.driver import OutOfRangeError, Sequences, Sink
from sim.executors.compiled.rules import discipline
from sim.executors.compiled.spans import spans_of
from sim.executors.setup import Progress, Setup


def simulate(setup: Setup, progress: Progress | None = None, sink: Sink | None = None) -> EventLog | None:
    """Run it; None if a number came up that is too large for 62 bits, which the reference executor can run.

    Raises InputError if operands cannot fit SRAM, SimulationError if the run cannot end.
    """
    rules = discipline(setup)
    count = spans_of(setup, rules) if sink is None else 1
    if count > 1:
        return spans.simulate(setup, rules, count, progress)
    late = rules.kind == "outstanding"  # the one that may find a number too large: the sink must not have parts of it then
    run = (Sequences if setup.batching is None else Batches)(setup, rules, progress, None if late else sink)
    try:
        run.execute()
    except OutOfRangeError:
        return None
    log = run.event_log()
    if not late or sink is None:
        return log
    sink(log)
    return replace(log, tasks=TaskTable.empty(), grants=GrantTable.empty())
