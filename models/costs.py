"""Exact cost functions from a few measured points.

A cost of a decoder op is a polynomial over `models.graph.MONOMIALS` in batch B, query tokens Q and context N, in pieces along
N. On each piece as many points as there are free monomials determine it, and every further point checks it. All
arithmetic is on integers: a fractional coefficient or a failed check is an error, and nothing is fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from models.graph import MONOMIALS
from models.masks import CLOSED, ROWS, Mask

#: (B, Q, N) of one capture.
Point = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Points to capture on one piece: `solve` determines the coefficients of `monomials`, `check` verifies them."""

    monomials: tuple[int, ...]
    solve: tuple[Point, ...]
    check: tuple[Point, ...]

    @property
    def checked(self) -> Point:
        """The last point that verifies."""
        return self.check[-1]


def plan(many_sequences: bool, many_queries: bool, low: int, high: int | None, chunk: int = 1) -> Plan:
    """The points for one variant on the piece low <= N < high (None: unbounded).

    chunk: of more than one token, where several tokens are scanned in chunks: Q is then a multiple of it.

    A variable that cannot vary (B in the variant of one sequence, N on a piece of one context) has no monomials:
    whatever depends on it is constant there.
    """
    if low == 0 and not many_queries and (high is None or high > 1):
        low = 1  # N = 0 and Q = 1 make a cache of one row, for which torch may skip copies that longer ones need
    room = 10**6 if high is None else high - low
    n0, n1 = low + min(2, max(room - 3, 0)), low + min(7, room - 1)
    free = tuple(
        i
        for i, (b, q, n) in enumerate(MONOMIALS)
        if (many_sequences or not b) and (many_queries or not q) and (room > 1 or not n)
    )
    batches = (2, 3) if many_sequences else (1,)
    at_n0 = (2 * chunk, 3 * chunk, 4 * chunk) if many_queries else (1,)
    at_n1 = at_n0[:2] if room > 1 else ()
    solve = tuple((b, q, n) for b in batches for n, queries in ((n0, at_n0), (n1, at_n1)) for q in queries)
    far = low + 1531 if high is None else high - 1
    b, q = (5 if many_sequences else 1), (6 * chunk if many_queries else 1)
    check = dict.fromkeys(p for p in ((b, q, low), (b + (b > 1), q + chunk * (q > 1), far)) if p not in solve)
    return Plan(monomials=free, solve=solve, check=tuple(check))


def inverse(rows: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
    """The inverse of an integer matrix, as an integer matrix over one common denominator."""
    n = len(rows)
    work = [[Fraction(v) for v in row] + [Fraction(int(i == j)) for j in range(n)] for i, row in enumerate(rows)]
    for i in range(n):
        pivot = next(r for r in range(i, n) if work[r][i])
        work[i], work[pivot] = work[pivot], work[i]
        work[i] = [v / work[i][i] for v in work[i]]
        for r in range(n):
            if r != i and work[r][i]:
                work[r] = [a - work[r][i] * b for a, b in zip(work[r], work[i], strict=True)]
    rows_of = [row[n:] for row in work]
    common = lcm(*(v.denominator for row in rows_of for v in row))
    return [[int(v * common) for v in row] for row in rows_of], common


def powers(point: Point) -> list[int]:
    """The value of each monomial at a point."""
    B, Q, N = point
    return [B**b * Q**q * N**n for b, q, n in MONOMIALS]


def solve(
    plan: Plan, solved: npt.NDArray[np.int64], checked: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], int | None]:
    """Coefficients [row, monomial] of costs given at the plan's points ([point, row]).

    Returns the coefficients, and the number of the first row that no polynomial fits (None if all do).
    """
    matrix = [[powers(p)[m] for m in plan.monomials] for p in plan.solve]
    inverted, common = inverse(matrix)
    # Layers repeat, so few rows are distinct; Python integers cannot overflow.
    rows = np.concatenate([solved, checked]).T
    distinct, where = np.unique(rows, axis=0, return_inverse=True)
    table = np.zeros((len(distinct), len(MONOMIALS)), dtype=np.int64)
    bad: set[int] = set()
    at_checks = [powers(p) for p in plan.check]
    for r, row in enumerate(distinct.tolist()):
        known, expected = row[: len(plan.solve)], row[len(plan.solve) :]
        scaled = [sum(a * v for a, v in zip(line, known, strict=True)) for line in inverted]
        coefficients = [0] * len(MONOMIALS)
        for m, value in zip(plan.monomials, scaled, strict=True):
            coefficients[m], rest = divmod(value, common)
            if rest:
                bad.add(r)
        for values, want in zip(at_checks, expected, strict=True):
            if sum(c * v for c, v in zip(coefficients, values, strict=True)) != want:
                bad.add(r)
        table[r] = coefficients
    first_bad = next((i for i, r in enumerate(where.reshape(-1).tolist()) if r in bad), None)
    return table[where.reshape(-1)], first_bad


