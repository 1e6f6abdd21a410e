"""Routing: the experts of each token, drawn evenly from a seed or read from a file.

A file is JSON Lines, one token and layer per line, in any order; experts count from 0:

    {"sequence": 0, "position": 12, "layer": 3, "experts": [5, 41]}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.experts import M_CONTEXT, M_QUERY, M_SEQUENCE, Count, Experts, IntArray, share_of
from sim.base.errors import InputError, nearest
from sim.base.files import check_readable
from sim.base.kernel import kernel, launch, small
from sim.base.quantities import show

MAX_BYTES = 2**28  # of a file; its rows take some ten times as much memory

#: Bits that a layer, sequence and position take in a key: an int64 in all.
_BITS = {"layer": 12, "sequence": 20, "position": 31}

_FIELDS = ("sequence", "position", "layer", "experts")

STRIDE, FIRST, SECOND = (word - 2**64 for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
LOW = 0xFFFFFFFF


@small
@kernel
def mixed(x: Any) -> Any:
    """SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every bit of x affects every bit of the result.

    x: an integer modulo 2^64, as a Python int, which may be larger, a compiled integer, or an array of int64.
    """
    x = x + STRIDE
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * FIRST
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * SECOND
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@small
@kernel
def drawn(stream: Any, last: int) -> Any:
    """A number from 0 to `last`, drawn at a place of a random stream."""
    return (((mixed(stream) >> 32) & LOW) * (last + 1)) >> 32


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every set of `top_k` experts is equally likely, independently for each token and layer."""

    seed: int

    def choose(self, layer: IntArray, sequence: IntArray, position: IntArray, experts: Experts) -> IntArray:
        # A hash of layer, sequence and position starts the random stream of a token, so that it depends on no other
        # token. Floyd's sampling without replacement (Bentley and Floyd, CACM 30(9), 1987) takes one number per choice.
        stream = np.full(len(layer), self.seed, dtype=np.int64)
        for key in (layer, sequence, position):
            stream = mixed(mixed(stream) ^ key)
        chosen = np.empty((len(layer), experts.top_k), dtype=np.int64)
        for i in range(experts.top_k):
            last = experts.count - experts.top_k + i
            stream = stream + STRIDE
            number = drawn(stream, last)
            taken = (chosen[:, :i] == number[:, None]).any(axis=1)
            chosen[:, i] = np.where(taken, last, number)
        return chosen

    def counted(
        self, layers: IntArray, members: IntArray, experts: Experts, count: Count = "distinct", *, compiled: bool = True
    ) -> IntArray:
        """As `models.experts.counted`, [layer, lane]. members: [lane, member, field]."""
        found = np.zeros((len(layers), len(members)), dtype=np.int64)
        seen, chosen = np.zeros(experts.count, dtype=np.int64), np.zeros(experts.top_k, dtype=np.int64)
        here = np.array([experts.here.start, experts.here.stop], dtype=np.int64)
        if count != "distinct":
            sends = count == "sent"
            of = np.array([experts.share, experts.shares] if sends else [0, 1], dtype=np.int64)
            most = 1 if sends else experts.top_k
            launch(count_tokens, compiled=compiled)(found, self.seed, layers, members, seen, chosen, here, of, most)
        else:
            launch(count_distinct, compiled=compiled)(found, self.seed, layers, members, seen, chosen, here)
        return found


@kernel
def count_distinct(found: Any, seed: int, layers: Any, members: Any, seen: Any, chosen: Any, here: Any) -> None:
    """Count the distinct experts of each layer and lane, as `Uniform.choose` draws them.

    seen: [expert], the last place in which it was found. chosen: [choice], scratch. here: the first that counts, and the one
    behind the last.
    """
    place = 0
    for i in range(layers.shape[0]):
        of_layer = mixed(mixed(mixed(seed) ^ layers[i]))
        for lane in range(members.shape[0]):
            place += 1
            many = 0
            for member in range(members.shape[1]):
                stream = mixed(mixed(of_layer ^ members[lane, member, M_SEQUENCE]))
                first = members[lane, member, M_CONTEXT]
                for position in range(first, first + members[lane, member, M_QUERY]):
                    if many < here[1] - here[0]:
                        many += choose_experts(mixed(stream ^ position), seen, chosen, here, place)
            found[i, lane] = many


@kernel
def count_tokens(
    found: Any, seed: int, layers: Any, members: Any, seen: Any, chosen: Any, here: Any, of: Any, most: int
) -> None:
    """Count the choices of experts here by the tokens of a share of each step, in each layer and lane.

    of: the share, and how many there are. most: that count of one token. Others as in `count_distinct`.
    """
    place = 0
    for lane in range(members.shape[0]):
        tokens = 0
        for member in range(members.shape[1]):
            tokens += members[lane, member, M_QUERY]
        first, last = share_of(tokens, of[0], of[1]), share_of(tokens, of[0] + 1, of[1])
        for i in range(layers.shape[0]):
            of_layer = mixed(mixed(mixed(seed) ^ layers[i]))
            before, many = 0, 0
            for member in range(members.shape[1]):
                query, context = members[lane, member, M_QUERY], members[lane, member, M_CONTEXT]
                stream = mixed(mixed(of_layer ^ members[lane, member, M_SEQUENCE]))
                for token in range(max(first - before, 0), min(last - before, query)):
                    place += 1
                    many += min(choose_experts(mixed(stream ^ (context + token)), seen, chosen, here, place), most)
                before += query
            found[i, lane] = many


