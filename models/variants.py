"""The variants of a step, each from recordings at a few points: its ops, and their exact costs and shapes.

Layers that are alike are captured once; recordings of all layers verify them. A model with compressed caches (see
`models.phases`) has more terms in its costs, and points with and without the end of a window.
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from models.costs import Plan, Point, along_tokens, plan, shape_text, solve
from models.graph import QUANTITIES
from models.masks import Mask
from models.op import OF_STATE
from models.phases import PhasePlan, aligned, phase_plans, solve_phases, term_values
from models.recording import Node, Recording
from models.repeats import Firsts, firsts, passed_by, places
from sim.base.errors import InputError

IntArray = np.ndarray[Any, np.dtype[np.int64]]

#: A point, and the recording of a step there.
Recorded = tuple[Point, Recording]


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a model. record: a step at a point. kinds: by layer, of its cache. rates: by layer, as in `PhasePlan`."""

    model: torch.nn.Module
    record: Callable[[Point], Recording]
    kinds: Sequence[Hashable]
    rates: Sequence[int]

    def rate(self, layer: int) -> int:
        """The tokens that a compressed row of a layer stands for, 0 if it has none."""
        return self.rates[layer] if 0 <= layer < len(self.rates) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The raw ops of one variant with their exact costs [node, quantity, piece, term] and symbolic shapes.

    masks: terms of compressed caches, after those of `MONOMIALS`.
    """

    recording: Recording
    costs: IntArray
    shapes: tuple[tuple[str, ...], ...]
    masks: tuple[Mask, ...] = ()


#: The points of a variant, by piece.
Plans = Sequence[Plan | PhasePlan]


def plans_of(key: tuple[bool, bool], breaks: tuple[int, ...], rates: Sequence[int], chunk: int = 1) -> Plans:
    """The points of a variant, by piece. rates: by layer, as in `Layers`. chunk: as in `models.costs.plan`."""
    if any(rates):
        return phase_plans(key, breaks, set(rates) - {0})
    return [plan(*key, low, high, chunk) for low, high in pairwise((0, *breaks, None)) if low is not None]


def first_point(key: tuple[bool, bool], breaks: tuple[int, ...], rates: Sequence[int]) -> Point:
    """The first point at which a variant is recorded."""
    return _of_all_layers(key, plans_of(key, breaks, rates))[0]


def _of_all_layers(key: tuple[bool, bool], plans: Plans) -> list[Point]:
    """The points at which all layers are recorded.

    Each variant has one, in its first piece, or where all of its ops are. That of several sequences and tokens, whose costs
    have all terms, has one in each piece, where the costs are checked.
    """
    if isinstance(plans[0], PhasePlan):
        return [plans[0].reference, *([each.checked for each in plans] if all(key) else [])]
    return [each.checked for each in plans] if all(key) else [plans[0].solve[0]]


def captured(
    layers: Layers, key: tuple[bool, bool], breaks: tuple[int, ...], chunk: int, parts: Iterator[None], made: Recorded
) -> Variant:
    """One variant of a step. parts: called for the next after each piece. made: a recording that was made before.

    Raises InputError if the ops change with the step, or no sum of the terms fits their costs.
    """
    plans = plans_of(key, breaks, layers.rates, chunk)
    points = _of_all_layers(key, plans)
    whole = made[1] if made[0] == points[0] else layers.record(points[0])
    first = firsts(whole, layers.kinds) if whole.hands_on is not None else {}
    if len(set(first.values())) < len(first):
        with suppress(Exception):  # of layers that take more from each other than they hand on
            return verified(layers, plans, (points, whole), first, breaks, parts)
    return solved(layers, plans, (points[0], whole), breaks, parts)


def solved(layers: Layers, plans: Plans, made: Recorded, breaks: tuple[int, ...], parts: Iterator[None]) -> Variant:
    """The costs and shapes of the ops of a recording that was made before, from recordings at the points of all pieces."""
    reference = made[1]
    split = len(reference.nodes) * len(QUANTITIES)
    tables: list[IntArray] = []
    for chosen in reversed(plans):
        recordings = {}
        for point in chosen.points if isinstance(chosen, PhasePlan) else (*chosen.solve, *chosen.check):
            recordings[point] = reference if point == made[0] else layers.record(point)
        if isinstance(chosen, PhasePlan):
            tables.insert(0, _in_phases(chosen, recordings, reference, layers, *tables[:1]))
        else:
            tables.insert(0, _alike(chosen, recordings, reference))
        next(parts)
    masks = plans[0].masks if isinstance(plans[0], PhasePlan) else ()
    costs = np.stack([table[:split].reshape(len(reference.nodes), len(QUANTITIES), -1) for table in tables], axis=2)
    shapes = _shapes(reference, [table[split:] for table in tables], breaks, masks)
    return Variant(recording=reference, costs=costs, shapes=shapes, masks=masks)


def verified(
    layers: Layers,
    plans: Plans,
    made: tuple[Sequence[Point], Recording],
    first: Firsts,
    breaks: tuple[int, ...],
    parts: Iterator[None],
) -> Variant:
    """The variant of all layers from recordings of one of each kind. first: by layer, the one that it is like.

    made: points at which all layers are recorded, and the recording at the first of them.
    Raises InputError if the costs of all layers are others than those of their kind.
    """
    points, whole = made
    with passed_by(layers.model, whole, first):
        short = solved(layers, plans, (points[0], layers.record(points[0])), breaks, parts)
    where = places(whole, short.recording, first)
    costs = short.costs[where]
    exact = [node.role not in OF_STATE for node in whole.nodes]  # scans in chunks are near their line
    for number, point in enumerate(points):
        other = whole if number == 0 else layers.record(point)
        nodes = _nodes(whole, other, point, in_phases=bool(short.masks))
        piece = sum(start <= point[2] for start in breaks)
        found = (costs[:, :, piece] @ np.array(term_values(short.masks, point), dtype=np.int64)).tolist()
        for sure, mine, node in zip(exact, found, nodes, strict=True):
            if sure and tuple(mine) != (node.costs if node is not None else (0,) * len(QUANTITIES)):
                raise InputError(f"layers that are alike have other costs at (B, Q, N) = {point}")
    return Variant(recording=whole, costs=costs, shapes=tuple(short.shapes[i] for i in where), masks=short.masks)


def _nodes(reference: Recording, recording: Recording, point: Point, *, in_phases: bool) -> Sequence[Node | None]:
    """For each op of the reference, that of a recording; in phases it may lack some. Raises InputError if it has others."""
    if not in_phases:
        _same_ops(reference, recording, point)
        return recording.nodes
    found = aligned(reference, recording)
    if found is None:
        raise InputError(f"the ops of the model change with the step, also beside the ends of windows, at (B, Q, N) = {point}")
    return found


def _same_ops(reference: Recording, recording: Recording, point: Point) -> None:
    for i, (a, b) in enumerate(zip(reference.nodes, recording.nodes, strict=False)):
        if a.signature != b.signature:
            raise InputError(
                f"the ops of the model change with the step: op {i} is {a.name} at {a.path!r}, "
                f"but {b.name} at {b.path!r} for (B, Q, N) = {point}"
            )
    if len(reference.nodes) != len(recording.nodes):
        raise InputError(
            f"the ops of the model change with the step: {len(reference.nodes)}, "
            f"but {len(recording.nodes)} for (B, Q, N) = {point}"
        )


def _alike(chosen: Plan, recordings: dict[Point, Recording], reference: Recording) -> IntArray:
    """Coefficients [row, term] of a piece of a model whose steps all have the same ops: costs, and then dimensions."""
    rows = []
    for point, recording in recordings.items():
        _same_ops(reference, recording, point)
        rows.append([v for n in recording.nodes for v in n.costs] + [d for n in recording.nodes for d in n.shape])
    values = np.array(rows, dtype=np.int64)
    count = len(chosen.solve)
    chunked = np.flatnonzero([node.role in OF_STATE for node in reference.nodes for _ in QUANTITIES])
    lines = along_tokens(chosen, values[:, chunked])
    if lines is None:
        raise InputError("the scans of the model do not grow in proportion to the tokens that they take")
    values[:, chunked] = lines
    table, bad = solve(chosen, values[:count], values[count:])
    _refuse(bad, reference)
    return table


def _in_phases(
    chosen: PhasePlan,
    recordings: dict[Point, Recording],
    reference: Recording,
    layers: Layers,
    later: IntArray | None = None,
) -> IntArray:
    """The same of a model with compressed caches. Ops that a step lacks cost nothing; their shapes it does not tell.

    later: coefficients of the next piece.
    """
    rows, present = [], []
    for point, recording in recordings.items():
        nodes = _nodes(reference, recording, point, in_phases=True)
        costs = [v for node in nodes for v in (node.costs if node is not None else (0,) * len(QUANTITIES))]
        dims = [d for each, node in zip(reference.nodes, nodes, strict=True) for d in (node or each).shape]
        there = [node is not None for each, node in zip(reference.nodes, nodes, strict=True) for _ in each.shape]
        rows.append(costs + dims)
        present.append([True] * len(costs) + there)
    of_costs = [layers.rate(node.layer) for node in reference.nodes for _ in QUANTITIES]
    of_dims = [layers.rate(node.layer) for node in reference.nodes for _ in node.shape]
    values, seen = np.array(rows, dtype=np.int64), np.array(present, dtype=np.bool_)
    dimensions = np.arange(len(of_costs) + len(of_dims)) >= len(of_costs)
    table, bad = solve_phases(chosen, values, seen, np.array(of_costs + of_dims), dimensions, later)
    _refuse(bad, reference)
    return table


def _refuse(bad: int | None, reference: Recording) -> None:
    """Raise InputError if a row of costs and dimensions is no sum of the terms."""
    if bad is None:
        return
    costs = len(reference.nodes) * len(QUANTITIES)
    what = QUANTITIES[bad % len(QUANTITIES)] if bad < costs else "shape"
    owners = [n for n in reference.nodes for _ in n.shape]
    node = reference.nodes[bad // len(QUANTITIES)] if bad < costs else owners[bad - costs]
    raise InputError(f"{what} of {node.name} at {node.path!r} is not a polynomial in batch, query tokens and context")


def _shapes(
    reference: Recording, dims: Sequence[IntArray], breaks: tuple[int, ...], masks: Sequence[Mask]
) -> tuple[tuple[str, ...], ...]:
    pieces = np.stack(dims, axis=1)  # [dim, piece, term]
    texts: dict[bytes, str] = {}
    flat = []
    for piece in pieces:
        key = piece.tobytes()
        if key not in texts:
            texts[key] = shape_text(piece.tolist(), breaks, masks)
        flat.append(texts[key])
    result, at = [], 0
    for node in reference.nodes:
        result.append(tuple(flat[at : at + len(node.shape)]))
        at += len(node.shape)
    return tuple(result)
