"""Exact costs of steps that issue other ops where a window of tokens ends, as those of a compressed cache do.

A step makes a compressed row only when the last of m tokens comes. The ops for that cost nothing in all other steps. So costs
are sums over `MONOMIALS` and over terms of rows (see `models.masks`): as many captures as these need, in steps with and without
the end of a window, determine the coefficients, and further ones check them. The recording with all ops is that of a step that
ends windows in all layers; an op that another lacks costs nothing there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import lcm

import numpy as np
import numpy.typing as npt

from models.costs import Point, inverse, powers
from models.masks import CLOSED, CLOSES, QUERY_CLOSED, QUERY_ROWS, ROWS, WAITING, WAITING_MORE, Mask, pairs
from models.op import MONOMIALS
from models.recording import Node, Recording
from sim.base.errors import InputError

#: Terms by whether a step has several queries; with one, all others are the same as one of these or a multiple of it.
_TERMS = {False: (ROWS, CLOSED), True: (ROWS, CLOSED, CLOSES, WAITING, WAITING_MORE, QUERY_ROWS, QUERY_CLOSED)}

#: Captures of each piece that check what the others determine.
_CHECKS = 3

_PRIME = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePlan:
    """Points to capture on one piece of a variant. reference: where all ops are issued. masks: terms of all rates."""

    points: tuple[Point, ...]
    reference: Point
    masks: tuple[Mask, ...]
    many: tuple[bool, bool]

    @property
    def checked(self) -> Point:
        """The last point that verifies."""
        return self.points[-1]

    def terms(self, rate: int, *, dimension: bool = False) -> list[int]:
        """Numbers of the terms of a polynomial that a cost in a layer of a rate may have (0: of no compressed rows).

        dimension: of a shape, the likelier ones first, since ops that few points issue determine few.
        """
        if dimension:
            at = [len(MONOMIALS) + 2 * i for i, mask in enumerate(self.masks) if mask in (Mask(ROWS, rate), Mask(CLOSED, rate))]
            one, b, q, n, bq = (MONOMIALS.index(each) for each in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)))
            return [one, b, *at[1:], q, *at[:1], n, bq]
        batches, queries = self.many
        free = [i for i, (b, q, _) in enumerate(MONOMIALS) if (batches or not b) and (queries or not q)]
        first = [len(MONOMIALS) + 2 * i for i, mask in enumerate(self.masks) if mask.size == rate]
        return free + [number for at in first for number in ((at, at + 1) if batches else (at,))]


def phase_plans(key: tuple[bool, bool], breaks: tuple[int, ...], rates: Iterable[int]) -> list[PhasePlan]:
    """The points of a variant, by piece. rates: tokens that a row of a layer stands for, each once."""
    rates = sorted(rates)
    masks = tuple(Mask(kind, rate) for rate in rates for kind in _TERMS[key[1]])
    end = lcm(*rates) * (2 + max((*breaks, 0)) // lcm(*rates))  # beyond all breaks
    reference = (1 + key[0], 3 * rates[-1] + 1, end) if key[1] else (1 + key[0], 1, end - 1)
    plans = []
    for low, high in pairwise((0, *breaks, None)):
        assert low is not None
        made = PhasePlan(points=(), reference=reference, masks=masks, many=key)
        candidates = list(_candidates(key, low, high, rates))
        plans.append(PhasePlan(points=_chosen(made, candidates, rates), reference=reference, masks=masks, many=key))
    return plans


def _candidates(key: tuple[bool, bool], low: int, high: int | None, rates: Sequence[int]) -> Iterable[Point]:
    """Points of a piece with and without ends of windows, and for several sequences and queries."""
    last = low + 12 * rates[-1] + 5 if high is None else high - 1
    ends = {n * rate - 1 for rate in rates for n in range(low // rate + 1, low // rate + 5)}
    contexts = sorted(
        n for n in {low, low + 1, last, last - 1, *ends, *(n + 1 for n in ends), *(n - 1 for n in ends)} if low <= n <= last
    )
    queries = sorted({n for rate in rates for n in (2, rate - 1, rate, rate + 1, 2 * rate + 3, 3 * rate + 2) if n > 1})
    found = [
        (b, q, n) for b in ((2, 3) if key[0] else (1,)) for q in (queries if key[1] else [1]) for n in contexts
        if n + q >= rates[0]  # before its first row an indexer has nothing to choose from
    ]  # fmt: skip
    if not found:
        raise InputError(f"a window of fewer tokens than the {rates[0]} of a compressed row")
    # In an order in which neighbors differ in everything.
    step = next(s for s in range(max(2, len(found) * 5 // 8), 2 * len(found) + 3) if np.gcd(s, len(found)) == 1)
    return (found[i * step % len(found)] for i in range(len(found)))


def _chosen(plan: PhasePlan, candidates: Sequence[Point], rates: Sequence[int]) -> tuple[Point, ...]:
    """Candidates that determine all coefficients that any can, and some more to check them."""
    chosen = dict[Point, None]()
    for rate in (0, *rates):
        free = plan.terms(rate)
        rows: list[tuple[int, list[int]]] = []
        for point in (*chosen, *candidates):
            every = term_values(plan.masks, point)
            if len(rows) < len(free) and _adds(rows, [every[i] for i in free]):
                chosen[point] = None
    left = [point for point in candidates if point not in chosen]
    return (*chosen, *left[:: max(1, len(left) // _CHECKS)][:_CHECKS])


def _adds(rows: list[tuple[int, list[int]]], values: Sequence[int]) -> bool:
    """Add a row to an echelon form modulo a prime, in place; returns whether it is independent of those before it.

    Rows that are independent modulo a prime are so in all numbers, and this takes a tenth of the time of fractions.
    """
    left = [value % _PRIME for value in values]
    for at, row in rows:
        if factor := left[at]:
            left = [(a - factor * b) % _PRIME for a, b in zip(left, row, strict=True)]
    at = next((i for i, value in enumerate(left) if value), -1)
    if at >= 0:
        scale = pow(left[at], -1, _PRIME)
        rows.append((at, [value * scale % _PRIME for value in left]))
    return at >= 0


def term_values(masks: Sequence[Mask], point: Point) -> list[int]:
    """The value of each term of a polynomial at a point."""
    B, Q, N = point
    counts = [int(pairs(mask.kind, mask.size, Q, N)) for mask in masks]
    return [*powers(point), *(value for count in counts for value in (count, B * count))]


def aligned(reference: Recording, recording: Recording) -> list[Node | None] | None:
    """For each op of the reference, that of a recording which may lack some of them; None if it has others, too."""
    left = iter(recording.nodes)
    node = next(left, None)
    result: list[Node | None] = []
    for each in reference.nodes:
        same = node is not None and _like(node) == _like(each)
        result.append(node if same else None)
        node = next(left, None) if same else node
    return result if node is None else None


def _like(node: Node) -> tuple[object, ...]:
    return node.name, node.path, node.role, node.hint, len(node.shape)


def solve_phases(
    plan: PhasePlan,
    values: npt.NDArray[np.int64],
    present: npt.NDArray[np.bool_],
    rates: npt.NDArray[np.int64],
    dimensions: npt.NDArray[np.bool_],
    later: npt.NDArray[np.int64] | None,
) -> tuple[npt.NDArray[np.int64], int | None]:
    """Coefficients [row, term] of costs [point, row] at the points of a plan, where they are present.

    rates: [row], of the layer of a cost. dimensions: [row], whether it is one of a shape. later: the coefficients of the next
    piece, which stand wherever these points determine none: of rows that there are none of yet, and of ops that are not issued.
    Returns also the number of a row that no such sum fits, None if all do.
    """
    every = np.array([term_values(plan.masks, point) for point in plan.points])  # [point, term]
    later = np.zeros((values.shape[1], every.shape[1]), dtype=np.int64) if later is None else later
    keys = np.concatenate([rates[None], dimensions[None], present, np.where(present, values, 0), later.T]).T
    distinct, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    systems: dict[bytes, _System] = {}
    solved = np.zeros((len(distinct), every.shape[1]), dtype=np.int64)
    for number, row in enumerate(first.tolist()):
        key = keys[row, : 2 + len(present)].tobytes()
        if key not in systems:
            terms = plan.terms(int(rates[row]), dimension=bool(dimensions[row]))
            systems[key] = _System.of(every[present[:, row]], terms)
        found = systems[key].solve(values[present[:, row], row], later[row])
        if found is None:
            return solved[which.reshape(-1)], row
        solved[number] = found
    return solved[which.reshape(-1)], None


@dataclass(frozen=True, slots=True)
class _System:
    """Linear equations of the terms at some points.

    every: values [point, term]. points, terms: independent ones of them. inverse: of their matrix, times `common`.
    """

    every: npt.NDArray[np.int64]
    points: list[int]
    terms: list[int]
    inverse: npt.NDArray[np.object_]
    common: int

    @classmethod
    def of(cls, every: npt.NDArray[np.int64], terms: Sequence[int]) -> _System:
        """The equations of these terms."""
        rows: list[tuple[int, list[int]]] = []
        chosen = [term for term in terms if _adds(rows, every[:, term].tolist())]
        rows = []
        points = [p for p in range(len(every)) if _adds(rows, every[p, chosen].tolist())]
        inverted, common = inverse(every[np.ix_(points, chosen)].tolist())
        return cls(every, points, chosen, np.array(inverted, dtype=object).reshape(len(chosen), len(points)), common)

    def solve(self, values: npt.NDArray[np.int64], later: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """Coefficients [term] of values [point]; None if none fit. later: those of terms that are not determined."""
        found = later.copy()
        found[self.terms] = 0
        left = (values - self.every @ found)[self.points].astype(object)
        scaled = self.inverse @ left  # Python integers cannot overflow
        if any(value % self.common for value in scaled):
            return None
        found[self.terms] = [value // self.common for value in scaled]
        return found if (self.every @ found == values).all() else None