def along_tokens(plan: Plan, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    """Costs [point, row] of ops that work in chunks of tokens, replaced by lines in Q.

    Of whole chunks a cost is u + v Q + w Q^2. The line is u + v Q, with whole coefficients that are rounded up, and u at least
    0: fewer tokens than a chunk cost their part of it, and w is left out. For Q that does not vary nothing changes.
    Returns None where the costs of further chunks are off by over a tenth.
    """
    chunk, *more = sorted({q for _, q, _ in plan.solve})
    if not more:
        return values
    points = (*plan.solve, *plan.check)
    at = {(b, q): values[points.index((b, q, n))] for b, q, n in reversed(plan.solve)}
    few, many = min(b for b, _ in at), max(b for b, _ in at)
    growth = [(at[many, q] - at[few, q]) // max(many - few, 1) for q in (chunk, *more)]  # with each sequence
    constant = [at[few, q] - few * each for q, each in zip((chunk, *more), growth, strict=True)]
    exact, lines = np.zeros(values.shape), np.zeros_like(values)
    for power, (first, second, third) in enumerate((constant, growth)):
        # Second differences of three equally spaced points are 2 w, at steps of the least number of tokens between them.
        step = more[0] - chunk
        w = (third - 2 * second + first) / (2 * step**2)
        v = (second - first) / step - w * (chunk + more[0])
        u = first - v * chunk - w * chunk**2
        base, slope = np.maximum(np.ceil(u - 1e-6), 0).astype(np.int64), np.ceil(v - 1e-6).astype(np.int64)
        for i, (b, q, _) in enumerate(points):
            exact[i] += b**power * (u + v * q + w * q**2)
            lines[i] += b**power * (base + slope * q)
    return lines if (np.abs(exact - values) * 10 <= values + 1).all() else None


#: The most rows that are read, and whether those that a step makes are among them.
Most = tuple[int, bool]


def text(
    coefficients: Sequence[int], context: str = "N", masks: Sequence[Mask] = (), most: Mapping[int, Most] = MappingProxyType({})
) -> str:
    """A polynomial as text, such as `N+Q`, `8*B`, or with terms of compressed rows `N+floor((N+Q)/4)`.

    most: by rate.
    """
    terms: list[tuple[int, str]] = []
    names = ("B", "Q", context)
    for exponents, c in zip(MONOMIALS, coefficients, strict=False):
        if c:
            factors = [name for name, e in zip(names, exponents, strict=True) for _ in range(e)]
            head = [str(c)] if c != 1 or not factors else []
            terms.append((-sum(exponents) - 2 * exponents[2], "*".join(head + factors)))
    written = [t for _, t in sorted(terms, key=lambda item: item[0])]
    for rate, (before, closed) in _rows(coefficients, masks).items():
        bound, joint = most.get(rate, (0, True))
        both = before if (joint if bound else before == closed) else 0
        rows = ((both, f"floor((N+Q)/{rate})"), (before - both, f"floor(N/{rate})"), (closed - both, f"closed({rate})"))
        for count, word in rows:
            if count:
                bounded = f"min({word},{bound})" if bound and not word.startswith("closed") else word
                written.append(bounded if count == 1 else f"{count}*{bounded}")
    return "+".join(written).replace("+-", "-") or "0"


def _rows(coefficients: Sequence[int], masks: Sequence[Mask]) -> dict[int, tuple[int, int]]:
    """By rate, the coefficients of the rows before a step and of those that it makes."""
    counts = {mask: coefficients[len(MONOMIALS) + 2 * i] for i, mask in enumerate(masks)}
    rates = sorted({mask.size for mask in masks})
    return {rate: (counts.get(Mask(ROWS, rate), 0), counts.get(Mask(CLOSED, rate), 0)) for rate in rates}


def shape_text(pieces: Sequence[Sequence[int]], breaks: Sequence[int], masks: Sequence[Mask] = ()) -> str:
    """A dimension, given piece by piece, as one text, with `min(N,b)` where it stops growing at a break b.

    masks: terms of compressed rows, which stop growing where an indexer chooses as many as it can.
    """
    first = pieces[0]
    if all(tuple(p) == tuple(first) for p in pieces):
        return text(first, masks=masks)
    at_n = MONOMIALS.index((0, 0, 1))
    stops = [b for b, p in zip(breaks, pieces[1:], strict=True) if first[at_n] and not p[at_n]][:1]
    most = {
        rate: (b // rate, _rows(p, masks)[rate][1] == closed - before)
        for rate, (before, closed) in _rows(first, masks).items()
        for b, p in reversed([*zip(breaks, pieces[1:], strict=True)])
        if before and not _rows(p, masks)[rate][0]
    }
    for p, start in zip(pieces[1:], breaks, strict=True):
        frozen = list(_frozen(first, stops[0])) if stops and start >= stops[0] else list(first)
        for i, mask in enumerate(masks):
            bound, joint = most.get(mask.size, (0, True))
            if bound and start >= bound * mask.size:
                at = len(MONOMIALS) + 2 * i
                if mask.kind == ROWS:
                    frozen[0], frozen[at] = frozen[0] + first[at] * bound, 0
                elif mask.kind == CLOSED and joint:
                    frozen[at] -= _rows(first, masks)[mask.size][0]
        if frozen != list(p):
            return text(first, masks=masks)
    return text(first, f"min(N,{stops[0]})" if stops else "N", masks, most)


def _frozen(coefficients: Sequence[int], context: int) -> tuple[int, ...]:
    """The polynomial with N held at `context`."""
    result: dict[Any, int] = dict.fromkeys(MONOMIALS, 0)
    for (b, q, n), c in zip(MONOMIALS, coefficients, strict=False):
        result[b, q, 0] += c * context**n
    return (*(result[m] for m in MONOMIALS), *coefficients[len(MONOMIALS) :])
