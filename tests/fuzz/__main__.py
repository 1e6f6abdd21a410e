"""See the package."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz import KINDS, attempt, read_sound

MEMORY = 6 * 2**30


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10**6)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--least", type=int, default=0)
    given = parser.parse_args()
    kind, refused, number, failures = KINDS[given.kind], 0, given.first, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with contextlib.redirect_stdout(io.StringIO()):
            sound = kind.sound(folder)
            read_sound(kind, sound, folder)  # which imports what is imported late
        in_use = next(
            int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line
        )
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, -1))
        until, least = time.monotonic() + given.seconds, given.first + given.least
        while number < given.first + given.count and (number < least or time.monotonic() < until):
            faulthandler.dump_traceback_later(30, exit=True)
            try:
                refused += bool(attempt(kind, sound, number, folder))
            except BaseException:  # whatever it is, a MemoryError too
                failures += 1
                print(f"input {number} of {given.kind}:\n{traceback.format_exc()}")
                if failures == 3:
                    break
            number += 1
        faulthandler.cancel_dump_traceback_later()
    print(f"{given.kind}: {number - given.first} inputs, {refused} refused, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
