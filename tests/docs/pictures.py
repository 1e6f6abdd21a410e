"""Pictures in the docs: `python -m tests.docs.pictures [NAME...]` makes them, with Chromium; look at them.

Those of measured runs beside simulated ones (`double_trace*.png`) are made by hand from the traces that `sim validate` writes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from sim.render.explore import Session
from sim.render.explore.server import serving
from sim.runs.run import read
from sim.scenario.shipped import scenarios
from tests.docs import ROOT
from tests.tools.command import call
from tests.tools.perfetto_ui import Browser, screenshot

IMAGES = ROOT / "docs" / "images"
READY = "document.documentElement?.dataset.ready === 'yes'"

#: Scenario of the picture of the live page, one block of a model, and its changes: twice the bandwidth, shared transfers.
SCENARIO = ("model.layers=1", "model.scope=block", "workload.sequences.0.tokens=2")
CHANGES = {"hardware.memory.bandwidth": "200 GB/s", "hardware.memory.arbiter": "processor_sharing"}


def explore(browser: Browser) -> bytes:
    """The live page beside its pinned run."""
    name = "four_sequences_fifo"
    session = Session(read(scenarios()[name], list(SCENARIO)), name, SCENARIO)
    session.view()  # what is compiled is compiled now
    with serving(session) as address:
        _open(browser, address, 1500, 1210)
        for key, value in CHANGES.items():
            browser.evaluate(f"choose('{key}', '{value}')")
            browser.wait_for("!runner.busy")
        browser.evaluate("new Promise((done) => setTimeout(done, 500))")
        return browser.picture()


def report(browser: Browser) -> bytes:
    """The page of a run."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        assert call(["report", "two_tokens_4_engines", "-o", str(page)]).status == 0
        _open(browser, page.as_uri(), 1200, 1080)
        browser.evaluate("new Promise((done) => setTimeout(done, 500))")
        return browser.picture()


def _open(browser: Browser, address: str, width: int, height: int) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    browser.call("Page.navigate", url=address)
    browser.wait_for(READY)


#: Pictures of pages, and of traces in the Perfetto UI: scenario, size, and nanoseconds in view.
PAGES: dict[str, Callable[[Browser], bytes]] = {"explore": explore, "report": report}
TRACES = {
    "two_tokens_4_engines": ("two_tokens_4_engines", (1500, 800), None),
    "prefill_in_chunks": ("prefill_chunks_of_512", (1600, 960), (0, 46_000_000)),
}


def main(names: list[str]) -> None:
    for name in names or [*PAGES, *TRACES]:
        picture = IMAGES / f"{name}.png"
        if name in PAGES:
            with Browser(1500, 1100) as browser:
                picture.write_bytes(PAGES[name](browser))
            continue
        scenario, size, zoom = TRACES[name]
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / f"{scenario}.pftrace"
            assert call(["run", scenario, "-o", str(trace)]).status == 0
            screenshot(trace, picture, size=size, zoom=zoom)


if __name__ == "__main__":
    main(sys.argv[1:])
