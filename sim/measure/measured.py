"""Measurements of one decode step on a real device."""

from __future__ import annotations

from dataclasses import dataclass

from models.graph import IntArray, OpGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStep:
    """Spans of the ops of one step. Times are picoseconds; those of the step begin at its start.

    point: (B, Q, N). ops: the op graph. start, duration: of each op, its first start, and how long it ran; -1 and 0 of those
    that no code runs (KV loads: kernels read the cache themselves). pieces: an op may run in several pieces, between which
    others run: columns op, start, duration. wall: of the whole step, while it was being timed. plain: of a step like it that
    was not, or 0. others: time of what is dispatched and is of no op (masks).
    """

    model: str
    dtype: str
    point: tuple[int, int, int]
    ops: OpGraph
    start: IntArray
    duration: IntArray
    pieces: IntArray
    wall: int
    plain: int
    others: int

    def __repr__(self) -> str:
        return f"MeasuredStep({self.model} at {self.point}: {len(self.ops.ops)} ops, {self.wall / 1e9:.3f} ms)"

    @property
    def covered(self) -> float:
        """The share of the step that its ops took; the rest is the code between them."""
        return float(self.duration.sum() / self.wall)

    @property
    def unaligned(self) -> float:
        """The share of the step in what was dispatched and is of no op."""
        return self.others / self.wall
