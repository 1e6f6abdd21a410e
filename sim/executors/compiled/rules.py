"""Which setups the compiled executor can run."""

from __future__ import annotations

from dataclasses import replace

from sim.base.memo import Memo
from sim.base.pointers import CannotCompileError, pointer_to
from sim.executors.compiled.build import RANKINGS, requesters
from sim.executors.setup import Setup
from sim.machine.arbiters import Arbiter, Derated, KernelArbiter
from sim.machine.arbiters.checked import Checked
from sim.machine.arbiters.disciplines import Discipline, discipline_of
from sim.machine.arbiters.paths import path_discipline
from sim.machine.schedulers.checked import Checked as CheckedScheduler

#: [unit]: its discipline.
Disciplines = tuple[Discipline, ...]

#: Disciplines of arbiters, which runs of a study share, by the number of requesters.
KNOWN: Memo[list[Discipline | None]] = Memo(256)


def obstacle(setup: Setup) -> str:
    """Why it cannot run a setup, in a few words; empty if it can."""
    if type(setup.scheduler) not in RANKINGS:
        scheduler = setup.scheduler.scheduler if isinstance(setup.scheduler, CheckedScheduler) else setup.scheduler
        return f"the scheduler {type(scheduler).__name__} is Python"
    for unit in setup.units:
        if not unit.joint and _discipline(unit.arbiter, requesters(setup)) is None:
            arbiter = unit.arbiter
            plain = arbiter
            while isinstance(plain, (Derated, Checked)):
                plain = plain.arbiter
            ours = type(plain).plan is KernelArbiter.plan or type(plain).__module__.startswith("sim.machine.arbiters.")
            return f"the arbiter {type(plain).__name__} {'has too large numbers' if ours else 'is Python'}"
    return ""


def cannot_compile(setup: Setup) -> str:
    """Why the function of a third party cannot be compiled, in a few words; empty if it can, or if there is none."""
    for discipline in disciplines(setup):
        if discipline.rule is not None:
            try:
                pointer_to(discipline.rule, compiled=True)
            except CannotCompileError as error:
                return f"Numba cannot compile the arbiter's {error}"
    return ""


def disciplines(setup: Setup) -> Disciplines:
    """[unit]: the discipline of each unit of a setup that it can run."""
    ports = requesters(setup)
    made = (_of_paths(unit.arbiter) if unit.joint else _discipline(unit.arbiter, ports) for unit in setup.units)
    return tuple(each for each in made if each is not None)


def _discipline(arbiter: Arbiter, ports: int) -> Discipline | None:
    """The discipline of an arbiter as `discipline_of`, found once."""
    return KNOWN.of(arbiter, ports, lambda: [discipline_of(arbiter, ports)])[0]


def _of_paths(arbiter: Arbiter) -> Discipline | None:
    """The discipline of links that are divided together."""
    plain = path_discipline(arbiter)
    if plain is None:
        return None
    return replace(plain, kind="paths", one=plain.kind == "exclusive", reads=plain.kind == "outstanding")
