"""The `sim` command in this process: the same `main`, without the second that a process takes to start."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import TextIO

from sim.cli import main


def call(words: Sequence[str], out: TextIO, err: TextIO) -> int:
    """Run `sim` with these arguments; returns its exit status."""
    at_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main(list(words))
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        signal.signal(signal.SIGTERM, at_sigterm)
