"""Which setups the compiled executor can run."""

from __future__ import annotations

from sim.executors.compiled.build import RANKINGS, requesters
from sim.executors.setup import Setup
from sim.hardware.arbiters.disciplines import Discipline, discipline_of


def obstacle(setup: Setup) -> str:
    """Why it cannot run a setup, in a few words; empty if it can."""
    if type(setup.scheduler) not in RANKINGS:
        return f"the scheduler {type(setup.scheduler).__name__} is Python"
    if discipline_of(setup.arbiter, requesters(setup)) is None:
        return f"the arbiter {type(setup.arbiter).__name__} is Python, or its numbers are too large"
    return ""


def discipline(setup: Setup) -> Discipline:
    """The discipline of the channels of a setup that it can run."""
    found = discipline_of(setup.arbiter, requesters(setup))
    assert found is not None
    return found
