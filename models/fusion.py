"""Fusion: the ops of a model as the kernels of a machine compute them.

Each fusion is a pure change of an op graph. FLOPs, weights and KV bytes stay exactly as captured; what changes is said here:

| fusion         | replaces                            | by               | what changes                                     |
| -------------- | ----------------------------------- | ---------------- | ------------------------------------------------ |
| softmax fused  | the three passes of the softmax     | `softmax`        | activations: scores are read, and written, once  |
| softmax online | scores, softmax and weighted values | `attention`      | activations: no scores; vector ops: rescaling    |
| kv_splits n    | nothing: `attention` is in n parts  | and a `combine`  | partial results, see below                       |
| qkv            | q, k and v projections              | `qkv_proj`       | activations: their common input is read once     |
| gate_up        | gate and up projections             | `gate_up_proj`   | the same                                         |

Online softmax (Milakov and Gimelshein, 2018; FlashAttention: Dao et al., 2022, FlashAttention-2: Dao, 2023) goes over the keys
in blocks. Each block rescales, for each row of queries, the `head_dim` sums of values, the maximum and the sum so far: per key
(head_dim + 2) / KEY_BLOCK vector ops on top of those captured, rounded up term by term.

Flash-decoding (Dao, Haziza, Massa, Sizov, 2023) splits the keys into n parts that know nothing of each other. Each part reads
the queries and writes, for each row of queries, head_dim + 2 numbers in float32: its sums, maximum and sum. `combine` reads
these n * (head_dim + 2) numbers, touches each once, and writes the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Literal

import numpy as np

from models.graph import MONOMIALS, QUANTITIES, IntArray, Op, OpGraph
from sim.base.errors import ConfigError

#: Keys that an online softmax takes at a time; FlashAttention-2 takes 64 to 256, by head size and machine.
KEY_BLOCK = 128

#: Bytes of a number of a partial result: float32, as in the reference implementation.
PARTIAL = 4

PASSES = ("softmax_max", "softmax_exp", "softmax_norm")
ATTENTION = ("scores", *PASSES, "weighted_values")

#: What is fused, by kind of the result.
PROJECTIONS = {"qkv_proj": ("q_proj", "k_proj", "v_proj", "kv_proj"), "gate_up_proj": ("gate_proj", "up_proj")}

Softmax = Literal["three_pass", "fused", "online"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """What is fused. The fields are those of `mapping` in a scenario; `qkv` and `gate_up` are those of `mapping.fuse`."""

    softmax: Softmax = "three_pass"
    kv_splits: int = 1
    qkv: bool = False
    gate_up: bool = False


def fuse(ops: OpGraph, fusion: Fusion, *, element: int) -> OpGraph:
    """The op graph after the fusions. `element`: bytes of a captured number.

    What is fused already, or not there, stays as it is. Raises ConfigError if there is no softmax in three
    passes to be fused.
    """
    graph = _Rewrite(ops)
    for kind, wanted in (("qkv_proj", fusion.qkv), ("gate_up_proj", fusion.gate_up)):
        if wanted:
            for group in _projections(ops, PROJECTIONS[kind]):
                graph.projections(kind, group)
    if fusion.softmax != "three_pass":
        chains = list(_chains(ops))
        if not chains:
            raise ConfigError("mapping.softmax", "expected three_pass: the model has no softmax in three passes to be fused")
        for chain in chains:
            if fusion.softmax == "fused":
                graph.softmax(chain, element)
            else:
                graph.attention(chain, element, fusion.kv_splits)
    return graph.done()


def with_kv_heads(ops: OpGraph, kv_heads: int) -> OpGraph:
    """The op graph whose KV loads know the heads of the cache (1 for a latent one), so that they can be split over them."""
    made = (replace(op, heads=kv_heads) if op.kind == "kv_load" else op for op in ops.ops)
    return replace(ops, ops=tuple(made))


def _projections(ops: OpGraph, kinds: Sequence[str]) -> list[list[int]]:
    """Groups of several products of these kinds that read the same results in the same layer."""
    groups: dict[object, list[int]] = {}
    for i, op in enumerate(ops.ops):
        if op.kind in kinds:
            groups.setdefault((op.layer, op.part, op.inputs, op.path.rpartition(".")[0]), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _chains(ops: OpGraph) -> Iterable[list[int]]:
    """The five ops of each attention: each needs the one before, and nothing else needs any but the last."""
    users: dict[int, list[int]] = {}
    for i, op in enumerate(ops.ops):
        for j in op.inputs:
            users.setdefault(j, []).append(i)
    for i, op in enumerate(ops.ops):
        if op.kind != ATTENTION[0]:
            continue
        chain = [i]
        for kind in ATTENTION[1:]:
            chain += [j for j in users.get(chain[-1], []) if ops.ops[j].kind == kind][:1]
        inside = {j for i in chain[:-1] for j in users.get(i, [])}
        if tuple(ops.ops[j].kind for j in chain) == ATTENTION and inside.issubset(chain):
            yield chain


class _Rewrite:
    """Collects what replaces groups of ops. Costs are arrays [piece, monomial] of coefficients."""

    def __init__(self, ops: OpGraph) -> None:
        self.ops = ops
        self.polynomials = list(ops.polynomials)
        self.index = {polynomial: i for i, polynomial in enumerate(self.polynomials)}
        self.replaced: dict[int, int] = {}  # op -> the first of its group
        self.replacements: dict[int, list[Op]] = {}  # first of a group -> what stands for it, a chain
        self.split: dict[int, int] = {}  # KV load -> in how many parts it is needed

    def cost(self, op: int, quantity: str) -> IntArray:
        return np.array(self.polynomials[self.ops.ops[op].costs[QUANTITIES.index(quantity)]], dtype=np.int64)

    def total(self, group: Sequence[int], quantity: str) -> IntArray:
        total = self.cost(group[0], quantity)
        for i in group[1:]:
            total = total + self.cost(i, quantity)
        return total

    def put(self, group: Sequence[int], *ops: Op) -> None:
        self.replacements[group[0]] = list(ops)
        self.replaced.update(dict.fromkeys(group, group[0]))

    def op(self, like: Op, kind: str, costs: dict[str, IntArray], **changes: object) -> Op:
        numbers = []
        for quantity in QUANTITIES:
            value = costs.get(quantity, np.zeros((len(self.ops.breaks) + 1, len(MONOMIALS)), dtype=np.int64))
            polynomial = tuple(tuple(piece) for piece in value.tolist())
            number = self.index.setdefault(polynomial, len(self.polynomials))
            if number == len(self.polynomials):
                self.polynomials.append(polynomial)
            numbers.append(number)
        return replace(like, kind=kind, costs=tuple(numbers), **changes)  # type: ignore[arg-type]

    def projections(self, kind: str, group: list[int]) -> None:
        first = self.ops.ops[group[0]]
        costs = {quantity: self.total(group, quantity) for quantity in QUANTITIES}
        reads = [self.cost(i, "act_read") for i in group]
        if all(np.array_equal(reads[0], other) for other in reads):  # they read their input, and nothing else
            costs["act_read"] = reads[0]
        self.put(group, self.op(first, kind, costs, path=first.path.rpartition(".")[0], shape=()))

    def softmax(self, chain: list[int], element: int) -> None:
        passes = chain[1:4]
        scores = self.cost(passes[1], "vector_ops")  # the exponential touches each score once
        costs = {quantity: self.total(passes, quantity) for quantity in ("vector_ops", "weight")}  # weights: of sinks
        costs["act_read"] = costs["act_write"] = scores * element
        last = self.ops.ops[passes[-1]]
        self.put(passes, self.op(last, "softmax", costs, dtype=self.ops.ops[passes[0]].dtype))

    def attention(self, chain: list[int], element: int, splits: int) -> None:
        first, last = self.ops.ops[chain[0]], self.ops.ops[chain[-1]]
        scores = self.cost(chain[2], "vector_ops")
        key_dim, head_dim = (self._ratio(self.cost(i, "flops"), 2 * scores, i) for i in (chain[0], chain[-1]))
        costs = {quantity: self.total(chain, quantity) for quantity in ("flops", "vector_ops", "weight")}
        costs["vector_ops"] += -(-scores * (head_dim + 2) // KEY_BLOCK)
        # Queries, keys and values are read: all but the probabilities, and what elementwise ops read of each other.
        outer = [chain[0], chain[-1]]
        inside = self.total(outer, "vector_ops")
        costs["act_read"] = self.total(outer, "act_read") - element * (inside + scores)
        result = self.cost(chain[-1], "act_write") - element * self.cost(chain[-1], "vector_ops")
        if (costs["act_read"] < 0).any() or (result < 0).any():
            raise ConfigError("mapping.softmax", f"cannot tell what {first.path} reads and writes; expected three_pass")
        costs["act_write"] = result
        if splits == 1:
            self.put(chain, self.op(first, "attention", costs, shape=last.shape))
            return
        rows = self._rows(scores)
        partial = rows * splits * (head_dim + 2)
        costs["act_read"] = costs["act_read"] + element * key_dim * rows * (splits - 1)
        costs["act_write"] = PARTIAL * partial
        combine = {"vector_ops": partial, "act_read": PARTIAL * partial, "act_write": result}
        self.put(
            chain,
            self.op(first, "attention", costs, shape=last.shape, splits=splits),
            self.op(last, "combine", combine, part="splits", dtype="float32"),
        )
        for j in {j for i in chain for j in self.ops.ops[i].inputs if self.ops.ops[j].kind == "kv_load"}:
            self.split[j] = splits

    def _ratio(self, of: IntArray, to: IntArray, op: int) -> int:
        """How many times as large one cost is, exactly: FLOPs of a product per score."""
        where = np.flatnonzero(to.ravel())
        ratio = int(of.ravel()[where[0]] // to.ravel()[where[0]]) if len(where) else 0
        if not ratio or not np.array_equal(of, ratio * to):
            raise ConfigError("mapping.softmax", f"the FLOPs of {self.ops.ops[op].path} are no multiple of its scores")
        return ratio

    @staticmethod
    def _rows(scores: IntArray) -> IntArray:
        """Rows of queries, of all heads: by how much one more key adds to the scores, before any window is full."""
        rows = np.zeros_like(scores)
        for i, (batch, query, context) in enumerate(MONOMIALS):
            if context:
                rows[:, MONOMIALS.index((batch, query, 0))] = scores[0, i]
        return rows

    def done(self) -> OpGraph:
        """The graph with all replacements, in an order that follows the program: a group stands where its first op stood."""
        if not self.replaced:
            return self.ops
        first = [self.replaced.get(i, i) for i in range(len(self.ops.ops))]
        needs: dict[int, set[int]] = {}
        for i, op in enumerate(self.ops.ops):
            needs.setdefault(first[i], set()).update(first[j] for j in op.inputs if first[j] != first[i])
        index: dict[int, int] = {}  # first of a group -> the op that has its result
        made: list[Op] = []
        for i in _in_order(needs):
            inputs = tuple(sorted({index[j] for j in needs[i]}))
            if i not in self.replacements:
                made.append(replace(self.ops.ops[i], inputs=inputs, splits=self.split.get(i, 1)))
            for op in self.replacements.get(i, ()):
                made.append(replace(op, inputs=inputs))
                inputs = (len(made) - 1,)
            index[i] = len(made) - 1
        return replace(self.ops, ops=tuple(made), polynomials=tuple(self.polynomials))


def _in_order(needs: dict[int, set[int]]) -> list[int]:
    """Each after what it needs, else in ascending order."""
    feeds: dict[int, list[int]] = {i: [] for i in needs}
    for i, sources in needs.items():
        for j in sources:
            feeds[j].append(i)
    waiting = {i: len(sources) for i, sources in needs.items()}
    ready = [i for i, count in waiting.items() if not count]
    heapify(ready)
    order = []
    while ready:
        i = heappop(ready)
        order.append(i)
        for j in feeds[i]:
            waiting[j] -= 1
            if not waiting[j]:
                heappush(ready, j)
    assert len(order) == len(needs)
    return order
