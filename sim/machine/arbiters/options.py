"""Reading the options of an arbiter: plain data from a scenario, wrong ones a ValueError."""

from __future__ import annotations

from sim.base.quantities import show


def expected(name: str, what: str, found: object) -> ValueError:
    """The error for an option that cannot be used."""
    return ValueError(f"{name}: expected {what}, found {show(found)}")


def switch(name: str, value: object) -> bool:
    """An option that is on or off."""
    if not isinstance(value, bool):
        raise expected(name, "true or false", value)
    return value


def at_least_one(name: str, value: object) -> int:
    """A whole number from 1 on; it may be written `1e3`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise expected(name, "a whole number from 1 on", value)
    return value
