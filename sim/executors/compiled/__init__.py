"""The compiled executor: the state machine of `sim.executors.reference` in one event loop over integers.

Read `state.py` first, the layout of a run's memory. Then `loop.py`: `advance` goes from instant to instant, and each phase of
an instant is a function. `tasks.py` has the transitions of a task, `steps.py` releases steps and admits operands to SRAM,
`engines.py` dispatches tasks, and `channels.py` divides a channel by one of five disciplines (`exclusive.py`, `turns.py`,
`classes.py`, `rest.py`, `written.py`) over the queues of `ports.py`; `heaps.py` and `skew.py` are their heaps, and
`clock.py` says which of them have something to do. All of these are kernels, which run as plain Python as well.

The rest is Python around the loop. `rules.py` says which setups can run here; `build.py` lays out the memory, `forms.py` the
task graphs, `costs.py` the durations. `driver.py` (sequences) and `batches.py` (batches) serve the loop whenever `advance`
returns, and make the event log; `spans.py` simulates steps in parallel where each begins on an idle machine.
"""

from __future__ import annotations

from dataclasses import replace

from sim.log.tables import EventLog, ServiceTable, TaskTable
from sim.executors.compiled import spans
from sim.executors.compiled.batches import Batches
from sim.executors.compiled.driver import OutOfRangeError, Sequences, Sink
from sim.executors.compiled.rules import disciplines
from sim.executors.compiled.spans import spans_of
from sim.executors.setup import Progress, Setup


def simulate(setup: Setup, progress: Progress | None = None, sink: Sink | None = None) -> EventLog | None:
    """Simulate to the end; returns None if a number exceeds 62 bits, so that only the reference executor can run the setup.

    Raises InputError if operands cannot fit SRAM, SimulationError if the run cannot end.
    """
    rules = disciplines(setup)
    count = spans_of(setup, rules) if sink is None else 1
    if count > 1:
        return spans.simulate(setup, rules, count, progress)
    # Only this kind may meet a number that is too large, halfway; so the sink gets its log at the end, not in parts.
    late = any(each.kind == "outstanding" for each in rules)
    run = (Sequences if setup.batching is None else Batches)(setup, rules, progress, None if late else sink)
    try:
        run.execute()
    except OutOfRangeError:
        return None
    log = run.event_log()
    if not late or sink is None:
        return log
    sink(log)
    return replace(log, tasks=TaskTable.empty(), services=ServiceTable.empty())
