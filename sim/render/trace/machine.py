"""Tracks of the machine: engines, memory channels, the critical path, and counters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sim.analysis.power import Power
from sim.analysis.series import Levels, batches, cached
from sim.analysis.sram import all_uses
from sim.log import derived
from sim.machine.machine import TIER_PATHS, Machine, Path
from sim.render.trace.canvas import WAIT_CHANNEL, Canvas, Rows
from sim.render.trace.counters import clip, level, number, rate, rate_unit
from sim.render.trace.tracks import Counter, Role, Slices, lanes, thin


class CounterTracks(NamedTuple):
    """Tracks of the counters. rates: of each channel. sram: of each device, none where it is unbounded. requests: (batch size,
    KV cache); None if there is one sequence. power: None if watts are not known.
    """

    busy: int
    ready: int
    rates: list[int]
    outstanding: int
    sram: list[int]
    requests: tuple[int, int] | None
    power: int | None


def machine(canvas: Canvas, critical: Rows | None, *, powered: bool) -> tuple[Slices, CounterTracks]:
    """Slices of the engines and of the memory channels, and the tracks of the counters above them.

    critical: rows of the critical path in order; they get a track of their own. None: no such track. powered: whether there
    is a counter of watts.
    """
    tracks, log = canvas.tracks, canvas.log
    root = tracks.add("Machine", description="Engines and memory: their use over time.")
    several = len(log.machine.devices) > 1
    places = _several(canvas, root) if several else _one(canvas, root)
    group = root if several else places.engines[0]
    busy = tracks.add("busy engines", group, "Engines that hold a task.", "engines")
    ready = tracks.add("ready queue", group, "Tasks whose inputs are there and that wait for an engine.", "tasks")
    groups = list(_engines(canvas, places.engines))
    if not several:
        places = _paths(canvas, root, places)
    rates = _rate_tracks(canvas, places.channels)
    description = "Transfers issued and not yet complete, served or queued."
    group = places.channels[0] if len(set(places.channels)) == 1 else root  # it counts those of all channels
    outstanding = tracks.add("outstanding transfers", group, description, "transfers")
    sram = _sram_tracks(canvas, places.channels)
    groups += _memory(canvas, places.channels)
    description = "Power of the machine: arithmetic while it runs, bytes while they move, and static power."
    power = tracks.add("power", root, description, "W") if powered else None
    if critical is not None:
        groups.append(_critical_path(canvas, root, critical))
    requests = None
    if canvas.log.batched is not None or len(canvas.log.arrival) > 1:
        group = tracks.add("Requests", root, "What the machine serves at a time.")
        requests = (
            tracks.add("batch size", group, "Sequences that the steps in progress take in.", "sequences"),
            tracks.add("KV cache", group, "Tokens in the KV cache of all sequences.", "tokens"),
        )
    return Slices.concatenate(groups).within(canvas.window), CounterTracks(
        busy, ready, rates, outstanding, sram, requests, power
    )  # fmt: skip


class Places(NamedTuple):
    """Groups of tracks. engines: of each device. channels: of each channel."""

    engines: list[int]
    channels: list[int]


def _one(canvas: Canvas, root: int) -> Places:
    """The groups of engines of the one device; those of its channels come behind the engines."""
    group = canvas.tracks.add("Engines", root, "Compute engines. Each token has a color; gaps are idle time.")
    return Places([group], [])


def _paths(canvas: Canvas, root: int, places: Places) -> Places:
    """The groups of the channels of one device."""
    machine = canvas.log.machine
    group = canvas.tracks.add("Memory", root, "The memory channels that all engines share.")
    of_kind: dict[Path, int] = {"memory": group}
    like = f"of one of {machine.like} devices"
    tracks: tuple[tuple[Path, str, str], ...] = (
        ("link", f"Links {like}", "What this device sends to the others; all devices do the same."),
        ("network", f"Network {like}", "What this device sends to other islands; all devices do the same."),
        *_tiers(machine),
    )
    for kind, title, what in tracks:
        if machine.link(kind) is not None:
            of_kind[kind] = canvas.tracks.add(title, root, what)
    return places._replace(channels=[of_kind[channel.kind] for channel in machine.channels])


def _several(canvas: Canvas, root: int) -> Places:
    """A group of each device, in which are those of its engines, memory and link."""
    machine, tracks = canvas.log.machine, canvas.tracks
    sends = "What this device sends to others" + ("." if machine.network is None else ", and gets from them.")
    engines, paths = [], []
    for device in machine.devices:
        like = f", one of {machine.like} that do the same" if machine.like > 1 else ""
        group = tracks.add(device.name.capitalize(), root, f"Engines, memory and link of a device{like}.")
        engines.append(tracks.add("Engines", group, "Compute engines of the device."))
        memory = tracks.add("Memory", group, "The memory channels that its engines share.")
        paths.append({"memory": memory})
        if machine.link("link") is not None:
            paths[-1]["link"] = tracks.add("Link", group, sends)
        if machine.link("network") is not None:
            paths[-1]["network"] = tracks.add("Network", group, "What this device sends to other islands, and gets from them.")
        paths[-1] |= {kind: tracks.add(title, group, what) for kind, title, what in _tiers(machine)}
    return Places(engines, [paths[channel.device][channel.kind] for channel in machine.channels])


def _tiers(machine: Machine) -> list[tuple[Path, str, str]]:
    """The kind of the links to each tier, with the title and the description of their group."""
    of_host = ("Host", "What moves between the memory of the device and its host.")
    return [
        (kind, *(of_host if tier == "host" else (f"Tier {tier}", "What moves to this tier from nearer ones, and from there.")))
        for kind, tier in zip(TIER_PATHS, machine.tiers, strict=False)
    ]


def counters(canvas: Canvas, tracks: CounterTracks, power: Power | None) -> Iterator[Counter]:
    """Values over time. Each starts at 0 and is 0 again whenever nothing goes on; power, after the end of the run."""
    for counter in _whole_counters(canvas, tracks):
        yield clip(counter, canvas.window)
    if tracks.power is not None and power is not None:
        yield clip(thin(Counter(tracks.power, power.time, power.watts)), canvas.window)


def _whole_counters(canvas: Canvas, tracks: CounterTracks) -> Iterator[Counter]:
    log, tasks = canvas.log, canvas.log.tasks
    held = np.flatnonzero(canvas.on_engine)
    yield number(tracks.busy, tasks.start[held], tasks.end[held])
    yield number(tracks.ready, tasks.ready[held], tasks.start[held])
    for channel, track in enumerate(tracks.rates):
        yield rate(track, log, channel)
    moving = np.flatnonzero(canvas.service.moves)
    yield number(tracks.outstanding, derived.issued(canvas.log)[moving], canvas.service.last[moving])
    yield from _in_sram(canvas, tracks.sram)
    if tracks.requests is not None:
        batch, cache = tracks.requests
        yield level(batch, batches(log))
        yield level(cache, Levels.joined(cached(log)))


def _sram_tracks(canvas: Canvas, groups: list[int]) -> list[int]:
    """A track for the SRAM of each device, above its memory channels; none where it is unbounded. groups: of each channel."""
    log = canvas.log
    if log.sram is None:
        return []
    each, description = log.machine.memories // len(log.machine.devices), "Operands in use, from the issue of their load on."
    return [
        canvas.tracks.add("MB in SRAM", groups[device * each], description, "MB") for device in range(len(log.machine.devices))
    ]


def _in_sram(canvas: Canvas, tracks: list[int]) -> Iterator[Counter]:
    """Megabytes of operands in the SRAM of each device. tracks: of each, if it is bounded."""
    if not tracks:
        return
    every = all_uses(canvas.log)
    for device, track in enumerate(tracks):
        begin, end, size = (column[every.device == device] for column in every[2:])
        held = level(track, Levels(start=begin, end=end, value=size))
        yield Counter(track, held.time, held.value / 1e6)


def _engines(canvas: Canvas, groups: list[int]) -> Iterator[Slices]:
    """A track for each engine: the tasks that it ran, with their phases nested. groups: the one of each device."""
    log, tasks = canvas.log, canvas.log.tasks
    description = "Tasks that this engine ran; `load` is the time until their operands came."
    first = [
        canvas.tracks.add(log.machine.engine_name(number), group, description)
        for group, device in zip(groups, log.machine.devices, strict=True)
        for number in device.engines
    ]
    rows = np.flatnonzero(canvas.on_engine & canvas.inside)
    track = np.array(first, dtype=np.int64)[tasks.engine[rows]] if len(rows) else rows
    yield Slices.make(
        track=track, start=tasks.start[rows], end=tasks.end[rows], name=canvas.name_of(rows), row=rows,
        category=canvas.categories("engine"), color=canvas.color_of(rows), role=Role.RUN,
    )  # fmt: skip
    yield from canvas.phases(rows, track, depth=1)


def _rate_tracks(canvas: Canvas, groups: list[int]) -> list[int]:
    """A counter track for each channel. groups: the one of each channel."""
    made, log = [], canvas.log
    for at, (group, channel) in enumerate(zip(groups, log.machine.channels, strict=True)):
        unit, size = rate_unit(log, at)
        bandwidth = (channel.bandwidth or log.bandwidth) / size
        description = f"Bytes that the channel delivers per second; its bandwidth is {bandwidth:.6g} {unit}."
        alone = channel.kind != "memory" or log.machine.memories == len(log.machine.devices)
        if channel.kind in ("link", "network"):
            title = f"{unit} sent" if log.machine.network is None else f"{unit}, {channel.name}"
        else:
            title = f"{unit} delivered{'' if alone else f', {channel.name}'}"
        made.append(canvas.tracks.add(title, group, description, unit))
    return made


def _memory(canvas: Canvas, groups: list[int]) -> Iterator[Slices]:
    """Lanes for each channel: transfers that it serves, with pauses nested, and below them transfers that queue."""
    issued, service = derived.issued(canvas.log), canvas.service
    rows = np.flatnonzero(service.moves & canvas.inside)
    queued = rows[service.first[rows] > issued[rows]]
    lane = lanes(service.channel[rows], service.first[rows], service.last[rows])
    queue_lane = lanes(service.channel[queued], issued[queued], service.first[queued])
    track, queue_track = np.zeros_like(rows), np.zeros_like(queued)
    for n, channel in enumerate(canvas.log.machine.channels):
        title = "channel" if channel.kind == "memory" and canvas.log.machine.memories == 1 else channel.name
        group = groups[n]
        mine, waiting = service.channel[rows] == n, service.channel[queued] == n
        description = "Transfers that the channel serves; several lanes are sharing it."
        track[mine] = _in_lanes(canvas, title, group, lane[mine], description)
        description = "Transfers that the channel does not serve yet."
        queue_track[waiting] = _in_lanes(canvas, f"{title} queue", group, queue_lane[waiting], description)
    yield Slices.make(
        track=track, start=service.first[rows], end=service.last[rows], name=canvas.name_of(rows), row=rows,
        category=canvas.categories("memory"), color=canvas.color_of(rows), role=Role.MOVE,
    )  # fmt: skip
    yield _paused(canvas, rows, track)
    yield Slices.make(
        track=queue_track, start=issued[queued], end=service.first[queued], name=canvas.name_of(queued), row=queued,
        cause=derived.previous_on_channel(canvas.log)[queued], category=canvas.categories("wait"),
        color=canvas.color_of(queued), role=Role.PHASE,
    )  # fmt: skip


def _in_lanes(canvas: Canvas, title: str, parent: int, lane: Rows, description: str) -> Rows:
    """The track of each slice, by its lane: a single lane stands under the parent, several get a group."""
    count = int(lane.max(initial=-1)) + 1
    if count <= 1:
        made = [canvas.tracks.add(title, parent, description) for _ in range(count)]
    else:
        group = canvas.tracks.add(title, parent, description)
        made = [canvas.tracks.add(f"lane {n}", group, description) for n in range(count)]
    return np.array(made, dtype=np.int64)[lane]


def _paused(canvas: Canvas, rows: Rows, track: Rows) -> Slices:
    """Gaps in the service of a transfer, while others have the channel (bursts, pre-emption). track: of each of `rows`."""
    services = canvas.log.services
    order = np.lexsort((services.start, services.task))
    task, start, end = services.task[order], services.start[order], services.end[order]
    gap = np.flatnonzero((task[1:] == task[:-1]) & (start[1:] > end[:-1]))
    gap = gap[canvas.inside[task[gap]]]
    track_of = np.zeros(len(canvas.log.tasks), dtype=np.int64)  # [row]
    track_of[rows] = track
    return Slices.make(
        track=track_of[task[gap]], start=end[gap], end=start[gap + 1], name=canvas.names(WAIT_CHANNEL), row=task[gap],
        category=canvas.categories("wait"), depth=1, role=Role.PHASE,
    )  # fmt: skip


def _critical_path(canvas: Canvas, root: int, rows: Rows) -> Slices:
    """The path given, cut where a link starts before the one before it ended (a transfer queues meanwhile)."""
    track = canvas.tracks.add("critical path", root, "The tasks that decided when the run ended.")
    tasks = canvas.log.tasks
    before = np.concatenate([[0], np.maximum.accumulate(tasks.end[rows])[:-1]]) if len(rows) else tasks.end[rows]
    return Slices.make(
        track=track, start=np.maximum(tasks.start[rows], before), end=tasks.end[rows], name=canvas.name_of(rows), row=rows,
        category=canvas.categories("critical path"), color=canvas.color_of(rows), role=Role.OP,
    )  # fmt: skip
