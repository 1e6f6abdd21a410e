"""The requests of a scenario: written out, generated, or read from a trace."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from sim.errors import InputError
from sim.quantities import MAXIMUM
from sim.requests import Request
from sim.scenario import RequestTrace, Scenario
from sim.units import PS_PER_S
from sim.workload.generate import generate
from sim.workload.routes import routing
from sim.workload.trace import read

__all__ = ["requests", "routing"]


def requests(scenario: Scenario) -> list[Request]:
    """Every request of a scenario, in program order. Under `workload.concurrency` the loop sets their arrivals, not these.

    Raises InputError, with its place in the scenario, if a trace cannot be used or the last request comes too late.
    """
    workload = scenario.workload
    if workload.generate is not None:
        found = generate(workload.generate, scenario.seed)
        if found[-1].arrival > MAXIMUM:
            limit = MAXIMUM // PS_PER_S
            raise scenario.error(
                "workload.generate.arrivals", f"so slow that the last request comes after more than {limit:,} s"
            )
        return found
    if workload.trace is not None:
        return _traced(scenario, workload.trace)
    made: list[Request] = []
    for number, s in enumerate(workload.each()):
        one = Request(arrival=s.arrival, context=s.context, prompt=s.prompt, tokens=s.tokens)
        made += [one] if s.samples == 1 else [replace(one, group=number)] * s.samples
    return made


def _traced(scenario: Scenario, wanted: RequestTrace) -> list[Request]:
    columns = wanted.columns.model_dump(exclude_none=True) if wanted.columns is not None else None
    try:
        return read(
            _beside(scenario, wanted.file), format=wanted.format, columns=columns, unit=wanted.unit, start=wanted.start,
            duration=wanted.duration, limit=wanted.limit, speed=Fraction(repr(wanted.speed)), skip_empty=wanted.skip_empty,
        )  # fmt: skip
    except InputError as error:
        raise scenario.error("workload.trace", str(error)) from None


def _beside(scenario: Scenario, file: str) -> Path:
    """A path in a scenario file is relative to that file, so that both can be moved together."""
    return Path(file) if scenario.source.startswith("<") else Path(scenario.source).parent / file
