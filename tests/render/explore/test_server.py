"""The server of the live page, over HTTP and as a command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import pytest

from sim.base.errors import InputError
from sim.render.explore import Session
from sim.render.explore.server import MOST_BYTES, serving
from sim.runs.run import read, run
from sim.scenario.shipped import scenarios
from tests.tools.command import call


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(Session(read(scenarios()["two_tokens_4_engines"]), "two_tokens_4_engines")) as found:
        yield found


def ask(address: str, path: str = "", data: Any = None, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    """Send a request to a path below the address, or to one that begins with a slash."""
    parts = urlsplit(address)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    body = data if isinstance(data, bytes | None) else json.dumps(data).encode()
    connection.request(
        "POST" if body is not None else method, path if path.startswith("/") else parts.path + path, body, headers
    )
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer, text


def test_the_page_and_its_runs(address: str) -> None:
    answer, text = ask(address)
    assert answer.status == 200
    assert b"<h1>two-tokens-4-engines</h1>" in text
    answer, text = ask(address, "view", {"set": ["hardware.engines.count=2"]})
    assert answer.status == 200
    expected = run(read(scenarios()["two_tokens_4_engines"], ["hardware.engines.count=2"])).makespan
    assert json.loads(text)["summary"]["makespan_ps"] == expected
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "no-referrer"  # the address holds the token


def test_nothing_without_the_token(address: str) -> None:
    token = urlsplit(address).path
    for path in ("/", "/view", "/x/", f"{token[:-2]}/", f"{token[:-1].swapcase()}/", "/%00/", "//", "/../etc/passwd", "/docs"):
        for data in (None, {"set": []}):
            assert ask(address, path, data)[0].status == 403, path
    assert ask(address, "/favicon.ico")[0].status == 204
    assert ask(address, "other")[0].status == 404
    assert ask(address, "view")[0].status == 405


def test_foreign_hosts_and_origins_are_refused(address: str) -> None:
    port = urlsplit(address).port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "[", "[zz]", ""):
        assert ask(address, Host=host)[0].status == 403, host
        assert ask(address, "view", {"set": []}, Host=host)[0].status == 403
    assert ask(address, Host=f"localhost:{port}")[0].status == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert ask(address, "view", {"set": []}, Origin=origin)[0].status == 403
    assert ask(address, "view", {"set": []}, Origin=f"http://127.0.0.1:{port}")[0].status == 200


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"set": ["hardware.engines.count=0"]}, "hardware.engines.count: expected a number from 1"),
        ({"set": ["nonsense"]}, "--set nonsense: expected KEY.KEY=VALUE"),
        ({"set": ["hardware.engins.count=2"]}, "did you mean 'engines'"),
        ({"set": ["workload.sequences.0.tokens=50000"]}, "8,800,000 tasks: expected at most 2,000,000"),
        ({"set": "x"}, "set: expected a list of texts"),
        ({"set": [1]}, "set: expected a list of texts"),
        ({"set": [], "number": "1"}, "expected a number"),
        ({}, "set: expected a list of texts"),
        ([], "expected a JSON object"),
        (b"{", "expected a JSON object"),
        (b"\xff", "expected a JSON object"),
        (b"x" * (MOST_BYTES + 1), "expected at most 100,000 bytes"),
    ],
)
def test_bad_values_are_one_line(address: str, data: Any, message: str) -> None:
    answer, text = ask(address, "view", data)
    assert answer.status == 400
    line = json.loads(text)["error"]
    assert message in line
    assert "\n" not in line
    assert ask(address, "view", {"set": []})[0].status == 200


def test_yaml_and_trace(address: str) -> None:
    answer, text = ask(address, "yaml", {"set": ["hardware.engines.count=3"]})
    assert answer.status == 200
    assert "    count: 3\n" in json.loads(text)["text"]


def test_a_port_in_use(address: str) -> None:
    port = urlsplit(address).port
    with pytest.raises(InputError, match=f"port {port} is in use"), serving(Session(read(scenarios()["batch_1"]), "x"), port):
        pass


def test_ctrl_c_ends_it_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sim", "explore", "two_tokens_4_engines", "--no-browser"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert ask(address)[0].status == 200
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == ""
    assert err.strip() == "serving two-tokens-4-engines; press Ctrl-C to stop"


def test_errors_before_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, message in (
        (["two_tokens"], "no such file"),
        (["two_tokens_4_engines", "--set", "hardware.engines.count=x"], "expected a whole number"),
        (["two_tokens_4_engines", "--set", "record=none"], "record: expected all for a live page"),
    ):
        done = call(["explore", *words])
        assert (done.status, done.stdout) == (2, "")
        assert message in done.stderr
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "sim.render.explore.server")
    done = call(["explore", "two_tokens_4_engines"])
    assert (done.status, done.stderr) == (2, "error: `sim explore` needs uvicorn: pip install 'decode-sim[explore]'\n")
