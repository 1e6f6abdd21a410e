"""Durations of tasks by rates, worked out once for all tasks of a step that cost the same: a *row* of tasks.

Most ops of a model divide evenly into their tasks, and layers are alike, so a step of thousands of tasks has some fifty rows.
Per step, a kernel evaluates the polynomials of the ops at the sizes of its members, and then each row:

    time on an engine = the later of (FLOPs / peak + weights / rate of unpacking) and elements / vector rate, + overhead
    time on the channel = bytes / bandwidth
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.experts import M_CONTEXT, M_QUERY, Count, counted_of
from models.graph import QUANTITIES, IntArray, Members, StepLanes
from models.masks import pairs
from models.op import MONOMIALS
from sim.base.errors import ConfigError, same_format
from sim.base.integers import mul_div_up
from sim.base.kernel import kernel, launch, loaded
from sim.base.memo import Memo
from sim.base.units import PS_PER_S
from sim.cost.model import Rates
from sim.machine.machine import PATHS, TIER_PATHS
from sim.mapping.steps.batch_graph import OWN_LOGITS, OWN_TOKENS, PER_HOME, SUM, BatchGraph
from sim.mapping.tasks import BYTE_CLASSES, CLASS_BIT, CLASS_QUANTITY, TIER_SHIFT, TaskGraph, path_of

FLOPS, VECTOR_OPS, WEIGHT = (QUANTITIES.index(name) for name in ("flops", "vector_ops", "weight"))

# A term: polynomial for members that feed in one token, for those that feed in several, the column of parameters, and the chunk
# of tokens.
T_ONE, T_SEVERAL, T_COLUMN, T_CHUNK = range(4)

#: More than the bits of `TaskGraph.moves`, with one more below them, can be.
OF_MOVES = 1 << (TIER_SHIFT + 3)

FIRST_OF_MASKS = len(MONOMIALS)  # of the coefficients of a polynomial; two for each mask, of its pairs and B times these

# Columns of parameters, as in `sim.mapping.steps.batch_graph`: from FIRST_MEMBER on those of members, then what each of them
# loads, then what each keeps; below 0 PER_HOME for the members of each device.
TOKENS, LOGITS, FIRST_MEMBER = 0, 1, 2

# Sizes of a step; from S_TOKENS on the new tokens of each chunk. Where devices have sequences of their own there is one chunk,
# and from FIRST_HOME on are new tokens and rows of logits of the members of each device.
S_BATCH, S_CONTEXT, S_LOGITS, S_TOKENS, FIRST_HOME = range(5)

# A table of members [lane, member of each chunk, field]: M_SEQUENCE, M_CONTEXT, M_QUERY, the cached tokens that a member loads
# itself, its device, and the tokens that it keeps of a prompt that ends.
M_LOADS, M_HOME, M_KEPT, MEMBER_FIELDS = 3, 4, 5, 6

# A row: terms of its FLOPs, elements and bytes by class (-1: none), its share, what it does, ps per FLOP and per byte as
# fractions, and the term of weights that it unpacks (-1: none) with ps per byte of these.
R_FLOPS, R_ELEMENTS, R_BYTES = 0, 1, 2
R_PART, R_PARTS, R_COMPUTES, R_MOVES, R_PEAK, R_PEAK_OF, R_SPEED, R_SPEED_OF, R_PACKED, R_UNPACK, R_UNPACK_OF = range(
    2 + len(BYTE_CLASSES), 13 + len(BYTE_CLASSES)
)
ROW_FIELDS = 13 + len(BYTE_CLASSES)

#: Fields of a row that grow with a count by the experts that tokens choose: weights loaded and unpacked, bytes sent, FLOPs.
FIELDS_OF: dict[Count, tuple[int, ...]] = {
    "distinct": (R_BYTES + BYTE_CLASSES.index("weight"), R_PACKED),
    "sent": (R_BYTES + BYTE_CLASSES.index("link"),),
    "chosen": (R_FLOPS,),
}

# Rates: ps per element as a fraction, overhead in ps
VECTOR, VECTOR_OF, OVERHEAD = range(3)

COMPUTE, WORK, BYTES = range(3)


class Rows(NamedTuple):
    """The rows of a task graph.

    of [task]: its row. row: [row, field]. term: [term, field]. routed: values after those of the terms, (place in
    `BatchGraph.routed`, index of the layer, bytes of an expert) of each.
    """

    of: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    term: npt.NDArray[np.int64]
    routed: npt.NDArray[np.int64]


@kernel
def fill(
    out: Any, table: Any, breaks: Any, masks: Any, term: Any, row: Any, value: Any, sizes: Any, members: Any, chunks: int,
    rates: Any,
) -> None:  # fmt: skip
    """Durations of each row in each lane.

    out: [lane, row, (compute ps, work ps, bytes)]. table: [polynomial, piece, coefficient]. masks: [mask, (kind, size)].
    value: [lane, term], scratch; what is beyond the terms is given. sizes: [lane, (batch, context, rows of logits, and the new
    tokens of each chunk, or of all and then new tokens and rows of logits of each device)]. members: [lane, member of each
    chunk, field]. chunks: of the new tokens.
    """
    for lane in range(out.shape[0]):
        for i in range(term.shape[0]):
            value[lane, i] = term_value(table, breaks, masks, term, i, sizes, members, chunks, lane)
        for i in range(row.shape[0]):
            fill_row(out, row, value, rates, lane, i)


@kernel
def term_value(table: Any, breaks: Any, masks: Any, term: Any, i: int, sizes: Any, members: Any, chunks: int, lane: int) -> int:
    """A quantity of an op in a step."""
    column, count = term[i, T_COLUMN], members.shape[1] // chunks
    if count == 0:  # one sequence that decodes one token
        return polynomial(table, breaks, masks, term[i, T_ONE], sizes[lane, S_BATCH], 1, sizes[lane, S_CONTEXT])
    if column == TOKENS:
        return polynomial(table, breaks, masks, term[i, T_ONE], sizes[lane, S_TOKENS + term[i, T_CHUNK]], 1, 0)
    if column == LOGITS:
        return polynomial(table, breaks, masks, term[i, T_ONE], sizes[lane, S_LOGITS], 1, 0)
    if column >= FIRST_MEMBER:
        return of_member(table, breaks, masks, term, i, members, lane, count)
    home, of_home = (-1 - column) // PER_HOME, -1 - (-1 - column) % PER_HOME
    if of_home in (OWN_TOKENS, OWN_LOGITS):
        own = FIRST_HOME + 2 * home + OWN_TOKENS - of_home
        return polynomial(table, breaks, masks, term[i, T_ONE], sizes[lane, own], 1, 0)
    total = 0
    of = M_CONTEXT if of_home == SUM else M_LOADS
    first = term[i, T_CHUNK] * count
    for member in range(first, first + count):
        if members[lane, member, M_HOME] != home:
            continue
        query = members[lane, member, M_QUERY]
        if chunks > 1 and query == 0:
            continue
        which = term[i, T_SEVERAL] if query > 1 else term[i, T_ONE]
        total += polynomial(table, breaks, masks, which, 1, query, members[lane, member, of])
    return total


@kernel
def of_member(table: Any, breaks: Any, masks: Any, term: Any, i: int, members: Any, lane: int, count: int) -> int:
    """A quantity of an op of one member, of `count`; it keeps nothing where its prompt does not end."""
    member, region = (term[i, T_COLUMN] - FIRST_MEMBER) % count, (term[i, T_COLUMN] - FIRST_MEMBER) // count
    member += term[i, T_CHUNK] * count
    which, query = term[i, T_ONE], members[lane, member, M_QUERY]
    if region < 2:
        return polynomial(table, breaks, masks, which, 1, query, members[lane, member, M_LOADS if region else M_CONTEXT])
    kept = members[lane, member, M_KEPT]
    return polynomial(table, breaks, masks, which, 1, 0, kept) if kept > 0 else 0


@kernel
def polynomial(table: Any, breaks: Any, masks: Any, which: int, b: int, q: int, n: int) -> int:
    """A piecewise polynomial of `OpGraph.table` at batch b, query q and context n; terms are those of `models.graph`."""
    p = 0
    while p < breaks.shape[0] and breaks[p] <= n:
        p += 1
    total: int = powers(table, which, p, q, n, 0) + b * powers(table, which, p, q, n, 5)
    for mask in range(masks.shape[0]):
        alone, by_batch = table[which, p, FIRST_OF_MASKS + 2 * mask], table[which, p, FIRST_OF_MASKS + 2 * mask + 1]
        if alone != 0 or by_batch != 0:
            total += (alone + b * by_batch) * pairs(masks[mask, 0], masks[mask, 1], q, n)
    return total


@kernel
def powers(table: Any, which: int, p: int, q: int, n: int, first: int) -> int:
    """The sum of five monomials from `first` on: 1, q, q^2, n and q n."""
    of_n = table[which, p, first + 3] + q * table[which, p, first + 4]
    total: int = table[which, p, first] + q * (table[which, p, first + 1] + q * table[which, p, first + 2]) + n * of_n
    return total


@kernel
def share(amount: int, part: int, parts: int) -> int:
    """Share `part` of `parts` of an amount: shares sum to it."""
    whole = amount // parts
    rest = amount - whole * parts
    return whole + rest * (part + 1) // parts - rest * part // parts


@kernel
def fill_row(out: Any, row: Any, value: Any, rates: Any, lane: int, i: int) -> None:
    """The durations of a row: at least 1 ps for what it does."""
    part, parts = row[i, R_PART], row[i, R_PARTS]
    compute = 0
    if row[i, R_COMPUTES]:
        elements = share(value[lane, row[i, R_ELEMENTS]], part, parts)
        flops = share(value[lane, row[i, R_FLOPS]], part, parts)
        products = mul_div_up(flops, row[i, R_PEAK], row[i, R_PEAK_OF])
        if row[i, R_PACKED] >= 0:  # by the units that multiply, or before them
            products += mul_div_up(share(value[lane, row[i, R_PACKED]], part, parts), row[i, R_UNPACK], row[i, R_UNPACK_OF])
        vector = mul_div_up(elements, rates[VECTOR], rates[VECTOR_OF])  # on units of its own: at best it overlaps the products
        compute = max(1, max(products, vector) + rates[OVERHEAD])
    size, work = 0, 0
    if row[i, R_MOVES]:
        for k in range(R_BYTES, R_PART):
            if row[i, k] >= 0:
                size += share(value[lane, row[i, k]], part, parts)
        work = max(1, mul_div_up(size, row[i, R_SPEED], row[i, R_SPEED_OF]))
    out[lane, i, COMPUTE] = compute
    out[lane, i, WORK] = work
    out[lane, i, BYTES] = size


#: The rows of graphs of runs before; of as many tasks as there are graphs kept.
ROWS: Memo[Rows] = Memo(2**19, lambda rows: len(rows.of))


class RateTable:
    """The durations of steps of one task graph on a machine."""

    def __init__(self, graph: TaskGraph, machine: Rates) -> None:
        self.graph, self.machine = graph, machine
        self.rows = ROWS.of(graph, repr(machine), lambda: rows_of(graph, machine))
        self.breaks = np.array(graph.ops.breaks, dtype=np.int64)
        self.masks = np.array(graph.ops.masks, dtype=np.int64).reshape(-1, 2)
        self.chunks: int = getattr(graph.ops, "chunks", 1)
        self.rates = np.array([*fraction(machine.vector_flops), machine.overhead], dtype=np.int64)
        self._layers: list[IntArray] = [np.array(each.layers, dtype=np.int64) for each in getattr(graph.ops, "routed", ())]
        self._homes: int = graph.ops.template.homes if isinstance(graph.ops, BatchGraph) else 0
        first = np.cumsum([0, *map(len, self._layers)])
        self._place = first[self.rows.routed[:, 0]] + self.rows.routed[:, 1]  # among the layers of all routed ops

    def fill(self, out: IntArray, steps: StepLanes, *, compiled: bool) -> None:
        """Write [lane, row, (compute, work, bytes)]."""
        lanes, rows, ops, chunks = len(steps.context), self.rows, self.graph.ops, self.chunks
        sizes = np.zeros((lanes, S_TOKENS + chunks + 2 * self._homes), dtype=np.int64)
        members = np.zeros((lanes, 0, MEMBER_FIELDS), dtype=np.int64)
        sizes[:, S_BATCH], sizes[:, S_CONTEXT] = self.graph.ops.batch, steps.context
        each = [members]
        if steps.members is not None and self.graph.ops.members is not None:
            each = [table_of(steps.members.of_chunk(chunk, chunks)) for chunk in range(chunks)]
            members = each[0] if chunks == 1 else np.concatenate(each, axis=1)
            sizes[:, S_LOGITS] = steps.members.logits.sum(axis=0)
            for chunk, of in enumerate(each):
                sizes[:, S_TOKENS + chunk] = of[:, :, M_QUERY].sum(axis=1)
            for home in range(self._homes):
                at = steps.members.home == home
                for i, column in enumerate((steps.members.query, steps.members.logits)):
                    sizes[:, FIRST_HOME + 2 * home + i] = np.where(at, column, 0).sum(axis=0)
        value = np.empty((lanes, len(rows.term) + len(rows.routed)), dtype=np.int64)
        if len(rows.routed):
            value[:, len(rows.term) :] = self._routed(each)
        launch(fill, compiled=compiled)(
            out, ops.table, self.breaks, self.masks, rows.term, rows.row, value, sizes, members, chunks, self.rates
        )

    def _routed(self, members: Sequence[IntArray]) -> IntArray:
        """[lane, value]: bytes of distinct experts, and of tokens that are sent to some, and FLOPs of choices.

        members: of each chunk.
        """
        ops: Any = self.graph.ops
        counts = list[IntArray]()
        for each, layers in zip(ops.routed, self._layers, strict=True):
            there = members[each.chunk]
            if each.home >= 0:
                there = there.copy()
                there[:, :, M_QUERY] = each.there(there[:, :, M_QUERY], there[:, :, M_HOME])
            counts.append(counted_of(ops.routing, each.experts, layers, there, each.of))
        return np.asarray(np.concatenate(counts)[self._place].T * self.rows.routed[:, 2])

    def durations(self, steps: StepLanes) -> IntArray:
        """[lane, row, (compute, work, bytes)]."""
        out = np.zeros((len(steps.context), len(self.rows.row), 3), dtype=np.int64)
        self.fill(out, steps, compiled=loaded())
        return out


def table_of(members: Members) -> IntArray:
    """[lane, member, field]."""
    columns = (members.sequence, members.context, members.query, members.loads, members.home, members.kept)
    table = np.empty((*members.query.T.shape, MEMBER_FIELDS), dtype=np.int64)
    for field, column in enumerate(columns):
        table[:, :, field] = column.T
    return table


def fraction(rate: int) -> tuple[int, int]:
    """Picoseconds for one, at a rate per second, as a fraction."""
    common = int(np.gcd(PS_PER_S, rate))
    return PS_PER_S // common, rate // common


def rows_of(graph: TaskGraph, machine: Rates) -> Rows:
    """Sort the tasks of a graph into rows. Raises ConfigError if it computes in a format whose peak is not known."""
    first, of = _alike(graph)
    ops, op = graph.ops, graph.op[first]
    every = np.ones((len(QUANTITIES), 1), dtype=np.int64)
    column, chunk = (every * _labels(graph, name)[op] for name in ("column", "chunk"))
    wanted = np.stack([ops.cost_index[:, op], ops.several_index[:, op], column, chunk])
    term, place = np.unique(wanted.reshape(len(wanted), -1).T, axis=0, return_inverse=True)
    place = place.reshape(len(QUANTITIES), len(op))
    row = np.zeros((len(first), ROW_FIELDS), dtype=np.int64)
    row[:, R_FLOPS], row[:, R_ELEMENTS] = place[FLOPS], place[VECTOR_OPS]
    for i, name in enumerate(BYTE_CLASSES):
        row[:, R_BYTES + i] = np.where(graph.moves[first] & CLASS_BIT[name], place[CLASS_QUANTITY[name]], -1)
    row[:, R_PART], row[:, R_PARTS] = graph.part[first], graph.parts[first]
    row[:, R_COMPUTES], row[:, R_MOVES] = graph.computes[first], graph.moves[first] != 0
    row[:, R_PACKED] = np.where(_packed(graph, op, row, machine.unpack), place[WEIGHT], -1)
    routed = _routed(graph, op, row, len(term))
    row[:, R_SPEED], row[:, R_SPEED_OF] = fraction(machine.bandwidth)
    path = path_of(graph.moves[first])
    links = {"link": machine.link, "network": machine.network, **dict(zip(TIER_PATHS, machine.tiers, strict=False))}
    for kind, bandwidth in links.items():
        chosen = path == PATHS.index(kind)
        row[chosen, R_SPEED], row[chosen, R_SPEED_OF] = fraction(bandwidth)
    flops = term[place[FLOPS]]
    has_flops = (ops.table[flops[:, T_ONE]] | ops.table[flops[:, T_SEVERAL]]).any(axis=(1, 2))
    row[:, R_PEAK_OF] = 1
    dtypes = ops.dtype[op]
    for dtype in np.unique(dtypes[graph.computes[first] & has_flops]).tolist():
        peak = machine.peak(dtype)
        if peak is None:
            task = int(first[np.flatnonzero((dtypes == dtype) & has_flops)[0]])
            known = "" if isinstance(machine.flops, int) else ", ".join(machine.flops)
            written = None if isinstance(machine.flops, int) else same_format(dtype, machine.flops)
            advice = f"; write {dtype} instead of {written}" if written is not None else ""
            message = f"op {graph.kind_of(task)!r} computes in {dtype}, known here: {known}{advice}"
            raise ConfigError("hardware.engines.flops", message)
        row[dtypes == dtype, R_PEAK], row[dtypes == dtype, R_PEAK_OF] = fraction(peak)
    return Rows(of, row, np.ascontiguousarray(term), routed)


def _packed(graph: TaskGraph, op: npt.NDArray[np.int32], row: IntArray, unpack: Mapping[str, int]) -> npt.NDArray[np.bool_]:
    """[row]: whether it unpacks weights, of which it is given the time of a byte."""
    formats, computes = graph.ops.weights[op], row[:, R_COMPUTES] != 0
    found = np.zeros(len(op), dtype=np.bool_)
    for name, rate in unpack.items():
        chosen = computes & (formats == name)
        row[chosen, R_UNPACK], row[chosen, R_UNPACK_OF] = fraction(rate)
        found |= chosen
    return found


def _alike(graph: TaskGraph) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Tasks that stand for all, and for each task which of them: equal shares of ops that cost the same in every step."""
    ops, parts = graph.ops, graph.parts.astype(np.int64)
    most = int(parts.max(initial=0)) + 1
    form = graph.moves.astype(np.int64) * 2 + graph.computes
    key = (ops.alike()[graph.op] * most + parts) * OF_MOVES + form
    _, first, kind = np.unique(key, return_index=True, return_inverse=True)
    op = graph.op[first]
    even = parts[first] == 1
    for i in np.flatnonzero(~even).tolist():
        indices = np.concatenate([ops.cost_index[:, op[i]], ops.several_index[:, op[i]]])
        even[i] = not (ops.table[indices] % parts[first[i]]).any() and not _is_routed(graph, int(op[i]))
    part = np.where(even[kind], 0, graph.part.astype(np.int64))
    _, first, of = np.unique(kind * most + part, return_index=True, return_inverse=True)
    return first, of


def _labels(graph: TaskGraph, name: str) -> IntArray:
    """[op]: its `column` of parameters, or its `chunk` of tokens; 0 where steps are of one sequence that decodes one token."""
    found: IntArray | None = getattr(graph.ops, name, None)
    return np.zeros(len(graph.ops), dtype=np.int64) if found is None else found


def _is_routed(graph: TaskGraph, op: int) -> bool:
    return any(op in each.ops for each in getattr(graph.ops, "routed", ()))


def _routed(graph: TaskGraph, op: npt.NDArray[np.int32], row: IntArray, terms: int) -> IntArray:
    """Have what grows with counts by the experts that tokens choose be values of their own, after those of the terms."""
    found: dict[tuple[int, int, int], int] = {}
    for which, each in enumerate(getattr(graph.ops, "routed", ())):
        about = {int(o): (which, int(layer), int(size)) for o, layer, size in zip(each.ops, each.layer, each.size, strict=True)}
        for i, number in enumerate(op.tolist()):
            for field in FIELDS_OF[each.of]:
                if number in about and row[i, field] >= 0:
                    row[i, field] = terms + found.setdefault(about[number], len(found))
    return np.array(list(found), dtype=np.int64).reshape(-1, 3)
