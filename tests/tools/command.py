"""The `sim` command in this process: the same `main`, without the second that a process takes to start."""

from __future__ import annotations

import io
import signal
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

from sim.cli import main


class Done(NamedTuple):
    """Exit status and printed text."""

    status: int
    stdout: str
    stderr: str


def call(words: Sequence[str], *, together: bool = False) -> Done:
    """Run `sim` with these arguments, with streams that are not a terminal. together: all in stdout, in order."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    status, at_sigterm = 0, signal.getsignal(signal.SIGTERM)
    try:
        with redirect_stdout(out), redirect_stderr(out if together else err):
            main(list(words))
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        signal.signal(signal.SIGTERM, at_sigterm)
    return Done(status, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]
