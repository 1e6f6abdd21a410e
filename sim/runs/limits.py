"""Refusals before a run: setups without costs, that do not fit memory, or whose times would exceed int64."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from sim.base.errors import ConfigError, about, unknown
from sim.base.units import format_bytes
from sim.executors.operands import refuse_large_activations, sram_use
from sim.executors.setup import Setup, lanes_of
from sim.executors.size import tasks_in_all
from sim.machine.arbiters import Derated
from sim.machine.network import has_cycle
from sim.mapping.lowering import KV_CLASS
from sim.mapping.settings import Execution
from sim.mapping.steps import BatchGraph
from sim.mapping.tasks import TaskGraph
from sim.runs.machine import BY_BYTES, network_of
from sim.scenario import Scenario
from sim.serving.batch import Batch, Member
from sim.serving.batching import ResolvedBatching
from sim.serving.prefix import bytes_held
from sim.serving.routers import ROUTERS
from sim.serving.settings import Router
from sim.workload.requests import Request

DISTINCT = 256  # most distinct requests whose times are estimated one by one before a run
MOST_TURNS = 2**28  # most turns of a channel that serves one burst at a time
ROW = 100  # approximate bytes of a task in a log, with its service intervals
MOST_ENGINES = 2**15 - 1  # whose numbers a log has place for
MOST_LINKS = 2**14  # between devices
LONGEST = 2**62  # picoseconds, 53 days: sums of two times still fit int64


def refuse(setup: Setup, *, rows: bool) -> None:
    """Raise ConfigError for a setup that cannot be run. rows: the log is to have a row for each task."""
    if rows:
        _refuse_large_logs(setup)
    _refuse_small_sram(setup)
    _refuse_long_runs(setup)


def refuse_devices(scenario: Scenario) -> None:
    """Raise ConfigError for devices that nothing uses, or whose links have no costs."""
    count, parallel = scenario.hardware.devices.count, scenario.mapping.parallel
    if parallel.data > 1 or parallel.prefill:
        _refuse_replicas(scenario)
    elif parallel.pipeline == 1 and parallel.tensor != count:
        message = f"expected {count}, the number of devices (hardware.devices.count), found {parallel.tensor}"
        raise ConfigError("mapping.parallel.tensor", message)
    elif parallel.tensor * parallel.pipeline != count:
        found = f"{parallel.tensor} x {parallel.pipeline}"
        message = f"expected tensor x pipeline of {count}, the number of devices (hardware.devices.count), found {found}"
        raise ConfigError("mapping.parallel", message)
    if parallel.data == 1 and not parallel.homes and scenario.workload.router != Router():
        found = f"{scenario.workload.router.name!r}: one replica (mapping.parallel.data) gets all requests"
        raise ConfigError("workload.router", f"expected round_robin, found {found}")
    if scenario.hardware.devices.link is None and (parallel.prefill or parallel.tensor * parallel.pipeline > 1):
        raise ConfigError("hardware.devices", "expected the key 'link' where devices send to each other (mapping.parallel)")
    if parallel.expert not in (1, parallel.tensor):
        several = f" or {parallel.tensor}" if parallel.tensor > 1 else ""
        message = f"expected 1{several}, the devices of a stage (mapping.parallel.tensor), found {parallel.expert}"
        raise ConfigError("mapping.parallel.expert", message)
    if parallel.expert > 1 and scenario.workload.batching.alone:
        message = "expected batches where experts are dealt out (mapping.parallel.expert), found independent sequences"
        raise ConfigError("workload.batching.policy", message)
    if parallel.overlap_chunks > 1 and parallel.tensor == 1:
        message = f"expected 1 without tensor parallelism, which has all-reduces, found {parallel.overlap_chunks}"
        raise ConfigError("mapping.parallel.overlap_chunks", message)
    if parallel.token_chunks > 1 and parallel.tensor == 1:
        message = f"expected 1 without tensor parallelism, which has all-reduces, found {parallel.token_chunks}"
        raise ConfigError("mapping.parallel.token_chunks", message)
    if parallel.token_chunks > 1 and scenario.mapping.attention != "batch":
        message = (
            f"expected 1 with mapping.attention: {scenario.mapping.attention}, found {parallel.token_chunks}; write batch there"
        )
        raise ConfigError("mapping.parallel.token_chunks", message)
    if parallel.sequence and parallel.tensor == 1:
        raise ConfigError("mapping.parallel.sequence", "expected false without tensor parallelism, found true")
    if (engines := parallel.simulated * scenario.hardware.engines.count) > MOST_ENGINES:
        message = f"expected at most {MOST_ENGINES:,} engines of all devices that are simulated, found {engines:,}"
        raise ConfigError("hardware.engines.count", message)
    _refuse_connection(scenario)
    if count > 1 and scenario.cost.model not in BY_BYTES:
        expected = " or ".join(BY_BYTES)
        raise ConfigError("cost.model", f"expected {expected} with several devices: times on links follow from bytes")


def refuse_parts_of_prompts(batching: ResolvedBatching | None, sequences: Sequence[Request], token_chunks: int) -> None:
    """Raise ConfigError where prompts would be fed in by parts to a model whose prompts see themselves whole."""
    if batching is None or not any(request.prompt for request in sequences):
        return
    why = "all tokens of a prompt see each other in this model"
    if batching.prefill.chunk is not None:
        raise ConfigError("workload.prefill.chunk", f"{why}: expected null")
    if token_chunks > 1:
        raise ConfigError("mapping.parallel.token_chunks", f"{why}: expected 1, found {token_chunks}")
    if batching.settings.kv.prefix_cache:
        raise ConfigError("workload.batching.kv.prefix_cache", f"{why}, so none can share its begin; expected false")
    if batching.prefills_again:
        raise ConfigError("workload.batching.kv.full", f"{why}, but not the answer beside it; expected wait or swap")


def _refuse_replicas(scenario: Scenario) -> None:
    """Raise ConfigError for replicas that are not as many as the devices, or that nothing can be dealt out to."""
    count, parallel, workload = scenario.hardware.devices.count, scenario.mapping.parallel, scenario.workload
    if parallel.data * parallel.tensor * parallel.pipeline != count:
        found = f"{parallel.data} x {parallel.tensor} x {parallel.pipeline}"
        message = f"data x tensor x pipeline of {count}, the number of devices (hardware.devices.count), found {found}"
        raise ConfigError("mapping.parallel", f"expected {message}")
    if parallel.prefill >= parallel.data:
        message = f"expected fewer than {parallel.data}, the replicas (mapping.parallel.data), found {parallel.prefill}"
        raise ConfigError("mapping.parallel.prefill", message)
    if workload.batching.alone:
        message = "expected batches where there are replicas (mapping.parallel.data), found independent sequences"
        raise ConfigError("workload.batching.policy", message)
    with about("workload.router"):
        ROUTERS.make(workload.router.name, workload.router.options)


def _refuse_connection(scenario: Scenario) -> None:
    """Raise ConfigError for links over which devices that one stands for would not do the same, or that are too many."""
    devices, parallel = scenario.hardware.devices, scenario.mapping.parallel
    tensor, island, key = parallel.tensor, devices.island, "hardware.devices.islands.size"
    if tensor % island and island % tensor:
        message = f"expected a divisor or a multiple of {tensor} (mapping.parallel.tensor), found {island}"
        raise ConfigError(key, message)
    if parallel.context > island:
        message = (
            f"expected at most {island}, the devices of an island (hardware.devices.islands.size), found {parallel.context}"
        )
        raise ConfigError("mapping.parallel.context", message)
    group = tensor * parallel.pipeline
    if parallel.data > 1 and group % island and island % group:
        message = f"expected a divisor or a multiple of {group}, the devices of a replica, found {island}"
        raise ConfigError(key, message)
    if devices.topology in ("ring", "mesh") and parallel.copies == 1 < tensor:
        cycle = devices.topology == "ring" or has_cycle(island)
        if island > tensor or parallel.algorithm != "ring" or not cycle or 1 < parallel.context < tensor:
            where = f"on a {devices.topology} of {island} devices"
            whole = " (mapping.parallel.algorithm: ring keeps to neighbors)" if island <= tensor and cycle else ""
            message = f"expected false: {where} transfers cross several links, so that devices differ{whole}"
            raise ConfigError("mapping.parallel.fold", message)
    network = network_of(scenario)
    if not network.plain and network.most > MOST_LINKS:
        message = f"expected at most {MOST_LINKS:,} links of devices that are simulated, found {network.most:,}"
        raise ConfigError("hardware.devices.topology", message)


def refuse_unknown_kinds(setup: Setup, execution: Execution) -> None:
    """Raise ConfigError for an option of the arbiter that names a kind of transfer which this run does not have."""
    moves = setup.graph.moves != 0
    kinds = {setup.graph.kinds[kind] for kind in np.unique(setup.graph.kind[moves]).tolist()}
    kinds |= {kind for kind in KV_CLASS if kind.startswith("kv_swap") and setup.batching is not None}
    for kind in setup.arbiter.kinds:
        if kind in ("weight_load", "act_load") and kind not in kinds and execution != "prefetch":
            own = f"under mapping.execution: {execution} an op loads its own operands"
            why = f"no effect on {kind!r}: {own}; expected kinds of ops"
            raise ConfigError("hardware.memory.arbiter", why)
        if kind not in kinds:
            raise ConfigError("hardware.memory.arbiter", str(unknown("kind of transfer", kind, kinds)))


def refuse_unknown_sequences(setup: Setup) -> None:
    """Raise ConfigError for an option of the arbiter that names a sequence which this run does not have.

    Where steps are batched, the loop has the number after those of all sequences.
    """
    count = len(setup.sequences)
    there = count
    if setup.batching is not None and not setup.batching.settings.alone:
        there += setup.batching.loops_of(count)
    for number in sorted(setup.arbiter.numbers):
        if number >= there:
            numbers = "there is only 0" if there == 1 else f"there are 0 to {there - 1}"
            raise ConfigError("hardware.memory.arbiter", f"no sequence has the number {number}; {numbers}")


def _refuse_large_logs(setup: Setup) -> None:
    rows, there = tasks_in_all(setup)[0] * ROW, _memory()
    if rows > there:
        message = f"rows for all ops would take {format_bytes(rows)} of {format_bytes(there)} of memory; expected steps or none"
        raise ConfigError("record", message)


def _memory() -> int:
    """Bytes of memory of this machine; `LONGEST` where the system does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return LONGEST


