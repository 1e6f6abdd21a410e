"""Estimate the task count of a run, which its time, memory and trace are in proportion to; and count its progress."""

from __future__ import annotations

from collections.abc import Callable

from sim.base.units import ceil_div
from sim.executors.setup import Progress, Setup
from sim.mapping.steps import Shape
from sim.workload.requests import Request

#: Told of output tokens so far, of those in all, and of the picosecond at which the last of them came.
Told = Callable[[int, int, int], None]


def counted(setup: Setup, told: Told | None) -> Progress | None:
    """A progress callback that reports cumulative counts; None if nobody is told."""
    if told is None:
        return None
    in_all, done = sum(request.tokens for request in setup.sequences), 0

    def progress(tokens: int, now: int) -> None:
        nonlocal done
        done += tokens
        told(done, in_all, now)

    return progress


def prefills(request: Request, setup: Setup) -> int:
    """Steps that its prompt takes."""
    if not request.prompt or setup.batching is None:
        return 0
    return ceil_div(request.prompt, setup.batching.chunk or request.prompt)


def tasks_in_all(setup: Setup) -> tuple[int, int]:
    """About so many tasks at least, and at most. They are equal, and exact, where each step is one token of one sequence.

    A sequence more in a step brings tasks of its own, and shares the others. So there are fewest in steps that are as full
    as they may be, with all drafts accepted, and most if sequences never meet, and no draft is right. What is swapped, or
    prefilled again after it was dropped, is not counted.
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
