"""The contract of a batching policy: which waiting request joins the batch next.

A decode loop asks before each step, again and again, until the answer is None or the request it names does not fit (the most
sequences of a batch, blocks of the KV cache). All else is up to the batcher: token budget, prefill chunks, drafts, pre-emption.
A policy decides from what it is asked, never from a clock or a random number, and changes nothing that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sim.workload.requests import Request


class Waiting(Protocol):
    """A waiting request.

    number: its place in the workload. cached: tokens in its KV cache. pending: tokens to prefill before it decodes, more than
    its prompt if it was pre-empted. generated: output tokens that it has, above 0 only if it was pre-empted.
    """

    @property
    def number(self) -> int: ...
    @property
    def request(self) -> Request: ...
    @property
    def cached(self) -> int: ...
    @property
    def pending(self) -> int: ...
    @property
    def generated(self) -> int: ...


class BatchingPolicy(Protocol):
    """See the module for the contract.

    alone: each request is served in a loop of its own, which asks for that request only; otherwise one loop serves all.
    """

    alone: bool

    def choose(self, waiting: Sequence[Waiting], running: int) -> int | None:
        """The index in `waiting`, in order of arrival with pre-empted requests first and never empty, of the request to admit.

        running: sequences that are left of the step before. None: admit no more before this step. Samples of one prompt join
        with the first of them.
        """
        ...