def _refuse_small_sram(setup: Setup) -> None:
    """Raise ConfigError if operands, or activations beside them, exceed SRAM in the largest steps of a request."""
    if setup.sram is None:
        return
    for request in _alike(setup):
        for batch in _last_steps(setup, request):
            graph = setup.graph if setup.graphs is None else setup.graphs(batch.shape)
            lanes = lanes_of(0, request.tokens - 1, batch)
            sram_use(setup, graph, lanes)
            refuse_large_activations(setup, graph, lanes)
    for largest in _largest_batches(setup):
        error = _why_too_large(setup, largest)
        if error is None:
            continue
        message = f"with {len(largest)} sequences in a step, {error.message}"
        assert setup.batching is not None, "of a batch"
        if setup.batching.settings.max_batch is None and (fit := _most_that_fit(setup, largest)):
            message += f"; workload.batching.max_batch of {fit} would fit"
        raise ConfigError(error.key, message)


def _why_too_large(setup: Setup, batch: Batch) -> ConfigError | None:
    """The reason why the operands that kernels load for a whole batch exceed SRAM; None if they do not."""
    graph = setup.graph if setup.graphs is None else setup.graphs(batch.shape)
    if not isinstance(graph.ops, BatchGraph) or not graph.ops.template.together:  # each member has operands of its own
        return None
    try:
        sram_use(setup, graph, lanes_of(0, 0, batch))
    except ConfigError as error:
        return error
    return None


