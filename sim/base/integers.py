"""Integer arithmetic that is exact where int64 would overflow: compiled code wraps in silence, Python does not.

Every quantity of a simulation is a non-negative int64 below 2^62. Products of two are formed here in two words of 32 bits
each, and divided again; as plain Python the same code gives the same numbers.
"""

from __future__ import annotations

from sim.base.kernel import kernel

LOW32 = 0xFFFFFFFF
LARGEST = 2**62  # of every quantity that enters a simulation
SMALL = 2**31  # the product of two that are below fits
MIDDLING = 2**42  # times 2^20, what is below fits


@kernel
def ceil_div(a: int, b: int) -> int:
    """The quotient rounded up; a >= 0, b > 0."""
    return (a + b - 1) // b


@kernel
def greatest_divisor(a: int, b: int) -> int:
    """The greatest common divisor of two non-negative integers."""
    while b:
        a, b = b, a % b
    return a


@kernel
def product_high(a: int, b: int) -> int:
    """The product's bits from 62 on; a, b in [0, 2^62)."""
    a1, a0, b1, b0 = a >> 31, a & 0x7FFFFFFF, b >> 31, b & 0x7FFFFFFF
    low = a0 * b0
    middle = a1 * b0 + (low >> 31)  # below 2^62
    carry = (middle & 0x7FFFFFFF) + ((a0 * b1) & 0x7FFFFFFF)
    return a1 * b1 + (middle >> 31) + ((a0 * b1) >> 31) + (carry >> 31)


@kernel
def product_low(a: int, b: int) -> int:
    """The product's lowest 62 bits; a, b in [0, 2^62)."""
    a1, a0, b1, b0 = a >> 31, a & 0x7FFFFFFF, b >> 31, b & 0x7FFFFFFF
    low = a0 * b0
    middle = ((a1 * b0) & 0x7FFFFFFF) + ((a0 * b1) & 0x7FFFFFFF) + (low >> 31)
    return ((middle & 0x7FFFFFFF) << 31) | (low & 0x7FFFFFFF)


@kernel
def mul_div(a: int, b: int, c: int) -> int:
    """floor(a * b / c), whatever the product; a, b in [0, 2^62), c in [1, 2^62), and the quotient below 2^62."""
    if a < SMALL and b < SMALL:
        return a * b // c
    high, low = product_high(a, b), product_low(a, b)
    if high == 0:
        return low // c
    # Long division, by as many bits at a time as leave what is divided below 2^62; high < c, or the quotient would not fit.
    quotient, rest, bit = 0, high % c, 62
    digit = 20 if c < MIDDLING else 1
    while bit > 0:
        bits = min(digit, bit)
        bit -= bits
        rest = (rest << bits) | ((low >> bit) & ((1 << bits) - 1))
        quotient = (quotient << bits) | rest // c
        rest %= c
    return quotient


@kernel
def mul_div_up(a: int, b: int, c: int) -> int:
    """ceil(a * b / c), within the bounds of `mul_div`."""
    if a < SMALL and b < SMALL:
        return (a * b + c - 1) // c
    quotient = mul_div(a, b, c)
    exact = product_high(quotient, c) == product_high(a, b) and product_low(quotient, c) == product_low(a, b)
    return quotient if exact else quotient + 1
