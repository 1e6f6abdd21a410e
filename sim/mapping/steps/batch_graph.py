"""The op graph of a step: the ops of a template, repeated for each member."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.experts import Count, Experts, Routing, Tokens, counted
from models.graph import QUANTITIES, IntArray, Members, Op, OpGraph, Polynomial, StepLanes
from models.masks import Mask
from models.rewrites import KEPT
from sim.mapping.lowering import HAND_OVERS
from sim.mapping.steps.shape import MEMBERS, Shape
from sim.mapping.steps.stitch import Stitched
from sim.mapping.template import Blocks, Repeated, first_of_each, rows

FLOPS, WEIGHT, ACT_WRITE = (QUANTITIES.index(name) for name in ("flops", "weight", "act_write"))

#: Quantity of an op that depends on the experts that tokens choose, by the count that it grows with.
COUNTED: dict[Count, int] = {"distinct": WEIGHT, "sent": ACT_WRITE, "chosen": FLOPS}

#: Columns of parameters: 0 for all new tokens, 1 for the logits, then the members, then what each of them loads, then what each
#: keeps of a prompt that ends. These two stand for the sum over members, and the sum over what each of them loads.
SUM, SUM_OF_LOADS = -1, -2


class Routed(NamedTuple):
    """Ops whose tokens choose among alike experts.

    of: the count that they grow with. experts: their number and choice, without their size. layers: those of these ops,
    ascending. ops: [op], its index in the graph. layer: [op], the place of its layer in `layers`. size: [op], bytes of one
    expert, or of a token that is sent to some, or FLOPs of a choice. chunk: of the tokens that choose.
    """

    of: Count
    experts: Experts
    layers: list[int]
    ops: IntArray
    layer: IntArray
    size: IntArray
    chunk: int = 0

    @property
    def quantity(self) -> int:
        """Which of `QUANTITIES` depends on the choice."""
        return COUNTED[self.of]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchGraph(OpGraph):
    """A stitched graph. Its ops come from a template; `Op` objects are made on first use, and no simulation uses them.

    shape: of the step. routing: the experts that tokens choose; None: as many distinct ones as there can be.
    repeated: how the template's ops are repeated. source: int64 [op], its op in the template.
    member: int64 [op], the member it belongs to, -1 if it serves several.
    column: int64 [op], with which parameters (B, Q, N) its costs are evaluated: 0 (new tokens of all members, 1, 0); 1 (rows of
    logits, 1, 0); 2 + m (1, query, context) of member m; 2 + members + m (1, query, loads) of member m; 2 + 2 members + m
    (1, 0, kept), where that is not 0. `SUM`: the sum of the
    costs at the columns of all members, by `cost_index` of those that feed in one token and by `several_index` of those that
    feed in several; `SUM_OF_LOADS`: the same at the columns of what they load.
    chunk: int64 [op], the chunk of the new tokens that its costs are of (`StepLanes.of_chunk`), 0 if there is one.
    routed: ops whose weights, FLOPs, or bytes that they send, follow from the experts that tokens choose instead.
    """

    template: Template
    shape: Shape
    routing: Routing | None = None
    ops: tuple[Op, ...] = field(init=False, repr=False, compare=False)
    polynomials: tuple[tuple[Polynomial, ...], ...] = field(init=False, repr=False, compare=False)
    breaks: tuple[int, ...] = field(init=False, repr=False, compare=False)
    masks: tuple[Mask, ...] = field(init=False, repr=False, compare=False)
    source: IntArray = field(init=False, repr=False, compare=False)
    member: IntArray = field(init=False, repr=False, compare=False)
    column: IntArray = field(init=False, repr=False, compare=False)
    chunk: IntArray = field(init=False, repr=False, compare=False)
    routed: tuple[Routed, ...] = field(init=False, repr=False, compare=False)
    repeated: Repeated = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        template, repeated = self.template, self.template.repeat(self.template.blocks, self.shape)
        of = template.ops
        source, member = repeated.source, repeated.member
        own = member + 2 + len(self.shape.several) * template.region[source]
        made: dict[str, Any] = {
            "polynomials": of.polynomials, "breaks": of.breaks, "masks": of.masks, "table": of.table, "_made": {},
            "repeated": repeated,
            "source": source, "member": member, "chunk": template.chunk[source],
            "column": np.where(member >= 0, own, template.column[source]),
            "routed": tuple(each._replace(ops=repeated.place(each.ops)) for each in template.routed),
        }  # fmt: skip
        for name, value in made.items():
            object.__setattr__(self, name, value)

    if not TYPE_CHECKING:  # so that names which do not exist are still found

        def __getattr__(self, name: str) -> Any:
            """Make a column on first use; called for attributes that do not exist yet."""
            if name == "ops":
                value = self._op_objects()
            elif name in ("cost_index", "several_index"):
                value = getattr(self.template.ops, name)[:, self.source]
            else:
                raise AttributeError(name)
            object.__setattr__(self, name, value)
            return value

    def _op_objects(self) -> tuple[Op, ...]:
        consumers, sources = self.repeated.edges()
        inputs, start = rows(consumers, sources, len(self))
        listed, bounds, of = inputs.tolist(), start.tolist(), self.template.ops.ops
        return tuple(
            replace(of[i], inputs=tuple(listed[bounds[number] : bounds[number + 1]]))
            for number, i in enumerate(self.source.tolist())
        )

    def __len__(self) -> int:
        return len(self.source)

    @property
    def members(self) -> int:
        return 0 if self.template.together else len(self.shape.several)

    @property
    def owner(self) -> IntArray:
        """[op]: the member that the op belongs to, or `TOKENS`, `LOGITS` or `MEMBERS`."""
        return np.where(self.member >= 0, self.member, self.template.owner[self.source])

    @property
    def device(self) -> IntArray:
        return self.template.ops.device[self.source]

    def _labels(self, name: str) -> npt.NDArray[np.str_]:
        labels: npt.NDArray[np.str_] = getattr(self.template.ops, name)[self.source]
        return labels

    @property
    def chunks(self) -> int:
        """Number of chunks of the new tokens."""
        return self.shape.chunks

    def by_chunk(self, steps: StepLanes, costs: Callable[[StepLanes], IntArray]) -> IntArray:
        """Costs [quantity, op, ..] of which each op has those of its chunk. costs: of all ops in steps of such tokens."""
        found = costs(steps.of_chunk(0, self.chunks))
        for chunk in range(1, self.chunks):
            own = self.chunk == chunk
            found[:, own] = costs(steps.of_chunk(chunk, self.chunks))[:, own]
        return found

    def costs_of(self, steps: StepLanes) -> IntArray:
        return self.by_chunk(steps, self._costs_of)

    def _costs_of(self, steps: StepLanes) -> IntArray:
        sizes = self.parameters(steps)
        values = self.evaluate(*(column.ravel() for column in sizes)).reshape(-1, *sizes[0].shape)  # [polynomial, column, lane]
        members = steps.members
        assert members is not None
        if self.template.keeps:
            values *= self.counted(members)
        costs = self._of_all(values, members.query) if self.template.together else values[self.cost_index, self.column]
        if self.routed:
            tokens = Tokens.of(members.sequence, members.context, members.query)
            for each in self.routed:
                counts = counted(self.routing, each.experts, each.layers, tokens, each.of)
                costs[each.quantity, each.ops] = counts[each.layer] * each.size[:, None]
        return np.asarray(costs)

    def _of_all(self, values: IntArray, query: IntArray) -> IntArray:
        """Costs [quantity, op, lane] where kernels serve all members, from values [polynomial, column, lane] at each of them.

        query: int64 [member, lane].
        """
        count = len(query)
        of = (values[:, 2 : 2 + count], values[:, 2 + count : 2 + 2 * count])  # at members' contexts, and at what they load
        sums = [(each * chosen).sum(axis=1) for chosen in self.summed_members(query) for each in of]
        return self.costs_from_sums(np.concatenate([values[:, :2], np.stack(sums, axis=1)], axis=1), values)

    def summed_members(self, query: IntArray) -> list[npt.NDArray[np.bool_]]:
        """Masks [member, lane] of the members that a kernel for all of them sums over: those with new tokens; where the
        template is mixed, those with one, and then those with several.
        """
        if not self.template.mixed:
            return [(query > 0) | bool(self.shape.swap)]
        several = query > 1
        return [~several if self.shape.swap else query == 1, several]

    def costs_from_sums(self, values: IntArray, each: IntArray) -> IntArray:
        """Costs [quantity, op, ..] where kernels serve all members.

        values: [polynomial, column, ..]; columns 0 and 1 as in `column`, and then for each of `summed_members` the sums at the
        members' contexts and at what they load. each: [polynomial, column, ..], for ops of one member, columns as in `column`.
        """
        own = self.member >= 0
        column = np.where(self.column < 0, 1 - self.column, self.column)  # SUM at 2, SUM_OF_LOADS at 3; 4 and 5 for `several`
        costs: IntArray = values[self.cost_index, np.where(own, 0, column)]
        if self.template.mixed:
            summed = self.column < 0
            costs[:, summed] += values[self.several_index[:, summed], column[summed] + 2]
        costs[:, own] = each[self.cost_index[:, own], column[own]]
        return costs

    def counted(self, members: Members) -> npt.NDArray[np.bool_]:
        """Mask [column, lane] of parameters that count: of what members keep, that of those whose prompt ends."""
        count, lanes = members.kept.shape
        counted = np.ones((2 + (2 + self.template.keeps) * count, lanes), dtype=np.bool_)
        if self.template.keeps:
            counted[2 + 2 * count :] = members.kept > 0
        return counted

    def _first_alike(self, *keys: IntArray) -> npt.NDArray[np.intp]:
        columns = int(self.column.max(initial=0)) + 3
        key = self.template.alike[self.source] * columns + self.column + 2
        first, which = first_of_each(key, (int(self.template.alike.max(initial=0)) + 1) * columns)
        return first[which]

    def sizes_of(self, steps: StepLanes) -> tuple[IntArray, IntArray, IntArray]:
        """As in `OpGraph`; an op that serves all members has no one size, and gets that of all new tokens."""
        batch, query, context = self.parameters(steps)
        column = np.maximum(self.column, 0)
        return batch[column], query[column], context[column]

    def parameters(self, steps: StepLanes) -> tuple[IntArray, IntArray, IntArray]:
        """B, Q and N [column of parameters, lane]."""
        members = steps.members
        if members is None or len(members.query) != (self.members or len(members.query)):
            raise ValueError(f"expected {self.members} members")
        count, lanes = members.query.shape
        one, none = np.ones((count, lanes), dtype=np.int64), np.zeros((1, lanes), dtype=np.int64)
        batch = np.concatenate([members.query.sum(axis=0, keepdims=True), members.logits[None], one, one])
        query = np.concatenate([none + 1, none + 1, members.query, members.query])
        context = np.concatenate([none, none, members.context, members.loads])
        if self.template.keeps:
            batch, query, context = (np.concatenate(pair) for pair in ((batch, one), (query, 0 * one), (context, members.kept)))
        return batch, query, context


class Template:
    """A stitched graph whose blocks are repeated to make others.

    ops: the graph. owner: int64 [op], as in `BatchGraph`. segment: int64 [op], as in `Stitched`. together: one kernel serves
    all members; mixed: some of which may feed in one token, and some several. sorts: by whether a member feeds in several
    tokens, the one that stands for it. loads: [op], whether it loads from the KV cache. region: [op], 0 if the costs of an op
    of a member are at its context, 1 at what it loads, 2 at what it keeps; keeps: some are. column: int64 [op], as in
    `BatchGraph`, of ops that are no member's. chunk: int64 [op], as there. alike: int64 [op], the first one that costs the same
    wherever it is. routed: ops with experts.
    """

    def __init__(self, stitched: Stitched) -> None:
        self.shape, self.together, self.ops = stitched.shape, stitched.together, stitched.ops
        ops, shape = self.ops, self.shape
        self.owner = np.array(stitched.owner, dtype=np.int64)
        self.segment = np.array(stitched.segment, dtype=np.int64)
        self.sorts = {several: member for member, several in reversed(list(enumerate(shape.several)))}
        self.plain = len(self.sorts) if shape.leaders else len(shape.several)
        inputs = np.array([j for op in ops.ops for j in op.inputs], dtype=np.int64)
        start = np.concatenate(([0], np.cumsum([len(op.inputs) for op in ops.ops], dtype=np.int64)))
        self.blocks = Blocks(self.owner, self.segment, inputs, start, self.plain)
        self.mixed = any(op.several is not None for op in ops.ops)
        self.loads = ops.kind == "kv_load"
        self.region = np.where(np.isin(ops.kind, HAND_OVERS) & (ops._labels("part") == KEPT), 2, self.loads.astype(np.int64))
        self.keeps = bool((self.region == 2).any())
        self.column = np.where(self.owner == MEMBERS, np.where(self.loads, SUM_OF_LOADS, SUM), -1 - self.owner)
        self.chunk = np.array(stitched.chunk or (0,) * len(ops), dtype=np.int64)
        self.routed = tuple(_routed(ops, self.chunk.tolist()))
        # In each layer the tokens choose anew, so ops with experts are like no other.
        chosen = np.array([i if op.experts is not None else -1 for i, op in enumerate(ops.ops)], dtype=np.int64)
        self.alike = OpGraph._first_alike(ops, chosen, self.chunk)

    def repeat(self, blocks: Blocks, shape: Shape) -> Repeated:
        """Blocks as often as there are members."""
        if self.together:  # members have at most what each of them sends
            count = len(shape.several) if blocks.count.size else 0
            same = np.zeros(count, dtype=np.int64)
            return blocks.repeat(same, same, same - 1)
        several = np.array(shape.several, dtype=np.int64)
        if shape.swap:
            several[:] = False
        sort = np.array([self.sorts.get(False, -1), self.sorts.get(True, -1)])[several]
        if not shape.leaders:
            return blocks.repeat(sort, sort, np.full_like(sort, -1))
        leader, sorts = np.array(shape.leaders, dtype=np.int64), len(self.sorts)
        like = np.where(leader >= 0, sorts + sort[leader] * sorts + sort, sort)
        return blocks.repeat(sort, like, leader)


def _routed(ops: OpGraph, chunk: Sequence[int]) -> Iterator[Routed]:
    """The ops with experts, grouped by what they count, by number and choice of these, whatever their size, and by chunk."""
    groups: dict[tuple[Count, Experts, int], list[tuple[int, int]]] = {}  # (op, size)
    for i, op in enumerate(ops.ops):
        if op.experts is not None:
            alike = replace(op.experts, bytes=0, flops=0)
            groups.setdefault(("sent" if op.experts.shares else "distinct", alike, chunk[i]), []).append((i, op.experts.bytes))
            if op.experts.flops:
                groups.setdefault(("chosen", alike, chunk[i]), []).append((i, op.experts.flops))
    for (count, experts, of_chunk), each in groups.items():
        which, size = np.array(each, dtype=np.int64).T
        layers, layer = np.unique([ops.ops[i].layer for i in which.tolist()], return_inverse=True)
        yield Routed(count, experts, layers.tolist(), which, layer, size, of_chunk)
