"""Hand-over by layers: each layer sends what another device needs of its cache, as soon as it has stored it.

| layer                                              | sends                                                               |
| -------------------------------------------------- | ------------------------------------------------------------------- |
| that keeps a row of each token                     | in each step the rows that it stores there                          |
| with a window, chunks, a state or compressed rows  | in the step that ends the prompt all that it keeps, behind its store |

Rows that leave the window before the prompt ends are sent by none, and a state that later tokens change is sent once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from models.graph import MONOMIALS, QUANTITIES, Op, OpGraph
from models.polynomials import Pieces, Polynomials, at_breaks, unchosen, with_masks, zero

ACT_WRITE = QUANTITIES.index("act_write")

#: Ops that store rows of a KV cache or a state: the op that sends these, the bytes that are stored, and those of all that is
#: kept.
STORES = {
    f"{name}_store": (f"{name}_send", QUANTITIES.index(f"{name}_write"), QUANTITIES.index(f"{name}_read"))
    for name in ("kv", "state")
}

#: Part of an op that sends all that its layer keeps, in the step that ends the prompt.
KEPT = "kept"

#: The term of a polynomial that grows with the context alone.
BY_CONTEXT = MONOMIALS.index((0, 0, 1))


def kept_rows(ops: OpGraph) -> dict[tuple[str, int], Pieces]:
    """By (`kv` or `state`, layer that stores it): the bytes of all that is kept of the cache, at its tokens as the context.

    ops: a step of one sequence with several new tokens. Of one new token a load may have terms of what that token sees.
    """
    stored = {(op.kind.removesuffix("_store"), op.layer) for op in ops.ops if op.kind in STORES}
    found: dict[tuple[str, int], Pieces] = {}
    for op in ops.ops:
        name = op.kind.removesuffix("_load")
        if name != op.kind and (name, op.layer) in stored:  # not where a layer reads the cache of another
            pieces = ops.polynomials[op.costs[STORES[f"{name}_store"][2]]]
            found[name, op.layer] = unchosen(pieces) if op.part == "chosen" else pieces
    return found


def appending(ops: OpGraph) -> set[int]:
    """The layers that keep a row of each token. ops: as in `kept_rows`."""
    return {layer for (_, layer), pieces in kept_rows(ops).items() if all(map(_is_linear, pieces)) and len({*pieces}) == 1}


def _is_linear(piece: tuple[int, ...]) -> bool:
    return all(term == 0 for number, term in enumerate(piece) if number != BY_CONTEXT)


def with_sends(ops: OpGraph, several: OpGraph) -> OpGraph:
    """The op graph in which each store is followed by the sending of what is needed elsewhere; no op needs that.

    several: the step of one sequence with several new tokens.
    """
    return _Sends(ops, several).graph()


class _Sends:
    """Collects the ops. place: [op], its index here."""

    def __init__(self, ops: OpGraph, several: OpGraph) -> None:
        self.whole, self.several = ops, several
        self.kept, self.rows = kept_rows(several), appending(several)
        self.breaks = tuple(sorted({*ops.breaks, *several.breaks}))
        self.masks = tuple(dict.fromkeys((*ops.masks, *several.masks)))
        self.polynomials = Polynomials(self._here(ops, pieces) for pieces in ops.polynomials)
        self.nothing = self.polynomials.number(zero(self.breaks, self.masks))

    def _here(self, of: OpGraph, pieces: Pieces) -> Pieces:
        """A polynomial of a graph with the breaks and masks of both."""
        return with_masks(at_breaks(pieces, of.breaks, self.breaks), of.masks, self.masks)

    def graph(self) -> OpGraph:
        place, made = list[int](), list[Op]()
        number = [self.polynomials.number(self._here(self.whole, pieces)) for pieces in self.whole.polynomials]
        for op in self.whole.ops:
            place.append(len(made))
            made.append(replace(op, inputs=tuple(place[j] for j in op.inputs), costs=tuple(number[cost] for cost in op.costs)))
            made += self._sent(made[-1], place[-1])
        polynomials = tuple(self.polynomials)
        return replace(self.whole, ops=tuple(made), polynomials=polynomials, breaks=self.breaks, masks=self.masks)

    def _sent(self, op: Op, at: int) -> Iterator[Op]:
        """The op that follows one at an index here: it sends what that has stored, or all that its layer keeps."""
        if op.kind not in STORES:
            return
        kind, stored, _ = STORES[op.kind]
        rows = op.layer in self.rows
        size = op.costs[stored] if rows else self._number(op)
        costs = tuple(size if quantity == ACT_WRITE else self.nothing for quantity in range(len(QUANTITIES)))
        yield replace(op, kind=kind, part=op.part if rows else KEPT, inputs=(at,), costs=costs, shape=())

    def _number(self, op: Op) -> int:
        return self.polynomials.number(self._here(self.several, self.kept[op.kind.removesuffix("_store"), op.layer]))
