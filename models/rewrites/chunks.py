"""Collectives in chunks: the first columns of a result are sent while the others are still computed.

Of each op that computes partial results, with rows of weights or by adding such results, and of the collective that adds them
up, there are as many as there are chunks, each with its part of the columns. A chunk of the collective needs that chunk of
the results alone, so overlap follows from dependence. What comes after it, such as a norm, needs all columns.

    o_proj             all_reduce             norm        one chunk
    o_proj 0  all_reduce 0  o_proj 1  all_reduce 1  norm    two chunks, in program order

The chunks of an op sum to the op exactly. Each is a kernel of its own, with a launch, and so is each collective.
"""

from __future__ import annotations

import re
from dataclasses import replace

from models.graph import Op, OpGraph
from models.polynomials import Polynomials, each_term
from models.rewrites.sharding import ADDING, REDUCING, ROWS, columns_of
from sim.base.errors import ConfigError


def chunked(ops: OpGraph, chunks: int) -> OpGraph:
    """The op graph of one device, whose collectives that add up results are in so many chunks.

    Raises ConfigError if columns do not divide.
    """
    return ops if chunks == 1 else _Chunks(ops, chunks).graph()


class _Chunks:
    """Collects the ops. ends: [op in chunks], the collective that it is computed for. place: [op], its chunks here."""

    def __init__(self, ops: OpGraph, chunks: int) -> None:
        self.ops, self.chunks = ops.ops, chunks
        self.whole, self.polynomials = ops, Polynomials(ops.polynomials)
        self.numbers: dict[tuple[int, int], int] = {}  # (number of a cost, chunk) -> number of its part
        self.ends = self._ends()
        self.place: dict[int, list[int]] = {}
        self.made: list[Op] = []

    def _ends(self) -> dict[int, int]:
        """By op that computes partial results: the collective that adds them up. Readers are in the same chunks."""
        ends: dict[int, int] = {}
        readers: dict[int, set[int]] = {}
        for i, op in enumerate(self.ops):
            for j in op.inputs:
                readers.setdefault(j, set()).add(i)
        for i in reversed(range(len(self.ops))):
            op = self.ops[i]
            if op.kind in REDUCING:
                ends[i] = i
            elif op.kind in ROWS or (op.kind in ADDING and not op.heads):
                of = {ends.get(j, -1) for j in readers.get(i, ())}
                if len(of) == 1 and of != {-1}:
                    ends[i] = of.pop()
        return ends

    def graph(self) -> OpGraph:
        groups: dict[int, list[int]] = {}
        for i, end in sorted(self.ends.items()):
            groups.setdefault(end, []).append(i)
        for i, op in enumerate(self.ops):
            if i not in self.ends:
                self._add(i, replace(op, inputs=self._inputs(op, None)))
            for j in groups[i] * self.chunks if self.ends.get(i) == i else ():
                chunk = len(self.place.get(j, ()))
                self._add(j, self._chunk(self.ops[j], chunk))
        return replace(self.whole, ops=tuple(self.made), polynomials=tuple(self.polynomials))

    def _add(self, i: int, op: Op) -> None:
        self.place.setdefault(i, []).append(len(self.made))
        self.made.append(op)

    def _inputs(self, op: Op, chunk: int | None) -> tuple[int, ...]:
        """The ops that an op needs here, or a chunk of it."""
        needed = set[int]()
        for j in op.inputs:
            partial = j in self.ends and self.ends[j] != j  # what a collective has made whole is needed whole
            needed |= {self.place[j][chunk]} if chunk is not None and partial else set(self.place[j])
        return tuple(sorted(needed))

    def _chunk(self, op: Op, chunk: int) -> Op:
        """A chunk of an op."""
        columns = columns_of(op)
        if columns % self.chunks:
            fitting = ", ".join(str(n) for n in range(1, min(columns, 64) + 1) if columns % n == 0)
            raise ConfigError(
                "mapping.parallel.overlap_chunks",
                f"expected a divisor of the {columns} columns of {op.kind}, found {self.chunks}; possible: {fitting}",
            )
        shape = list(op.shape)
        for k in reversed(range(len(shape))):
            if re.fullmatch(r"\d+", shape[k]) and int(shape[k]) == columns:
                shape[k] = str(columns // self.chunks)
                break
        experts = op.experts and replace(
            op.experts, bytes=self._part(op.experts.bytes, chunk), flops=self._part(op.experts.flops, chunk)
        )
        costs = tuple(self._part_of(cost, chunk) for cost in op.costs)
        return replace(
            op,
            part=f"{op.part} columns {chunk}".strip(),
            shape=tuple(shape),
            inputs=self._inputs(op, chunk),
            costs=costs,
            experts=experts,
        )

    def _part_of(self, number: int, chunk: int) -> int:
        """The number of the polynomial that is a chunk of another."""
        key = (number, chunk)
        if key not in self.numbers:
            pieces = each_term(lambda term: self._part(term, chunk), self.whole.polynomials[number])
            self.numbers[key] = self.polynomials.number(pieces)
        return self.numbers[key]

    def _part(self, amount: int, chunk: int) -> int:
        return amount * (chunk + 1) // self.chunks - amount * chunk // self.chunks
