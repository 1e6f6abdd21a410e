"""Checks that every request of a workload can be served within the limits of its batching."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sim.base.errors import ConfigError
from sim.base.units import format_bytes
from sim.serving.batching import ResolvedBatching
from sim.serving.blocks import bytes_of_samples
from sim.workload.requests import Request


def check_feasible(batching: ResolvedBatching, requests: Sequence[Request]) -> None:
    """Raises ConfigError for a request that could never be served."""
    groups = Counter(request.group for request in requests if request.group >= 0)
    for group, samples in groups.items():
        first = next(request for request in requests if request.group == group)
        _check_samples(batching, first, samples)
    for number, request in enumerate(requests):
        _check_pages(batching, number, request)
        _check_budget(batching, number, request)


def _check_pages(batching: ResolvedBatching, number: int, request: Request) -> None:
    """Check that the KV cache has pages for all that a request ever holds."""
    cached, pending = (0, request.final) if batching.prefills_again else (request.context, request.prompt)
    held = batching.layout.held_in_all(cached, request.final, batching.at_once(pending))
    if batching.capacity is None or held <= batching.capacity:
        return
    decoding = batching.layout.held_in_all(cached, request.final, batching.at_once(0))
    advice = "; smaller chunks of its prompt would fit" if decoding <= batching.capacity else ""
    most = "and takes up to" if batching.layout.windowed else "in"  # with windows the end may not take the most
    raise ConfigError(
        "workload.batching.kv",
        f"sequence {number} ends with {request.final:,} tokens {most} {_size(batching, held)}, "
        f"more than the {_size(batching, batching.capacity)} of the KV cache{advice}",
    )


def _check_samples(batching: ResolvedBatching, request: Request, samples: int) -> None:
    """Check that so many samples of a request's prompt fit a step and the KV cache, which hold all of them at once."""
    if samples > batching.sequences:
        message = f"expected at least {samples}, the samples of a prompt, which decode together; found {batching.sequences}"
        raise ConfigError("workload.batching.max_batch", message)
    held = bytes_of_samples(batching, request, samples)
    if batching.capacity is not None and held > batching.capacity:
        raise ConfigError(
            "workload.batching.kv",
            f"{samples} samples of one prompt end in {_size(batching, held)}, more than the "
            f"{_size(batching, batching.capacity)} of the KV cache",
        )


def _check_budget(batching: ResolvedBatching, number: int, request: Request) -> None:
    """Check that a prefill that is not cut into chunks fits the token budget of a step."""
    again = batching.prefills_again
    whole = request.final if again else request.prompt
    most = batching.settings.max_tokens
    if most is not None and batching.prefill.chunk is None and whole > most:
        raise ConfigError(
            "workload.batching.max_tokens",
            f"expected at least {whole}, because sequence {number} is prefilled as a whole"
            f"{' even after it was dropped' if again else ''}, found {most}; chunks would fit (workload.prefill.chunk)",
        )


def _size(batching: ResolvedBatching, size: int) -> str:
    """A number of bytes to read, with what it is in blocks and tokens where all layers keep the same tokens."""
    layout = batching.layout
    if len(layout.groups) != 1 or layout.state or layout.keeps_states:
        return format_bytes(size)
    blocks = size // (layout.block * layout.token_bytes)
    tokens = blocks * layout.block
    return f"{blocks:,} block{'s' if blocks > 1 else ''} ({tokens:,} tokens, {format_bytes(tokens * layout.token_bytes)})"
