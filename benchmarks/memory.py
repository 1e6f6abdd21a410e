"""Most memory of a process and all that it starts: `python benchmarks/memory.py PROCESS`, until standard input ends.

It is a program of its own: a process with a second thread cannot be forked, which changes what is measured. Pages that several
processes share count once (PSS of Linux). Prints megabytes, and CPU seconds that it took itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from select import select
from types import TracebackType


class Peak:
    """Most memory of this process and those beside it while the context lasts.

    megabytes: of all. seconds: CPU time that it took to look.
    """

    def __init__(self) -> None:
        self.megabytes = self.seconds = 0.0

    def __enter__(self) -> Peak:
        words = [sys.executable, __file__, str(os.getpid())]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has begun
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        found, _ = self._process.communicate()
        self.megabytes, self.seconds = map(float, found.split())


def family(process: int) -> Iterator[int]:
    """A process and all that it has started, as far as the system tells."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


def held(process: int) -> int:
    """Kilobytes of memory of a process, its share of shared pages; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def main() -> None:
    """Look every second."""
    most, over = 0.0, False
    print("begun", flush=True)
    while not over:
        over = bool(select([sys.stdin], [], [], 1.0)[0])
        try:
            now = sum(held(each) for each in family(int(sys.argv[1])) if each != os.getpid()) * 1024 / 1e6
        except OSError:  # a process ended meanwhile
            continue
        most = max(most, now)
    print(most, time.process_time())


if __name__ == "__main__":
    main()
