"""What is asked of the machine: requests, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

#: The most requests of a run, tokens in a cache or a prompt, and tokens to decode.
MAX_REQUESTS, MAX_CONTEXT, MAX_TOKENS = 100_000, 100_000_000, 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. It arrives at `arrival` ps with `context` tokens in its KV cache and feeds in `prompt` more, the last of
    which gives its first token; without a prompt the first token comes from the next step, as all others do.

    tokens: output tokens in all.
    """

    context: int
    tokens: int
    arrival: int
    prompt: int = 0
