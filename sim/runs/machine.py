"""The machine of a scenario: its arbiter, scheduler and cost model, made from the registries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

from models.formats import product_formats
from models.graph import OpGraph
from sim.base.errors import ConfigError, InputError, about, unknown
from sim.cost import COST_MODELS, CostModel, Rates
from sim.cost.kernel_costs import PROMPT
from sim.executors.setup import Link
from sim.machine.arbiters import ARBITERS, Arbiter, Derated, Efficiency, KernelArbiter
from sim.machine.arbiters.checked import Checked as CheckedArbiter
from sim.machine.arbiters.paths import PATH_ARBITERS, shares_paths
from sim.machine.energy import EnergyRates
from sim.machine.machine import TIER_PATHS, Machine, Path, alike_devices
from sim.machine.network import Network
from sim.machine.schedulers import SCHEDULERS, Scheduler
from sim.machine.schedulers.checked import Checked as CheckedScheduler
from sim.machine.settings import Devices
from sim.machine.settings import Link as LinkSection
from sim.mapping.collectives import Connection, LinkRates
from sim.mapping.settings import Offload, Parallel
from sim.runs.shared import Shared
from sim.runs.written import written_costs
from sim.scenario import Hardware, Memory, Scenario

BY_BYTES = ("roofline", "kernel")  # cost models whose transfers follow from bytes
LARGEST_CAP = 2**16  # denominators of channel shares stay small enough for int64 arithmetic on whole runs


def arbiter_of(memory: Memory, shared: Shared) -> Arbiter:
    """The arbiter of a channel, derated by the efficiency of the memory. Raises ConfigError for an option it cannot use.

    Channels have copies of it, so runs may share one: the same object where it follows from the same values.
    """
    cap, chosen = port_share(memory), memory.arbiter
    with about("hardware.memory.arbiter"):
        bandwidth = memory.bandwidth if "bandwidth" in ARBITERS.parameters(chosen.name) else None

    def make() -> Arbiter:
        arbiter = _arbiter("hardware.memory", memory, cap)
        efficiency = efficiency_of(memory)
        return Derated(arbiter, efficiency) if efficiency is not None else arbiter

    return shared.get("arbiter", (cap, bandwidth, chosen.name, repr(chosen.options), memory.efficiency), make)


def machine_of(scenario: Scenario, shared: Shared) -> Machine:
    """Engines and channels of the devices that are simulated, which stand for all."""
    hardware, simulated = scenario.hardware, scenario.mapping.parallel.simulated
    devices = hardware.devices
    several = devices.count > scenario.mapping.parallel.data or scenario.mapping.parallel.prefill > 0
    network = None if (links := network_of(scenario)).plain or not several else links
    of = (
        simulated, hardware.engines.count, hardware.memory.channels.count, devices.count // simulated,
        0 if devices.link is None else devices.link.bandwidth,
        tuple((tier.name, tier.rate) for tier in tiers_of(scenario)), _between(devices),
        scenario.mapping.parallel.data, scenario.mapping.parallel.prefill > 0, network,
    )  # fmt: skip
    return shared.get("machine", of, lambda: _machine(*of))


def _machine(
    simulated: int, engines: int, channels: int, like: int, link: int, tiers: tuple[tuple[str, int], ...], between: int,
    replicas: int,
    linked: bool, network: Network | None,
) -> Machine:  # fmt: skip
    """The machine of so many simulated devices, as `alike_devices`."""
    return alike_devices(
        simulated, engines=engines, channels=channels, like=like, link=link, tiers=dict(tiers), between=between,
        replicas=replicas, linked=linked, network=network,
    )  # fmt: skip


def _between(devices: Devices) -> int:
    """Bytes/s of the link of a device to the network between islands, 0 if there is none."""
    return devices.islands.link.bandwidth if devices.islands is not None and devices.island < devices.count else 0


def network_of(scenario: Scenario) -> Network:
    """The links between devices."""
    devices, parallel = scenario.hardware.devices, scenario.mapping.parallel
    return Network(
        count=devices.count, each=parallel.tensor, island=devices.island, topology=devices.topology,
        folded=parallel.copies == 1,
    )  # fmt: skip


def connection_of(scenario: Scenario) -> Connection:
    """The connection of devices, as lowering takes it."""
    devices = scenario.hardware.devices
    return Connection(island=devices.island if _between(devices) else 0, several=devices.topology != "switch")


def links_of(scenario: Scenario, machine: Machine) -> tuple[Link, ...]:
    """The links of a machine, in order of their channels.

    Raises ConfigError for an option that their arbiters cannot use.
    """
    devices = scenario.hardware.devices
    sections: dict[Path, tuple[str, LinkSection | None]] = {
        "link": ("hardware.devices.link", devices.link),
        "network": ("hardware.devices.islands.link", None if devices.islands is None else devices.islands.link),
    }
    made = {
        kind: _link_of(key, section, kind, joint=bool(machine.paths))
        for kind, (key, section) in sections.items()
        if section is not None
    }
    for kind, tier in zip(TIER_PATHS, tiers_of(scenario), strict=False):
        of_link = _link_of(f"{tier.key}.link", tier.link, kind, joint=False)
        made[kind] = replace(of_link, bandwidth=tier.rate, latency=tier.latency)
    return tuple(made[machine.channels[number].kind] for number in machine.links)


def link_rates(scenario: Scenario) -> tuple[LinkRates, ...]:
    """Bandwidth and latency of the link of each device, and of that to the network between islands; empty if there are none."""
    devices = scenario.hardware.devices
    between = devices.islands.link if devices.islands is not None and _between(devices) else None
    return tuple(LinkRates(link.bandwidth, link.latency) for link in (devices.link, between) if link is not None)


def _link_of(key: str, link: LinkSection, kind: Path, *, joint: bool) -> Link:
    """How a link serves. joint: transfers cross several at once."""
    arbiter = _arbiter(key, link, (1, 1))
    if joint and not shares_paths(arbiter):
        message = f"expected {PATH_ARBITERS} where transfers cross several links, found {link.arbiter.name}"
        if link.arbiter.name == "round_robin":
            message += ", whose turns are those of one link; with short bursts it comes near to processor_sharing"
        if link.arbiter.name == "proportional":
            message += " with a finer unit than 1/65,536 of the bandwidth for its demands"
        raise ConfigError(f"{key}.arbiter", message)
    return Link(arbiter=arbiter, bandwidth=link.bandwidth, latency=link.latency, kind=kind)


class ResolvedTier(NamedTuple):
    """A memory beside that of the device. key: where it is written. rate: bytes/s, and latency: ps, with the link."""

    name: str
    key: str
    capacity_key: str
    capacity: int | None
    rate: int
    latency: int
    link: LinkSection
    energy: int | Mapping[str, int] | None


def known_tiers(hardware: Hardware) -> list[ResolvedTier]:
    """All tiers that are written, nearest first: that of the host, if there is one, and the others."""
    host, energy = hardware.host, hardware.energy
    found = []
    if host is not None:
        of_host = None if energy is None else energy.host
        key, link = "hardware.host", host.link
        found.append(ResolvedTier("host", key, f"{key}.memory", host.memory, link.bandwidth, link.latency, link, of_host))
    for number, tier in enumerate(hardware.tiers):
        key, latency = f"hardware.tiers[{number}]", tier.latency + tier.link.latency
        found.append(ResolvedTier(tier.name, key, f"{key}.capacity", tier.capacity, tier.rate, latency, tier.link, tier.energy))
    return found


def tiers_of(scenario: Scenario) -> list[ResolvedTier]:
    """The tiers, if the scenario has something that moves to or from them; otherwise the machine goes without.

    Raises ConfigError for weights that would come over a link that is not there, or in times that do not follow from bytes.
    """
    tiers, kv = known_tiers(scenario.hardware), scenario.workload.batching.kv
    for key, moved in (("mapping.offload", bool(scenario.mapping.offloads)), ("workload.batching.kv.evicted", kv.spills)):
        if not moved:
            continue
        if scenario.model.config is None:
            raise ConfigError(key, "expected a model.config")
        if not tiers:
            raise ConfigError(key, "expected hardware.host or hardware.tiers, with the link over which it moves")
        if scenario.cost.model not in BY_BYTES:
            message = f"expected {' or '.join(BY_BYTES)} with {key}: times on links follow from bytes"
            raise ConfigError("cost.model", message)
        return tiers
    swaps = kv.full == "swap" and scenario.model.config is not None
    return tiers if swaps and scenario.cost.model in BY_BYTES else []


def refuse_unknown_tiers(scenario: Scenario) -> None:
    """Raise ConfigError for weights that are offloaded to a tier that the machine does not have."""
    names, offload = scenario.hardware.tier_names, scenario.mapping.offload
    for number, each in enumerate(scenario.mapping.offloads):
        if each.tier is not None and each.tier not in names:
            key = "mapping.offload" if isinstance(offload, Offload) else f"mapping.offload[{number}]"
            raise ConfigError(f"{key}.tier", str(unknown("tier", each.tier, names)))


def _arbiter(key: str, path: Memory | LinkSection, cap: tuple[int, int]) -> Arbiter:
    """The arbiter of a section. cap: the share that one requester can draw."""
    chosen = path.arbiter
    for name, instead in (("cap", "port_bandwidth"), ("bandwidth", "bandwidth")):
        if name in chosen.options:
            raise ConfigError(f"{key}.arbiter.{name}", f"not an option of an arbiter; write {key}.{instead}")
    options = {**chosen.options, "cap": cap}
    with about(f"{key}.arbiter"):
        if "bandwidth" in ARBITERS.parameters(chosen.name):
            options["bandwidth"] = path.bandwidth
        arbiter: Arbiter = ARBITERS.make(chosen.name, options)
        return arbiter if is_ours(arbiter) else CheckedArbiter(arbiter, chosen.name)


def scheduler_of(scenario: Scenario) -> Scheduler:
    """The scheduler. Raises ConfigError for an option it cannot use."""
    with about("scheduler"):
        scheduler: Scheduler = SCHEDULERS.make(scenario.scheduler.name, dict(scenario.scheduler.options))
        return scheduler if is_ours(scheduler) else CheckedScheduler(scheduler, scenario.scheduler.name)


def is_ours(made: object) -> bool:
    """Whether a policy ships, or is a function on integers, which needs no check: the executors bound what it does."""
    kind = type(made)
    return kind.__module__.startswith("sim.") or getattr(kind, "plan", None) is KernelArbiter.plan or "discipline" in vars(kind)


def costs_of(scenario: Scenario, shared: Shared | None = None) -> CostModel:
    """The cost model. Raises ConfigError for an option it cannot use, and for a profile that cannot be read.

    shared: cost models of earlier scenarios; one that is equal keeps what it has computed.
    """
    for name in ("machine", "seed"):
        if name in scenario.cost.options:
            raise ConfigError(f"cost.{name}", "not an option of a cost model")
    machine = _rates(scenario.hardware, overlap=scenario.mapping.execution == "stream")
    options = {**_cost_options(scenario), "machine": machine, "seed": scenario.seed}
    with about("cost"):
        if shared is None:
            costs: CostModel = COST_MODELS.make(scenario.cost.model, options)
        else:
            costs = shared.get("costs", (scenario.cost.model, options), lambda: COST_MODELS.make(scenario.cost.model, options))
        if not callable(getattr(costs, "durations", None)):
            raise InputError(f"cost model {scenario.cost.model!r}: expected a method durations, found none")
    return costs if scenario.model.config is not None else written_costs(scenario, costs)


def _cost_options(scenario: Scenario) -> dict[str, Any]:
    """Options of a cost model as written, with the path of a profile resolved from the folder of the scenario."""
    cost = scenario.cost
    known: Mapping[str, Any] = {
        "table": cost.table,
        "profile": None if cost.profile is None else str(scenario.folder / cost.profile),
        "otherwise": cost.otherwise,
        "jitter": cost.jitter or None,
        "t0": _t0(scenario),
        "peak_share": cost.peak_share,
        "unpack": cost.unpack,
    }
    return {**cost.options, **{name: value for name, value in known.items() if value is not None}}


def _t0(scenario: Scenario) -> int | Mapping[str, int] | None:
    """The launch times of kernels. With drafts those of prompts are left out: verification is replayed as a graph."""
    t0 = scenario.cost.t0
    if isinstance(t0, Mapping) and scenario.workload.speculative is not None:
        return {name: time for name, time in t0.items() if name != PROMPT}
    return t0


def _rates(hardware: Hardware, *, overlap: bool) -> Rates:
    engines, memory = hardware.engines, hardware.memory
    return Rates(
        flops=engines.flops, vector_flops=engines.vector_flops, overhead=engines.overhead, bandwidth=memory.bandwidth,
        alone=_alone(memory), overlap=overlap,
        link=1 if hardware.devices.link is None else hardware.devices.link.bandwidth,
        network=_between(hardware.devices) or 1, tiers=tuple(tier.rate for tier in known_tiers(hardware)),
    )  # fmt: skip


def energy_of(hardware: Hardware, ops: OpGraph, parallel: Parallel) -> EnergyRates | None:
    """Energy figures of all devices together, None if there are none.

    Those of work and of engines count for each device that is simulated, and so for all that it stands for.

    Raises ConfigError for products in a format that has no figure.
    """
    energy = hardware.energy
    if energy is None:
        return None
    count, like, flop = hardware.devices.count, hardware.devices.count // parallel.simulated, energy.flop
    rates = EnergyRates(
        flop=flop * like if isinstance(flop, int) else {dtype: each * like for dtype, each in flop.items()},
        byte=_by_part("memory", energy.byte, like), link=_by_part("link", energy.link, like),
        network=_by_part("network link", energy.network, like),
        tiers=tuple(_by_part(f"{tier.name} link", tier.energy, like) for tier in known_tiers(hardware)),
        hops=2 if hardware.devices.topology == "switch" else 1,
        device=energy.static.device * count, engine=energy.static.engine * like,
    )  # fmt: skip
    for dtype in product_formats(ops):
        if rates.of_flop(dtype) is None:
            known = "" if isinstance(energy.flop, int) else ", ".join(energy.flop)
            raise ConfigError(
                "hardware.energy.flop", f"expected a figure for {dtype}, in which products are; known here: {known}"
            )
    return rates


def _by_part(name: str, energy: int | Mapping[str, int] | None, like: int) -> dict[str, int]:
    """Femtojoules of a byte of so many devices by part; under the name of the path where no part is written."""
    parts = {} if energy is None else {name: energy} if isinstance(energy, int) else energy
    return {part: each * like for part, each in parts.items()}


def port_share(memory: Memory) -> tuple[int, int]:
    """The largest share of the channel that one port can use, (numerator, denominator), rounded down to a small denominator."""
    port, bandwidth = memory.port_bandwidth, memory.bandwidth
    if port is None or port >= bandwidth:
        return 1, 1
    common = math.gcd(port, bandwidth)
    num, den = port // common, bandwidth // common
    if den <= LARGEST_CAP:
        return num, den
    num = port * LARGEST_CAP // bandwidth
    if not num:
        raise ConfigError("hardware.memory.port_bandwidth", f"expected at least 1/{LARGEST_CAP} of the bandwidth")
    return num, LARGEST_CAP


def one_port_at_a_time(hardware: Hardware) -> bool:
    """Whether transfers of several engines come one by one, each no faster than a port lets it (`fifo`)."""
    return hardware.memory.arbiter.name == "fifo" and hardware.engines.count > 1 and port_share(hardware.memory) != (1, 1)


def efficiency_of(memory: Memory) -> Efficiency | None:
    """The efficiency of the channel as small fractions: 0.54 is 27/50."""
    if memory.efficiency is None:
        return None
    points = {int(n): Fraction(str(share)).limit_denominator(LARGEST_CAP) for n, share in memory.efficiency.items()}
    least = Fraction(1, LARGEST_CAP)
    return Efficiency({n: max(share, least) for n, share in points.items()})


def _alone(memory: Memory) -> tuple[int, int]:
    """The share of a channel that a single transfer gets; summed over channels if it is spread over several."""
    efficiency, channels = efficiency_of(memory), memory.channels
    share = Fraction(*port_share(memory))
    if efficiency is not None:
        share = min(share, efficiency.at(1))
    if channels.route == "interleaved":
        share *= channels.count
    return share.numerator, share.denominator
