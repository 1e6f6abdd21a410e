"""The rule by which the SRAM of a device is given to requests. A pure function on integers, for both executors."""

from __future__ import annotations

from sim.base.kernel import kernel, small


@small
@kernel
def may_be_admitted(size: int, free: int, last: int, oldest: int) -> bool:
    """Whether a request of a loop gets its bytes, once no older one of the queue does.

    It does if they are free, unless the loop has passed the oldest request already: none passes the same one twice, so that
    it is passed by each other loop once at most, and from then on SRAM only empties until it fits.

    size, free: bytes. last: the age of the loop's request before, 0 if it is its first. oldest: the age of the oldest request
    in the queue. An age is the number of requests that were made before.
    """
    return size <= free and last <= oldest
