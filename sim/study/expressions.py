"""Expressions over the columns of a study: arithmetic and comparisons, parsed by hand, so that no text runs as code.

    area = 4 * hardware.engines.count + hardware.memory.bandwidth / 10 GB/s
    p99 TPOT < 30 ms and energy per token < 2 J

A number with a unit is in the base unit of its kind: ps, bytes, bytes/s, FLOP/s, fJ; `90 %` is 0.9. A name is a column, its
end after a dot if only one column ends so (`count`), or a metric without its unit (`makespan` of `makespan_ps`). A value that a
run does not have makes the result None, as does a division by zero.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sim.base.errors import InputError, nearest
from sim.base.quantities import BANDWIDTH, DURATION, FLOP_RATE, FREQUENCY, SIZE

LONGEST = 1000  # characters of an expression

#: Units in expressions, and their worth in base units.
UNITS: dict[str, float] = {
    "%": 0.01,
    **{unit: worth for each in (DURATION, SIZE, BANDWIDTH, FLOP_RATE, FREQUENCY) for unit, worth in each.units.items()},
    "fJ": 1, "pJ": 1e3, "nJ": 1e6, "uJ": 1e9, "mJ": 1e12, "J": 1e15, "kJ": 1e18,
}  # fmt: skip

_UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))
_QUANTITY = re.compile(rf"(?<![\w.])(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*({_UNIT})(?![\w%])")
#: Parts of a dotted name that are numbers (`sequences.0.count`), which Python's grammar has no names for.
_NUMBERED = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?:\.\w+)+")
_STATISTIC = re.compile(r"\b(mean|p50|p90|p99)\s+(ttft|tpot|itl|e2e|end to end|queued)\b", re.IGNORECASE)
_PHRASES = {"energy per token": "energy_per_token", "time per token": "time_per_token"}

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., float]] = {
    "abs": abs, "ceil": math.ceil, "exp": math.exp, "floor": math.floor, "log": math.log, "log10": math.log10,
    "log2": math.log2, "max": max, "min": min, "round": round, "sqrt": math.sqrt,
}  # fmt: skip

Row = Mapping[str, Any]
_Node = Callable[[Row], Any]


class _MissingError(Exception):
    """A value that a row does not have."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A constraint that compares one column with a number: `column < bound` or `column > bound`. below: which of the two."""

    column: str
    below: bool
    bound: float
    strict: bool


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression that was read. columns: the columns in it. limit: its form as a `Limit`, if it has one."""

    text: str
    columns: frozenset[str]
    _evaluate: _Node
    limit: Limit | None = None

    def __call__(self, row: Row) -> Any:
        """Its value for a row: a float, a bool or a text; None if a value is missing or the result is not a number."""
        try:
            value = self._evaluate(row)
        except (_MissingError, ArithmeticError, ValueError, TypeError):
            return None
        return None if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)) else value

    def missed(self, row: Row) -> float:
        """By how much a row misses this as a constraint, as a share of its limit; 0 or below if it meets it.

        Without a limit, or where a value is missing, 1 stands for all that miss it.
        """
        met = bool(self(row))
        value = None if self.limit is None else row.get(self.limit.column)
        if self.limit is None or value is None:
            return 0.0 if met else 1.0
        over: float = (value - self.limit.bound) * (1 if self.limit.below else -1) / (abs(self.limit.bound) or 1.0)
        return min(over, 0.0) if met else max(over, 1e-9)


def parse(text: str, columns: Iterable[str]) -> Expression:
    """Read an expression over columns. Raises InputError for anything that is not one."""
    if len(text) > LONGEST:
        raise InputError(f"expected an expression of at most {LONGEST} characters, found {len(text)}")
    names = Names(columns)
    try:
        tree = ast.parse(_plain(text), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"expected an expression such as '4 * count + 10', found {text!r}") from None
    reader = _Reader(text, names)
    evaluate = reader.read(tree.body)
    return Expression(text, frozenset(reader.columns), evaluate, _limit(tree.body, reader))


def _plain(text: str) -> str:
    """The text with plain numbers in place of quantities, and names in place of words."""
    for words, name in _PHRASES.items():
        text = re.sub(rf"\b{words}\b", name, text, flags=re.IGNORECASE)
    text = _STATISTIC.sub(lambda m: f"{m[2].lower().replace('end to end', 'e2e')}_{m[1].lower()}", text)
    text = _NUMBERED.sub(lambda m: re.sub(r"\.(?=\d+(?:\.|$))", "._", m[0]), text)
    return _QUANTITY.sub(lambda m: f"({m[1]} * {UNITS[m[2]]!r})", text).strip()


class Names:
    """Names of columns as expressions may write them: whole, an end after a dot, or without the unit."""

    def __init__(self, columns: Iterable[str]) -> None:
        self.columns = list(columns)
        self._of: dict[str, set[str]] = {}
        for column in self.columns:
            parts = column.split(".")
            ends = [".".join(parts[i:]) for i in range(len(parts))]
            for end in (*ends, re.sub(r"_(ps|fj)$", "", column)):
                self._of.setdefault(end, set()).add(column)

    def find(self, name: str) -> str:
        """The column of a name. Raises InputError if there is none, or several."""
        found = {name} if name in self.columns else self._of.get(name, set())
        if len(found) == 1:
            return next(iter(found))
        if found:
            raise InputError(f"{name!r} may be {' or '.join(sorted(found))}; write it in full")
        raise InputError(f"no column {name!r}{nearest(name, self._of)}")


class _Reader:
    """Turns a syntax tree into a callable, node by node; anything but arithmetic on columns is refused."""

    def __init__(self, text: str, names: Names) -> None:
        self.text, self.names = text, names
        self.columns: set[str] = set()

    def _number(self, value: int) -> float:
        """Raises InputError for a number that no float can be."""
        try:
            return float(value)
        except OverflowError:
            raise InputError(f"expected numbers below 1e308, found one of {value.bit_length()} bits") from None

    def read(self, node: ast.expr) -> _Node:
        """The value of a node, as a function of a row."""
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                fixed = self._number(value) if isinstance(value, int) and not isinstance(value, bool) else value
                return lambda _row: fixed
            case ast.Name() | ast.Attribute():
                return self.column(node)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return _both(_BINARY[type(op)], self.read(left), self.read(right))
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return _applied(operator.neg, [self.read(inner)])
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return _applied(operator.not_, [self.read(inner)])
            case ast.BoolOp(op=op, values=values):
                return _applied(_all if isinstance(op, ast.And) else _any, [self.read(each) for each in values])
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
                return self.comparison([left, *others], ops)
            case ast.IfExp(test=test, body=body, orelse=other):
                return _choice(self.read(test), self.read(body), self.read(other))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS and arguments:
                return _applied(FUNCTIONS[name], [self.read(each) for each in arguments])
        raise InputError(f"expected arithmetic on columns, found {(ast.unparse(node))!r} in {self.text!r}")

    def column(self, node: ast.expr) -> _Node:
        """The value of a column."""
        column = self.names.find(dotted_name(node))
        self.columns.add(column)

        def value(row: Row) -> Any:
            found = row.get(column)
            if found is None:
                raise _MissingError
            return float(found) if isinstance(found, int) and not isinstance(found, bool) else found

        return value

    def comparison(self, values: list[ast.expr], ops: list[ast.cmpop]) -> _Node:
        """A chain of comparisons."""
        read = [self.read(each) for each in values]
        pairs = [(_COMPARE[type(op)], read[i], read[i + 1]) for i, op in enumerate(ops)]
        return lambda row: all(compare(one(row), other(row)) for compare, one, other in pairs)


def dotted_name(node: ast.expr) -> str:
    """The name that `hardware.engines.count` is parsed from. Raises InputError for any other attribute."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr[1:] if re.fullmatch('_[0-9]+', node.attr) else node.attr}"
    raise InputError(f"expected the name of a column, found {ast.unparse(node)!r}")


