"""Names of the executors that replay imports from here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.executors.reference import simulate, simulate_in_parts
from sim.executors.setup import Setup, lanes_of, sram_use
from sim.graph import Members, StepLanes

__all__ = ["Setup", "lanes_of", "side_by_side", "simulate", "simulate_in_parts", "sram_use"]


def side_by_side(steps: Sequence[StepLanes]) -> StepLanes:
    """Steps of one graph as lanes."""
    members = [step.members for step in steps if step.members is not None]
    joined = Members.side_by_side(members) if members else None
    sequence, token, context = (
        np.concatenate([getattr(step, name) for step in steps]) for name in ("sequence", "token", "context")
    )
    return StepLanes(sequence=sequence, token=token, context=context, members=joined)