def _most_that_fit(setup: Setup, batch: Batch) -> int:
    """How many of the members of a batch, the first of which are the largest, fit SRAM together."""
    low, high = 0, len(batch) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _why_too_large(setup, Batch(batch.members[:middle])) is None else (low, middle - 1)
    return low


def _largest_batches(setup: Setup) -> Iterator[Batch]:
    """The steps that decode as many sequences as may be in one, or as many of their last tokens; none where steps have one.

    These are as many as `max_batch` allows, or without it as there are, since requests that come apart may meet, too; and no
    more than there are users, or than the KV cache has space for: at their end, and where blocks are allocated as they are
    needed at their begin, too, from which they then decode together.
    """
    batching = setup.batching
    if batching is None or batching.settings.alone:
        return
    most = min(batching.settings.max_batch or len(setup.sequences), setup.concurrency or len(setup.sequences))
    largest = sorted(_one_of_each_conversation(setup.sequences), key=lambda each: -each.final)[:most]
    members = _that_fit(batching, [(request, request.final) for request in largest])
    if len(members) > 1:
        yield _decoding(members)
    if batching.capacity is None or batching.settings.kv.full == "wait":
        return
    begin = [(request, min(request.final, request.context + request.prompt + 1)) for request in largest]
    if len(more := _that_fit(batching, begin)) > max(1, len(members)):
        yield _decoding(_decoded_on(batching, more))


