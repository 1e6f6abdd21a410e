"""Optimization: settings chosen by results, a batch at a time, by a sampler of Optuna.

All trials of a batch are chosen before any of them is run, from the results of earlier batches and the seed of the batch alone,
and results are given in the order of trials. So what is run depends on the seed, and neither on time nor on the number of
processes. A setting that is chosen again is not run again.

Choices and results are kept beside the rows, in a file that Optuna's `JournalFileBackend` reads, too. It grows
by whole batches, each of which ends with a mark; what follows the last mark, after a kill in the midst of a write, is removed.
Optuna is imported when an optimization starts, not before.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sim.base.errors import InputError
from sim.study.axes import Axis, Span, Value, placed

if TYPE_CHECKING:
    from collections.abc import Iterator

TRIALS = "trials.log"  # the file of trials, in the folder of a study
TOLD = "told"  # the mark: how many trials have results

Sampler = Literal["nsga2", "nsga3", "tpe", "random"]
Settings = tuple[tuple[Axis, Value], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimize:
    """An optimization. trials: settings that are chosen. batch: those chosen at a time. spans: ranges, by key."""

    trials: int
    sampler: Sampler
    seed: int
    batch: int
    spans: Mapping[str, Span]

    def to_json(self) -> dict[str, Any]:
        """All that trials depend on, as JSON-ready data: not their number, since more of them go on with those before."""
        return {
            "sampler": self.sampler, "seed": self.seed, "batch": self.batch,
            "ranges": {key: [str(s.low), str(s.high), s.whole, s.log] for key, s in self.spans.items()},
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Space:
    """The settings that trials are chosen from: one of each dimension of the grid, and a value of each range."""

    grid: Sequence[Sequence[Settings]]
    spans: Mapping[str, Span]
    keys: Mapping[str, Axis]

    def names(self) -> list[str]:
        """The name of each dimension of the grid: its keys."""
        return [" + ".join(axis.key for axis, _ in max(dimension, key=len)) for dimension in self.grid]

    def settings(self, places: Sequence[int], numbers: Sequence[Fraction]) -> Settings:
        """The settings at a place of each dimension of the grid, and a number of each range."""
        found = [each for dimension, place in zip(self.grid, places, strict=True) for each in dimension[place]]
        for (key, span), number in zip(self.spans.items(), numbers, strict=True):
            _, (value,) = placed(key, [span.near(number)])
            found.append((self.keys[key], value))
        return tuple(found)

    def random(self, count: int, seed: int) -> list[Settings]:
        """Some settings, from all over the space."""
        shares = np.random.default_rng(seed).random((count, len(self.grid) + len(self.spans))).tolist()
        return [
            self.settings(
                [int(share * len(dimension)) for share, dimension in zip(row, self.grid, strict=False)],
                [span.inside(share) for share, span in zip(row[len(self.grid) :], self.spans.values(), strict=True)],
            )
            for row in shares
        ]


@dataclass(frozen=True, slots=True)
class Told:
    """Result of a trial. values: of the objectives; None if there is none. missed: by how much it misses each constraint."""

    values: Sequence[float] | None
    missed: Mapping[str, float] = field(default_factory=dict)


class Journal:
    """Entries of a journal of Optuna, which are written to a file when a batch is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: list[dict[str, Any]] = []
        self._kept = 0  # entries that are in the file
        if path.exists():
            whole = _whole(path)
            os.truncate(path, len(whole))
            self._entries = [json.loads(line) for line in whole.splitlines()]
            self._kept = len(self._entries)

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """The entries from a number on."""
        return self._entries[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Take in entries."""
        self._entries += logs

    def keep(self) -> None:
        """Write all entries. Raises OSError if the disk is full."""
        lines = [json.dumps(entry, separators=(",", ":")) + "\n" for entry in self._entries[self._kept :]]
        with self._path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self._kept = len(self._entries)


def _whole(path: Path) -> bytes:
    """The content of a file of trials up to its last mark."""
    content = path.read_bytes()
    end, at = 0, 0
    for line in content.splitlines(keepends=True):
        at += len(line)
        if _mark(line) is not None:
            end = at
    return content[:end]


def _mark(line: bytes) -> int | None:
    """The number of a mark; None for other lines, and for one that was cut off."""
    if TOLD.encode() not in line or not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line).get("user_attr", {}).get(TOLD)
    except ValueError:
        return None
    return found if isinstance(found, int) else None


def told(folder: Path) -> int:
    """How many trials of the study in a folder have results."""
    path = folder / TRIALS
    marks = [_mark(line) for line in path.read_bytes().splitlines(keepends=True)] if path.exists() else []
    return max((mark for mark in marks if mark is not None), default=0)


class Trials:
    """The trials of an optimization, in a file that later runs go on with.

    signs: 1 for an objective that is to be small, -1 for one that is to be large. Raises InputError without Optuna.
    """

    def __init__(self, asked: Optimize, space: Space, signs: Sequence[int], path: Path) -> None:
        self._asked, self._space = asked, space
        self._optuna = optuna()
        self._journal = Journal(path)
        with quiet():
            self._study = self._optuna.create_study(
                storage=self._optuna.storages.JournalStorage(self._journal), study_name="study", load_if_exists=True,
                directions=["minimize" if sign > 0 else "maximize" for sign in signs],
            )  # fmt: skip

    def finished(self) -> list[tuple[int, Settings]]:
        """Trials that have results, by number."""
        return [(trial.number, self._settings(trial.params)) for trial in self._trials() if trial.state.is_finished()]

    def ask(self) -> list[tuple[int, Settings]]:
        """The trials of a batch that have no results yet; empty if as many as are wanted have.

        A batch is always chosen whole, even if fewer are wanted: then more trials are the same, asked for now or later.
        """
        first = len(self._trials())
        if all(trial.state.is_finished() for trial in self._trials()) and first < self._asked.trials:
            with quiet():
                self._study.sampler = self._sampler(first)
                for _ in range(self._asked.batch):
                    self._study.ask(self._distributions())
            self._keep(first)
        waiting = [trial for trial in self._trials() if not trial.state.is_finished()]
        return [(trial.number, self._settings(trial.params)) for trial in waiting if trial.number < self._asked.trials]

    def tell(self, results: Sequence[tuple[int, Told]]) -> None:
        """Take in the results of a batch, in the order of its trials."""
        ids = {trial.number: trial._trial_id for trial in self._trials()}
        with quiet():
            self._study.sampler = self._sampler(results[0][0])
            for number, result in results:
                if result.values is None:
                    self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)
                    continue
                trial = self._optuna.trial.Trial(self._study, ids[number])
                for name, missed in result.missed.items():
                    trial.set_constraint(name, missed)
                self._study.tell(number, list(result.values))
        self._keep(results[-1][0] + 1)

    def _trials(self) -> list[Any]:
        found: list[Any] = self._study.get_trials(deepcopy=False)
        return found

    def _keep(self, told: int) -> None:
        self._study.set_user_attr(TOLD, told)
        self._journal.keep()

    def _sampler(self, first: int) -> Any:
        """The sampler of a batch. first: the number of its first trial."""
        samplers, seed = self._optuna.samplers, int(np.random.SeedSequence([self._asked.seed, first]).generate_state(1)[0])
        made: Mapping[Sampler, Callable[[], Any]] = {
            "nsga2": lambda: samplers.NSGAIISampler(population_size=self._asked.batch, seed=seed),
            "nsga3": lambda: samplers.NSGAIIISampler(population_size=self._asked.batch, seed=seed),
            "tpe": lambda: samplers.TPESampler(seed=seed, multivariate=True),
            "random": lambda: samplers.RandomSampler(seed=seed),
        }
        return made[self._asked.sampler]()

    def _distributions(self) -> dict[str, Any]:
        """The distribution of each dimension: the place of an ordered number, one of other choices, or a range."""
        kinds = self._optuna.distributions
        found: dict[str, Any] = {}
        for name, dimension in zip(self._space.names(), self._space.grid, strict=True):
            count = len(dimension)
            found[name] = (
                kinds.IntDistribution(0, count - 1)
                if _ordered(dimension)
                else kinds.CategoricalDistribution(list(range(count)))
            )
        for key, span in self._space.spans.items():
            kind = kinds.IntDistribution if span.whole else kinds.FloatDistribution
            number = int if span.whole else float
            found[key] = kind(number(span.low), number(span.high), log=span.log)
        return found

    def _settings(self, params: Mapping[str, Any]) -> Settings:
        return self._space.settings(
            [params[name] for name in self._space.names()], [Fraction(params[key]) for key in self._space.spans]
        )


def _ordered(dimension: Sequence[Settings]) -> bool:
    """Whether a dimension is one axis of rising numbers, of which neighbors are alike."""
    values = [choice[0][1].column for choice in dimension]
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return all(len(choice) == 1 for choice in dimension) and len(numbers) == len(values) and numbers == sorted(numbers)


def optuna() -> Any:
    """Optuna. Raises InputError if it is not installed."""
    try:
        return import_module("optuna")
    except ImportError:
        raise InputError("optimize needs Optuna: pip install 'decode-sim[optimize]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lines about each trial, and notes about experimental parts of Optuna, from the terminal."""
    logging = import_module("optuna").logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def means(rows: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each column."""
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def worst(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The largest value of each name."""
    found: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            found[name] = max(value, found.get(name, value))
    return found
