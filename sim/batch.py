"""The graph of a step of several sequences, each with its own context and its own number of new tokens.

Engines that batch read the weights of a layer once a step, for all new tokens together, while attention is each sequence's
own. So the graph of a step is stitched from captured ones:

| ops                                                           | how often         | costs at (batch, query, context)       |
| ------------------------------------------------------------- | ----------------- | -------------------------------------- |
| of a sequence: KV cache, per head, or growing with context     | once per member   | (1, its new tokens, its context)       |
| of the logits: growing with the batch and not with the query   | once              | (rows of logits that are wanted, 1, 0) |
| all others: projections, MLP, experts, norms, embedding        | once              | (new tokens of all members, 1, 0)      |

The last two are those of the capture with several sequences, the first those of a capture with one. Ops of two captures
correspond if they have the same kind, module path and part (and among equals the same place in the order).

Of the weights of experts, a step reads those of the distinct ones that its new tokens choose: see `sim.experts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.errors import InputError
from sim.experts import Experts, Routing, Tokens, distinct
from sim.graph import MONOMIALS, QUANTITIES, IntArray, Op, OpGraph, Polynomial, StepLanes
from sim.lowering import Mapping as TaskMapping
from sim.lowering import lower, read_in_place
from sim.tasks import TaskGraph

#: Captured op graphs of a model, by (several sequences, several new tokens each).
Variants = Mapping[tuple[bool, bool], OpGraph]

#: Whose op it is, beside the numbers of members.
TOKENS, LOGITS = -1, -2

_OF_CONTEXT = [i for i, (_, _, n) in enumerate(MONOMIALS) if n]
_OF_QUERY = [i for i, (_, q, _) in enumerate(MONOMIALS) if q]
_OF_BATCH = [i for i, (b, q, n) in enumerate(MONOMIALS) if b and not q and not n]
WEIGHT, KV_READ, KV_WRITE = (QUANTITIES.index(name) for name in ("weight", "kv_read", "kv_write"))

#: Kind, part, path, and which of those that are equal so far.
Role = tuple[str, str, str, int]


class Shape(NamedTuple):
    """All that the structure of a step depends on.

    several: for each member, whether it feeds in more than one token. logits: whether any are wanted. leaders: for each
    member the one that loads the context they share, -1 if it shares none. swap: the KV cache of the members moves out of the
    device's memory or back in, and nothing else happens.
    """

    several: tuple[bool, ...]
    logits: bool = True
    leaders: tuple[int, ...] = ()
    swap: Literal["", "out", "in"] = ""

    @property
    def plain(self) -> bool:
        """One sequence that decodes one token: the step that was captured."""
        return self.several == (False,) and self.logits and not self.swap


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchGraph(OpGraph):
    """A stitched graph. `owner` says for each op which member's it is, or `TOKENS` or `LOGITS`. routing: which experts tokens
    choose; None: as many distinct ones as there can be.
    """

    shape: Shape
    owner: tuple[int, ...]
    routing: Routing | None = None
    _experts: dict[Experts, list[int]] = field(init=False, repr=False, compare=False)
    _loads: IntArray = field(init=False, repr=False, compare=False)
    _member: IntArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super(BatchGraph, self).__post_init__()  # zero-argument super() does not see the class that slots make
        # Columns of parameters: 0 for all tokens, 1 for the logits, then members, then what members load.
        columns = [
            owner + 2 + (self.members if op.kind == "kv_load" else 0) if owner >= 0 else -1 - owner
            for op, owner in zip(self.ops, self.owner, strict=True)
        ]
        object.__setattr__(self, "_loads", np.array(columns, dtype=np.int64))
        object.__setattr__(self, "_member", np.maximum(np.array(self.owner, dtype=np.int64), -1))
        experts: dict[Experts, list[int]] = {}  # by what they have in common, whatever their size
        for i, op in enumerate(self.ops):
            if op.experts is not None:
                experts.setdefault(replace(op.experts, bytes=0), []).append(i)
        object.__setattr__(self, "_experts", experts)

    @property
    def members(self) -> int:
        return len(self.shape.several)

    @property
    def member(self) -> IntArray:
        return self._member

    def costs_of(self, steps: StepLanes) -> IntArray:
        columns = self._sizes(steps)
        values = self.evaluate(*(column.ravel() for column in columns))
        costs = np.asarray(values.reshape(-1, *columns[0].shape)[self.cost_index, self._loads])
        members = steps.members
        if self._experts and members is not None:
            tokens = Tokens.of(members.sequence, members.context, members.query)
            for experts, ops in self._experts.items():
                layers, which = np.unique([self.ops[i].layer for i in ops], return_inverse=True)
                size = np.array([each.bytes for i in ops if (each := self.ops[i].experts) is not None], dtype=np.int64)
                costs[WEIGHT, ops] = distinct(self.routing, experts, layers.tolist(), tokens)[which] * size[:, None]
        return costs

    def alike(self) -> npt.NDArray[np.intp]:
        chosen = [i if op.experts is not None else -1 for i, op in enumerate(self.ops)]  # experts differ from layer to layer
        return self._alike(self.cost_index, self._loads, np.array(chosen, dtype=np.int64))

    def sizes_of(self, steps: StepLanes) -> tuple[IntArray, IntArray, IntArray]:
        batch, query, context = self._sizes(steps)
        return batch[self._loads], query[self._loads], context[self._loads]

    def _sizes(self, steps: StepLanes) -> tuple[IntArray, IntArray, IntArray]:
        """B, Q and N [column of parameters, lane]."""
        members = steps.members
        if members is None or len(members.query) != self.members:
            raise ValueError(f"expected {self.members} members")
        lanes = len(steps.context)
        one, none = np.ones((self.members, lanes), dtype=np.int64), np.zeros((1, lanes), dtype=np.int64)
        batch = np.concatenate([members.query.sum(axis=0, keepdims=True), members.logits[None], one, one])
        query = np.concatenate([none + 1, none + 1, members.query, members.query])
        context = np.concatenate([none, none, members.context, members.loads])
        return batch, query, context


class Laid(Mapping[tuple[bool, bool], OpGraph]):
    """Captured graphs as a scenario lays them out, made when they are asked for: most runs need one of the four."""

    def __init__(self, captured: Variants, lay_out: Callable[[OpGraph], OpGraph]) -> None:
        self._captured, self._lay_out = captured, lay_out
        self._made: dict[tuple[bool, bool], OpGraph] = {}

    def __getitem__(self, key: tuple[bool, bool]) -> OpGraph:
        if key not in self._made:
            self._made[key] = self._lay_out(self._captured[key])
        return self._made[key]

    def __iter__(self) -> Iterator[tuple[bool, bool]]:
        return iter(self._captured)

    def __len__(self) -> int:
        return len(self._captured)


class StepGraphs:
    """Makes the task graph of a step from its shape, once for each. routing: which experts tokens choose."""

    def __init__(self, variants: Variants, mapping: TaskMapping, routing: Routing | None = None) -> None:
        self.captured = variants
        # Once cut into members, a graph no longer says whose a KV load is that has become an operand.
        self.variants = Laid(variants, read_in_place) if mapping.kv == "operands" else variants
        self.mapping, self.routing = mapping, routing
        self._made: dict[Shape, TaskGraph] = {}

    def __call__(self, shape: Shape) -> TaskGraph:
        """Raises InputError if captures do not correspond."""
        if shape not in self._made:
            variants = self.captured if shape.swap else self.variants  # what is swapped is what the KV loads say
            ops = variants[False, False] if shape.plain else replace(stitch(variants, shape), routing=self.routing)
            self._made[shape] = lower(ops, self.mapping)
        return self._made[shape]


def stitch(variants: Variants, shape: Shape) -> BatchGraph:
    """The op graph of a step of this shape."""
    if shape.swap:
        return _swap(variants[False, False], shape)
    spine = variants[True, any(shape.several)]
    return _Stitch(variants, spine, shape).graph()


def _swap(ops: OpGraph, shape: Shape) -> BatchGraph:
    """One transfer a layer and member, of all its tokens: out of the device's memory, or into it."""
    polynomials = (*ops.polynomials, ((0,) * len(MONOMIALS),) * (len(ops.breaks) + 1))
    nothing = [len(ops.polynomials)] * len(QUANTITIES)
    made, owner = [], []
    for member in range(len(shape.several)):
        for op in ops.ops:
            if op.kind == "kv_load":
                costs = nothing.copy()
                costs[KV_READ if shape.swap == "out" else KV_WRITE] = op.costs[KV_READ]
                made.append(replace(op, kind=f"kv_swap_{shape.swap}", inputs=(), costs=tuple(costs), shape=()))
                owner.append(member)
    return BatchGraph(ops=tuple(made), polynomials=polynomials, breaks=ops.breaks, owner=tuple(owner), shape=shape)


