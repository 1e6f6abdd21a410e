"""Captured op graphs of a model, prepared for stitching."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from models.graph import MONOMIALS, QUANTITIES, Op, OpGraph, terms
from models.masks import Mask
from models.polynomials import Polynomials, at_breaks, with_masks, zero
from sim.base.errors import ConfigError

#: Captured op graphs of a model, by (several sequences, several new tokens each).
Variants = Mapping[tuple[bool, bool], OpGraph]

#: Kind, part, path, and how many ops with the same three come before: ops of two captures correspond if these are equal.
Role = tuple[str, str, str, int]

#: Terms that grow with context, query and batch; the pairs of masks, which stand after them, grow with the first two.
_OF_CONTEXT = [i for i, (_, _, n) in enumerate(MONOMIALS) if n]
_OF_QUERY = [i for i, (_, q, _) in enumerate(MONOMIALS) if q]
_OF_BATCH = [i for i, (b, q, n) in enumerate(MONOMIALS) if b and not q and not n]


#: Beginnings of kinds of ops that each member has for itself, whatever they cost.
OF_MEMBER = ("kv_", "state_", "scan", "conv_window")


class LaidOut(Mapping[tuple[bool, bool], OpGraph]):
    """Captured graphs as a scenario lays them out, made on first use: most runs need one of the four.

    lay_out: no closure, because plans are pickled.
    """

    def __init__(self, captured: Variants, lay_out: Callable[[OpGraph], OpGraph]) -> None:
        self._captured, self._lay_out = captured, lay_out
        self._laid_out: dict[tuple[bool, bool], OpGraph] = {}

    def __getitem__(self, key: tuple[bool, bool]) -> OpGraph:
        if key not in self._laid_out:
            self._laid_out[key] = self._lay_out(self._captured[key])
        return self._laid_out[key]

    def __iter__(self) -> Iterator[tuple[bool, bool]]:
        return iter(self._captured)

    def __len__(self) -> int:
        return len(self._captured)


class Capture:
    """A captured graph with the facts that stitching needs.

    roles: [op]. index: the op of each role. per_member: [op], whether each member of a step has an op of its own.
    of_logits: [op], whether it is computed for rows of logits only.
    """

    def __init__(self, graph: OpGraph) -> None:
        self.graph = graph
        self.roles: list[Role] = []
        seen: dict[tuple[str, str, str], int] = {}
        for op in graph.ops:
            name = (op.kind, op.part, op.path)
            self.roles.append((*name, seen.get(name, 0)))
            seen[name] = seen.get(name, 0) + 1
        self.index = {role: i for i, role in enumerate(self.roles)}
        pairs = [*range(len(MONOMIALS), terms(graph.masks))]
        with_context, with_query = self._grow([*_OF_CONTEXT, *pairs]), self._grow([*_OF_QUERY, *pairs])
        with_batch = self._grow(_OF_BATCH)
        per_member = [bool(op.heads) or op.kind.startswith(OF_MEMBER) for op in graph.ops] | with_context
        outside = np.array([op.layer < 0 for op in graph.ops], dtype=np.bool_)
        self.per_member: list[bool] = per_member.tolist()
        self.of_logits: list[bool] = (outside & ~per_member & with_batch & ~with_query).tolist()

    def _grow(self, chosen: list[int]) -> npt.NDArray[np.bool_]:
        """[op]: whether some cost has such a term."""
        graph = self.graph
        grows = (graph.table[:, :, chosen] != 0).any(axis=(1, 2))  # [polynomial]
        found: npt.NDArray[np.bool_] = grows[np.concatenate([graph.cost_index, graph.several_index])].any(axis=0)
        return found


class Captures:
    """All captures of a model, each prepared once for all graphs that are stitched from them."""

    def __init__(self, variants: Variants) -> None:
        self._variants = variants
        self._prepared: dict[tuple[bool, bool], Capture] = {}
        self._merged: Capture | None = None

    def __getitem__(self, key: tuple[bool, bool]) -> Capture:
        if key not in self._prepared:
            self._prepared[key] = Capture(self._variants[key])
        return self._prepared[key]

    @property
    def merged(self) -> Capture:
        """The captures of one sequence, with one new token and with several, as one."""
        if self._merged is None:
            self._merged = Capture(_merged(self[False, False], self[False, True]))
        return self._merged


def _merged(one: Capture, several: Capture) -> OpGraph:
    """Two captures of one sequence as one graph: each op with that of members that feed in several tokens beside it.

    An op that one of them lacks costs nothing there.
    """
    breaks = tuple(sorted({*one.graph.breaks, *several.graph.breaks}))
    masks = tuple(dict.fromkeys((*one.graph.masks, *several.graph.masks)))
    polynomials = Polynomials([zero(breaks, masks)])
    index: dict[Role, int] = {}
    result: list[Op] = []
    for role in _roles_in_order(one, several):
        inputs = {
            index[capture.roles[j]]
            for capture in (one, several)
            if role in capture.index
            for j in capture.graph.ops[capture.index[role]].inputs
        }
        first, second = (_at_sizes(capture, role, breaks, masks, polynomials) for capture in (one, several))
        present = first or second
        assert present is not None
        nothing = replace(present, costs=(0,) * len(QUANTITIES))
        index[role] = len(result)
        result.append(replace(first or nothing, inputs=tuple(sorted(inputs)), several=second or nothing))
    return OpGraph(ops=tuple(result), polynomials=tuple(polynomials), breaks=breaks, masks=masks)


def _at_sizes(
    capture: Capture, role: Role, breaks: tuple[int, ...], masks: tuple[Mask, ...], polynomials: Polynomials
) -> Op | None:
    """The op of a role with its costs in more pieces and with more masks, without inputs; None if the capture lacks it."""
    if role not in capture.index:
        return None
    graph = capture.graph
    op = graph.ops[capture.index[role]]
    pieces = [at_breaks(graph.polynomials[cost], graph.breaks, breaks) for cost in op.costs]
    costs = (with_masks(each, graph.masks, masks) for each in pieces)
    return replace(op, costs=tuple(map(polynomials.number, costs)), inputs=())


def _roles_in_order(one: Capture, several: Capture) -> Iterator[Role]:
    """The roles of both captures, in the order of each. Raises ConfigError if their orders contradict each other."""
    at = 0
    for role in one.roles:
        if role in several.index:
            while several.roles[at] != role:
                if several.roles[at] in one.index:
                    message = f"expected sequence: {role[0]!r} at {role[2]} is no kernel for several"
                    raise ConfigError("mapping.attention", message)
                yield several.roles[at]
                at += 1
            at += 1
        yield role
    yield from several.roles[at:]
