"""`sim profile` with a plan of a second, for tests: two tiny models and little memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.cli import main
from sim.measure.plan import Plan, _llama

TINY = Plan(
    name="tiny", models=(_llama("one", 64, 160, 4, 2, 16, 512, layers=2), _llama("two", 96, 224, 6, 6, 16, 1024, layers=1)),
    unseen=(_llama("other", 80, 192, 5, 1, 16, 768, layers=2),), batches=(1, 2), contexts=(16, 40), rounds=3, least=3,
    seconds=0, stream=0.001,
)  # fmt: skip


def little_memory(patch: pytest.MonkeyPatch) -> None:
    """Small buffers of streams, and a small buffer to read before a step."""
    patch.setattr("sim.measure.streams.LEAST_POOL", 2**20)
    patch.setattr("sim.measure.streams.CHUNK", {"cpu": 2**18})
    patch.setattr("sim.measure.streams.last_cache", lambda _: 0)
    patch.setattr("sim.measure.real.EVICT", {"cpu": 2**20})


def profile(out: Path) -> None:
    """Run the command, and exit."""
    with pytest.MonkeyPatch.context() as patch:
        little_memory(patch)
        patch.setattr("sim.measure.plan.plan_for", lambda *_, **__: TINY)
        main(["profile", "--threads", "1", "--dtype", "float32", "--out", str(out)])
