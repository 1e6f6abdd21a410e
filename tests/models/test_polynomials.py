"""Numbers and sums of piecewise polynomials."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from models.graph import MONOMIALS
from models.polynomials import Pieces, Polynomials, added, at_breaks, each_term

BREAKS = (10, 200)
PIECES = st.tuples(*[st.tuples(*[st.integers(-3, 3)] * len(MONOMIALS))] * (len(BREAKS) + 1))


def value(pieces: Pieces, breaks: tuple[int, ...], context: int) -> int:
    """At B = 2 and Q = 3, term by term."""
    piece = pieces[len([b for b in breaks if b <= context])]
    return sum(c * 2**b * 3**q * context**n for c, (b, q, n) in zip(piece, MONOMIALS, strict=True))


@given(st.lists(PIECES, max_size=3, unique=True), st.lists(PIECES, max_size=6))
def test_equal_polynomials_have_one_number_and_known_ones_keep_theirs(known: list[Pieces], others: list[Pieces]) -> None:
    polynomials = Polynomials(known)
    numbers = [polynomials.number(each) for each in others]
    assert list(polynomials)[: len(known)] == known
    assert [polynomials[number] for number in numbers] == others
    assert len(set(polynomials)) == len(list(polynomials))


@given(st.lists(PIECES, min_size=1, max_size=3), st.sampled_from([0, 9, 10, 77, 199, 200, 5000]))
def test_sums_and_terms(parts: list[Pieces], context: int) -> None:
    total = value(added(parts), BREAKS, context)
    assert total == sum(value(each, BREAKS, context) for each in parts)
    assert value(each_term(lambda term: -2 * term, added(parts)), BREAKS, context) == -2 * total


@given(PIECES, st.sampled_from([0, 9, 10, 55, 56, 199, 200, 700, 701]))
def test_more_breaks_change_no_value(pieces: Pieces, context: int) -> None:
    finer = (10, 56, 200, 701)
    assert value(at_breaks(pieces, BREAKS, finer), finer, context) == value(pieces, BREAKS, context)
