"""Random draws by counter, inside kernels: Philox 4x64 with ten rounds (Salmon and others, SC 2011), as NumPy has it.

A draw is a function of a key of two words and of its number, so it does not depend on what else was drawn, or when. The raw
stream is that of `numpy.random.Philox(key=[first, second])`, which NumPy promises to keep.

Words are integers modulo 2^64: a Python integer may be larger or the compiled one negative where the other is not, but they
agree in their 64 lowest bits, and masks and sums ask for no others. So a product of two halves of 32 bits may pass int64 here.
"""

from __future__ import annotations

from typing import Any

from sim.base.kernel import kernel, small

LOW = 0xFFFFFFFF
ROUNDS = 10

# Multipliers, as halves, and the words that are added to the key after each round
FIRST_HIGH, FIRST_LOW = 0xD2E7470E, 0xE14C6C93
SECOND_HIGH, SECOND_LOW = 0xCA5A8263, 0x95121157
WEYL_FIRST = 0x9E3779B97F4A7C15 - 2**64
WEYL_SECOND = 0xBB67AE8584CAA73B - 2**64


@small
@kernel
def product(a: int, high: int, low: int) -> tuple[int, int]:
    """The two words of a word times a constant, which is given as halves: first the higher one."""
    a1, a0 = (a >> 32) & LOW, a & LOW
    lowest = a0 * low
    middle = a1 * low + ((lowest >> 32) & LOW)  # at most (2^32 - 1) 2^32
    other = a0 * high + (middle & LOW)
    upper = a1 * high + ((middle >> 32) & LOW) + ((other >> 32) & LOW)
    return upper, ((other & LOW) << 32) | (lowest & LOW)


@kernel
def four_draws(words: Any, first: int, second: int, counter: int) -> None:
    """Write draws 4 (counter - 1) to 4 counter - 1 as halves of 32 bits, of each the higher one first; counter >= 1."""
    a, b, c, d = counter, 0, 0, 0
    for _ in range(ROUNDS):
        high, low = product(a, FIRST_HIGH, FIRST_LOW)
        higher, lower = product(c, SECOND_HIGH, SECOND_LOW)
        a, b, c, d = higher ^ b ^ first, lower, high ^ d ^ second, low
        first += WEYL_FIRST
        second += WEYL_SECOND
    words[0], words[1] = (a >> 32) & LOW, a & LOW
    words[2], words[3] = (b >> 32) & LOW, b & LOW
    words[4], words[5] = (c >> 32) & LOW, c & LOW
    words[6], words[7] = (d >> 32) & LOW, d & LOW


@small
@kernel
def highest_bits(words: Any, draw: int) -> int:
    """The 53 highest bits of one of four draws: over 2^53 they are a number from 0 up to below 1."""
    high, low = words[2 * draw], words[2 * draw + 1]
    bits: int = (high << 21) | (low >> 11)
    return bits
