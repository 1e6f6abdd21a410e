"""Capacity: the KV cache that weights leave in memory, and the SRAM that resident weights leave to operands in flight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from sim.base.errors import ConfigError
from sim.base.units import format_bytes
from sim.runs.holdings import holdings
from sim.runs.machine import known_tiers, tiers_of
from sim.runs.model import Modeled
from sim.scenario import Scenario
from sim.workload.requests import Request


def kv_capacity(scenario: Scenario, of_run: Sequence[Modeled], sequences: Sequence[Request]) -> int | None:
    """Bytes for KV caches of a batch, None if unbounded. Raises ConfigError if weights and KV cache exceed the memory.

    of_run: the model, and the draft model, if there is one.
    """
    capacity, left = scenario.hardware.memory.capacity, scenario.workload.batching.kv.capacity
    batched = not scenario.workload.batching.alone
    if scenario.mapping.offloads:
        tier_space(scenario, of_run)
    if scenario.mapping.parallel.group > 1:
        return _capacity_of_all(scenario, of_run, sequences)
    if capacity is not None and scenario.model.config is not None:
        alone = () if batched else [(request.final, 1) for request in sequences]
        held = [each.holder.with_sequences(alone) for each in of_run]
        weights = sum(each.weights for each in held)
        needed = weights + (left if batched and left is not None else sum(each.kv for each in held))
        if needed > capacity:
            contents = f"{format_bytes(weights)} of weights and {format_bytes(needed - weights)} of KV cache"
            raise ConfigError(
                "hardware.memory.capacity",
                f"{contents}{'' if batched else ' at the final contexts'} are {format_bytes(needed - capacity)} more than the "
                f"{format_bytes(capacity)} of memory",
            )
        left = capacity - weights if left is None else left
    return left if batched else None


def _capacity_of_all(scenario: Scenario, of_run: Sequence[Modeled], sequences: Sequence[Request]) -> int | None:
    """Bytes for KV caches on all simulated devices of a replica together, None if unbounded, as `kv_capacity`.

    The device that is full first limits all of them: a token takes its bytes on each. Where devices have sequences of their own
    these are the bytes of one, and a token takes all of its bytes there.
    """
    capacity, written = scenario.hardware.memory.capacity, scenario.workload.batching.kv.capacity
    batched = not scenario.workload.batching.alone
    final, held = [(request.final, 1) for request in sequences], holdings(of_run)
    total = sum(of.holder.with_sequences(final).kv for of in of_run)
    each = [device.kv + device.sequence for device in held]
    left = []
    for number, device in enumerate(held):
        share = Fraction(each[number], sum(each) or 1)
        needed = 0 if batched and written is None else written if batched and written is not None else math.ceil(total * share)
        if capacity is not None and device.weights + needed > capacity:
            raise ConfigError(
                "hardware.memory.capacity",
                f"{format_bytes(device.weights)} of weights and {format_bytes(needed)} of KV cache on device {number} are "
                f"{format_bytes(device.weights + needed - capacity)} more than the {format_bytes(capacity)} of its memory",
            )
        own = written if written is not None else None if capacity is None else capacity - device.weights
        if own is not None and share:
            left.append(own if scenario.mapping.parallel.homes else int(own / share))
    return min(left) if left and batched else None


def held_by_tier(
    scenario: Scenario, of_run: Sequence[Modeled], sequences: Sequence[Request]
) -> tuple[tuple[str, str, int], ...]:
    """Bytes by the memory that holds them: (memory, what, bytes) of weights, and of the most that KV caches may take.

    Of independent sequences that is what their caches and states take in the end. None of a written graph, whose weights may be
    anything; of several simulated devices, which each hold their own, only those of tiers. The memory is that of one device,
    tiers are those of all.
    """
    if scenario.model.config is None:
        return ()
    names = scenario.hardware.tier_names
    of_tiers = [(name, "weights", held) for name, held in zip(names, _of_tiers(scenario, of_run), strict=False) if held]
    pages = scenario.workload.batching.kv
    if pages.spills or (pages.full == "swap" and tiers_of(scenario)):
        sharing = scenario.hardware.devices.count // scenario.mapping.parallel.group
        space = zip(names, tier_space(scenario, of_run), strict=True)
        of_tiers += [(name, "KV caches, at most", each * sharing) for name, each in space if each is not None]
    if scenario.mapping.parallel.group > 1:
        return tuple(of_tiers)
    weights = sum(each.holder.weights for each in of_run)
    found = [("memory", "weights", weights), *of_tiers]
    if scenario.workload.batching.alone:
        return (*found, *_of_sequences(of_run, sequences))
    capacity, kv = scenario.hardware.memory.capacity, scenario.workload.batching.kv.capacity
    if kv is None and capacity is not None:
        kv = max(0, capacity - weights)
    return (*found, ("memory", "KV cache, at most", kv)) if kv is not None else tuple(found)


def _of_sequences(of_run: Sequence[Modeled], sequences: Sequence[Request]) -> list[tuple[str, str, int]]:
    """Bytes of the KV caches and of the states of all sequences in the end, those that are none left out."""
    final = [(request.final, 1) for request in sequences]
    held = sum(each.holder.with_sequences(final).kv for each in of_run)
    states = sum(each.holder.layout.state for each in of_run) * sum(1 for request in sequences if request.final)
    return [("memory", what, size) for what, size in (("KV cache", held - states), ("states", states)) if size]


def _of_tiers(scenario: Scenario, of_run: Sequence[Modeled]) -> list[int]:
    """Bytes of weights in each tier, of all devices that have it."""
    like = scenario.hardware.devices.count // scenario.mapping.parallel.group
    return [like * sum(held) for held in zip(*(each.holder.tiers for each in of_run), strict=True)]


def tier_space(scenario: Scenario, of_run: Sequence[Modeled]) -> list[int | None]:
    """Bytes that weights leave in each tier to the caches of a replica; None if unbounded.

    Raises ConfigError if weights exceed a tier.
    """
    sharing = scenario.hardware.devices.count // scenario.mapping.parallel.group
    space = list[int | None]()
    for tier, weights in zip(known_tiers(scenario.hardware), _of_tiers(scenario, of_run), strict=False):
        if tier.capacity is not None and weights > tier.capacity:
            more = f"{format_bytes(weights)} of weights are {format_bytes(weights - tier.capacity)} more than the"
            raise ConfigError(tier.capacity_key, f"{more} {format_bytes(tier.capacity)} of the {tier.name}")
        space.append(None if tier.capacity is None else (tier.capacity - weights) // sharing)
    return space


def resident_bytes(scenario: Scenario, of_run: Sequence[Modeled]) -> tuple[int, ...]:
    """Bytes of SRAM that resident weights take on each simulated device, 0 if SRAM is unbounded.

    Raises ConfigError if they do not fit.
    """
    sram, share, parallel = scenario.hardware.sram, scenario.mapping.residency, scenario.mapping.parallel
    if sram is None or share == "streamed":
        return (0,) * parallel.simulated
    found = []
    for device, weights in enumerate(_weights_of_devices(scenario, of_run)):
        held = weights if share == "resident" else math.ceil(weights * share)
        if held > sram:
            most = 1000 * sram // weights
            advice = f"; mapping.weights of {{resident: {most / 1000}}} would fit" if most else ""
            where = f" of device {device}" if parallel.group > 1 else ""
            raise ConfigError(
                "hardware.sram",
                f"{format_bytes(held)} of resident weights{where} are {format_bytes(held - sram)} more than the "
                f"{format_bytes(sram)} of {'its ' if where else ''}SRAM{advice}",
            )
        found.append(held)
    return tuple(found) * (parallel.simulated // len(found))


def _weights_of_devices(scenario: Scenario, of_run: Sequence[Modeled]) -> list[int]:
    """Bytes of the weights of each simulated device of a replica, wherever they are when they are not resident."""
    if scenario.model.config is None:
        return [of_run[0].model.parameter_bytes]
    if scenario.mapping.parallel.group > 1:
        return [device.weights + device.offloaded for device in holdings(of_run)]
    return [sum(each.holder.weights + sum(each.holder.tiers) for each in of_run)]
