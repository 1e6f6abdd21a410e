"""Piecewise polynomials in batch, query and context (see `models.graph`) as plain tuples, numbered within a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from models.graph import MONOMIALS, Polynomial, terms
from models.masks import Mask

#: A polynomial for each piece of the context.
Pieces = tuple[Polynomial, ...]


class Polynomials:
    """Distinct piecewise polynomials, numbered in the order in which they are added; iterates over them in that order.

    known: polynomials that have numbers already, such as those of a graph that is rewritten.
    """

    def __init__(self, known: Iterable[Pieces] = ()) -> None:
        self._pieces = list(known)
        self._numbers = {pieces: number for number, pieces in enumerate(self._pieces)}

    def __iter__(self) -> Iterator[Pieces]:
        return iter(self._pieces)

    def __getitem__(self, number: int) -> Pieces:
        return self._pieces[number]

    def number(self, pieces: Pieces) -> int:
        """Return the number of a polynomial, a new one if it has none yet."""
        number = self._numbers.setdefault(pieces, len(self._pieces))
        if number == len(self._pieces):
            self._pieces.append(pieces)
        return number


def zero(breaks: Sequence[int], masks: Sequence[Mask]) -> Pieces:
    """The polynomial that is 0 everywhere, for a graph with these breaks and masks."""
    return ((0,) * terms(masks),) * (len(breaks) + 1)


def each_term(change: Callable[[int], int], pieces: Pieces) -> Pieces:
    """The polynomial with every coefficient changed."""
    return tuple(tuple(change(term) for term in piece) for piece in pieces)


def added(polynomials: Iterable[Pieces]) -> Pieces:
    """The sum of polynomials with the same breaks."""
    return tuple(tuple(map(sum, zip(*pieces, strict=True))) for pieces in zip(*polynomials, strict=True))


def at_breaks(pieces: Pieces, breaks: tuple[int, ...], finer: tuple[int, ...]) -> Pieces:
    """The same polynomial in more pieces. finer: ascending, all of `breaks` among them."""
    if breaks == finer:
        return pieces
    return tuple(pieces[sum(b <= start for b in breaks)] for start in (0, *finer))


def with_masks(pieces: Pieces, masks: Sequence[Mask], wanted: Sequence[Mask]) -> Pieces:
    """The same polynomial in a graph of more masks. wanted: distinct, all of `masks` among them."""
    if tuple(masks) == tuple(wanted):
        return pieces
    first = [len(MONOMIALS) + 2 * masks.index(mask) if mask in masks else -1 for mask in wanted]
    return tuple(
        (*piece[: len(MONOMIALS)], *(term for at in first for term in (piece[at : at + 2] if at >= 0 else (0, 0))))
        for piece in pieces
    )


def unchosen(pieces: Pieces) -> Pieces:
    """The bytes of all rows of a layer, from those that are read where an indexer chooses some of them.

    It changes what is read where a piece begins from which on not all rows are: of a compressed cache, one where the terms of
    its rows differ from those before, while its window may end at others.
    """
    compressed = any(any(piece[len(MONOMIALS) :]) for piece in pieces)
    first = len(MONOMIALS) if compressed else 0
    left = [0] * len(pieces[0])  # what later pieces lack, by term
    made = [pieces[0]]
    for before, after in pairwise(pieces):
        if before[first:] != after[first:]:
            left = [each + old - new for each, old, new in zip(left, before, after, strict=True)]
        made.append(tuple(term + each for term, each in zip(after, left, strict=True)))
    return tuple(made)
