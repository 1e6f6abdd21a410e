"""A scheduler of a third party whose ranks are checked: what is wrong with them names the scheduler, and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.graph import IntArray
from sim.base.errors import InputError
from sim.machine.schedulers.contract import Scheduler, StepView
from sim.mapping.tasks import TaskGraph


class Checked(Scheduler):
    """A scheduler whose ranks and chains are checked before tasks are ordered by them."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self.scheduler, self.name = scheduler, name
        try:
            scheduler.engines, scheduler.work_conserving, scheduler.ranks, scheduler.chains  # noqa: B018 -- whether they are there
        except AttributeError as error:
            raise InputError(f"scheduler {name!r}: expected what sim.machine.schedulers.Scheduler has; {error}") from None

    @property
    def engines(self) -> int | None:
        return self.scheduler.engines

    @property
    def work_conserving(self) -> bool:
        return self.scheduler.work_conserving

    def ranks(self, step: StepView) -> IntArray:
        return self._numbers("ranks", self._called(lambda: self.scheduler.ranks(step)), step.compute.shape)

    def chains(self, graph: TaskGraph) -> Sequence[int] | None:
        found = self._called(lambda: self.scheduler.chains(graph))
        return None if found is None else self._numbers("chains", found, (len(graph),)).tolist()

    def _called(self, call: Any) -> Any:
        try:
            return call()
        except InputError:
            raise
        except Exception as error:
            text = f"scheduler {self.name!r} ({type(self.scheduler).__module__}): {type(error).__name__}: {error}"
            raise InputError(" ".join(text.split())) from error

    def _numbers(self, what: str, found: Any, shape: tuple[int, ...]) -> IntArray:
        try:
            array = np.asarray(found)
        except ValueError:
            array = np.zeros(0)
        if array.shape != shape or not np.issubdtype(array.dtype, np.integer):
            who = f"scheduler {self.name!r} ({type(self.scheduler).__module__})"
            raise InputError(
                f"{who}: {what}: expected whole numbers of shape {shape}, found {array.dtype} of shape {array.shape}"
            )
        return array
