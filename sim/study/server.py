"""The server that processes of a study are forks of, on Linux.

They begin in milliseconds, and share its memory: all modules that simulate, and their compiled code. Where this process can be
forked, the server is a fork of it; elsewhere it begins anew and loads all of that, which takes a second. In either case it has
no thread but its own, nor the files of this process, so that it can be forked again whatever this process does meanwhile. One
server serves all pools; it ends with this process.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any

from sim.base.processes import can_fork, forking, uninterrupted

#: Module that it imports.
READY = "sim.study.ready"

_HIDDEN = RLock()  # one thread at a time hides the main module

_FORKS: Any = forkserver._forkserver
_UTIL: Any = multiprocessing.util


def context(*modules: str) -> Any:
    """The way in which processes begin; a server begins if there is none. modules: that they need besides those which simulate.

    There is none on macOS, whose frameworks keep threads that forks lack.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([*modules, READY])
    resource_tracker.ensure_running()  # it takes signals up again, so it comes first
    if can_fork():
        with forking(), _as_fork():
            forkserver.ensure_running()
    else:
        with uninterrupted():
            forkserver.ensure_running()
    return found


def begins_at_once() -> bool:
    """Whether processes begin in milliseconds: there is a server, or it can be a fork."""
    return sys.platform == "linux" and (can_fork() or _FORKS._forkserver_pid is not None)


@contextmanager
def _as_fork() -> Iterator[None]:
    """Let the server begin as a fork of this process, where Python would start a program that it gives to it as text."""
    start = _UTIL.spawnv_passfds

    def fork(_: Any, words: Sequence[str], files: Sequence[int]) -> int:
        return os.fork() or _serve(words[-1], files)

    _UTIL.spawnv_passfds = fork
    try:
        yield
    finally:
        _UTIL.spawnv_passfds = start


def _serve(program: str, files: Sequence[int]) -> int:
    """Be the server, in a fork, until the process that began it has ended. files: that it keeps, beside standard ones."""
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for file in [int(each.name) for each in Path("/proc/self/fd").iterdir()]:
            if file > 2 and file not in (*files, nothing):  # others are not closed: an object that has one may still use it
                os.dup2(nothing, file, inheritable=False)
        _FORKS.__init__()  # it is as in a new process
        exec(program, {})
    finally:
        os._exit(1)


@contextmanager
def without_main() -> Iterator[None]:
    """Hide the main module while processes start: they would import it, and with it the command line or a user's script."""
    with _HIDDEN:
        main: Any = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
