"""The workload of a scenario: its requests, how they share steps, and the experts that their tokens choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from models.experts import Routing
from models.graph import IntArray, OpGraph
from sim.base.errors import ConfigError, about
from sim.base.quantities import MAXIMUM
from sim.base.units import PS_PER_S
from sim.machine.kv_cache import KVLayout, layer_groups, state_bytes
from sim.scenario import RequestTrace, Scenario
from sim.serving.batching import ResolvedBatching
from sim.serving.limits import check_feasible
from sim.workload.generate import generate
from sim.workload.requests import Request
from sim.workload.routing import Uniform
from sim.workload.routing import read as read_routing
from sim.workload.trace import read


def requests(scenario: Scenario) -> list[Request]:
    """Every request of a scenario, in program order. With `workload.concurrency` their arrivals are not used.

    Raises ConfigError if a trace cannot be used or the last request comes too late.
    """
    workload = scenario.workload
    if workload.generate is not None:
        found = generate(workload.generate, scenario.seed)
        if found[-1].arrival > MAXIMUM:
            limit = MAXIMUM // PS_PER_S
            message = f"so slow that the last request comes after more than {limit:,} s"
            raise ConfigError("workload.generate.arrivals", message)
        return found
    if workload.trace is not None:
        return _traced(workload.trace, scenario.folder)
    written: list[Request] = []
    for number, s in enumerate(workload.each()):
        one = Request(arrival=s.arrival, context=s.context, prompt=s.prompt, tokens=s.tokens)
        written += [one] if s.samples == 1 else [replace(one, group=number)] * s.samples
    return written


def _traced(trace: RequestTrace, folder: Path) -> list[Request]:
    columns = trace.columns.model_dump(exclude_none=True) if trace.columns is not None else None
    with about("workload.trace"):
        return read(
            folder / trace.file, format=trace.format, columns=columns, unit=trace.unit, start=trace.start,
            duration=trace.duration, limit=trace.limit, speed=Fraction(repr(trace.speed)), skip_empty=trace.skip_empty,
        )  # fmt: skip


def batching(scenario: Scenario, ops: OpGraph, sequences: Sequence[Request], capacity: int | None) -> ResolvedBatching | None:
    """The batching of a scenario; None if each step is one sequence that decodes one token.

    capacity: bytes for KV caches, None if unbounded. Raises ConfigError if the scenario cannot be batched, or a request could
    never be served.
    """
    workload = scenario.workload
    alone = workload.batching.alone and workload.speculative is None and workload.concurrency is None
    if alone and not any(request.prompt for request in sequences):
        return None
    _refuse_what_cannot_be_batched(scenario)
    written, drafts = workload.batching, workload.speculative
    most = written.max_batch or (1 if written.alone else len(sequences))
    needed = most * (1 if drafts is None else 1 + drafts.draft)
    if written.max_tokens is not None and written.max_tokens < needed:
        message = f"expected at least {needed}, so that all of a batch can decode, found {written.max_tokens}"
        raise ConfigError("workload.batching.max_tokens", message)
    resolved = ResolvedBatching(
        settings=written, prefill=workload.prefill, speculation=drafts, sequences=most,
        layout=KVLayout(written.kv.block, layer_groups(ops), state_bytes(ops)), capacity=capacity, seed=scenario.seed,
    )  # fmt: skip
    check_feasible(resolved, sequences)
    return resolved


def _refuse_what_cannot_be_batched(scenario: Scenario) -> None:
    if scenario.workload.dependency == "known":
        raise ConfigError("workload.dependency", "expected 'sampled' where there are prompts, found 'known'")
    if scenario.model.config is None:
        message = "expected a model.config for batching, prompts, speculation and closed loops: a written graph is one step"
        raise ConfigError("workload", message)
    if scenario.mapping.granularity != "op":
        raise ConfigError("mapping.granularity", "expected 'op' for batching, prompts and speculation, found 'aten'")


def routing(scenario: Scenario) -> Routing:
    """The routing of a run: drawn from the seed, or read from a file. Raises ConfigError for a file that cannot be used."""
    written = scenario.workload.routing
    if isinstance(written, str):
        return Uniform(scenario.seed)
    with about("workload.routing.file"):
        return read_routing(scenario.folder / written.file)


def check_routing(routing: Routing | None, ops: OpGraph, sequences: Sequence[Request], *, again: bool) -> None:
    """Raise ConfigError if a routing lacks some of the tokens, or has choices that the model cannot make.

    again: whether prompts may be prefilled again, with the tokens that were in the cache before them.
    """
    if routing is None or isinstance(routing, Uniform):
        return
    layers = {op.layer: op.experts for op in ops.ops if op.experts is not None}
    with about("workload.routing.file"):
        for number, position in enumerate(_fed_in(sequences, again)):
            sequence = np.full_like(position, number)
            for layer, experts in layers.items():
                routing.choose(np.full_like(position, layer), sequence, position, experts)


def _fed_in(sequences: Sequence[Request], again: bool) -> Iterator[IntArray]:
    """Positions of the tokens that each sequence feeds in; only the first of several samples feeds in their prompt."""
    groups = set[int]()
    for request in sequences:
        shared = request.prompt if request.group in groups else 0
        groups |= {request.group} - {-1}
        yield np.arange(0 if again else request.context + shared, request.final)
