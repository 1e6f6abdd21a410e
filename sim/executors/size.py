"""Estimate the task count of a run, which its time, memory and trace are in proportion to; and count its progress."""

from __future__ import annotations

from collections.abc import Callable

from sim.base.units import ceil_div
from sim.executors.setup import Progress, Setup
from sim.mapping.steps import Shape
from sim.workload.requests import Request

#: Called with the output tokens so far, those in all, and the picosecond at which the last of them came.
OnProgress = Callable[[int, int, int], None]


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
    return ceil_div(request.prompt, setup.batching.prefill.chunk or request.prompt)


def tasks_in_all(setup: Setup) -> tuple[int, int]:
    """Estimate the fewest and the most tasks of a run. They are equal, and exact, where each step is one token of one sequence.

    One more sequence in a step adds tasks of its own and shares the others: there are fewest tasks where steps are as full as
    they may be and all drafts are accepted, most where sequences never share a step and no draft is accepted. Swaps, and
    prefills after a preemption, are not counted.
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
    another = len(setup.graphs(Shape((False, False)))) - one
    steps = max(*fewest, ceil_div(sum(fewest), batching.sequences))
    return steps * (one - another) + sum(fewest) * another, sum(most) * one