def _one_of_each_conversation(requests: Sequence[Request]) -> list[Request]:
    """The requests, of whose conversations each has its longest turn alone, since no turn begins before the last has ended."""
    turns = {each.conversation: each for each in sorted(requests, key=lambda each: each.final) if each.conversation >= 0}
    return [each for each in requests if each.conversation < 0] + list(turns.values())


def _that_fit(batching: ResolvedBatching, members: Sequence[tuple[Request, int]]) -> Sequence[tuple[Request, int]]:
    """The first of some requests, with as many tokens each, whose KV caches fit together."""
    if batching.capacity is None:
        return members
    held = bytes_held(batching, members)
    return members[: next((i for i, size in enumerate(held) if size > batching.capacity), len(members))]


def _decoded_on(batching: ResolvedBatching, members: Sequence[tuple[Request, int]]) -> Sequence[tuple[Request, int]]:
    """Requests with as many more tokens each, the same number or until they end, as fit."""
    low, high = 0, max(request.final - tokens for request, tokens in members)
    while low < high:
        more = (low + high + 1) // 2
        fits = len(_that_fit(batching, _with_more(members, more))) == len(members)
        low, high = (more, high) if fits else (low, more - 1)
    return _with_more(members, low)


def _with_more(members: Sequence[tuple[Request, int]], more: int) -> list[tuple[Request, int]]:
    return [(request, min(request.final, tokens + more)) for request, tokens in members]


def _decoding(members: Sequence[tuple[Request, int]]) -> Batch:
    """The step after which requests have so many tokens in their KV cache."""
    return Batch(tuple(Member(i, tokens - 1, 1, tokens - 1, 1, 1) for i, (_, tokens) in enumerate(members)))


def _last_steps(setup: Setup, request: Request) -> Iterator[Batch]:
    """The last step that decodes, and the last one of the prompt, which load the most of the KV cache, of each model."""
    members = [Member(0, request.final - 1, 1, request.final - 1, 1, 1)]
    if request.prompt and setup.batching is not None:
        query = min(request.prompt, setup.batching.at_once(request.prompt))
        context = request.context + request.prompt - query
        members.append(Member(0, context, query, context, 1, 1))
    for member in members:
        yield Batch((member,))
        if setup.batching is not None and setup.batching.drafts:
            yield Batch((member,), draft=True)


def _refuse_long_runs(setup: Setup) -> None:
    """Raise ConfigError where bursts are too many to simulate, or times might exceed int64."""
    longest, transfers = max(request.arrival for request in setup.sequences), 0
    for request, many in _alike(setup).items():
        time, work = _alone(setup, request)
        longest, transfers = longest + many * time, transfers + many * work
    burst = getattr(setup.arbiter, "burst", None)
    if burst is not None and transfers // burst > MOST_TURNS:
        message = f"a burst so small that the run could take {transfers // burst:,} turns; expected at most {MOST_TURNS:,}"
        raise ConfigError("hardware.memory.arbiter", message)
    if longest >= LONGEST:
        limit = LONGEST // 10**12
        raise ConfigError("hardware", f"so slow that the run could take more than {limit:,} s of simulated time")


