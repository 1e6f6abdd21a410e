"""Random requests: arrivals by a renewal process, lengths from distributions.

Each quantity has its own random stream: changing the distribution of prompts changes neither arrivals nor output lengths, and
request k does not depend on the number of requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import accumulate, repeat
from typing import Any

from sim.base.distributions import Stream, exact, lognormal_parameters, rounded
from sim.base.units import PS_PER_S
from sim.workload.requests import MAX_CONTEXT, MAX_TOKENS, Request
from sim.workload.settings import Arrivals, Generate, Lengths

MICRO = 10**6  # rates count requests per 10^6 s


def generate(wanted: Generate, seed: int) -> list[Request]:
    """The requests, in order of arrival; the first arrives at 0. Those of conversations: one conversation after another.

    Samples of a prompt follow each other.
    """
    count = wanted.count * wanted.turns
    prompt, context, tokens = (
        _lengths(getattr(wanted, name), most, Stream(seed, name), count)
        for name, most in (("prompt", MAX_CONTEXT), ("context", MAX_CONTEXT), ("tokens", MAX_TOKENS))
    )
    found = [
        Request(arrival=arrival, context=c, prompt=p, tokens=t)
        for arrival, c, p, t in zip(arrival_times(wanted.arrivals, seed, count), context, prompt, tokens, strict=True)
    ]
    if wanted.turns > 1 or wanted.prefixes is not None:
        found = list(_in_turns(found, wanted, Stream(seed, "prefixes")))
    if wanted.samples == 1:
        return found
    return [replace(request, group=number) for number, request in enumerate(found) for _ in range(wanted.samples)]


def _in_turns(requests: Sequence[Request], wanted: Generate, stream: Stream) -> Iterator[Request]:
    """The same requests with a beginning and all turns before in their prompts."""
    before, begins = 0, dict[str, Any]()
    for number, request in enumerate(requests):
        if number % wanted.turns == 0:
            before = 0 if wanted.prefixes is None else wanted.prefixes.tokens
            if wanted.prefixes is not None:
                begins = {"prefix": (stream.whole(0, wanted.prefixes.count - 1),), "prefix_tokens": before}
        prompt, conversation = before + request.prompt, number // wanted.turns if wanted.turns > 1 else -1
        yield replace(request, prompt=prompt, conversation=conversation, **begins)
        before = prompt + request.tokens


def arrival_times(wanted: Arrivals, seed: int, count: int) -> Iterator[int]:
    """Arrival times in ps. Gaps are independent, with mean 1/rate and a standard deviation of `cv` times that."""
    if wanted.process == "all_at_once":
        return repeat(0, count)
    assert wanted.rate is not None
    if wanted.process == "constant":
        return (k * PS_PER_S * MICRO // wanted.rate for k in range(count))
    stream, mean = Stream(seed, "arrivals"), Decimal(PS_PER_S * MICRO) / Decimal(wanted.rate)
    if wanted.process == "poisson":
        gaps = (rounded(mean * stream.exponential()) for _ in range(count - 1))
    else:
        square = exact(wanted.cv) ** 2
        gaps = (rounded(mean * square * stream.gamma(1 / square)) for _ in range(count - 1))
    return accumulate(gaps, initial=0)


def _lengths(wanted: int | Lengths, most: int, stream: Stream, count: int) -> Iterator[int]:
    """Numbers of tokens. Lognormal values outside of the bounds are set to the bound."""
    if isinstance(wanted, int):
        return repeat(wanted, count)
    low, high = wanted.bounds[0], min(wanted.bounds[1], most)
    if wanted.distribution == "constant":
        return repeat(wanted.value or 0, count)
    if wanted.distribution == "uniform":
        return (stream.whole(low, high) for _ in range(count))
    mu, sigma = lognormal_parameters(median=wanted.median, mean=wanted.mean, sigma=wanted.sigma, tail=wanted.tail)
    return (min(max(rounded(stream.lognormal(mu, sigma)), low), high) for _ in range(count))
