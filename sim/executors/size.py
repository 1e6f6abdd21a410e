"""Estimate the task count of a run, which its time, memory and trace are in proportion to; and count its progress."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

from sim.base.units import ceil_div
from sim.executors.setup import Progress, Setup
from sim.mapping.steps import Shape
from sim.workload.requests import Request

#: Called with the output tokens so far, those in all, and the picosecond at which the last of them came.
OnProgress = Callable[[int, int, int], None]

#: New tokens of a large step: algorithms of collectives may differ from those of one token.
MANY_TOKENS = 2**20


class Counter:
    """A progress callback that reports cumulative counts."""

    def __init__(self, setup: Setup, on_progress: OnProgress) -> None:
        self._on_progress, self._done = on_progress, 0
        self._in_all = sum(request.tokens for request in setup.sequences)

    def __call__(self, tokens: int, now: int) -> None:
        self._done += tokens
        self._on_progress(self._done, self._in_all, now)


def counted(setup: Setup, on_progress: OnProgress | None) -> Progress | None:
    """A progress callback that reports cumulative counts to `on_progress`; None if there is no such callback."""
    return None if on_progress is None else Counter(setup, on_progress)


def prefills(request: Request, setup: Setup) -> int:
    """Number of steps that the prompt of a request takes."""
    if not request.prompt or setup.batching is None:
        return 0
    return setup.batching.chunks_of(request.prompt)


def tasks_in_all(setup: Setup) -> tuple[int, int]:
    """Estimate the fewest and the most tasks of a run. They are equal, and exact, where each step is one token of one sequence.

    One more sequence in a step adds tasks of its own and shares the others: there are fewest tasks where steps are as full as
    they may be and all drafts are accepted, most where sequences never share a step and no draft is accepted. Swaps,
    moves of blocks, prefills after a preemption, chunks that a prefix cache saves, and those that the draft model takes in are
    not counted.
    """
    one, batching = len(setup.graph), setup.batching
    if batching is None or setup.graphs is None:
        exact = one * sum(request.tokens for request in setup.sequences)
        return exact, exact
    guessed = 1 + (batching.speculation.draft if batching.speculation is not None else 0)
    fewest, most = list[int](), list[int]()
    prompts = set[int]()  # groups whose prompt has been prefilled: by one of its samples, for all
    for request in setup.sequences:
        own = 0 if request.group in prompts else prefills(request, setup)
        prompts |= {request.group} - {-1}
        decoded = request.tokens - (request.prompt > 0)  # a prompt gives the first
        fewest.append(own + ceil_div(decoded, guessed))
        most.append(own + decoded)
    low, high = _shared(setup, fewest, most)
    if batching.drafts:
        decoded_by = [request.tokens - (request.prompt > 0) for request in setup.sequences]
        drafted = ([count(each, guessed - 1) for each in decoded_by] for count in (fewest_drafts, most_drafts))
        of_drafts = _shared(setup, *drafted, draft=True)
        return low + of_drafts[0], high + of_drafts[1]
    return low, high


def expected_tasks(setup: Setup) -> int:
    """Guess the tasks of a run: the fewest where all requests come at once, and so share steps; else between the bounds."""
    fewest, most = tasks_in_all(setup)
    return isqrt(fewest * most) if any(request.arrival for request in setup.sequences) else fewest


def _shared(setup: Setup, fewest: list[int], most: list[int], *, draft: bool = False) -> tuple[int, int]:
    """Fewest and most tasks of so many steps of each sequence: all as full as they may be, or none shared.

    draft: they are steps of the draft model.
    """
    assert setup.graphs is not None
    assert setup.batching is not None
    steps = max(*fewest, ceil_div(sum(fewest), setup.batching.sequences * max(1, setup.batching.homes)))
    low, high = list[int](), list[int]()
    for tokens in (1, MANY_TOKENS):
        one, two = (len(setup.graphs(Shape((False,) * count, draft=draft, tokens=tokens))) for count in (1, 2))
        low.append(steps * (2 * one - two) + sum(fewest) * (two - one))
        high.append(sum(most) * one)
    return min(low), max(high)


def fewest_drafts(tokens: int, draft: int) -> int:
    """Drafts of a sequence that decodes so many tokens, where all are accepted: all but one token of each step are drafts."""
    return tokens - ceil_div(tokens, 1 + draft)


def most_drafts(tokens: int, draft: int) -> int:
    """Drafts of a sequence, where none is accepted: before each of its last tokens no more than are still missing after it."""
    last = min(tokens, draft + 1)
    return last * (last - 1) // 2 + (tokens - last) * draft
