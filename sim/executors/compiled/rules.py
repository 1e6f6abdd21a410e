"""Which setups the compiled executor can run."""

from __future__ import annotations

from sim.base.pointers import CannotCompileError, pointer_to
from sim.executors.compiled.build import RANKINGS, requesters
from sim.executors.setup import Setup
from sim.machine.arbiters import Derated, KernelArbiter
from sim.machine.arbiters.checked import Checked
from sim.machine.arbiters.disciplines import Discipline, discipline_of
from sim.machine.schedulers.checked import Checked as CheckedScheduler


def obstacle(setup: Setup) -> str:
    """Why it cannot run a setup, in a few words; empty if it can."""
    if type(setup.scheduler) not in RANKINGS:
        scheduler = setup.scheduler.scheduler if isinstance(setup.scheduler, CheckedScheduler) else setup.scheduler
        return f"the scheduler {type(scheduler).__name__} is Python"
    if discipline_of(setup.arbiter, requesters(setup)) is None:
        arbiter = setup.arbiter
        while isinstance(arbiter, (Derated, Checked)):
            arbiter = arbiter.arbiter
        ours = type(arbiter).plan is KernelArbiter.plan or type(arbiter).__module__.startswith("sim.machine.arbiters.")
        return f"the arbiter {type(arbiter).__name__} {'has too large numbers' if ours else 'is Python'}"
    return ""


def cannot_compile(setup: Setup) -> str:
    """Why the function of a third party cannot be compiled, in a few words; empty if it can, or if there is none."""
    rule = discipline(setup).rule
    if rule is None:
        return ""
    try:
        pointer_to(rule, compiled=True)
    except CannotCompileError as error:
        return f"Numba cannot compile the arbiter's {error}"
    return ""


def discipline(setup: Setup) -> Discipline:
    """The discipline of the channels of a setup that it can run."""
    found = discipline_of(setup.arbiter, requesters(setup))
    assert found is not None
    return found
