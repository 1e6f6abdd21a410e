"""Requests, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

#: Largest number of requests of a run, of tokens in a cache or a prompt, and of tokens to decode.
MAX_REQUESTS, MAX_CONTEXT, MAX_TOKENS = 100_000, 100_000_000, 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. It arrives at `arrival` ps with `context` tokens in its KV cache and feeds in `prompt` more, the last of
    which gives its first token; without a prompt the first token comes from the next step, as all others do.

    tokens: output tokens in all. group: requests of one group (>= 0) are samples of one prompt, and share its KV cache.
    conversation: requests of one conversation (>= 0) are its turns, one after another. prefix: ids of the blocks that its
    prompt begins with; prompts that begin alike begin with the same ids. prefix_tokens: tokens of each of
    these blocks, of which the last may have fewer; 0 if that is not known.
    """

    context: int
    tokens: int
    arrival: int
    prompt: int = 0
    group: int = -1
    conversation: int = -1
    prefix: tuple[int, ...] = ()
    prefix_tokens: int = 0

    @property
    def final(self) -> int:
        """Tokens in its KV cache when it ends: the last output token is never fed in."""
        return self.context + (self.prompt - 1 if self.prompt else 0) + self.tokens
