"""Numbers and sums of piecewise polynomials."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from models.graph import MONOMIALS
from models.masks import CAUSAL, CHUNKED, WINDOW, Mask
from models.polynomials import Pieces, Polynomials, added, at_breaks, each_term, with_masks

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


MASKS = (Mask(CAUSAL), Mask(WINDOW, 5), Mask(CHUNKED, 5))


@given(st.permutations(MASKS), st.integers(0, 3), st.data())
def test_more_masks_change_no_term(wanted: list[Mask], count: int, data: st.DataObject) -> None:
    """Terms of a mask go where it stands among the others; those of masks that were not there are 0."""
    masks = data.draw(st.permutations(wanted))[:count]
    width = len(MONOMIALS) + 2 * count
    pieces = data.draw(st.tuples(*[st.tuples(*[st.integers(-3, 3)] * width)] * 2))
    for old, new in zip(pieces, with_masks(pieces, masks, wanted), strict=True):
        assert new[: len(MONOMIALS)] == old[: len(MONOMIALS)]
        assert len(new) == len(MONOMIALS) + 2 * len(wanted)
        before = {mask: old[len(MONOMIALS) + 2 * i :][:2] for i, mask in enumerate(masks)}
        assert {mask: new[len(MONOMIALS) + 2 * i :][:2] for i, mask in enumerate(wanted)} == {
            mask: before.get(mask, (0, 0)) for mask in wanted
        }
