"""Continuous batching: iteration-level scheduling (Yu et al., "Orca", OSDI 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from sim.serving.policies.contract import Waiting


class Continuous:
    """Each step takes all requests that are there, in order of arrival."""

    alone = False

    def choose(self, waiting: Sequence[Waiting], running: int) -> int | None:
        return 0
