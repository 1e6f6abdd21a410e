"""Searches: the largest, or smallest, value of a key at which all constraints hold, by bisection for each seed alone.

With one seed a run is a function of the value: bisection between a value that holds and one that does not ends in a bracket as
narrow as asked. All values of a seed are run with the same random numbers (its arrivals at twice
the rate are the same at half the gaps), and all points of a grid with the same seeds, so that differences between them are not
those of luck. Brackets of several seeds are independent replications, of which the mean has a confidence interval (A. M. Law,
"Simulation Modeling and Analysis", chapters 9 and 11).

Bisection finds one place where constraints cease to hold. That all values on one side hold, and none on the other, is an
assumption. It is checked: in the end no gap between values that were run is wider than a quarter of the range, and a value that
contradicts is reported; then the bracket is that of the first failure, from the side that holds. The next value is a function
of the values that were run, so a search goes on from rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal

from sim.base.quantities import Dimension
from sim.runs.repeats import interval
from sim.study.axes import DIMENSIONS, Axis, Span, Value, placed

STEPS = 20  # times that a value without a range is doubled or halved
GAP = 0.26  # of the range: the widest gap between values that were run, a quarter with its rounding

Known = Mapping[Fraction, bool]
Outcome = Literal["found", "all hold", "none holds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Find:
    """A search. key: of the scenario. low, high: the range that is searched; alike if it is searched around a value.

    tolerance: largest width of a bracket, as a share of its lower end.
    """

    key: str
    largest: bool
    low: Fraction
    high: Fraction
    whole: bool
    dimension: Dimension | None
    tolerance: float

    @property
    def axis(self) -> Axis:
        """The key as an axis, whose values are made as they are needed."""
        return Axis(self.key, tuple(self.value(end) for end in dict.fromkeys((self.low, self.high))), self.dimension)

    def value(self, number: Fraction) -> Value:
        """A value as it is written."""
        node = self._between(number, number, 0)
        made, values = placed(self.key, [node])
        assert made.dimension is self.dimension or self.dimension is None
        return values[0]

    def text(self, number: Fraction) -> str:
        """A value as text."""
        return self.value(number).text

    @property
    def words(self) -> str:
        return "largest" if self.largest else "smallest"

    @property
    def first(self) -> Fraction:
        """The value that is run first: the end that most probably holds."""
        return self.low if self.largest else self.high

    @property
    def most(self) -> int:
        """About how many values a search runs."""
        wide = max(2.0, float(self.high / self.low)) if self.low else 1 / self.tolerance
        return 6 + math.ceil(math.log2(max(2.0, math.log(wide) / math.log1p(self.tolerance))))

    def next(self, known: Known) -> Fraction | None:
        """The value to run next; None if the search has ended. known: whether the constraints hold at values that were run."""
        asked = self._end_to_ask(known)
        if asked is not None or not any(known.values()):
            return asked
        inner, outer = bracket(known, largest=self.largest)
        assert inner is not None
        if outer is not None and abs(outer - inner) > Fraction(self.tolerance) * min(inner, outer):
            middle = self._middle(inner, outer)
            if middle is not None:
                return middle
        return self._check(known)

    def _end_to_ask(self, known: Known) -> Fraction | None:
        """A value that is needed before bisection: an end of the range, or the next double or half."""
        if self.low != self.high:
            safe, far = (self.low, self.high) if self.largest else (self.high, self.low)
            return safe if safe not in known else far if known[safe] and far not in known else None
        at = self.low
        if at not in known:
            return at
        outward = known[at]
        up = outward == self.largest
        for _ in range(STEPS):
            after = self._exact(at * 2 if up else at / 2)
            if after == at or after <= 0:
                return None
            if after not in known:
                return after
            if known[after] != outward:
                return None
            at = after
        return None

    def _check(self, known: Known) -> Fraction | None:
        """The middle of a gap between two values with the same result that is wider than a quarter of all that was run."""
        values = sorted(known)
        whole = _width(values[0], values[-1])
        for low, high in pairwise(values):
            if (
                known[low] == known[high]
                and _width(low, high) > whole * GAP
                and (middle := self._middle(low, high)) is not None
            ):
                return middle
        return None

    def _middle(self, one: Fraction, other: Fraction) -> Fraction | None:
        """A value between two others, in the middle of a log scale; None if no other value is between them."""
        low, high = sorted((one, other))
        middle = exact(self._column(self._between(low, high, 0.5)))
        return middle if low < middle < high else None

    def _between(self, low: Fraction, high: Fraction, share: float) -> Any:
        return Span(low, high, self.whole, self.dimension, low > 0).at(share)

    def _column(self, node: Any) -> Any:
        return node.value if self.dimension is None else self.dimension.parse(node.value)

    def _exact(self, number: Fraction) -> Fraction:
        """The nearest value that can be written."""
        if self.dimension is None and not self.whole:
            return number
        return Fraction(max(1, math.floor(number)))

    def to_json(self) -> dict[str, Any]:
        """The search as JSON-ready data."""
        return {
            "key": self.key, "of": self.words, "low": str(self.low), "high": str(self.high), "whole": self.whole,
            "dimension": None if self.dimension is None else self.dimension.base, "tolerance": self.tolerance,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Find:
        """The search that `to_json` wrote."""
        dimension = next((each for each in DIMENSIONS if each.base == data["dimension"]), None)
        return cls(
            key=data["key"], largest=data["of"] == "largest", low=Fraction(data["low"]), high=Fraction(data["high"]),
            whole=data["whole"], dimension=dimension, tolerance=data["tolerance"],
        )  # fmt: skip


def exact(column: float) -> Fraction:
    """The value of a column of rows."""
    return Fraction(str(column))


def _width(low: Fraction, high: Fraction) -> float:
    """The width of a gap on the scale that bisection halves."""
    return math.log(high / low) if low > 0 else float(high - low)


def bracket(known: Known, *, largest: bool) -> tuple[Fraction | None, Fraction | None]:
    """The last value that holds before the first that does not, and that one, from the side that holds."""
    inner = None
    for value in sorted(known, reverse=not largest):
        if not known[value]:
            return inner, value
        inner = value
    return inner, None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """Result of the search of one seed.

    inner: the last value that holds before the first that does not, outer; either may be missing. beyond: values behind `outer`
    that hold again. runs: values that were run. ended: whether the search has.
    """

    inner: Fraction | None
    outer: Fraction | None
    beyond: tuple[Fraction, ...]
    runs: int
    ended: bool

    @property
    def outcome(self) -> Outcome:
        """Whether there is a bracket."""
        return "none holds" if self.inner is None else "all hold" if self.outer is None else "found"


def bracket_of(find: Find, known: Known) -> Bracket:
    """The bracket of one seed, from the values that were run."""
    inner, outer = bracket(known, largest=find.largest)
    beyond = () if outer is None else tuple(
        value for value in sorted(known) if known[value] and ((value > outer) == find.largest)
    )  # fmt: skip
    return Bracket(inner=inner, outer=outer, beyond=beyond, runs=len(known), ended=find.next(known) is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The answer of a search over all of its seeds, in base units.

    low, high: the interval of the value; of one seed its bracket, of several the 95 % confidence interval of the mean; None if
    a seed has no bracket. mean: the middle of brackets. notes: what a reader must know, as sentences without a period.
    """

    low: float | None
    mean: float | None
    high: float | None
    confidence: float | None
    runs: int
    notes: tuple[str, ...]


