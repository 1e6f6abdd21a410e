"""Static batching, as servers did before Orca."""

from __future__ import annotations

from collections.abc import Sequence

from sim.serving.policies.contract import Waiting


class Static:
    """The requests that are there when the batch before has ended go through their tokens together."""

    alone = False

    def choose(self, waiting: Sequence[Waiting], running: int) -> int | None:
        return None if running else 0
