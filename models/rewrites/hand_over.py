"""Hand-over by layers: each layer sends the rows that it stores to another device, as soon as it has stored them."""

from __future__ import annotations

from dataclasses import replace

from models.graph import QUANTITIES, Op, OpGraph

ACT_WRITE = QUANTITIES.index("act_write")

#: Ops that store rows of a KV cache or a state, by the op that sends these, and the bytes of both.
STORES = {"kv_store": ("kv_send", QUANTITIES.index("kv_write")), "state_store": ("state_send", QUANTITIES.index("state_write"))}


def with_sends(ops: OpGraph) -> OpGraph:
    """The op graph in which each store is followed by the sending of what it has stored; no op needs that."""
    place: list[int] = []  # [op], its index here
    made: list[Op] = []
    for op in ops.ops:
        place.append(len(made))
        made.append(replace(op, inputs=tuple(place[j] for j in op.inputs)))
        if op.kind in STORES:
            kind, stored = STORES[op.kind]
            nothing = next(cost for cost in op.costs if not any(map(any, ops.polynomials[cost])))
            costs = tuple(op.costs[stored] if quantity == ACT_WRITE else nothing for quantity in range(len(QUANTITIES)))
            made.append(replace(op, kind=kind, inputs=(place[-1],), costs=costs, shape=()))
    return replace(ops, ops=tuple(made))