class _Captured:
    """A captured graph with what stitching asks of it: roles, and which ops are a sequence's own."""

    def __init__(self, graph: OpGraph) -> None:
        self.graph = graph
        self.own = [self._is_own(op) for op in graph.ops]
        self.role: list[Role] = []
        seen: dict[tuple[str, str, str], int] = {}
        for op in graph.ops:
            name = (op.kind, op.part, op.path)
            self.role.append((*name, seen.get(name, 0)))
            seen[name] = seen.get(name, 0) + 1
        self.at = {role: i for i, role in enumerate(self.role)}

    def _is_own(self, op: Op) -> bool:
        if op.heads or op.kind.startswith("kv_"):
            return True
        pieces = [piece for cost in op.costs for piece in self.graph.polynomials[cost]]
        return any(piece[i] for piece in pieces for i in _OF_CONTEXT)

    def is_of_logits(self, i: int) -> bool:
        op = self.graph.ops[i]
        pieces = [piece for cost in op.costs for piece in self.graph.polynomials[cost]]
        grows = any(piece[j] for piece in pieces for j in _OF_BATCH)
        return op.layer < 0 and not self.own[i] and grows and not any(piece[j] for piece in pieces for j in _OF_QUERY)


class _Stitch:
    """Stitches one graph."""

    def __init__(self, variants: Variants, spine: OpGraph, shape: Shape) -> None:
        self.shape = shape
        self.spine = _Captured(spine)
        logits = _Captured(variants[True, True])
        self.logits = {role for i, role in enumerate(logits.role) if logits.is_of_logits(i)}
        single = {several: _Captured(variants[False, several]) for several in sorted(set(shape.several))}
        self.captured = [single[several] for several in shape.several]
        self.breaks = tuple(sorted({b for graph in (self.spine, *single.values()) for b in graph.graph.breaks}))
        self.polynomials: dict[tuple[Polynomial, ...], int] = {}
        self.made: list[Op] = []
        self.owner: list[int] = []
        self.shared: dict[Role, int] = {}  # role -> op made
        self.of_member: list[dict[Role, int]] = [{} for _ in shape.several]

    def graph(self) -> BatchGraph:
        before = [self._anchored(captured) for captured in self.captured]
        for i, role in enumerate(self.spine.role):
            if self.spine.own[i]:
                continue
            for member in range(len(self.captured)):
                self._members(member, before[member].get(role, []))
            if role not in self.logits:
                self._add(self.spine, i, TOKENS, self._inputs_of_shared(i))
            elif self.shape.logits:
                self._add(self.spine, i, LOGITS, self._inputs_of_shared(i))
        for member in range(len(self.captured)):
            self._members(member, before[member].get(None, []))
        return BatchGraph(
            ops=tuple(self.made), polynomials=tuple(self.polynomials), breaks=self.breaks, owner=tuple(self.owner),
            shape=self.shape,
        )  # fmt: skip

    def _anchored(self, captured: _Captured) -> dict[Role | None, list[int]]:
        """The ops of a sequence, by the role of the next shared op in its capture (None: there is none)."""
        anchored: dict[Role | None, list[int]] = {}
        anchor: Role | None = None
        for i in reversed(range(len(captured.role))):
            if captured.own[i]:
                anchored.setdefault(anchor, []).insert(0, i)
            elif captured.role[i] in self.spine.at:
                anchor = captured.role[i]
        return anchored

    def _members(self, member: int, ops: list[int]) -> None:
        captured = self.captured[member]
        for i in ops:
            self.of_member[member][captured.role[i]] = len(self.made)
            inputs = set()
            for j in captured.graph.ops[i].inputs:
                inputs |= self._made_of(member, captured, j)
            self._add(captured, i, member, inputs)

    def _made_of(self, member: int, captured: _Captured, j: int) -> set[int]:
        """What stands for input j of an op of a member: its own op, the shared one, or what that one in turn needs."""
        role = captured.role[j]
        if captured.own[j]:
            leader = self.shape.leaders[member] if self.shape.leaders else -1
            own = {self.of_member[member][role]}
            if leader >= 0 and captured.graph.ops[j].kind == "kv_load":
                own.add(self.of_member[leader][role])
            return own
        if role in self.shared:
            return {self.shared[role]}
        found: set[int] = set()
        for k in captured.graph.ops[j].inputs:
            found |= self._made_of(member, captured, k)
        return found

    def _inputs_of_shared(self, i: int) -> set[int]:
        inputs = set()
        for j in self.spine.graph.ops[i].inputs:
            role = self.spine.role[j]
            if not self.spine.own[j]:
                inputs.add(self.shared[role])
                continue
            for member, made in enumerate(self.of_member):
                if role not in made:
                    op = self.captured[member].graph
                    raise InputError(f"mapping.granularity: a batch of {op} lacks {role[0]!r} at {role[2]}; expected op")
                inputs.add(made[role])
        return inputs

    def _add(self, captured: _Captured, i: int, owner: int, inputs: set[int]) -> None:
        graph, op = captured.graph, captured.graph.ops[i]
        if owner < 0:
            self.shared[captured.role[i]] = len(self.made)
        costs = tuple(self._polynomial(graph, cost) for cost in op.costs)
        self.made.append(replace(op, inputs=tuple(sorted(inputs)), costs=costs))
        self.owner.append(owner)

    def _polynomial(self, graph: OpGraph, cost: int) -> int:
        """The same polynomial in the pieces of all graphs together."""
        pieces = graph.polynomials[cost]
        if graph.breaks != self.breaks:
            starts = (0, *self.breaks)
            pieces = tuple(pieces[sum(b <= start for b in graph.breaks)] for start in starts)
        return self.polynomials.setdefault(pieces, len(self.polynomials))
