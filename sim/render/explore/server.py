"""The server of the live page: on the loopback interface, under an address that holds a random token.

Requests without the token get nothing: other users of the machine and web pages in the same browser cannot guess it. Other host
names are refused, so that a web page cannot reach the server by a name of its own (DNS rebinding), and so are requests of pages
of another origin.
"""

from __future__ import annotations

import errno
import json
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Thread
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sim.base.errors import InputError, SimError
from sim.render.explore import Session, SupersededError
from sim.render.view import HOST

MOST_BYTES = 100_000  # of a request

#: Sent with every answer: it is not kept, no other page may frame it, and its address, which holds the token, goes nowhere.
HEADERS = {
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "frame-ancestors 'none'",
}  # fmt: skip

Answer = Callable[[Request], Awaitable[Response]]


class _Guard:
    """Refuses what does not come from the page itself."""

    def __init__(self, app: ASGIApp, *, token: str, port: int) -> None:
        self._app, self._token = app, token
        self._hosts = {f"{HOST}:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(Headers(scope=scope), scope["path"])
        if refusal is None:
            await self._app(scope, receive, send)
            return
        refusal.headers.update(HEADERS)
        await refusal(scope, receive, send)

    def _refusal(self, headers: Headers, path: str) -> Response | None:
        """The answer to a request that goes no further; None if it may."""
        token, origin = path.removeprefix("/").partition("/")[0], headers.get("origin", "")
        if headers.get("host", "") not in self._hosts:
            return PlainTextResponse("expected another host\n", 403)
        if path == "/favicon.ico":  # browsers ask for it, whatever the page
            return Response(status_code=204)
        if not secrets.compare_digest(token.encode(), self._token.encode()):
            return PlainTextResponse("expected the address that `sim explore` printed, with its token\n", 403)
        if origin and origin.removeprefix("http://") not in self._hosts:
            return PlainTextResponse("expected a request of the page itself\n", 403)
        return None


def app(session: Session, token: str, port: int) -> ASGIApp:
    """The application: the page, and what it asks for."""
    asked = {"view": _view, "yaml": _yaml, "trace": _trace}
    routes = [
        Route(f"/{token}/", _page, methods=["GET"]),
        *(Route(f"/{token}/{name}", partial(_answered, answer), methods=["POST"]) for name, answer in asked.items()),
    ]
    made = Starlette(routes=routes)
    made.state.session = session
    return _Guard(made, token=token, port=port)


async def _page(request: Request) -> Response:
    text = await run_in_threadpool(request.app.state.session.page)
    return HTMLResponse(text, headers=HEADERS)


async def _answered(answer: Callable[[Session, list[str], dict[str, Any]], Any], request: Request) -> Response:
    """The answer to a request, or the one line that says what is wrong with it."""
    try:
        asked = await _read(request)
        found = await run_in_threadpool(answer, request.app.state.session, asked["set"], asked)
    except SupersededError:
        return JSONResponse({"superseded": True}, 409, headers=HEADERS)
    except SimError as error:
        return JSONResponse({"error": str(error)}, 400, headers=HEADERS)
    except OSError as error:  # no space for a trace
        return JSONResponse({"error": error.strerror or str(error)}, 400, headers=HEADERS)
    return JSONResponse(found, headers=HEADERS)


async def _read(request: Request) -> dict[str, Any]:
    """The object that is sent: `set`, a list of assignments, and for runs `page` and `number`. Raises InputError."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise InputError(f"expected at most {MOST_BYTES:,} bytes")
    try:
        asked = json.loads(body)
    except ValueError:
        raise InputError("expected a JSON object") from None
    if not isinstance(asked, dict):
        raise InputError("expected a JSON object")
    words, number, page = asked.get("set"), asked.get("number", 0), asked.get("page", "")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError("set: expected a list of texts")
    if type(number) is not int or not isinstance(page, str) or len(page) > 100:
        raise InputError("expected a number, and the name of a page")
    return asked


def _view(session: Session, assignments: list[str], asked: dict[str, Any]) -> dict[str, Any]:
    return session.view(assignments, page=asked.get("page", ""), number=asked.get("number", 0))


def _yaml(session: Session, assignments: list[str], _: dict[str, Any]) -> dict[str, str]:
    return {"text": session.yaml(assignments)}


def _trace(session: Session, assignments: list[str], _: dict[str, Any]) -> dict[str, str]:
    return {"address": session.trace(assignments)}


@contextmanager
def serving(session: Session, port: int | None = None) -> Iterator[str]:
    """Serve the page as long as the context lasts; gives its address.

    port: None for any free one. Raises InputError if the port is not available.
    """
    try:
        listener = socket.create_server((HOST, port or 0))
    except OSError as error:
        if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
            raise
        why = "is in use" if error.errno == errno.EADDRINUSE else "needs more privileges"
        raise InputError(f"port {port} {why}; stop the program that uses it, or choose another with --port") from None
    token, port = secrets.token_urlsafe(16), int(listener.getsockname()[1])
    config = uvicorn.Config(
        app(session, token, port), log_config=None, access_log=False, lifespan="off", ws="none", server_header=False,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{port}/{token}/"
    finally:
        server.should_exit = True
        thread.join(5)
        listener.close()
        session.close()
