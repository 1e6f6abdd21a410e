"""Holdings: the bytes that each simulated device keeps, and those that it sends in a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import comb

from models.experts import Experts
from models.graph import QUANTITIES, OpGraph
from models.rewrites import COLLECTIVES, EXCHANGE_SENDS, P2P
from sim.machine.capacity import footprint
from sim.machine.kv_cache import kept_groups
from sim.mapping.collectives import phases
from sim.mapping.lowering import offloaded
from sim.mapping.settings import Parallel
from sim.mapping.steps import fastest_of, with_algorithm
from sim.runs.machine import connection_of, link_rates
from sim.runs.model import Modeled

ACT_WRITE, WEIGHT = QUANTITIES.index("act_write"), QUANTITIES.index("weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """Bytes that a simulated device keeps and sends.

    layers: the first and the last of its layers; None if it has none. weights: bytes; offloaded: those in tiers, not among
    these. kv: bytes that a token appends to its KV cache; sequence: those of the state that it keeps of each sequence; all
    these of the draft model, too. sends: in a step of one sequence that decodes one token, by kind, how many ops send, and
    bytes through its link.
    """

    layers: tuple[int, int] | None
    weights: int
    offloaded: int
    kv: int
    sequence: int
    sends: dict[str, tuple[int, int]]


def holdings(of_run: Sequence[Modeled]) -> list[Holding]:
    """The holdings of all simulated devices of a replica. of_run: the model, and the draft model, if there is one."""
    model, *drafts = of_run
    parallel = model.scenario.mapping.parallel
    found = []
    for device in range(parallel.group):
        held, *beside = (_holding(of, device, parallel) for of in (model, *drafts))
        for each in beside:
            sums = {name: getattr(held, name) + getattr(each, name) for name in ("weights", "offloaded", "kv", "sequence")}
            held = replace(held, **sums)
        found.append(held)
    return found


def _holding(of: Modeled, device: int, parallel: Parallel) -> Holding:
    ops = _on(of.kept, device)
    layers = [op.layer for op in ops.ops if op.layer >= 0]
    scenario = of.scenario
    fastest = fastest_of(of.variants, scenario.mapping, link_rates(scenario), connection_of(scenario))
    parallel = with_algorithm(parallel, fastest, tokens=1)
    groups = kept_groups(ops)
    sends: dict[str, tuple[int, int]] = {}
    for op, size in zip(ops.ops, ops.costs(0)[ACT_WRITE].tolist(), strict=True):
        if op.kind in (*COLLECTIVES, P2P):
            many, sent = sends.get(op.kind, (0, 0))
            sends[op.kind] = many + 1, sent + _through_link(op.kind, size, parallel, scenario.hardware.devices.island)
    return Holding(
        layers=(min(layers), max(layers)) if layers else None,
        weights=_weights(of, ops, first=device < parallel.copies),
        offloaded=sum(_tiers(of, ops)),
        kv=sum(group.token_bytes for group in groups if group.window != 0),
        sequence=sum(group.bytes for group in groups if group.window == 0),
        sends=sends,
    )


@dataclass(frozen=True, slots=True)
class Exchange:
    """Tokens that are sent to the devices of their experts: bytes of one, in how many layers, and how many there are.

    devices: others that a token goes to, on average, if it chooses its experts evenly.
    """

    bytes: int
    layers: int
    devices: Fraction


def exchanges(of: Modeled) -> list[Exchange]:
    """The exchanges of a model, alike ones together; none if tokens are not sent to the devices of their experts."""
    first = Counter(  # one transfer of each
        op.experts for op in of.ops.ops if op.kind == EXCHANGE_SENDS[0] and op.experts is not None and op.experts.first == 0
        and op.experts.share == 1
    )  # fmt: skip
    return [Exchange(experts.bytes, many, others_of(experts)) for experts, many in first.items()]


def others_of(experts: Experts) -> Fraction:
    """Devices beside its own that have experts which a token chooses, on average, if it chooses evenly.

    Each has none of them with C(E - E/n, k) / C(E, k).
    """
    none = Fraction(comb(experts.count - experts.held, experts.top_k), comb(experts.count, experts.top_k))
    return (experts.shares - 1) * (1 - none)


def _on(ops: OpGraph, device: int) -> OpGraph:
    """The ops of one device."""
    return replace(ops, ops=tuple(op for op in ops.ops if op.device == device))


def _tiers(of: Modeled, ops: OpGraph) -> tuple[int, ...]:
    """Bytes of the weights of a device in each tier."""
    return footprint(of.model, ops, of.formats, whole=False, sequences=(), tier=offloaded(ops, *of.offloads)).tiers


def _weights(of: Modeled, ops: OpGraph, *, first: bool) -> int:
    """Bytes of the weights of a device. first: it is one of the first stage, with the embedding.

    Where that is the same tensor as the LM head, and this is on another device, there are two of it.
    """
    whole, formats = of.scenario.model.scope == "model" and first and not of.shared, of.formats
    tier = offloaded(ops, *of.offloads)
    held = footprint(of.model, ops, formats, whole=whole, sequences=(), tier=tier).weights
    if not whole or any(op.kind == "lm_head" for op in ops.ops):
        return held
    tables = held - footprint(of.model, ops, formats, whole=False, sequences=(), tier=tier).weights
    head = next((i for i, op in enumerate(of.ops.ops) if op.kind == "lm_head"), None)
    return held if tables or head is None else held + int(of.ops.costs(0)[WEIGHT, head]) * of.scenario.mapping.parallel.tensor


def _through_link(kind: str, size: int, parallel: Parallel, island: int) -> int:
    """Bytes that a device sends for an op whose result has so many. island: devices of an island."""
    if kind == P2P:
        return size
    every = phases(kind, parallel.algorithm, parallel.devices_of(kind), island)
    return sum(of.rounds.number * of.rounds.sends * -(-size // of.parts) for of in every)
