from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sim.cli import cli
from tests.tools.perfetto_ui import Browser

READY = "document.documentElement?.dataset.ready === 'yes'"


def call(*arguments: str) -> str:
    outcome = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def numbers(*arguments: str) -> dict[str, Any]:
    """Object of `sim run --json`, without wall-clock times."""
    data = json.loads(call("run", "--json", "--no-trace", *arguments))
    del data["timing"]
    return data


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "page.html"
    call("report", "two_tokens_4_engines", "-o", str(path))
    return path


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    try:
        browser = Browser(1200, 900)
    except LookupError as missing:
        pytest.skip(str(missing))
    with browser:
        for domain in ("Log", "Network"):
            browser.call(f"{domain}.enable")
        yield browser


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Callable[..., Browser]]:
    """Opens a page, afresh; when the test is over, there must have been no error and no request but for the page itself."""

    def open_page(path: Path, *, width: int = 1200, dark: bool = False) -> Browser:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        chromium.call("Emulation.setEmulatedMedia", features=scheme)
        chromium.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        chromium.call("Page.navigate", url="about:blank")
        chromium.events.clear()
        chromium.call("Page.navigate", url=path.as_uri())
        chromium.wait_for(READY)
        return chromium

    yield open_page
    chromium.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert chromium.errors() == []
    said = [e["params"] for e in chromium.events if e["method"] in {"Log.entryAdded", "Runtime.consoleAPICalled"}]
    assert said == []
    requests = [e["params"]["request"]["url"] for e in chromium.events if e["method"] == "Network.requestWillBeSent"]
    assert len(requests) == 1
    assert requests[0].startswith("file:")