def _both(operation: Callable[[Any, Any], Any], left: _Node, right: _Node) -> _Node:
    return lambda row: operation(left(row), right(row))


def _applied(function: Callable[..., Any], arguments: list[_Node]) -> _Node:
    return lambda row: function(*(each(row) for each in arguments))


def _choice(test: _Node, body: _Node, other: _Node) -> _Node:
    return lambda row: body(row) if test(row) else other(row)


def _all(*values: Any) -> bool:
    return all(values)


def _any(*values: Any) -> bool:
    return any(values)


def _limit(node: ast.expr, reader: _Reader) -> Limit | None:
    """The limit that a comparison of a column with a number is."""
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        return None
    sides = [node.left, node.comparators[0]]
    names = [isinstance(side, (ast.Name, ast.Attribute)) for side in sides]
    if sum(names) != 1:
        return None
    other = reader.read(sides[names.index(False)])
    try:
        bound = other({})
    except _MissingError:
        return None
    op, first = node.ops[0], names[0]
    if not isinstance(bound, float) or not isinstance(op, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)):
        return None
    column = reader.names.find(dotted_name(sides[names.index(True)]))
    return Limit(column, isinstance(op, (ast.Lt, ast.LtE)) == first, bound, isinstance(op, (ast.Lt, ast.Gt)))
