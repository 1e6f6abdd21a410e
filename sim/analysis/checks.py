"""Invariants, checked on every run. A failure is a defect of the simulator, never of the input.

Faults in rows of the log are found by the pass that sums them (`sim.analysis.tally`); the rest is about steps and sums.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sim.analysis.bounds import Bounds
from sim.analysis.rules import Rules
from sim.analysis.tally import Tally
from sim.analysis.tally_kernels import Fault
from sim.base.errors import SimulationError
from sim.base.units import ceil_div, format_time
from sim.log.inputs import tokens_overlap
from sim.log.tables import EventLog


def check(log: EventLog, rules: Rules, bounds: Bounds, tally: Tally | None = None) -> list[str]:
    """Return the names of the invariants that were checked; raises SimulationError at the first that does not hold.

    tally: sums over the log, if they have been made; then the log needs no rows.
    """
    tally = Tally.of(log, rules) if tally is None else tally
    passed = []
    for name, holds in CHECKS.items():
        trouble = holds(log, rules, bounds, tally)
        if trouble is not None:
            raise SimulationError(f"invariant does not hold: {name}: {trouble}")
        passed.append(name)
    return passed


def _no(fault: Fault, _log: EventLog, _rules: Rules, _bounds: Bounds, tally: Tally) -> str | None:
    return tally.faults.get(fault)


def _barriers(log: EventLog, rules: Rules, _bounds: Bounds, _tally: Tally) -> str | None:
    if rules.dependency == "known":
        return None
    return "a step was released before the one before it had ended" if tokens_overlap(log) else None


def _bounds_hold(log: EventLog, rules: Rules, bounds: Bounds, tally: Tally) -> str | None:
    # An interval of service moves up to 1 ps of work per transfer from one to the last of them, and may lose the fraction
    # of one: a transfer can be that much faster than its port (never faster than the channel), or later than it would be.
    rounding = tally.services * ceil_div(rules.slowest.denominator, rules.slowest.numerator)
    if bounds.lower > log.makespan + (rounding if rules.fastest < 1 else 0):
        return f"makespan {format_time(log.makespan)} is below the lower bound {format_time(bounds.lower)}"
    if bounds.upper is not None and bounds.upper + rounding < log.makespan:
        return f"makespan {format_time(log.makespan)} is above the upper bound {format_time(bounds.upper)}"
    return None


CHECKS: dict[str, Callable[[EventLog, Rules, Bounds, Tally], str | None]] = {
    "ready <= start <= loaded <= end": partial(_no, Fault.OUT_OF_ORDER),
    "tasks start after all their inputs end": partial(_no, Fault.BEFORE_INPUT),
    "no engine runs two tasks at once": partial(_no, Fault.ENGINE_SHARED),
    "KV order per sequence and layer": partial(_no, Fault.KV_ORDER),
    "sampled steps are barriers": _barriers,
    "bytes requested = bytes delivered": partial(_no, Fault.NOT_DELIVERED),
    "operands in use never exceed SRAM": partial(_no, Fault.SRAM),
    "channel never above its bandwidth": partial(_no, Fault.ABOVE_BANDWIDTH),
    "channel never idle while a transfer is eligible": partial(_no, Fault.IDLE),
    "lower bound <= makespan <= upper bound": _bounds_hold,
}
