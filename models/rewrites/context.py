"""Context parallelism: devices that hold the same KV heads have each a part of their positions.

With more devices than KV heads, several hold the same head. Of these, groups of c devices divide its positions instead:

| op                  | of c devices, each                                                                         |
| ------------------- | ------------------------------------------------------------------------------------------ |
| KV load, KV store   | moves 1/c of the positions                                                                 |
| `context_gather`    | gets the queries of the others                                                             |
| attention           | computes with the queries of all over its positions; for each row of queries head_dim + 2  |
|                     | numbers in float32: sums of values, maximum and sum, as in flash-decoding                  |
| `context_scatter`   | gets these numbers of its own heads from the others                                        |
| `context_combine`   | combines the c parts of each row of its own heads                                          |

Arithmetic of attention stays 1/n of all: c times the heads over 1/c of the positions. Yang et al., 2024 (Context Parallelism
for Scalable Million-Token Inference) and Bhatia et al., 2025 (Helix Parallelism) combine attention over parts of a context so.
"""

from __future__ import annotations

from dataclasses import replace

from models.graph import QUANTITIES, Op, OpGraph
from models.polynomials import Pieces, Polynomials, each_term, zero
from models.rewrites.attention import PARTIAL
from models.rewrites.kernels import SIZES, VECTOR, Comparison, result_bytes
from models.rewrites.sharding import ACT_WRITE, CACHE, CONTEXT, keys_and_values
from sim.base.errors import ConfigError

GATHER, SCATTER = CONTEXT

ACT_READ = QUANTITIES.index("act_read")

#: Ops beside keys, values and the cache that attention reads, and that make no queries.
OF_POSITIONS = ("mask", "indexer")


def over_positions(ops: OpGraph, devices: int, context: int) -> OpGraph:
    """The op graph of one of `devices` that tensor parallelism made, of which groups of `context` divide the positions.

    Raises ConfigError if that is not a divisor of the devices that hold the same KV head, or attention is not one op.
    """
    if context == 1:
        return ops
    if not any(op.kind == "attention" and op.splits == 1 for op in ops.ops):
        raise ConfigError("mapping.parallel.context", "expected 1 without mapping.softmax: online, or with kv_splits")
    return _Positions(ops, devices, context).graph()


def refuse_context(devices: int, kv_heads: int, context: int) -> None:
    """Raise ConfigError if so many devices that divide positions do not hold the same KV head."""
    same = max(1, devices // kv_heads)
    if same % context:
        fitting = ", ".join(str(n) for n in range(1, same + 1) if same % n == 0)
        raise ConfigError(
            "mapping.parallel.context",
            f"expected a divisor of the {same} devices of {devices} that hold the same of {kv_heads} KV heads, "
            f"found {context}; possible: {fitting}",
        )


class _Positions:
    """Collects the ops. place: [op], its index here, or that of what stands for its result."""

    def __init__(self, ops: OpGraph, devices: int, context: int) -> None:
        self.whole, self.devices, self.context = ops, devices, context
        self.polynomials, self.compare = Polynomials(ops.polynomials), Comparison(ops)
        times = [each_term(lambda term: term * devices, pieces) for pieces in ops.polynomials]
        self.of_all = replace(ops, polynomials=tuple(times))  # shapes are those of the whole model, too
        self.nothing = self.polynomials.number(zero(ops.breaks, ops.masks))
        self.of_keys = set(keys_and_values(ops))
        self.place: list[int] = []
        self.queries: dict[int, int] = {}  # op that makes queries -> the gathering of these
        self.made: list[Op] = []

    def graph(self) -> OpGraph:
        for i, op in enumerate(self.whole.ops):
            if op.kind == "attention":
                self._attend(op)
            else:
                costs = tuple(map(self._part, op.costs)) if op.kind in CACHE else op.costs
                self.place.append(self._add(replace(op, inputs=self._inputs(op), costs=costs)))
            assert len(self.place) == i + 1
        return replace(self.whole, ops=tuple(self.made), polynomials=tuple(self.polynomials))

    def _add(self, op: Op) -> int:
        self.made.append(op)
        return len(self.made) - 1

    def _inputs(self, op: Op) -> tuple[int, ...]:
        return tuple(sorted({self.place[j] for j in op.inputs}))

    def _attend(self, op: Op) -> None:
        """Add an attention, with the gathering of its queries, and the scattering and the combination of its results."""
        inputs = {self.place[j] for j in op.inputs}
        for j in op.inputs:
            if self.whole.ops[j].kind not in (*CACHE, *OF_POSITIONS) and j not in self.of_keys:
                inputs.add(self._gathered(j))
        own = self._own(op)
        numbers = _partial(op, own)  # bytes of the results of its own heads, before they are divided by their sums
        of_group = each_term(lambda term: term * self.context, numbers)
        read = each_term(lambda term: term * self.context, self.polynomials[op.costs[ACT_READ]])
        attention = op.with_cost(ACT_READ, self.polynomials.number(read)).with_cost(
            ACT_WRITE, self.polynomials.number(of_group)
        )
        last = self._add(replace(attention, inputs=tuple(sorted(inputs)), heads=op.heads * self.context))
        last = self._add(self._plain(op, SCATTER, last, {ACT_WRITE: of_group}))
        each = each_term(lambda term: term // PARTIAL, of_group)
        costs = {VECTOR: each, ACT_READ: of_group, ACT_WRITE: own}
        self.place.append(self._add(self._plain(op, "context_combine", last, costs)))

    def _gathered(self, j: int) -> int:
        """The gathering of the queries of an op, added once."""
        if j not in self.queries:
            op = self.whole.ops[j]
            size = each_term(lambda term: term * self.context, self._own(op))
            self.queries[j] = self._add(self._plain(op, GATHER, self.place[j], {ACT_WRITE: size}))
        return self.queries[j]

    def _own(self, op: Op) -> Pieces:
        """Bytes of the result of an op on one of all devices."""
        return each_term(lambda term: -(-term // self.devices), result_bytes(self.of_all, op, self.compare))

    def _plain(self, op: Op, kind: str, source: int, costs: dict[int, Pieces]) -> Op:
        """An op beside another one of the graph, without heads."""
        numbers = tuple(
            self.polynomials.number(costs[quantity]) if quantity in costs else self.nothing
            for quantity in range(len(QUANTITIES))
        )
        return Op(
            kind=kind,
            path=op.path,
            part=op.part,
            layer=op.layer,
            dtype=op.dtype,
            shape=op.shape,
            inputs=(source,),
            costs=numbers,
        )

    def _part(self, number: int) -> int:
        """The number of the polynomial that is a c-th of another, rounded up term by term."""
        return self.polynomials.number(each_term(lambda term: -(-term // self.context), self.polynomials[number]))


def _partial(op: Op, result: Pieces) -> Pieces:
    """Bytes of sums of values, maximum and sum for each row of queries, from those of the result."""
    size, head_dim = SIZES[op.dtype], int(op.shape[-1])
    return each_term(lambda term: term // size // head_dim * (head_dim + 2) * PARTIAL, result)
