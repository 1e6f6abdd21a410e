"""Draws by counter are NumPy's, as plain Python and compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.base.kernel import launch
from sim.base.philox import four_draws, highest_bits

words = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1])


def signed(word: int) -> int:
    """The int64 of the same bits."""
    return word - 2**64 if word >= 2**63 else word


def raw(first: int, second: int, count: int) -> np.ndarray[Any, Any]:
    return np.random.Philox(key=np.array([first, second], dtype=np.uint64)).random_raw(count)


def drawn(first: int, second: int, blocks: int, *, compiled: bool) -> np.ndarray[Any, Any]:
    halves = np.zeros((blocks, 8), dtype=np.int64)
    four = launch(four_draws, compiled=compiled)
    for number in range(blocks):
        four(halves[number], signed(first), signed(second), number + 1)
    pairs = halves.astype(np.uint64).reshape(-1, 2)
    return (pairs[:, 0] << np.uint64(32)) | pairs[:, 1]


@pytest.mark.parametrize("compiled", [False, True])
@settings(max_examples=150, deadline=None)
@given(first=words, second=words, blocks=st.integers(1, 5))
def test_the_raw_stream_is_that_of_numpy(first: int, second: int, blocks: int, compiled: bool) -> None:
    expected = raw(first, second, 4 * blocks)
    assert drawn(first, second, blocks, compiled=compiled).tolist() == expected.tolist()


@settings(max_examples=50, deadline=None)
@given(first=words, second=words)
def test_the_highest_bits_are_those_of_a_float(first: int, second: int) -> None:
    halves = np.zeros(8, dtype=np.int64)
    launch(four_draws, compiled=False)(halves, signed(first), signed(second), 1)
    found = [launch(highest_bits, compiled=False)(halves, draw) for draw in range(4)]
    assert found == (raw(first, second, 4) >> np.uint64(11)).tolist()
