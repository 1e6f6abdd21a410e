"""Summary of a run on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from models.formats import product_formats
from sim.analysis.bounds import few_tiles
from sim.analysis.parts import LINK, WAIT_LINK
from sim.analysis.sums import exact_sum
from sim.base.quantities import BANDWIDTH
from sim.base.units import format_bytes, format_rate, format_time
from sim.log import derived
from sim.machine.machine import TIER_PATHS, Path
from sim.render import breakdown, energy, narrow, requests, sram
from sim.render.narrow import Fitting, fitted, glued
from sim.runs.machine import one_port_at_a_time
from sim.runs.result import Result

TOP = 12  # rows of the table of kinds
MANY = 10  # tokens or engines listed one by one

#: Meaning of the times of shipped cost models; of `roofline` it depends on the run.
COSTS = {
    "kernel": "kernel: launch time, then the later of bytes and FLOPs, at rates that kernels reach",
    "fixed": "fixed: from a table of durations",
    "profiled": "profiled: as measured on a device",
}


def render(result: Result, *, verbose: bool = False) -> RenderableType:
    """Summary of a run that fits one screen: of requests first, where some are served.

    verbose: with the executor and the invariants that were checked.
    """
    m, log = result.metrics, result.log
    head = Text.assemble((result.scenario.name, "bold"), "  " + " ".join(result.scenario.description.split()))
    facts = Table.grid(padding=(0, 2))
    facts.add_row("makespan", glued(f"{format_time(m.makespan)}, {m.tasks:,} tasks"))
    facts.add_row("tokens", glued(_tokens(result)))
    facts.add_row("memory", glued(_memory(result)))
    if (links := _links(result)) is not None:
        facts.add_row("links", glued(links))
    for tier, moved in _tiers(result):
        facts.add_row(tier, glued(moved))
    if (occupied := sram.line(result)) is not None:
        facts.add_row("SRAM", glued(occupied))
    facts.add_row("engines", glued(_engines(result)))
    if log.step_overhead:
        total = f", {format_time(log.step_overhead * len(log.steps))} in all" if len(log.steps) else ""
        facts.add_row("host", glued(f"{format_time(log.step_overhead)} before each step{total}"))
    facts.add_row("bounds", glued(_bounds(result)))
    for i, line in enumerate(energy.lines(result)):
        facts.add_row("" if i else "energy", glued(line))
    if (costs := _costs(result)) is not None:
        facts.add_row("times", glued(costs))
    if result.scenario.from_preset:
        facts.add_row("from preset", ", ".join(result.scenario.from_preset))
    for note in result.plan.notes:
        facts.add_row("model", Text(note, style="yellow"))
    if result.plan.ignored:
        facts.add_row("trace", f"not used: {', '.join(map(repr, result.plan.ignored))}")
    if verbose:
        facts.add_row("checks", f"{len(result.checks)} invariants hold: {'; '.join(result.checks)}")
    if verbose or result.timing.executed.barred:
        facts.add_row("executor", _executor(result))
    if (tiles := few_tiles(result.log, result.bounds)) is not None:
        many = "one task" if tiles == 1 else f"{tiles} tasks"
        advice = f"each weight matmul is {many}, for {result.log.engines} engines; mapping.tiles: engines would spread them"
        facts.add_row("advice", Text(advice, style="yellow"))
    if one_port_at_a_time(result.scenario.hardware):
        port = BANDWIDTH.format(result.scenario.hardware.memory.port_bandwidth or 0)
        advice = f"fifo serves one transfer at a time, at no more than the {port} of its port; "
        facts.add_row("advice", Text(f"{advice}hardware.memory.arbiter: processor_sharing serves all at once", style="yellow"))
    for i, extrapolation in enumerate(breakdown.extrapolations(result.extrapolations)):
        facts.add_row("" if i else "extrapolated", Text(extrapolation, style="yellow"))
    served = [requests.render(result), Text()] if requests.worth_showing(result) else []
    return Group(head, *served, facts, Text(), _kinds(result))


def _costs(result: Result) -> str | None:
    """Meaning of the times, and with `roofline` what they are a bound of."""
    model = result.scenario.cost.model
    if model != "roofline":
        return COSTS.get(model)
    formats = product_formats(result.plan.ops)
    if not formats:
        return "roofline: a lower bound, real kernels are slower"
    flops = result.scenario.hardware.engines.flops
    rates = f"at {format_rate(flops, 'FLOP/s')} per engine in any format" if isinstance(flops, int) else "at peak"
    return f"roofline: a lower bound with products in {', '.join(formats)} {rates}; real kernels are slower"


def _memory(result: Result) -> str:
    m, memory = result.metrics, result.scenario.hardware.memory
    through = m.delivered[: result.log.machine.memories]
    moved = f"{format_bytes(m.bytes_read)} read, {format_bytes(m.bytes_written)} written"
    if result.scenario.cost.model == "fixed":
        rate = " (transfer times from a table, not from bytes)"
    else:
        rate = f" at {f'{len(through)} x ' if len(through) > 1 else ''}{format_rate(memory.bandwidth, 'B/s')}"
    if len(through) == 1:
        best = result.plan.rules.efficiency[1]
        achieved = _percent(through[0] * best.denominator, m.makespan * best.numerator)
        of_best = f" ({achieved} of achievable)" if best < 1 else ""
        return f"{moved}{rate}; channel {_percent(through[0], m.makespan)}{of_best}"
    used = ", ".join(f"{i} {_percent(delivered, m.makespan)}" for i, delivered in enumerate(through[:MANY]))
    return f"{moved}{rate}; channels {used}{' ...' if len(through) > MANY else ''}"


def _links(result: Result) -> str | None:
    """Bytes that a device sends, the busiest link between devices, and the time of tokens that waits for links; None without
    one.
    """
    machine, m = result.log.machine, result.metrics
    if (number := _busiest(result, "link")) is None:
        return None
    count = len(machine.devices)
    rate = format_rate(machine.channels[number].bandwidth, "B/s")
    used = _percent(m.delivered[number], m.makespan)
    what = "collectives" if count == 1 and not machine.tiers else "links"  # else not all that they carry
    if count == 1:
        sent = f"each sent {format_bytes(m.bytes_sent)} at {rate}, {used}{_between(result)}"
        return f"{machine.like} devices, one shown; {sent}; {_exposed(result, f'{what} are')}"
    shown = f", {count} of them shown" if machine.like > 1 else ""
    sent = f"those sent {format_bytes(m.bytes_sent)} at {rate}, the busiest {used}{_between(result)}"
    return f"{machine.like * count} devices{shown}; {sent}; {_exposed(result, f'{what} are')}"


def _between(result: Result) -> str:
    """The bandwidth and the use of the network between islands; empty without one."""
    if (number := _busiest(result, "network")) is None:
        return ""
    rate = format_rate(result.log.machine.channels[number].bandwidth, "B/s")
    return f", between islands at {rate}, {_percent(result.metrics.delivered[number], result.makespan)}"


def _tiers(result: Result) -> Iterator[tuple[str, str]]:
    """Each tier, bytes over its links, and the busiest of them; with the first the time of tokens that waits for links.

    That time is with the links between devices where there are any.
    """
    machine, m = result.log.machine, result.metrics
    busiest = "the busiest " if len(machine.devices) > 1 else ""
    links = "the link is" if len(machine.links) == 1 else "links are"
    with_devices = _busiest(result, "link") is not None
    for tier, kind, moved in zip(machine.tiers, TIER_PATHS, m.bytes_tiers, strict=False):
        number = _busiest(result, kind)
        assert number is not None
        rate = format_rate(machine.channels[number].bandwidth, "B/s")
        shown = f"{format_bytes(moved)} moved at {rate}, {busiest}{_percent(m.delivered[number], m.makespan)}"
        yield tier, f"{shown}; {_exposed(result, links)}" if kind == TIER_PATHS[0] and not with_devices else shown


def _busiest(result: Result, kind: Path) -> int | None:
    """Number of the link of a kind that delivered the most; None if there is none."""
    channels = result.log.machine.channels
    numbers = [number for number, channel in enumerate(channels) if channel.kind == kind]
    return max(numbers, key=lambda link: result.metrics.delivered[link], default=None)


def _exposed(result: Result, links: str) -> str:
    """The share of the time of tokens on links, or waiting for them. links: the subject of the sentence, with its verb."""
    if not len(result.breakdown.tokens):
        return f"their share of the time of tokens is not recorded (record: {result.scenario.record})"
    along = result.breakdown.tokens.sum(axis=0).tolist()
    return f"{links} {_percent(along[LINK] + along[WAIT_LINK], sum(along) or 1)} of the time of tokens"


def _tokens(result: Result) -> str:
    tokens, emitted = result.metrics.tokens, int(result.requests.tokens.sum())
    batched = result.log.batched is not None
    count = len(result.requests)
    of_all = f"{emitted:,} tokens of {count:,} sequence{'s' if count != 1 else ''}"
    rate = f"{emitted / (result.makespan / 1e12):,.1f} tokens/s"
    if not tokens:
        return f"{of_all}; {rate}"
    if len(tokens) <= MANY and not batched:
        names = ["1"] if len(tokens) == 1 else [f"{t.sequence}.{t.token}" for t in tokens]
        each = ", ".join(f"{name} in {format_time(t.end - t.start)}" for name, t in zip(names, tokens, strict=True))
        model = result.scenario.model
        whole = model.config is not None and model.layers is None and model.scope == "model"
        return f"{each}; {rate}" if whole else each
    times = tokens.times
    mean = exact_sum(times) // len(times)
    drafts = int(derived.drafts(result.log).sum())
    steps = "1 step" if len(tokens) == 1 else f"{len(tokens):,} steps"
    of_drafts = f" ({drafts:,} of the draft model)" if drafts else ""
    return (
        f"{of_all}{f' in {steps}{of_drafts}' if batched else ''}; "
        f"per {'step' if batched else 'token'} mean {format_time(mean)}, min {format_time(int(times.min()))}, "
        f"max {format_time(int(times.max()))}; {rate}"
    )


def _executor(result: Result) -> str:
    executed = result.timing.executed
    return f"{executed.executor}: {executed.why}" if executed.why else executed.executor


def _engines(result: Result) -> str:
    m = result.metrics
    if len(m.engine_busy) <= MANY:
        return "  ".join(f"{i} {_percent(busy, m.makespan)}" for i, busy in enumerate(m.engine_busy))
    mean = sum(m.engine_busy) / len(m.engine_busy)
    return f"{len(m.engine_busy)}, {_percent(int(mean), m.makespan)} on average"


def _bounds(result: Result) -> str:
    b = result.bounds
    arrivals = f", arrivals {format_time(b.arrivals)}" if b.arrivals else ""
    upper = f", at most {format_time(b.upper)}" if b.upper is not None else ""
    link = f", link {format_time(b.link)}" if result.log.machine.links else ""
    return (
        f"at least {format_time(b.lower)} (longest path {format_time(b.critical_path)}, compute {format_time(b.compute)}, "
        f"memory {format_time(b.memory)}{link}{arrivals}){upper}; this run is {above(b.gap(result.makespan))}"
    )


def above(gap: float) -> str:
    """Distance of a run above a bound, in words. gap: as a share of the bound."""
    return f"{gap:.1%} above" if gap < 9 else f"{1 + gap:,.0f}x as long"


def _kinds(result: Result) -> Fitting:
    kinds = result.metrics.kinds
    rows = [
        (
            k.kind, f"{k.tasks:,}", format_time(k.compute) if k.compute else "",
            format_time(k.transfer) if k.transfer else "", format_bytes(k.bytes) if k.bytes else "",
        )
        for k in kinds[:TOP]
    ]  # fmt: skip
    return fitted(
        ("op", "tasks", "on engines", "on channel", "bytes"), rows, drop=("tasks", "bytes", "on channel"),
        last=f"and {len(kinds) - TOP} more" if len(kinds) > TOP else "",
    )  # fmt: skip


def show(result: Result, console: Console, *, verbose: bool = False) -> None:
    """Print the summary of a run."""
    narrow.show(console, render(result, verbose=verbose))


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"
