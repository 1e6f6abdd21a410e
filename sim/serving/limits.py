"""Checks that every request of a workload can be served within the limits of its batching."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sim.base.errors import ConfigError
from sim.base.units import ceil_div, format_bytes
from sim.serving.batching import ResolvedBatching
from sim.workload.requests import Request


def check_feasible(batching: ResolvedBatching, requests: Sequence[Request], token_bytes: int) -> None:
    """Raises ConfigError for a request that could never be served. token_bytes: of the KV cache of one token."""
    groups = Counter(request.group for request in requests if request.group >= 0)
    for group, samples in groups.items():
        first = next(request for request in requests if request.group == group)
        _check_samples(batching, first, samples, token_bytes)
    for number, request in enumerate(requests):
        blocks = ceil_div(request.final, batching.settings.kv.block)
        if batching.blocks is not None and blocks > batching.blocks:
            raise ConfigError(
                "workload.batching.kv",
                f"sequence {number} ends with {request.final:,} tokens in {_size(batching, blocks, token_bytes)}, "
                f"more than the {_size(batching, batching.blocks, token_bytes)} of the KV cache",
            )
        _check_budget(batching, number, request)


def _check_samples(batching: ResolvedBatching, request: Request, samples: int, token_bytes: int) -> None:
    """Check that so many samples of a request's prompt fit a step and the KV cache, which hold all of them at once."""
    if samples > batching.sequences:
        message = f"expected at most max_batch {batching.sequences} samples, found {samples}"
        raise ConfigError("workload.sequences", message)
    shared = request.context + request.prompt
    full, final = shared // batching.settings.kv.block, max(request.final, shared)
    blocks = full + samples * (ceil_div(final, batching.settings.kv.block) - full)
    if batching.blocks is not None and blocks > batching.blocks:
        raise ConfigError(
            "workload.batching.kv",
            f"{samples} samples of one prompt end in {_size(batching, blocks, token_bytes)}, more than the "
            f"{_size(batching, batching.blocks, token_bytes)} of the KV cache",
        )


def _check_budget(batching: ResolvedBatching, number: int, request: Request) -> None:
    """Check that a prefill that is not cut into chunks fits the token budget of a step."""
    again = batching.settings.kv.full == "recompute" and batching.blocks is not None
    whole = request.final if again else request.prompt
    most = batching.settings.max_tokens
    if most is not None and batching.prefill.chunk is None and whole > most:
        raise ConfigError(
            "workload.batching.max_tokens",
            f"expected at least {whole}, because sequence {number} is prefilled as a whole"
            f"{' even after it was dropped' if again else ''}, found {most}; chunks would fit",
        )


def _size(batching: ResolvedBatching, blocks: int, token_bytes: int) -> str:
    tokens = blocks * batching.settings.kv.block
    return f"{blocks:,} block{'s' if blocks > 1 else ''} ({tokens:,} tokens, {format_bytes(tokens * token_bytes)})"
