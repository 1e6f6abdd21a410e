"""The requests of a scenario, written out, generated or read from a trace, and the experts that their tokens choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from models.experts import Routing
from models.graph import IntArray, OpGraph
from sim.base.errors import InputError
from sim.base.quantities import MAXIMUM
from sim.base.units import PS_PER_S
from sim.scenario import RequestTrace, Scenario
from sim.workload.generate import generate
from sim.workload.requests import Request
from sim.workload.routing import Uniform
from sim.workload.routing import read as read_routing
from sim.workload.trace import read


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


def routing(scenario: Scenario, ops: OpGraph, sequences: Sequence[Request], *, again: bool) -> Routing:
    """The routing of a run. again: prompts may be prefilled once more, with what was in the cache before them.

    Refuses a file that lacks some of the tokens, or has choices that the model cannot make.
    """
    written = scenario.workload.routing
    if isinstance(written, str):
        return Uniform(scenario.seed)
    layers = {op.layer: op.experts for op in ops.ops if op.experts is not None}
    if not layers:
        raise scenario.error("workload.routing", "expected a file only for a mixture of experts, which the model is not")
    try:
        given = read_routing(scenario.folder / written.file)
        for number, position in enumerate(_fed_in(sequences, again)):
            sequence = np.full_like(position, number)
            for layer, experts in layers.items():
                given.choose(np.full_like(position, layer), sequence, position, experts)
    except InputError as error:
        raise scenario.error("workload.routing.file", str(error)) from None
    return given


def _fed_in(sequences: Sequence[Request], again: bool) -> Iterator[IntArray]:
    """Positions of the tokens that each sequence feeds in: of samples of one prompt, the first feeds it in for all."""
    groups = set[int]()
    for request in sequences:
        shared = request.prompt if request.group in groups else 0
        groups |= {request.group} - {-1}
        yield np.arange(0 if again else request.context + shared, request.final)
