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

With `attention: batch` the ops of a sequence are there once, too, as kernels that serve all members: each costs the sum of
what it would cost for every member alone. Such a step looks the same whoever is in it.

Otherwise steps differ in how many members they have. Only a template is stitched op by op and lowered, with one member of
each sort; in the graph of a step its blocks are repeated, one for each member (see `sim.mapping.template`).

Of the weights of experts, a step reads those of the distinct ones that its new tokens choose: see `models.experts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from models.experts import Experts, Routing, Tokens, distinct
from models.graph import MONOMIALS, QUANTITIES, IntArray, Op, OpGraph, Polynomial, StepLanes
from sim.base.errors import InputError
from sim.base.memo import Memo
from sim.mapping.lowering import Mapping as TaskMapping
from sim.mapping.lowering import lower, read_in_place
from sim.mapping.tasks import ByLayer, Links, TaskGraph, with_links
from sim.mapping.template import Blocks, Repeated, first_of_each, rows

#: Captured op graphs of a model, by (several sequences, several new tokens each).
Variants = Mapping[tuple[bool, bool], OpGraph]

#: Whose op it is, beside the numbers of members: of all new tokens, of the logits, of all members in one kernel.
TOKENS, LOGITS, MEMBERS = -1, -2, -3

#: Columns of parameters: 0 for all new tokens, 1 for the logits, then the members, then what each of them loads. These two
#: stand for the sum over members, and the sum over what each of them loads.
SUM, SUM_OF_LOADS = -1, -2

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

    def together(self) -> Shape:
        """The shape that stands for all steps that look like this one if a kernel serves all members: whoever they are, it
        matters only whether some feed in one token and some several. What is plain stays so: one sequence has its own kernels.
        """
        if self.plain:
            return self
        if self.swap:
            return Shape((False,), logits=False, swap=self.swap)
        if not any(self.several):
            return Shape((False, False), logits=self.logits)
        return Shape((True,) if all(self.several) else (False, True), logits=self.logits)


class Routed(NamedTuple):
    """Ops whose tokens choose among alike experts. experts: what they have in common. layers: those that they are in,
    ascending. ops: [op], which of a graph. layer: [op], the place of its layer among these. size: [op], bytes of one expert.
    """

    experts: Experts
    layers: list[int]
    ops: IntArray
    layer: IntArray
    size: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchGraph(OpGraph):
    """A stitched graph. Ops come from a template, `Op` objects only if somebody asks for them: no simulation does.

    shape: what step it is. routing: which experts tokens choose; None: as many distinct ones as there can be.
    repeated: how the template's ops are repeated. source: int64 [op], which of them it is.
    member: int64 [op], whose, -1 if it serves several.
    column: int64 [op], with which parameters (B, Q, N) its costs are evaluated: 0 (new tokens of all members, 1, 0); 1 (rows of
    logits, 1, 0); 2 + m (1, query, context) of member m; 2 + members + m (1, query, loads) of member m. `SUM`: the sum of the
    costs at the columns of all members, by `cost_index` of those that feed in one token and by `several_index` of those that
    feed in several; `SUM_OF_LOADS`: the same at the columns of what they load.
    routed: ops whose weights are instead those of the distinct experts that tokens choose.
    """

    template: Template
    shape: Shape
    routing: Routing | None = None
    ops: tuple[Op, ...] = field(init=False, repr=False, compare=False)
    polynomials: tuple[tuple[Polynomial, ...], ...] = field(init=False, repr=False, compare=False)
    breaks: tuple[int, ...] = field(init=False, repr=False, compare=False)
    source: IntArray = field(init=False, repr=False, compare=False)
    member: IntArray = field(init=False, repr=False, compare=False)
    column: IntArray = field(init=False, repr=False, compare=False)
    routed: tuple[Routed, ...] = field(init=False, repr=False, compare=False)
    repeated: Repeated = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        template, repeated = self.template, self.template.repeat(self.template.blocks, self.shape)
        of = template.ops
        source, member = repeated.source, repeated.member
        loads = member + np.where(template.loads[source], 2 + self.members, 2)
        made: dict[str, Any] = {
            "polynomials": of.polynomials, "breaks": of.breaks, "table": of.table, "_made": {}, "repeated": repeated,
            "source": source, "member": member, "column": np.where(member >= 0, loads, template.column[source]),
            "routed": tuple(each._replace(ops=repeated.place(each.ops)) for each in template.routed),
        }  # fmt: skip
        for name, value in made.items():
            object.__setattr__(self, name, value)

    if not TYPE_CHECKING:  # so that names which do not exist are still found

        def __getattr__(self, name: str) -> Any:
            """Columns that are made when they are asked for; called for what is not there."""
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
        """[op]: whose op it is: a member, or `TOKENS`, `LOGITS` or `MEMBERS`."""
        return np.where(self.member >= 0, self.member, self.template.owner[self.source])

    def _labels(self, name: str) -> npt.NDArray[np.str_]:
        labels: npt.NDArray[np.str_] = getattr(self.template.ops, name)[self.source]
        return labels

    def costs_of(self, steps: StepLanes) -> IntArray:
        sizes = self.parameters(steps)
        values = self.evaluate(*(column.ravel() for column in sizes)).reshape(-1, *sizes[0].shape)  # [polynomial, column, lane]
        members = steps.members
        assert members is not None
        costs = self._of_all(values, members.query) if self.template.together else values[self.cost_index, self.column]
        if self.routed:
            tokens = Tokens.of(members.sequence, members.context, members.query)
            for each in self.routed:
                counts = distinct(self.routing, each.experts, each.layers, tokens)
                costs[WEIGHT, each.ops] = counts[each.layer] * each.size[:, None]
        return np.asarray(costs)

    def _of_all(self, values: IntArray, query: IntArray) -> IntArray:
        """Costs [quantity, op, lane] where kernels serve all members, from values [polynomial, column, lane] at each of them.

        query: int64 [member, lane].
        """
        count, several = len(query), query > 1
        sorts = (
            [~several if self.shape.swap else query == 1, several]
            if self.template.mixed
            else [(query > 0) | bool(self.shape.swap)]
        )
        of = (values[:, 2 : 2 + count], values[:, 2 + count :])  # at members' contexts, and at what they load
        sums = [(each * chosen).sum(axis=1) for chosen in sorts for each in of]
        values = np.concatenate([values[:, :2], np.stack(sums, axis=1)], axis=1)
        column = np.where(self.column < 0, 1 - self.column, self.column)  # SUM at 2, SUM_OF_LOADS at 3; 4 and 5 for `several`
        costs: IntArray = values[self.cost_index, column]
        if self.template.mixed:
            summed = self.column < 0
            costs[:, summed] += values[self.several_index[:, summed], column[summed] + 2]
        return costs

    def _first_alike(self, *keys: IntArray) -> npt.NDArray[np.intp]:
        columns = int(self.column.max(initial=0)) + 3
        key = self.template.alike[self.source] * columns + self.column + 2
        first, which = first_of_each(key, (int(self.template.alike.max(initial=0)) + 1) * columns)
        return first[which]

    def sizes_of(self, steps: StepLanes) -> tuple[IntArray, IntArray, IntArray]:
        """Of an op that serves all members, which has no one size, those of new tokens."""
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


#: Task graphs and templates of runs before, by the laid-out graph of one sequence: half a million tasks are some 30 MB.
GRAPHS: Memo[TaskGraph] = Memo(2**19)
TEMPLATES: Memo[TaskTemplate] = Memo(2**17)


class StepGraphs:
    """Makes the task graph of a step from its shape, once for each. routing: which experts tokens choose."""

    def __init__(self, variants: Variants, mapping: TaskMapping, routing: Routing | None = None) -> None:
        self.captured = variants
        # Once cut into members, a graph no longer says whose a KV load is that has become an operand.
        self.variants = Laid(variants, read_in_place) if mapping.kv == "operands" else variants
        self.mapping, self.routing = mapping, routing
        self._mapping = repr(mapping)  # all of it, as a key
        self._made: dict[Shape, TaskGraph] = {}
        self._templates: dict[Shape, TaskTemplate] = {}
        self._captures = Captures(self.variants)

    def __call__(self, shape: Shape) -> TaskGraph:
        """Raises InputError if captures do not correspond."""
        if self.mapping.attention == "batch":
            shape = shape.together()
        if shape not in self._made:
            if self.routing is None or shape.plain:
                made = GRAPHS.of(self.captured[False, False], (self._mapping, shape), lambda: self._make(shape))
            else:
                made = self._make(shape)
            self._made[shape] = made
        return self._made[shape]

    def _make(self, shape: Shape) -> TaskGraph:
        if shape.plain:
            return lower(self.variants[False, False], self.mapping)
        sort = shape if self.mapping.attention == "batch" else template_of(shape)
        if sort not in self._templates:
            template = TEMPLATES.of(self.captured[False, False], (self._mapping, sort), lambda: self._template(sort))
            self._templates[sort] = template
        return self._templates[sort].graph(shape, self.routing)

    def _template(self, sort: Shape) -> TaskTemplate:
        together = self.mapping.attention == "batch"
        if sort.swap:  # of what the KV loads say
            stitched = swapped(self.captured[False, False], sort, together=together)
        else:
            stitched = stitch(self._captures, sort, together=together)
        return TaskTemplate(stitched, self.mapping)


def template_of(shape: Shape) -> Shape:
    """The shape of the template for a step: one member of each sort, in the order in which the step has them, and if members
    share a prompt one more of each sort behind each of these.
    """
    if shape.swap:
        return Shape((False,), logits=False, swap=shape.swap)
    sorts = tuple(dict.fromkeys(shape.several))
    if not shape.leaders:
        return Shape(sorts, logits=shape.logits)
    leaders = [-1] * len(sorts) + [leader for leader in range(len(sorts)) for _ in sorts]
    return Shape(sorts + sorts * len(sorts), logits=shape.logits, leaders=tuple(leaders))


class Template:
    """A stitched graph whose blocks are repeated to make others.

    ops: the graph. owner: int64 [op], as in `BatchGraph`. segment: int64 [op], as in `Stitched`. together: one kernel serves
    all members; mixed: some of which may feed in one token, and some several. sorts: by whether a member feeds in several
    tokens, the one that stands for it. loads: [op], whether it loads from the KV cache. column: int64 [op], as in `BatchGraph`,
    of ops that are no member's. alike: int64 [op], the first one that costs the same wherever it is. routed: ops with experts.
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
        self.column = np.where(self.owner == MEMBERS, np.where(self.loads, SUM_OF_LOADS, SUM), -1 - self.owner)
        self.routed = tuple(_routed(ops))
        # In each layer the tokens choose anew, so ops with experts are like no other.
        chosen = np.array([i if op.experts is not None else -1 for i, op in enumerate(ops.ops)], dtype=np.int64)
        self.alike = OpGraph._first_alike(ops, chosen)

    def repeat(self, blocks: Blocks, shape: Shape) -> Repeated:
        """Blocks as often as there are members."""
        if self.together:
            return blocks.repeat(*np.zeros((3, 0), dtype=np.int64))
        several = np.array(shape.several, dtype=np.int64)
        if shape.swap:
            several[:] = False
        sort = np.array([self.sorts.get(False, -1), self.sorts.get(True, -1)])[several]
        if not shape.leaders:
            return blocks.repeat(sort, sort, np.full_like(sort, -1))
        leader, sorts = np.array(shape.leaders, dtype=np.int64), len(self.sorts)
        like = np.where(leader >= 0, sorts + sort[leader] * sorts + sort, sort)
        return blocks.repeat(sort, like, leader)


class TaskTemplate:
    """A template with its lowered tasks. Makes the task graph of a step.

    one_each: each op is one task. kv: int8 [task], 1 if it loads from the KV cache, 2 if it stores. node: [item], the node of
    the task graph that an item of the blocks is: a task, or a join, which stands behind what it needs.
    """

    def __init__(self, stitched: Stitched, mapping: TaskMapping) -> None:
        self.tasks = tasks = lower(stitched.ops, mapping)
        self.ops = ops = Template(stitched._replace(ops=tasks.ops))
        links, self.node = tasks.links, np.arange(len(tasks))
        op, inputs, start = tasks.op.astype(np.int64), links.inputs.astype(np.int64), links.input_start.astype(np.int64)
        if links.joins:
            op = np.append(op, op[links.inputs[links.input_start[len(tasks) : -1]]])
            self.node = np.argsort(op, kind="stable")
            op, inputs, start = op[self.node], *_in_items(inputs, start, self.node)
        self.one_each = np.array_equal(op, np.arange(len(tasks.ops)))
        self.blocks = Blocks(ops.owner[op], ops.segment[op], inputs, start, ops.plain)
        self.kv = np.zeros(len(tasks), dtype=np.int8)
        for number, by_layer in ((1, tasks.kv_loads), (2, tasks.kv_stores)):
            self.kv[[task for of_layer in by_layer.values() for task in of_layer]] = number

    def __len__(self) -> int:
        """Number of its tasks."""
        return len(self.tasks)

    def graph(self, shape: Shape, routing: Routing | None = None) -> TaskGraph:
        """The task graph of a step."""
        ops, of = BatchGraph(template=self.ops, shape=shape, routing=routing), self.tasks
        items = ops.repeated.of(self.blocks) if self.one_each else self.ops.repeat(self.blocks, shape)
        consumers, sources = items.edges()
        source, member, joins = items.source, items.member, 0
        if of.links.joins:
            source = self.node[source]
            task = source < len(of)
            joins = len(source) - int(task.sum())
            number = np.where(task, np.cumsum(task), len(source) - joins + np.cumsum(~task)) - 1
            consumers, sources, source, member = number[consumers], number[sources], source[task], member[task]
        links = Links(joins, *rows(consumers, sources, len(items)), *rows(sources, consumers, len(items)))
        kv, layer = self.kv[source], of.layer[source]
        loads, stores = (np.flatnonzero(kv == number) for number in (1, 2))
        columns = {
            "ops": ops, "kinds": of.kinds, "layer": layer, "op": ops.repeated.place(of.op[source], member).astype(np.int32),
            "kv_loads": ByLayer(loads, layer[loads]), "kv_stores": ByLayer(stores, layer[stores]),
        }  # fmt: skip
        return with_links(links, columns | {name: getattr(of, name)[source] for name in _COPIED})


#: Columns of tasks that are those of the template.
_COPIED = ("kind", "part", "parts", "head", "tile", "engine", "computes", "moves", "prefetch")


def _in_items(inputs: IntArray, start: IntArray, node: IntArray) -> tuple[IntArray, IntArray]:
    """CSR of nodes in another order. node: [item], which one it is."""
    item = np.empty_like(node)
    item[node] = np.arange(len(node))
    consumers = np.repeat(item, np.diff(start))
    in_order, item_start = rows(consumers, item[inputs], len(node))
    return in_order.astype(np.int64), item_start.astype(np.int64)


def _routed(ops: OpGraph) -> Iterator[Routed]:
    """The ops with experts, by what these have in common, whatever their size."""
    groups: dict[Experts, list[int]] = {}
    for i, op in enumerate(ops.ops):
        if op.experts is not None:
            groups.setdefault(replace(op.experts, bytes=0), []).append(i)
    for experts, which in groups.items():
        layers, layer = np.unique([ops.ops[i].layer for i in which], return_inverse=True)
        size = [each.bytes for i in which if (each := ops.ops[i].experts) is not None]
        yield Routed(experts, layers.tolist(), np.array(which), layer, np.array(size, dtype=np.int64))


class Stitched(NamedTuple):
    """A graph that was stitched op by op. owner: [op], a member, or `TOKENS`, `LOGITS` or `MEMBERS`. segment: [op], ascending:
    ops of the same one are those of the members, one after another, and then one that they share.
    """

    ops: OpGraph
    owner: tuple[int, ...]
    segment: tuple[int, ...]
    shape: Shape
    together: bool


def stitch(captures: Captures, shape: Shape, *, together: bool = False) -> Stitched:
    """The op graph of a step of this shape. together: one kernel serves all members, as the shape's own `together` says."""
    return _Stitch(captures, shape, together=together).graph()


def swapped(ops: OpGraph, shape: Shape, *, together: bool = False) -> Stitched:
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
                owner.append(MEMBERS if together else member)
    graph = OpGraph(ops=tuple(made), polynomials=polynomials, breaks=ops.breaks)
    return Stitched(graph, tuple(owner), (0,) * len(owner), shape, together)


class _Captured:
    """A captured graph with what stitching asks of it: roles, which ops are a sequence's own, and which are of the logits."""

    def __init__(self, graph: OpGraph) -> None:
        self.graph = graph
        self.role: list[Role] = []
        seen: dict[tuple[str, str, str], int] = {}
        for op in graph.ops:
            name = (op.kind, op.part, op.path)
            self.role.append((*name, seen.get(name, 0)))
            seen[name] = seen.get(name, 0) + 1
        self.at = {role: i for i, role in enumerate(self.role)}
        of_context, of_query, of_batch = (self._grow(monomials) for monomials in (_OF_CONTEXT, _OF_QUERY, _OF_BATCH))
        own = [bool(op.heads) or op.kind.startswith("kv_") for op in graph.ops] | of_context
        outside = np.array([op.layer < 0 for op in graph.ops], dtype=np.bool_)
        self.own: list[bool] = own.tolist()
        self.of_logits: list[bool] = (outside & ~own & of_batch & ~of_query).tolist()

    def _grow(self, monomials: list[int]) -> npt.NDArray[np.bool_]:
        """[op]: whether some cost has such a term."""
        graph = self.graph
        grows = (graph.table[:, :, monomials] != 0).any(axis=(1, 2))  # [polynomial]
        found: npt.NDArray[np.bool_] = grows[np.concatenate([graph.cost_index, graph.several_index])].any(axis=0)
        return found


class Captures:
    """The captured graphs of a model, prepared once for all that is stitched from them."""

    def __init__(self, variants: Variants) -> None:
        self._variants = variants
        self._made: dict[tuple[bool, bool], _Captured] = {}
        self._merged: _Captured | None = None

    def __getitem__(self, key: tuple[bool, bool]) -> _Captured:
        if key not in self._made:
            self._made[key] = _Captured(self._variants[key])
        return self._made[key]

    @property
    def merged(self) -> _Captured:
        """Those of one sequence, with one new token and with several, as one."""
        if self._merged is None:
            self._merged = _Captured(_merged(self[False, False], self[False, True]))
        return self._merged


class _Stitch:
    """Stitches one graph."""

    def __init__(self, captures: Captures, shape: Shape, *, together: bool) -> None:
        self.shape, self.together = shape, together
        self.spine = captures[True, any(shape.several)]
        logits = captures[True, True]
        self.logits = {role for i, role in enumerate(logits.role) if logits.of_logits[i]}
        single = {several: captures[False, several] for several in sorted(set(shape.several))}
        self.captured = [single[several] for several in shape.several]
        if together:
            self.captured = [captures.merged if len(single) > 1 else self.captured[0]]
        self.breaks = tuple(sorted({b for graph in (self.spine, *single.values()) for b in graph.graph.breaks}))
        self.polynomials: dict[tuple[Polynomial, ...], int] = {}
        self.numbers: dict[tuple[int, int], int] = {}  # graph and its cost -> place among these
        self.made: list[Op] = []
        self.owner: list[int] = []
        self.segment: list[int] = []
        self.shared: dict[Role, int] = {}  # role -> op made
        self.of_member: list[dict[Role, int]] = [{} for _ in self.captured]

    def graph(self) -> Stitched:
        before = [self._anchored(captured) for captured in self.captured]
        for i, role in enumerate(self.spine.role):
            if self.spine.own[i]:
                continue
            for member in range(len(self.captured)):
                self._members(member, before[member].get(role, []), i)
            if role not in self.logits:
                self._add(self.spine, i, TOKENS, self._inputs_of_shared(i), i)
            elif self.shape.logits:
                self._add(self.spine, i, LOGITS, self._inputs_of_shared(i), i)
        for member in range(len(self.captured)):
            self._members(member, before[member].get(None, []), len(self.spine.role))
        ops = OpGraph(ops=tuple(self.made), polynomials=tuple(self.polynomials), breaks=self.breaks)
        return Stitched(ops, tuple(self.owner), tuple(self.segment), self.shape, self.together)

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

    def _members(self, member: int, ops: list[int], segment: int) -> None:
        captured = self.captured[member]
        for i in ops:
            self.of_member[member][captured.role[i]] = len(self.made)
            inputs = set()
            for j in captured.graph.ops[i].inputs:
                inputs |= self._made_of(member, captured, j)
            self._add(captured, i, MEMBERS if self.together else member, inputs, segment)

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

    def _add(self, captured: _Captured, i: int, owner: int, inputs: set[int], segment: int) -> None:
        graph, op = captured.graph, captured.graph.ops[i]
        if owner in (TOKENS, LOGITS):
            self.shared[captured.role[i]] = len(self.made)
        several = op.several
        if several is not None:
            several = replace(several, costs=tuple(self._polynomial(graph, cost) for cost in several.costs))
        costs = tuple(self._polynomial(graph, cost) for cost in op.costs)
        self.made.append(replace(op, inputs=tuple(sorted(inputs)), costs=costs, several=several))
        self.owner.append(owner)
        self.segment.append(segment)

    def _polynomial(self, graph: OpGraph, cost: int) -> int:
        """The same polynomial in the pieces of all graphs together."""
        key = (id(graph), cost)
        if key not in self.numbers:
            pieces = _in_pieces(graph.polynomials[cost], graph.breaks, self.breaks)
            self.numbers[key] = self.polynomials.setdefault(pieces, len(self.polynomials))
        return self.numbers[key]


def _in_pieces(polynomial: tuple[Polynomial, ...], breaks: tuple[int, ...], finer: tuple[int, ...]) -> tuple[Polynomial, ...]:
    """The same polynomial where there are more breaks."""
    if breaks == finer:
        return polynomial
    return tuple(polynomial[sum(b <= start for b in breaks)] for start in (0, *finer))


def _merged(one: _Captured, several: _Captured) -> OpGraph:
    """Two captures of one sequence as one graph: each op with that of members that feed in several tokens beside it. What one
    of them lacks costs nothing there.
    """
    breaks = tuple(sorted({*one.graph.breaks, *several.graph.breaks}))
    nothing = ((0,) * len(MONOMIALS),) * (len(breaks) + 1)
    polynomials: dict[tuple[Polynomial, ...], int] = {nothing: 0}
    index: dict[Role, int] = {}
    made: list[Op] = []
    for role in _in_order(one, several):
        found: list[Op | None] = []
        inputs: set[int] = set()
        for captured in (one, several):
            i = captured.at.get(role)
            if i is None:
                found.append(None)
                continue
            op, graph = captured.graph.ops[i], captured.graph
            pieces = [_in_pieces(graph.polynomials[cost], graph.breaks, breaks) for cost in op.costs]
            costs = tuple(polynomials.setdefault(each, len(polynomials)) for each in pieces)
            found.append(replace(op, costs=costs, inputs=()))
            inputs |= {index[captured.role[j]] for j in op.inputs}
        both = [op for op in found if op is not None]
        first, other = (op or replace(both[0], costs=(0,) * len(QUANTITIES)) for op in found)
        index[role] = len(made)
        made.append(replace(first, inputs=tuple(sorted(inputs)), several=other))
    return OpGraph(ops=tuple(made), polynomials=tuple(polynomials), breaks=breaks)


def _in_order(one: _Captured, several: _Captured) -> Iterator[Role]:
    """The ops of both captures, in the order of each."""
    at = 0
    for role in one.role:
        if role in several.at:
            while several.role[at] != role:
                if several.role[at] in one.at:
                    raise InputError(f"mapping.attention: expected sequence: {role[0]!r} at {role[2]} is no kernel for several")
                yield several.role[at]
                at += 1
            at += 1
        yield role
    yield from several.role[at:]
