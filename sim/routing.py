"""Which experts each token is sent to: drawn evenly from a seed, or given in a file.

A file is JSON Lines, one token and layer a line, in any order; experts count from 0:

    {"sequence": 0, "position": 12, "layer": 3, "experts": [5, 41]}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sim.errors import InputError, nearest
from sim.experts import Experts, IntArray
from sim.quantities import show

#: Bits that a layer, sequence and position take in a key: an int64 in all.
_BITS = {"layer": 12, "sequence": 20, "position": 31}

_FIELDS = ("sequence", "position", "layer", "experts")

_STRIDE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every set of `top_k` experts is equally likely, for each token and layer on its own."""

    seed: int

    def choose(self, layer: IntArray, sequence: IntArray, position: IntArray, experts: Experts) -> IntArray:
        # A hash of what the token is starts its random stream, so that no other token has a part in it. Floyd's way to
        # draw without replacement (Bentley and Floyd, CACM 30(9), 1987) takes one number a choice.
        stream = np.full(len(layer), self.seed, dtype=np.uint64)
        for key in (layer, sequence, position):
            stream = _mix(_mix(stream) ^ key.astype(np.uint64))
        chosen = np.empty((len(layer), experts.top_k), dtype=np.int64)
        for i in range(experts.top_k):
            last = experts.count - experts.top_k + i
            stream = stream + _STRIDE
            drawn = (((_mix(stream) >> np.uint64(32)) * np.uint64(last + 1)) >> np.uint64(32)).astype(np.int64)  # 0 to last
            taken = (chosen[:, :i] == drawn[:, None]).any(axis=1)
            chosen[:, i] = np.where(taken, last, drawn)
        return chosen


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every bit of x has a part in every bit of the result."""
    x = x + _STRIDE
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Given:
    """Recorded choices. keys: token and layer of each row, ascending. experts: [row, top_k]. source: where they are from."""

    source: str
    keys: IntArray
    experts: IntArray

    def choose(self, layer: IntArray, sequence: IntArray, position: IntArray, experts: Experts) -> IntArray:
        """Raises InputError for a token that is not there, and for choices that the model cannot make."""
        if self.experts.shape[1] != experts.top_k or int(self.experts.max(initial=0)) >= experts.count:
            raise InputError(
                f"{self.source}: expected {experts.top_k} experts from 0 to {experts.count - 1} a token, "
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


def read(path: Path) -> Given:
    """Recorded choices from a file. Raises InputError, with the line, for what is no such file."""
    try:
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
                raise ValueError(f"expected each token and layer once, found it again, first in line {first[token]}")
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from None
        rows[token], first[token] = experts, number
    if not rows:
        raise InputError(f"{path}: expected lines like {_EXAMPLE}, found none")
    columns = np.array(list(rows), dtype=np.int64).T
    keys = _key(*columns)
    order = np.argsort(keys)
    return Given(source=str(path), keys=keys[order], experts=np.array(list(rows.values()), dtype=np.int64)[order])


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