def found(find: Find, brackets: Sequence[Bracket]) -> Found:
    """The answer from the brackets of all seeds."""
    seeds, notes = len(brackets), []
    of_seeds = f" with {{}} of {seeds} seeds" if seeds > 1 else ""
    ends = [sorted((b.inner, b.outer)) for b in brackets if b.inner is not None and b.outer is not None]
    for outcome, words in (
        ("all hold", "holds at all values that were run, up to {}"), ("none holds", "holds at none that was run, down to {}")
    ):  # fmt: skip
        of = [b for b in brackets if b.outcome == outcome]
        if of:
            values = [b.inner if outcome == "all hold" else b.outer for b in of]
            numbers = [v for v in values if v is not None]
            last = max(numbers) if find.largest == (outcome == "all hold") else min(numbers)
            notes.append(_directed(words, find.largest).format(find.text(last)) + of_seeds.format(len(of)))
    if again := [b for b in brackets if b.beyond]:
        listed = ", ".join(find.text(v) for v in sorted({v for b in again for v in b.beyond})[:3])
        notes.append(f"not monotonic: holds again at {listed}{of_seeds.format(len(again))}; the first failure is given")
    if any(not b.ended for b in brackets):
        notes.append("the search has not ended")
    if len(ends) < seeds or not ends:
        return Found(low=None, mean=None, high=None, confidence=None, runs=sum(b.runs for b in brackets), notes=tuple(notes))
    lows, highs = [float(low) for low, _ in ends], [float(high) for _, high in ends]
    mean = math.fsum((a + b) / 2 for a, b in zip(lows, highs, strict=True)) / seeds
    low, high, confidence = lows[0], highs[0], None
    if seeds > 1:
        (low, of_low), (high, of_high) = interval(lows), interval(highs)
        low, high, confidence = max(0.0, low - of_low), high + of_high, 0.95
    else:
        notes.append("one seed: the interval is that of the bisection alone")
    return Found(
        low=low, mean=mean, high=high, confidence=confidence, runs=sum(b.runs for b in brackets), notes=tuple(notes)
    )  # fmt: skip


def _directed(words: str, largest: bool) -> str:
    """Words about a search for the largest value, for one for the smallest."""
    if largest:
        return words
    return words.replace("up to", "UP").replace("down to", "up to").replace("UP", "down to")


def at(find: Find, settings: tuple[tuple[Axis, Value], ...], number: Fraction) -> tuple[tuple[Axis, Value], ...]:
    """The settings of a point with a value of the search."""
    return (*settings, (find.axis, find.value(number)))
