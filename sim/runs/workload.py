"""The workload of a scenario: its requests, how they share steps, and the experts that their tokens choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from models.experts import Routing
from models.graph import IntArray, OpGraph
from sim.base.errors import ConfigError, about
from sim.base.quantities import MAXIMUM
from sim.base.units import PS_PER_S, ceil_div
from sim.machine.kv_cache import KVLayout, LayerGroup, layer_groups, state_bytes
from sim.runs.model import Modeled
from sim.scenario import RequestTrace, Scenario
from sim.serving.batching import ResolvedBatching
from sim.serving.limits import check_feasible
from sim.serving.settings import KVPages
from sim.workload.generate import arrival_times, generate
from sim.workload.requests import Request
from sim.workload.routing import Uniform
from sim.workload.routing import read as read_routing
from sim.workload.trace import Traced, read


def requests(scenario: Scenario) -> list[Request]:
    """Every request of a scenario, in program order, as `traced`."""
    return traced(scenario).requests


def traced(scenario: Scenario) -> Traced:
    """Every request of a scenario, in program order, and the columns of its trace that are not used.

    With `workload.concurrency` arrivals are not used. Raises ConfigError if a trace cannot be used or the last request comes
    too late.
    """
    workload = scenario.workload
    if workload.generate is not None:
        if workload.generate.turns > 1 and workload.concurrency is None:
            raise ConfigError(
                "workload.generate.turns", "expected workload.concurrency: a turn comes when the one before has ended"
            )
        found = generate(workload.generate, scenario.seed)
        _refuse_late(found, "workload.generate.arrivals")
        return Traced(found, ())
    if workload.trace is not None:
        return _traced(workload.trace, scenario)
    written: list[Request] = []
    for number, s in enumerate(workload.each()):
        one = Request(arrival=s.arrival, context=s.context, prompt=s.prompt, tokens=s.tokens)
        written += [one] if s.samples == 1 else [replace(one, group=number)] * s.samples
    return Traced(written, ())


def _traced(trace: RequestTrace, scenario: Scenario) -> Traced:
    columns = trace.columns.model_dump(exclude_none=True) if trace.columns is not None else None
    characters = trace.characters_per_token
    with about("workload.trace"):
        found = read(
            scenario.folder / trace.file, format=trace.format, columns=columns, unit=trace.unit,
            timed=trace.arrivals is None and scenario.workload.concurrency is None, start=trace.start,
            duration=trace.duration, limit=trace.limit, speed=Fraction(repr(trace.speed)), skip_empty=trace.skip_empty,
            characters_per_token=None if characters is None else Fraction(repr(characters)), history=trace.history,
            prefix_tokens=trace.prefix_tokens,
        )  # fmt: skip
    if trace.arrivals is None:
        return found
    times = arrival_times(trace.arrivals, scenario.seed, len(found.requests))
    timed = [replace(request, arrival=time) for request, time in zip(found.requests, times, strict=True)]
    _refuse_late(timed, "workload.trace.arrivals")
    return found._replace(requests=timed)


def _refuse_late(found: Sequence[Request], key: str) -> None:
    if found[-1].arrival > MAXIMUM:
        raise ConfigError(key, f"so slow that the last request comes after more than {MAXIMUM // PS_PER_S:,} s")


def batching(
    scenario: Scenario, of_run: Sequence[Modeled], sequences: Sequence[Request], capacity: int | None,
    tiers: Sequence[int | None] = (),
) -> ResolvedBatching | None:  # fmt: skip
    """The batching of a scenario; None if each step is one sequence that decodes one token.

    of_run: the models, whose caches are paged. capacity: bytes for KV caches, None if unbounded. tiers: the same in each
    tier, of each replica. Raises ConfigError if the scenario cannot be batched, or a request could never be served.
    """
    workload = scenario.workload
    alone = workload.batching.alone and workload.speculative is None and workload.concurrency is None
    if alone and not workload.step_overhead and not any(request.prompt for request in sequences):
        return None
    _refuse_what_cannot_be_batched(scenario, sequences)
    written, drafts = workload.batching, workload.speculative
    most = written.max_batch or (1 if written.alone else len(sequences))
    needed = most * (1 if drafts is None else 1 + drafts.draft)
    if written.max_tokens is not None and written.max_tokens < needed:
        message = f"expected at least {needed}, so that all of a batch can decode, found {written.max_tokens}"
        raise ConfigError("workload.batching.max_tokens", message)
    parallel = scenario.mapping.parallel
    loops = 1 if written.alone else min(parallel.batches, len(sequences))
    if loops > 1:
        _refuse_what_cannot_be_dealt(scenario, sequences)
    if parallel.prefill:
        _refuse_what_cannot_be_handed_over(scenario, sequences)
    if parallel.homes:
        _refuse_moves(scenario)
    resolved = ResolvedBatching(
        settings=written, prefill=workload.prefill, speculation=drafts, sequences=ceil_div(most, loops), loops=loops,
        replicas=parallel.data, router=workload.router, devices=parallel.group, homes=parallel.homes,
        prefilling=parallel.prefill,
        hand_overs=parallel.hand_overs if parallel.prefill else 0, by_layer=parallel.hand_over == "layers",
        layout=_layout(of_run, written.kv), capacity=None if capacity is None else capacity // loops,
        tiers=tuple(None if space is None else space // loops for space in tiers),
        seed=scenario.seed,
    )  # fmt: skip
    if written.kv.prefix_cache:
        _refuse_prefix_cache(resolved, sequences)
    check_feasible(resolved, sequences)
    return resolved


def _refuse_prefix_cache(batching: ResolvedBatching, sequences: Sequence[Request]) -> None:
    """Raise ConfigError for a prefix cache of what it cannot share."""
    key, layout = "workload.batching.kv.prefix_cache", batching.layout
    if layout.keeps_states and batching.drafts:
        raise ConfigError(key, "expected false with states and a draft model, which takes in a prompt when its states are gone")
    if layout.windowed and batching.settings.kv.spills:
        raise ConfigError(
            "workload.batching.kv.evicted",
            "expected 'lost' with sliding windows or states: a move to or from a tier is of the same tokens in all layers",
        )
    if batching.settings.kv.full == "swap":
        raise ConfigError(
            key, "expected full: wait or recompute with a prefix cache, found 'swap'; with recompute and evicted: tiers a "
            "sequence that was pre-empted finds its blocks in the tiers",
        )  # fmt: skip
    if any(request.prefix and not request.prefix_tokens for request in sequences):
        raise ConfigError("workload.trace.prefix_tokens", "expected the number of tokens that each id of a prefix stands for")


def _layout(of_run: Sequence[Modeled], kv: KVPages) -> KVLayout:
    """The layout of the caches of all models together; with a prefix cache copies of states are blocks of it."""
    groups = tuple(group for each in of_run for group in layer_groups(each.caching))
    state = sum(state_bytes(each.caching) for each in of_run)
    if state and kv.prefix_cache:
        return KVLayout(kv.block, (*groups, LayerGroup(0, state)))
    return KVLayout(kv.block, groups, state)


def _refuse_what_cannot_be_batched(scenario: Scenario, sequences: Sequence[Request]) -> None:
    workload = scenario.workload
    if workload.dependency == "known":
        raise ConfigError("workload.dependency", "expected 'sampled' where there are prompts, found 'known'")
    batched = not workload.batching.alone or workload.concurrency is not None or any(each.prompt for each in sequences)
    if scenario.model.config is None and batched:
        message = "expected a model.config for batching, prompts and closed loops: a written graph is one step of one sequence"
        raise ConfigError("workload", message)
    drafts = workload.speculative is not None and workload.speculative.model is not None
    if drafts and any(each.group >= 0 for each in sequences):
        key = "workload.sequences" if workload.generate is None else "workload.generate.samples"
        raise ConfigError(key, "expected no samples with a draft model")
    if scenario.mapping.granularity != "op":
        raise ConfigError(
            "mapping.granularity", "expected 'op' for batching, prompts, speculation and step_overhead, found 'aten'"
        )


def _refuse_what_cannot_be_dealt(scenario: Scenario, sequences: Sequence[Request]) -> None:
    """Raise ConfigError for requests that several batches in flight cannot take in turn."""
    key, parallel = "mapping.parallel.micro_batches", scenario.mapping.parallel
    found = f"found {parallel.micro_batches}"
    if parallel.micro_batches is None:
        found = f"found none, which is one for each of {parallel.pipeline} stages (mapping.parallel.pipeline); write 1"
    if scenario.workload.concurrency is not None:
        raise ConfigError(key, f"expected 1 in a closed loop (workload.concurrency), {found}")
    if any(each.group >= 0 or each.conversation >= 0 for each in sequences):
        raise ConfigError(key, f"expected 1 with samples of a prompt or conversations, {found}")


def _refuse_what_cannot_be_handed_over(scenario: Scenario, sequences: Sequence[Request]) -> None:
    """Raise ConfigError for requests whose KV cache cannot go from replicas that prefill to those that decode."""
    key, workload = "mapping.parallel.prefill", scenario.workload
    if any(not each.prompt for each in sequences):
        raise ConfigError(key, "expected a prompt of each request: those that prefill have nothing else to do")
    if any(each.group >= 0 for each in sequences):
        raise ConfigError(key, "expected no samples of a prompt")
    if workload.batching.kv.full == "swap":
        raise ConfigError("workload.batching.kv.full", "expected wait or recompute with mapping.parallel.prefill, found 'swap'")
    if workload.speculative is not None and workload.speculative.model is not None:
        raise ConfigError("workload.speculative.model", "expected none with mapping.parallel.prefill")


def _refuse_moves(scenario: Scenario) -> None:
    """Raise ConfigError for steps of one device, where devices take all steps together."""
    kv, speculative, why = scenario.workload.batching.kv, scenario.workload.speculative, "with mapping.parallel.attention: data"
    if kv.full == "swap":
        raise ConfigError("workload.batching.kv.full", f"expected wait or recompute {why}, found 'swap'")
    if kv.spills:
        raise ConfigError("workload.batching.kv.evicted", f"expected lost {why}, found 'tiers'")
    if speculative is not None and speculative.model is not None:
        raise ConfigError("workload.speculative.model", f"expected none {why}")


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
