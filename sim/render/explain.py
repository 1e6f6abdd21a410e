"""Explanation of a run on a terminal: time breakdown, causes of waits, critical path, bounds, what would help."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.analysis.blame import Matrix
from sim.analysis.occupancy import Occupancy
from sim.analysis.parts import PARTS
from sim.analysis.requests import Requests
from sim.base.units import format_bytes, format_time
from sim.machine.machine import Machine
from sim.render import breakdown, sram
from sim.render.narrow import Fitting
from sim.render.requests import largest_first
from sim.render.terminal import above
from sim.runs.result import Result
from sim.runs.what_if import WhatIf
from sim.serving.queue import TITLES

MANY = 12  # rows of a table; the others are summed up as "and n more"
FEW = 5

#: Bounds that are 0 where there are no links, and where all requests come at 0.
OF_LINK, ARRIVALS = "bytes of the busiest link", "arrivals and what follows"

Times = npt.NDArray[np.int64]


def render(result: Result) -> RenderableType:
    """All sections but what-if and optimum."""
    b, found, makespan = result.breakdown, result.blame, result.makespan
    head = Text.assemble((result.scenario.name, "bold"), f"  {format_time(makespan)}, {len(result.log.tasks):,} tasks")
    sections: list[RenderableType] = [head]
    one = result.log.owner_words[1]
    owners = {"token": one, "sequence": result.log.owner_words[0], "sequences": f"{result.log.owner_words[0]}s"}
    alone = breakdown.ALONE[result.plan.rules.limit]
    sections += _section(f"Where the time of each {one} went, along its own critical chain", _tokens(result, one))
    sections += _section("Where the time of all tasks went, by kind", _parts("kind", b.kinds, b.by_kind))
    if len(b.layers) > 1:
        layers = [f"layer {n}" if n >= 0 else "outside" for n in b.layers]
        sections += _section("By layer", _parts("", layers, b.by_layer))
    if len(b.sequences) > 1:
        word = result.log.owner_words[0]
        sections += _section(f"By {word}", _parts("", [f"{word} {n}" for n in b.sequences], b.by_sequence))
    channels = "the channel or a link" if result.log.machine.links else "the channel"
    for title, by_owner, by_kind in (
        ("Causes of waits for an engine", found.engine_by_owner, found.engine_by_kind),
        (f"Causes of waits for {channels}", found.channel_by_owner, found.channel_by_kind),
    ):
        if by_kind.largest(1):
            sections += _section(title, _blame(owners[found.owner], by_owner, by_kind, alone))
    if result.occupancy is not None and result.occupancy.wait:
        sections += _section("What SRAM held while loads waited for space", _held(result))
    if (queue := _queue(result.requests)).styles:
        sections += _section("What requests waited for in the queue", queue)
    sections += _section("Critical path of the run", _critical(result))
    sections += _section("Bounds", _bounds(result))
    return Group(*sections)


def what_would_help(found: WhatIf) -> RenderableType:
    """The table of changes, and the sentence. Where requests are served it begins with the run as it is."""
    before = found.as_it_is
    serves, open_loop = before.service is not None, found.arrivals is not None
    served = (*(("TTFT", "TPOT") if serves else ()), *(("sustains",) if serves and open_loop else ()))
    table = _table("change", "makespan", *served, "speed-up", last="", drop=("TPOT", "TTFT", "makespan"))
    for change in ((before,) if serves else ()) + found.changes:
        speedup = change.speedup(before)
        cells = [] if change.service is None else [format_time(change.service.ttft), _time(change.service.tpot)]
        if change.service is not None and change.service.rate is not None:
            cells.append(f"{change.service.rate:.3g}/s")
        cells += [""] * (len(served) - len(cells))
        table.add_row(change.name, _time(change.makespan), *cells, "" if speedup is None else f"{speedup:.2f}x", change.note)
    title = "What would help"
    if serves:
        title += ": TTFT and TPOT are medians" + (", the speed-up is that of the rate that is sustained" if open_loop else "")
    return Group(*_section(title, table), Text(), Text(found.bottleneck, style="bold"))


def _time(ps: int | None) -> str:
    return "" if ps is None else format_time(ps)


def _section(title: str, body: RenderableType) -> list[RenderableType]:
    return [Text(), Text(title, style="bold"), body]


def _table(first: str, *columns: str, last: str | None = None, drop: Sequence[str] = ()) -> Fitting:
    table = Fitting(drop=drop)
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    if last is not None:
        table.add_column(last)
    return table


def _tokens(result: Result, one: str) -> Fitting:
    log, rows, titles = result.log, result.breakdown.tokens, breakdown.titles(result.log)
    names = [f"{s}.{t}" for s, t in zip(log.steps.sequence.tolist(), log.steps.token.tolist(), strict=True)]
    if len(names) <= MANY:
        return _parts(one, names, rows, titles, by_size=False)
    slowest = np.argsort(-rows.sum(axis=1), kind="stable")[:FEW]
    table = _parts(one, [names[i] for i in slowest], rows[slowest], titles, by_size=False)
    shown = np.flatnonzero(rows[slowest].any(axis=0))
    mean = rows.sum(axis=0) // len(rows)
    table.add_row(f"mean of {len(rows):,}", format_time(int(mean.sum())), *_cells(mean[shown]), style="bold")
    return table


def _queue(requests: Requests) -> Fitting:
    """A row for each reason: time of all requests, its share, requests that waited for it, and the longest wait."""
    table = _table("for", "time", "share", "requests", "longest")
    waits = np.zeros((0, len(TITLES)), dtype=np.int64) if requests.waits is None else requests.waits[requests.counted]
    total = waits.sum()
    for reason, ps in largest_first(waits.sum(axis=0)):
        of = waits[:, reason]
        table.add_row(TITLES[reason], format_time(ps), f"{ps / total:.1%}", f"{(of > 0).sum():,}", format_time(int(of.max())))
    return table


def _parts(
    what: str, names: Sequence[str], rows: Times, titles: tuple[str, ...] = PARTS, *, by_size: bool = True
) -> Fitting:  # fmt: skip
    """Table of time parts, one row per name; columns that are all zero are left out, and the smallest where it is narrow."""
    shown = np.flatnonzero(rows.any(axis=0))
    columns = [titles[part].replace("_", " ") for part in shown]
    sums = rows[:, shown].sum(axis=0)
    table = _table(what, "time", *columns, drop=[columns[i] for i in np.argsort(sums, kind="stable")])
    order = np.argsort(-rows.sum(axis=1), kind="stable") if by_size else np.arange(len(rows))
    for i in order[:MANY]:
        table.add_row(names[i], format_time(int(rows[i].sum())), *_cells(rows[i][shown]))
    if len(order) > MANY:
        rest = rows[order[MANY:]].sum(axis=0)
        table.add_row(f"and {len(order) - MANY} more", format_time(int(rest.sum())), *_cells(rest[shown]), style="dim")
    return table


def _cells(parts: Times) -> list[str]:
    return [format_time(int(ps)) if ps else "" for ps in parts]


def _blame(owner: str, by_owner: Matrix, by_kind: Matrix, alone: str) -> RenderableType:
    """Causes of waits by owner, if there are several, and by kind: tables of their own, since both count the same waits."""
    kinds = _causes("kind", by_kind, alone)
    return Group(_causes(owner, by_owner, alone), Text(), kinds) if len(by_owner.names) > 1 else kinds


def _causes(what: str, matrix: Matrix, alone: str) -> Fitting:
    table = _table(what, "waited", last="caused by")
    for who, whom, ps in matrix.largest(FEW):
        table.add_row(who, format_time(ps), alone if whom == "alone" else whom)
    return table


def _held(result: Result) -> RenderableType:
    """Operands that held SRAM, by kind: the mean of their bytes while loads waited, and their share of the wait.

    Of several devices, first a table of them.
    """
    found, machine = result.occupancy, result.log.machine
    assert found is not None
    itself = ("of it for SRAM itself",) if found.wait_sram else ()
    table = _table("operands", "held on average", "share of the wait", *itself, drop=(*itself, "held on average"))
    for each in found.by_kind[:MANY]:
        cells = format_bytes(each.byte_ps // found.wait), f"{each.wait / found.wait:.1%}"
        table.add_row(sram.title(each), *cells, *(format_time(each.wait_sram) for _ in itself))
    devices = (_spaces(found, machine), Text()) if len(found.devices) > 1 else ()
    kinds = table if found.by_kind else Text(f"Loads waited for {sram.ELSEWHERE}.")
    return Group(Text(sram.fullest(found, machine)), *devices, kinds)


def _spaces(found: Occupancy, machine: Machine) -> Fitting:
    """The SRAM of each device: how full it was, and how long loads waited for it."""
    itself = ("of it for SRAM itself",) if found.wait_sram else ()
    table = _table("device", "in use at most", "loads waited", *itself, drop=itself)
    for device, space in list(zip(machine.devices, found.devices, strict=True))[:MANY]:
        most = f"{space.most / space.capacity:.1%}" if space.capacity else "0.0%"
        table.add_row(device.name, most, format_time(space.wait), *(format_time(space.wait_sram) for _ in itself))
    return table


def _critical(result: Result) -> Table:
    table = Table.grid(padding=(0, 2))
    path, whole = result.critical_path, result.makespan or 1

    def shares(sums: dict[str, int]) -> str:
        shown = list(sums.items())[:MANY]
        more = f", and {len(sums) - MANY} more" if len(sums) > MANY else ""
        return ", ".join(f"{name} {ps / whole:.1%}" for name, ps in shown) + more

    table.add_row("tasks on it", f"{len(path.rows):,}")
    table.add_row("by resource", shares(path.by_resource(result.log, result.plan.rules)))
    table.add_row("by kind", shares(path.by_kind(result.log)))
    table.add_row("held up by", ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in path.by_cause().items()))
    return table


def _bounds(result: Result) -> Fitting:
    b = result.bounds
    table = _table("bound", "time", "this run is")
    for name, ps in (
        ("longest path", b.critical_path), ("work of the engines", b.compute), ("bytes of the channel", b.memory),
        (OF_LINK, b.link), (ARRIVALS, b.arrivals),
    ):  # fmt: skip
        if ps or name not in (OF_LINK, ARRIVALS):
            table.add_row(name, format_time(ps), above(result.makespan / ps - 1) if ps else "")
    if b.upper is not None:
        table.add_row("upper bound", format_time(b.upper), f"{1 - result.makespan / b.upper:.1%} below")
    return table
