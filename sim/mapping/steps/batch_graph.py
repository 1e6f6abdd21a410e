"""The op graph of a step: the ops of a template, repeated for each member."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.experts import Count, Experts, Routing, Tokens, counted
from models.graph import QUANTITIES, IntArray, Members, Op, OpGraph, Polynomial, StepLanes
from models.masks import Mask
from models.rewrites import KEPT
from sim.mapping.lowering import HAND_OVERS
from sim.mapping.steps.shape import LOGITS, MEMBERS, Shape
from sim.mapping.steps.stitch import Stitched
from sim.mapping.template import Blocks, Repeated, first_of_each, rows

FLOPS, WEIGHT, ACT_WRITE = (QUANTITIES.index(name) for name in ("flops", "weight", "act_write"))

#: Quantity of an op that depends on the experts that tokens choose, by the count that it grows with.
COUNTED: dict[Count, int] = {"distinct": WEIGHT, "sent": ACT_WRITE, "chosen": FLOPS}

#: Columns of parameters: 0 for all new tokens, 1 for the logits, then the members, then what each of them loads, then what each
#: keeps of a prompt that ends. These stand for the sum over members, and the sum over what each of them loads; and for the new
#: tokens, and the logits, of the members of the first device where devices have members of their own. For each further device
#: they are `PER_HOME` less.
SUM, SUM_OF_LOADS, OWN_TOKENS, OWN_LOGITS = -1, -2, -3, -4
PER_HOME = 4


class Routed(NamedTuple):
    """Ops whose tokens choose among alike experts.

    of: the count that they grow with. experts: their number and choice, without their size. layers: those of these ops,
    ascending. ops: [op], its index in the graph. layer: [op], the place of its layer in `layers`. size: [op], bytes of one
    expert, or of a token that is sent to some, or FLOPs of a choice. chunk: of the tokens that choose. home: of the tokens of
    members of this device; -1: all.
    """

    of: Count
    experts: Experts
    layers: list[int]
    ops: IntArray
    layer: IntArray
    size: IntArray
    chunk: int = 0
    home: int = -1

    @property
    def quantity(self) -> int:
        """Which of `QUANTITIES` depends on the choice."""
        return COUNTED[self.of]

    def there(self, query: IntArray, home: IntArray) -> IntArray:
        """New tokens of members that count. query, home: new tokens and devices of members, of any shape."""
        return query if self.home < 0 else np.where(home == self.home, query, 0)

    def at(self, repeated: Repeated, block: IntArray) -> Routed:
        """The ops of a step that are copies of these. block: int64 [op of the template], as in `Template`."""
        there = np.full(max(block.max(initial=-1), repeated.block.max(initial=-1)) + 2, -1)  # [block], the last one for none
        there[repeated.block] = np.arange(len(repeated.block))
        of = block[self.ops]
        kept = (of < 0) | (there[of] >= 0)
        ops = repeated.place(self.ops[kept], there[of[kept]])
        return self._replace(ops=ops, layer=self.layer[kept], size=self.size[kept])


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
    feed in several; `SUM_OF_LOADS`: the same at the columns of what they load. `OWN_TOKENS` and `OWN_LOGITS`: as 0 and 1, of
    the members of the first device. Of device d these four are those of its members, and `PER_HOME` d lower.
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
        source, own = repeated.source, 0 if template.together and template.homes else len(self.shape.several)
        member = np.where(repeated.member < own, repeated.member, -1)
        at = member + 2 + len(self.shape.several) * template.region[source]
        made: dict[str, Any] = {
            "polynomials": of.polynomials, "breaks": of.breaks, "masks": of.masks, "table": of.table, "_made": {},
            "repeated": repeated,
            "source": source, "member": member, "chunk": template.chunk[source],
            "column": np.where(member >= 0, at, template.column[source]),
            "routed": tuple(each.at(repeated, template.block) for each in template.routed),
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

    def _numbers(self, name: str) -> IntArray:
        numbers: IntArray = getattr(self.template.ops, name)[self.source]
        return numbers

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
            values *= self.present(members)
        costs = self._of_all(values, members) if self.template.together else values[self.cost_index, self.places]
        for each, counts in self.counts(members):
            costs[each.quantity, each.ops] = counts[each.layer] * each.size[:, None]
        return np.asarray(costs)

    def counts(self, members: Members) -> Iterator[tuple[Routed, IntArray]]:
        """Ops that depend on the experts that tokens choose, with their counts [layer, lane]."""
        for _, of_home in groupby(self.routed, lambda each: each.home):
            group = list(of_home)
            tokens = Tokens.of(members.sequence, members.context, group[0].there(members.query, members.home))
            for each in group:
                yield each, counted(self.routing, each.experts, each.layers, tokens, each.of)

    def _of_all(self, values: IntArray, members: Members) -> IntArray:
        """Costs [quantity, op, lane] where kernels serve all members. values: [polynomial, column, lane], of each of them."""
        count = len(members.query)
        of = (values[:, 2 : 2 + count], values[:, 2 + count : 2 + 2 * count])  # at members' contexts, and at what they load
        sums = [(each * chosen).sum(axis=1) for chosen in self.summed_members(members) for each in of]
        of_all = np.concatenate([values[:, :2], np.stack(sums, axis=1), values[:, 2 + 2 * count :]], axis=1)
        return self.costs_from_sums(of_all, values)

    def summed_members(self, members: Members) -> list[npt.NDArray[np.bool_]]:
        """Masks [member, lane] of the members that a kernel for all of them sums over: those with new tokens; where the
        template is mixed, those with one, and then those with several. Where devices have members of their own, so for each.
        """
        query, several = members.query, members.query > 1
        if not self.template.mixed:
            masks = [(query > 0) | bool(self.shape.swap)]
        else:
            masks = [~several if self.shape.swap else query == 1, several]
        if not self.template.homes:
            return masks
        return [mask & (members.home == home) for home in range(self.template.homes) for mask in masks]

    def costs_from_sums(self, values: IntArray, each: IntArray) -> IntArray:
        """Costs [quantity, op, ..] where kernels serve all members.

        values: [polynomial, column, ..]; columns 0 and 1 as in `column`, then for each of `summed_members` the sums at the
        members' contexts and at what they load, then for each device the new tokens and the logits of its members. each:
        [polynomial, column, ..], for ops of one member, columns as in `column`.
        """
        mine = self.member >= 0
        parts = 4 if self.template.mixed else 2  # sums of a device: over members with one token, and those with several
        home, which = np.divmod(-1 - self.column, PER_HOME)  # 0 and 1: SUM and SUM_OF_LOADS
        own = 2 + parts * max(1, self.template.homes) + 2 * home + which - 2
        summed = (self.column < 0) & (which < 2)
        column = np.where(self.column >= 0, self.column, np.where(summed, 2 + parts * home + which, own))
        costs: IntArray = values[self.cost_index, np.where(mine, 0, column)]
        if self.template.mixed:
            costs[:, summed] += values[self.several_index[:, summed], column[summed] + 2]
        costs[:, mine] = each[self.cost_index[:, mine], column[mine]]
        return costs

    @property
    def places(self) -> IntArray:
        """[op]: the column of `parameters` of ops that do not serve all members; that of all new tokens for those that do."""
        home, which = np.divmod(-1 - self.column, PER_HOME)
        own = np.where(which < 2, 0, 2 + 2 * self.members + 2 * home + which - 2)
        return np.where(self.column >= 0, self.column, own)

    def present(self, members: Members) -> npt.NDArray[np.bool_]:
        """Mask [column, lane] of parameters that count: of what members keep, that of those whose prompt ends."""
        count, lanes = members.kept.shape
        present = np.ones((2 + (2 + self.template.keeps) * count + 2 * self.template.homes, lanes), dtype=np.bool_)
        if self.template.keeps:
            present[2 + 2 * count :] = members.kept > 0
        return present

    def _first_alike(self, *keys: IntArray) -> npt.NDArray[np.intp]:
        least = int(self.column.min(initial=0))
        columns = int(self.column.max(initial=0)) + 1 - least
        key = self.template.alike[self.source] * columns + self.column - least
        first, which = first_of_each(key, (int(self.template.alike.max(initial=0)) + 1) * columns)
        return first[which]

    def sizes_of(self, steps: StepLanes) -> tuple[IntArray, IntArray, IntArray]:
        """As in `OpGraph`; an op that serves all members has no one size, and gets that of all new tokens."""
        batch, query, context = self.parameters(steps)
        if self.template.together:  # whose members have columns here
            count, column = (len(batch) - 2 - 2 * self.template.homes) // 2, self.places
            places = np.where(column < 2, column, column + 2 * count)
        else:
            places = self.places
        return batch[places], query[places], context[places]

    def parameters(self, steps: StepLanes) -> tuple[IntArray, IntArray, IntArray]:
        """B, Q and N [column of parameters, lane]: columns of `column` from 0 on, then for each device that has members of its
        own their new tokens and their logits.
        """
        members = steps.members
        if members is None or len(members.query) != (self.members or len(members.query)):
            raise ValueError(f"expected {self.members} members")
        count, lanes = members.query.shape
        one, none = np.ones((count, lanes), dtype=np.int64), np.zeros((1, lanes), dtype=np.int64)
        own = [
            np.where(members.home == home, column, 0).sum(axis=0, keepdims=True)
            for home in range(self.template.homes) for column in (members.query, members.logits)
        ]  # fmt: skip
        all_of_them = [column.sum(axis=0, keepdims=True) for column in (members.query, members.logits)]
        batch = np.concatenate([*all_of_them, one, one, *own])
        query = np.concatenate([none + 1, none + 1, members.query, members.query, *(none + 1 for _ in own)])
        context = np.concatenate([none, none, members.context, members.loads, *(none for _ in own)])
        if self.template.keeps:
            batch, query, context = (np.concatenate(pair) for pair in ((batch, one), (query, 0 * one), (context, members.kept)))
        return batch, query, context


class Template:
    """A stitched graph whose blocks are repeated to make others.

    ops: the graph. owner: int64 [op], as in `BatchGraph`. segment: int64 [op], as in `Stitched`. together: one kernel serves
    all members; mixed: some of which may feed in one token, and some several. sorts: by whether a member feeds in several
    tokens, the one that stands for it. homes: devices that have members of their own. block: int64 [op], the block that it is
    in: first those of members, then for each device one of its tokens, and then one of its logits; -1 if all share it. samples:
    whether some ops are of logits. loads: [op], whether it loads from the KV cache. region: [op], 0 if the costs of an op of a
    member are at its context, 1 at what it loads, 2 at what it keeps; keeps: some are. column: int64 [op], as in `BatchGraph`,
    of ops that are no member's. chunk: int64 [op], as there. alike: int64 [op], the first one that costs the same wherever it
    is. routed: ops with experts.
    """

    def __init__(self, stitched: Stitched) -> None:
        self.shape, self.together, self.ops = stitched.shape, stitched.together, stitched.ops
        ops, shape = self.ops, self.shape
        self.owner = np.array(stitched.owner, dtype=np.int64)
        self.segment = np.array(stitched.segment, dtype=np.int64)
        self.sorts = {several: member for member, several in reversed(list(enumerate(shape.several)))}
        self.homes = stitched.homes
        self.members = 0 if self.together and self.homes else len(shape.several)
        self.plain = len(self.sorts) * max(1, self.homes) if shape.leaders else self.members
        home = np.array(stitched.home or [-1] * len(ops), dtype=np.int64)
        of_logits = self.owner == LOGITS
        self.samples = bool(of_logits.any())
        own = self.members + home + self.homes * of_logits
        self.block = np.where(self.owner >= 0, self.owner, np.where(home >= 0, own, -1))
        inputs = np.array([j for op in ops.ops for j in op.inputs], dtype=np.int64)
        start = np.concatenate(([0], np.cumsum([len(op.inputs) for op in ops.ops], dtype=np.int64)))
        self.blocks = Blocks(self.block, self.segment, inputs, start, self.plain, self.members)
        self.mixed = any(op.several is not None for op in ops.ops)
        self.loads = ops.kind == "kv_load"
        self.region = np.where(np.isin(ops.kind, HAND_OVERS) & (ops._labels("part") == KEPT), 2, self.loads.astype(np.int64))
        self.keeps = bool((self.region == 2).any())
        of_sums, of_own = np.where(self.loads, SUM_OF_LOADS, SUM), np.where(of_logits, OWN_LOGITS, OWN_TOKENS)
        own, of_all = np.where(self.owner == MEMBERS, of_sums, of_own), (home < 0) & (self.owner != MEMBERS)
        self.column = np.where(of_all, -1 - self.owner, own - PER_HOME * np.maximum(home, 0))
        self.chunk = np.array(stitched.chunk or (0,) * len(ops), dtype=np.int64)
        self.routed = tuple(_routed(ops, self.chunk.tolist(), home.tolist()))
        # In each layer the tokens choose anew, so ops with experts are like no other.
        chosen = np.array([i if op.experts is not None else -1 for i, op in enumerate(ops.ops)], dtype=np.int64)
        self.alike = OpGraph._first_alike(ops, chosen, self.chunk)

    def repeat(self, blocks: Blocks, shape: Shape) -> Repeated:
        """Blocks as often as there are members, and those of devices that have some."""
        block = like = leader = np.zeros(0, dtype=np.int64)
        if not self.together:
            block, like, leader = self._of_members(shape)
        elif blocks.count.size and not self.homes:  # members have at most what each of them sends
            block = like = np.zeros(len(shape.several), dtype=np.int64)
            leader = block - 1
        if not self.homes:
            return blocks.repeat(block, like, leader, np.full_like(block, -1))
        active, sampling = np.unique(shape.homes), np.array(shape.sampling if self.samples else (), dtype=np.int64)
        devices = self.members + np.concatenate([active, self.homes + sampling])
        at = len(block) + np.searchsorted(active, np.concatenate([shape.homes[: len(block)], sampling]).astype(np.int64))
        home = np.concatenate([at[: len(block)], np.full_like(active, -1), at[len(block) :]])
        leader = np.concatenate([leader, np.full_like(devices, -1)])
        return blocks.repeat(np.concatenate([block, devices]), np.concatenate([like, devices]), leader, home)

    def _of_members(self, shape: Shape) -> tuple[IntArray, IntArray, IntArray]:
        """The blocks of members, int64 [member], as `Blocks.repeat` takes them: block, like and leader."""
        several = np.array(shape.several, dtype=np.int64)
        if shape.swap:
            several[:] = False
        sort, sorts = np.array([self.sorts.get(False, -1), self.sorts.get(True, -1)])[several], len(self.sorts)
        block = sort + sorts * np.array(shape.homes, dtype=np.int64) if self.homes else sort
        if not shape.leaders:
            return block, block, np.full_like(block, -1)
        leader = np.array(shape.leaders, dtype=np.int64)
        return block, np.where(leader >= 0, self.plain + block[leader] * sorts + sort, block), leader


def _routed(ops: OpGraph, chunk: Sequence[int], home: Sequence[int]) -> list[Routed]:
    """The ops with experts, grouped by what they count, by number and choice of these, whatever their size, and by whose tokens
    choose.

    chunk: [op], of the tokens. home: [op], the device whose members alone it serves, -1 if it serves all. In order of home.
    """
    groups: dict[tuple[Count, Experts, int, int], list[tuple[int, int]]] = {}  # (op, size)
    for i, op in enumerate(ops.ops):
        if op.experts is not None:
            alike = replace(op.experts, bytes=0, flops=0)
            if home[i] >= 0:  # it sends all tokens that are there, no share of them
                alike = replace(alike, share=0, shares=1)
            count: Count = "sent" if op.experts.shares else "distinct"
            groups.setdefault((count, alike, chunk[i], home[i]), []).append((i, op.experts.bytes))
            if op.experts.flops:
                groups.setdefault(("chosen", alike, chunk[i], home[i]), []).append((i, op.experts.flops))
    found = []
    for (count, experts, of_chunk, of_home), each in groups.items():
        which, size = np.array(each, dtype=np.int64).T
        layers, layer = np.unique([ops.ops[i].layer for i in which.tolist()], return_inverse=True)
        found.append(Routed(count, experts, layers.tolist(), which, layer, size, of_chunk, of_home))
    return sorted(found, key=lambda each: each.home)