def _alike(setup: Setup) -> Counter[Request]:
    """Number of requests of each size; with more than `DISTINCT` sizes, all count as one with the largest of each field."""
    alike = Counter(
        replace(request, arrival=0, group=-1, conversation=-1, prefix=(), prefix_tokens=0) for request in setup.sequences
    )
    if len(alike) <= DISTINCT:
        return alike
    largest = {name: max(getattr(request, name) for request in alike) for name in ("context", "prompt", "tokens")}
    return Counter({Request(arrival=0, **largest): len(setup.sequences)})


def _alone(setup: Setup, request: Request) -> tuple[int, int]:
    """Upper bound on the ps that a request takes if one task runs at a time, and its part for transfers at full speed."""
    slowest = min(Fraction(*setup.arbiter.cap), _least_efficiency(setup))
    latency = max(unit.latency for unit in setup.units)
    longest, transfers = 0, 0
    for batch, times in _largest_steps(setup, request):
        graph = setup.graph if setup.graphs is None else _with_most_experts(setup.graphs(batch.shape))
        try:
            compute, work = setup.costs.durations(graph, lanes_of(0, request.tokens - 1, batch))
        except OverflowError:
            return LONGEST, transfers
        moved = sum(work.ravel().tolist())
        transfers += times * moved
        serial = setup.step_overhead + sum(compute.ravel().tolist()) + len(graph) * latency + math.ceil(moved / slowest)
        longest += times * serial
    return longest, transfers


def _largest_steps(setup: Setup, request: Request) -> Iterator[tuple[Batch, int]]:
    """Steps that cost at least as much as the real ones of a request, each with its count.

    The step of the last token has the longest context, so no other decode step costs more. A prompt counts as one step.
    """
    decode, prompt = Member(0, request.final - 1, 1, request.final - 1, 1, 1), request.prompt
    prefill = Member(0, request.context, prompt, request.context, 1, 1)
    yield Batch((decode,)), request.tokens
    if prompt:
        yield Batch((prefill,)), 1
    if setup.batching is not None and setup.batching.drafts and setup.batching.speculation is not None:
        yield Batch((decode,), draft=True), request.tokens * setup.batching.speculation.draft
        if prompt:
            yield Batch((prefill,), draft=True), 1
    yield from _moves(setup, decode)


def _moves(setup: Setup, last: Member) -> Iterator[tuple[Batch, int]]:
    """The moves of the KV cache of a request: once out and back in, down the list of tiers, and to another replica."""
    batching = setup.batching
    if batching is None or batching.settings.alone:
        return
    all_of_it, tiers = (last._replace(query=0, logits=0, emitted=0),), range(len(setup.machine.tiers))
    for draft in (False, True) if batching.drafts else (False,):
        if batching.capacity is not None and batching.settings.kv.full == "swap":
            for tier in tiers or (0,):
                yield Batch(all_of_it, "out", tier=tier, draft=draft), 2
        if batching.capacity is not None and batching.settings.kv.spills:
            for tier in tiers:
                yield Batch(all_of_it, "fetch", tier=tier, draft=draft), 2
    if batching.prefilling and (batching.follows or not batching.by_layer):
        # Between neighbors, and between those furthest apart, which cross the network if any do.
        decoding = tuple(batching.devices * replica for replica in range(batching.prefilling, batching.replicas))
        yield Batch(all_of_it, "send", device=decoding[0] - batching.devices, to=decoding[:1]), 1
        yield Batch(all_of_it, "send", to=decoding[-1:]), 1


def _least_efficiency(setup: Setup) -> Fraction:
    return setup.arbiter.efficiency.least if isinstance(setup.arbiter, Derated) else Fraction(1)


def _with_most_experts(graph: TaskGraph) -> TaskGraph:
    """The graph of a step whose tokens choose as many distinct experts as they can."""
    return replace(graph, ops=replace(graph.ops, routing=None)) if isinstance(graph.ops, BatchGraph) else graph
