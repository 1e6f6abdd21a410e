"""Decode with chunked attention: a token sees those of its own chunk, so that costs begin anew with each chunk.

Llama 4 attends in most layers within chunks of C = 8,192 tokens. A step that decodes one token at context N sees N mod C + 1
tokens, its own included. transformers keeps and multiplies the last C - 1 cached tokens, like those of a window, and masks what
is not of the chunk. So costs captured as a + b N below the break, and a + b (C - 1) beyond it, become a + b (N mod C).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from models.graph import MONOMIALS, OpGraph, Polynomial
from models.masks import CHUNKED, Mask
from models.polynomials import Pieces, with_masks

#: Constant terms and those that grow with the context, alone and in proportion to the batch.
_CONSTANT, _GROWING = ([MONOMIALS.index((batch, 0, n)) for batch in (0, 1)] for n in (0, 1))


def in_chunks(graph: OpGraph) -> OpGraph:
    """A captured graph with a term for the place within a chunk; itself if its steps feed in several tokens.

    Its one break is that of the chunks. The term is the number of tokens that a new one sees (see `models.masks`).
    """
    of_query = [i for i, (_, query, _) in enumerate(MONOMIALS) if query]
    if len(graph.breaks) != 1 or graph.masks or graph.table[:, :, of_query].any():
        return graph
    last = graph.breaks[0]
    mask = Mask(CHUNKED, last + 1)
    polynomials = [_periodic(with_masks(pieces, (), (mask,)), last) for pieces in graph.polynomials]
    if any(pieces[0] != pieces[1] for pieces in polynomials):
        return replace(graph, polynomials=tuple(polynomials), masks=(mask,))
    return replace(graph, polynomials=tuple(pieces[:1] for pieces in polynomials), masks=(mask,), breaks=())


def _periodic(pieces: Pieces, last: int) -> Pieces:
    """The same costs by the place within a chunk, if they stop growing at the `last` of its tokens; else as they are."""
    below, beyond = pieces
    if below == beyond or _frozen(below, last) != beyond:
        return pieces
    changed = list(below)
    for number, (constant, growing) in enumerate(zip(_CONSTANT, _GROWING, strict=True)):
        rate, changed[growing] = changed[growing], 0
        changed[constant] -= rate  # the mask counts the new token, too
        changed[len(MONOMIALS) + number] += rate
    return (tuple(changed), tuple(changed))


def _frozen(piece: Sequence[int], context: int) -> Polynomial:
    """The polynomial with N held at `context`."""
    changed = list(piece)
    for constant, growing in zip(_CONSTANT, _GROWING, strict=True):
        rate, changed[growing] = changed[growing], 0
        changed[constant] += rate * context
    return tuple(changed)