@small
@kernel
def choose_experts(stream: int, seen: Any, chosen: Any, here: Any, place: int) -> int:
    """Draw the experts of a token; returns how many of those that count have not been seen at this place."""
    top_k, count, new = chosen.shape[0], seen.shape[0], 0
    for i in range(top_k):
        last = count - top_k + i
        stream += STRIDE
        number = drawn(stream, last)
        for j in range(i):
            if chosen[j] == number:
                number = last
        chosen[i] = number
        if seen[number] != place:
            seen[number] = place
            if here[0] <= number < here[1]:
                new += 1
    return new


@dataclass(frozen=True, slots=True)
class WrittenRoutes:
    """Recorded choices. keys: token and layer of each row, ascending. experts: [row, top_k]. source: their file, for errors."""

    source: str
    keys: IntArray
    experts: IntArray

    def choose(self, layer: IntArray, sequence: IntArray, position: IntArray, experts: Experts) -> IntArray:
        """Look up recorded choices. Raises InputError for a missing token, and for choices that the model cannot make."""
        if self.experts.shape[1] != experts.top_k or int(self.experts.max(initial=0)) >= experts.count:
            raise InputError(
                f"{self.source}: expected {experts.top_k} experts from 0 to {experts.count - 1} per token, "
                f"found {self.experts.shape[1]} up to {int(self.experts.max(initial=0))}"
            )
        wanted = _key(layer, sequence, position)
        row = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        missing = np.flatnonzero(self.keys[row] != wanted)
        if len(missing):
            i = missing[0]
            raise InputError(
                f"{self.source}: expected all tokens of the run, found none for sequence {sequence[i]}, "
                f"position {position[i]}, layer {layer[i]}"
            )
        return self.experts[row]


def _key(layer: IntArray, sequence: IntArray, position: IntArray) -> IntArray:
    return (layer << (_BITS["sequence"] + _BITS["position"])) | (sequence << _BITS["position"]) | position


def read(path: Path) -> WrittenRoutes:
    """Recorded choices from a file. Raises InputError, with the line, for a file that is not of this form."""
    check_readable(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: larger than {MAX_BYTES:,} bytes")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
    rows: dict[tuple[int, int, int], list[int]] = {}
    first: dict[tuple[int, int, int], int] = {}
    width = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            token, experts = _parsed(line)
            width = width or len(experts)
            if len(experts) != width:
                raise ValueError(f"experts: expected {width}, as in the lines before, found {len(experts)}")
            if token in rows:
                raise ValueError(f"expected each token and layer once, found it twice, first in line {first[token]}")
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from None
        rows[token], first[token] = experts, number
    if not rows:
        raise InputError(f"{path}: expected lines like {_EXAMPLE}, found none")
    columns = np.array(list(rows), dtype=np.int64).T
    keys = _key(*columns)
    order = np.argsort(keys)
    return WrittenRoutes(source=str(path), keys=keys[order], experts=np.array(list(rows.values()), dtype=np.int64)[order])


_EXAMPLE = '{"sequence": 0, "position": 12, "layer": 3, "experts": [5, 41]}'


def _parsed(line: str) -> tuple[tuple[int, int, int], list[int]]:
    """(layer, sequence, position) and experts of a line. Raises ValueError."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ValueError(f"expected an object like {_EXAMPLE}, found {show(line)}")
    for name in data:
        if name not in _FIELDS:
            raise ValueError(f"unknown key {show(name)}{nearest(str(name), _FIELDS)}; known: {', '.join(_FIELDS)}")
    for name in _FIELDS:
        if name not in data:
            raise ValueError(f"no {name}; expected an object like {_EXAMPLE}")
    for name, bits in _BITS.items():
        if not _is_count(data[name]) or data[name] >= 2**bits:
            raise ValueError(f"{name}: expected a whole number from 0 to {2**bits - 1}, found {show(data[name])}")
    experts = data["experts"]
    if not isinstance(experts, list) or not experts:
        raise ValueError(f"experts: expected a list of whole numbers from 0, found {show(experts)}")
    for i, expert in enumerate(experts):
        if not _is_count(expert) or expert >= 2**31:
            raise ValueError(f"experts: expected whole numbers from 0 to {2**31 - 1}, found {show(expert)}")
        if expert in experts[:i]:
            raise ValueError(f"experts: expected no expert twice, found {expert} again")
    return (data["layer"], data["sequence"], data["position"]), experts


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
