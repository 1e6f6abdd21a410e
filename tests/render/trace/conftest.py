"""Event logs and loaded traces for these tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sim.log.tables import EventLog
from tests.render.trace.logs import decoder, run
from tests.tools.trace_processor import TraceProcessor

LOGS = {
    "known tokens": lambda: run(decoder()),
    "sampled tokens": lambda: run(decoder(), tokens=3, overlap=False),
    "shared channel": lambda: run(decoder(), sharing=True),
    "two sequences, DMA": lambda: run(decoder(dma=True), sequences=2, engines=3),
    "shorter than a nanosecond": lambda: run(decoder(), scale=300, sharing=True),
}


@pytest.fixture(scope="session", params=list(LOGS))
def log(request: pytest.FixtureRequest) -> EventLog:
    return LOGS[request.param]()


@pytest.fixture(scope="session")
def load() -> Iterator[Callable[[Path], TraceProcessor]]:
    """Loads a trace into the real trace_processor; skips the test if it is not installed."""
    opened: dict[Path, TraceProcessor] = {}

    def open_(path: Path) -> TraceProcessor:
        if path not in opened:
            try:
                opened[path] = TraceProcessor(path)
            except LookupError as missing:
                pytest.skip(str(missing))
        return opened[path]

    yield open_
    for each in opened.values():
        each.close()
