"""No batching: sequences only contend."""

from __future__ import annotations

from collections.abc import Sequence

from sim.serving.policies.contract import Waiting


class Independent:
    """Each sequence decodes in a loop of its own, and they only contend."""

    alone = True

    def choose(self, waiting: Sequence[Waiting], running: int) -> int | None:
        return 0
