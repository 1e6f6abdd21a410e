"""Results of a measurement so far, in a folder beside the profile it is for, so that a second run goes on from there.

DEVICE.partial/plan.json        what is measured, and how: a run of another plan must not mix with it
DEVICE.partial/0003.parquet     the samples of round 3: whole, or not there
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sim.base.errors import InputError
from sim.base.files import kind_of, whole_file
from sim.cost.profile import Samples, read_samples, write_samples


class Partial:
    """The rounds of one plan. Raises InputError if the folder holds rounds of another one."""

    def __init__(self, profile: Path, plan: Mapping[str, str]) -> None:
        self.folder = profile.with_name(f"{profile.stem}.partial")
        self.plan = dict(plan)
        written = self.folder / "plan.json"
        if kind_of(self.folder) not in {None, "folder"}:
            raise InputError(f"{self.folder}: expected a folder for rounds that are done, found a file")
        if written.exists():
            self._same(written)
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(written) as file:
                file.write((json.dumps(self.plan, indent=1) + "\n").encode())
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def _same(self, written: Path) -> None:
        try:
            before = json.loads(written.read_text(encoding="utf-8"))
            if not isinstance(before, dict):
                raise ValueError("expected an object")
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{written}: cannot be read: {error}; remove {self.folder} to begin anew") from None
        for key in self.plan.keys() | before.keys():
            if self.plan.get(key) != before.get(key):
                raise InputError(
                    f"{self.folder}: rounds of another run: {key} was {before.get(key)}, and is {self.plan.get(key)} now; "
                    "remove the folder to begin anew, or write to another file"
                )

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:04}.parquet"

    def done(self) -> int:
        """Number of rounds done."""
        return sum(1 for _ in self.folder.glob("[0-9]*.parquet"))

    def add(self, number: int, samples: Samples) -> None:
        """Keep the samples of a round."""
        write_samples(samples, self._path(number))

    def samples(self) -> Samples:
        """All rounds so far. Steps of different rounds have different numbers."""
        parts = []
        first = 0
        for path in sorted(self.folder.glob("[0-9]*.parquet")):
            part = read_samples(path)
            inside = part.step >= 0
            part.columns["step"][inside] += first
            first = max(first, int(part.step.max(initial=-1)) + 1)
            parts.append(part)
        return Samples.concatenate(parts)

    def remove(self) -> None:
        """Remove the folder, once the profile is written: its own files, and what killed runs left of them."""
        for path in (*self.folder.glob("[0-9]*.parquet"), *self.folder.glob(".*.part"), self.folder / "plan.json"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # somebody keeps other files in it
            self.folder.rmdir()
