"""The points of a study: all combinations of the values of its axes, each run with some seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim import __version__
from sim.base.documents import Assignment, Document, Node, Place, from_plain, key_path, read
from sim.base.errors import InputError
from sim.base.files import in_home, kind_of
from sim.base.problems import validated
from sim.runs.plan import Plan
from sim.runs.run import known_names
from sim.scenario import Scenario, from_document
from sim.study.axes import Axis, Span, Value, axis, between, parse_axis, placed, plain, read_axis
from sim.study.batches import Unplanned
from sim.study.expressions import Expression, parse
from sim.study.metrics import METRICS
from sim.study.optimize import Optimize, Space
from sim.study.planner import Planner, named_files, needs_files
from sim.study.samples import sample
from sim.study.search import Find
from sim.study.sections import MOST_POINTS, StudyFile

#: Points of which one must be a valid scenario, before a study is run.
CHECKED = 50

#: Column of the names of cases.
CASE = "case"

#: Key of the seed, which an axis may be about.
SEED = "seed"

#: The values that some keys take together.
Choice = tuple[tuple[Axis, Value], ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One scenario of a study, with one seed. number: counts from 0, the same for all seeds of a point."""

    number: int
    seed: int
    settings: Choice

    @property
    def overrides(self) -> tuple[str, ...]:
        """Arguments of `--set` that make the scenario of this point from the base."""
        made = [f"{axis.key}={value.text}" for axis, value in self.settings if axis.key not in (CASE, SEED)]
        return (*made, f"seed={self.seed}")


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study that was read and checked.

    grid: dimensions of the grid, each a list of choices, of which all combinations are run; the last changes fastest. keys: all
    axes by key. columns, constraints: expressions. objectives: column -> min or max. asked: whether objectives are written, and
    so points are skipped that cannot be good. find: a search for each point. optimize: chooses points by results.
    """

    name: str
    description: str
    source: str
    base: Scenario
    grid: Sequence[Sequence[Choice]]
    keys: Mapping[str, Axis]
    repeats: int = 1
    columns: Mapping[str, Expression] = field(default_factory=dict)
    constraints: Sequence[Expression] = ()
    objectives: Mapping[str, str] = field(default_factory=dict)
    asked: bool = False
    find: Find | None = None
    optimize: Optimize | None = None

    def __len__(self) -> int:
        """Number of points, each of which is run `repeats` times."""
        return self.optimize.trials if self.optimize is not None else prod(len(dimension) for dimension in self.grid)

    @property
    def runs(self) -> int:
        """Number of runs; of searches, about the most."""
        return len(self) * self.repeats * (1 if self.find is None else self.find.most)

    def points(self) -> Iterator[Point]:
        """All points with all seeds, in order; without the value of a search, which `at` adds."""
        for number, choices in enumerate(product(*self.grid)):
            yield from self.seeded(number, tuple(each for choice in choices for each in choice))

    def seeded(self, number: int, settings: Choice) -> Iterator[Point]:
        """A point with all seeds: that of its axis, if there is one over seeds."""
        chosen = [value.column for axis, value in settings if axis.key == SEED and isinstance(value.column, int)]
        for seed in chosen or range(self.base.seed, self.base.seed + self.repeats):
            yield Point(number, seed, settings)

    @cached_property
    def space(self) -> Space:
        """The settings that an optimization chooses from."""
        return Space(self.grid, {} if self.optimize is None else self.optimize.spans, self.keys)

    def at(self, point: Point, number: Fraction) -> Point:
        """A point with a value of its search."""
        assert self.find is not None
        return replace(point, settings=(*point.settings, (self.find.axis, self.find.value(number))))

    def plan(self, point: Point) -> Plan:
        """The plan of a point. Raises InputError for a point that cannot be run."""
        return self.planner.plan(self._values(point))

    def unplanned(self, point: Point) -> Unplanned:
        """A point as a process plans it that has no files."""
        return Unplanned(self.planner, self._values(point))

    def scenario(self, point: Point) -> Scenario:
        """The scenario of a point. Raises InputError for one that is not valid."""
        return self.planner.scenario(self._values(point))

    @cached_property
    def needs_files(self) -> bool:
        """Whether plans of its points need files, as `planner.needs_files`."""
        changed = {key: [value.text for value in axis.values] for key, axis in self.keys.items()}
        return needs_files(self.base, changed if self.find is None else {**changed, self.find.key: []})

    @cached_property
    def planner(self) -> Planner:
        """The planner of all points, which keeps what they share."""
        return Planner(self.base)

    @cached_property
    def _assigned(self) -> dict[tuple[str, str], Assignment]:
        """Values that were assigned before, which points share."""
        return {}

    def _values(self, point: Point) -> tuple[Assignment, ...]:
        """The values of a point."""
        wanted = [self._assignment(axis, value) for axis, value in point.settings if axis.key != CASE]
        if self.repeats > 1:
            wanted.append(Assignment((SEED,), Node(point.seed, Place("repeats")), Place("repeats")))
        return tuple(wanted)

    def _assignment(self, axis: Axis, value: Value) -> Assignment:
        key = (axis.key, value.text)
        if key not in self._assigned:
            self._assigned[key] = axis.assignment(value)
        return self._assigned[key]

    @cached_property
    def parts(self) -> dict[str, str]:
        """Digests of all that rows depend on, by the words of errors about a change."""
        written = {
            "the base scenario": [self.base.to_dict(), self.base._document.plain()],
            "files that the base scenario names": _files(self.base),
            "axes": [[[[axis.key, value.text] for axis, value in choice] for choice in dimension] for dimension in self.grid],
            "repeats": self.repeats,
            "columns": {name: each.text for name, each in self.columns.items()},
            "constraints": [each.text for each in self.constraints],
            "the version of the program": __version__,
        }
        if self.find is not None:
            written["the search"] = self.find.to_json()
        if self.optimize is not None:
            written["the optimization"] = [self.optimize.to_json(), dict(self.objectives)]
        return {name: _digest(data) for name, data in written.items()}

    @cached_property
    def digest(self) -> str:
        """Digest of the base, of its files and of the version: with the assignments it stands for a plan."""
        return _digest([self.parts[name] for name in ("the base scenario", "files that the base scenario names",
                                                      "the version of the program")])  # fmt: skip

    def plan_hash(self, point: Point) -> str:
        """Hash of all that the plan of a point is made of."""
        return _digest([self.digest, *point.overrides])[:16]


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


def _files(base: Scenario) -> dict[str, str]:
    """Digests of the files that a scenario names, by their keys."""
    found = {key: _content(base.folder / path) for key, path in named_files(base)}
    if base.model.config is not None:
        found["model.config"] = _content(in_home(base.model.config))
    return found


def _content(path: Path) -> str:
    path = path / "config.json" if kind_of(path) == "folder" else path
    return hashlib.sha256(path.read_bytes()).hexdigest() if kind_of(path) == "file" else ""


def load(path: Path) -> Study:
    """Read the file of a study. Raises InputError, with line and column, for whatever is wrong."""
    document = read(path)
    if document.root.child("model") is not None and document.root.child("axes") is None:
        raise InputError(f"{path}: expected a study, found a scenario; --over KEY=VALUES gives it axes")
    written = validated(document, StudyFile)
    name = written.name if document.root.child("name") is not None else path.stem
    base = _base(document, name)
    grid, keys, spans = _grid(document, written)
    return _made(name, written, base, grid, keys, document, spans)


def over(base: Scenario, axes: Sequence[str], *, repeats: int = 1) -> Study:
    """A study of a scenario over axes such as `hardware.engines.count=1..16`. Raises InputError that names the `--over`."""
    keys: dict[str, Axis] = {}
    for text in axes:
        place = Place(f"--over {text}")
        key, equals, values = text.partition("=")
        if not key or not equals or not values:
            raise place.error("expected KEY.KEY=VALUES, such as hardware.engines.count=1..16")
        made = parse_axis(key.strip(), values, place)
        if isinstance(made, Span):
            raise place.error(f"{key}: expected a number of values after the range, such as '{values} x8'")
        if key in keys:
            raise place.error(f"{key}: a second axis of the same key")
        keys[key.strip()] = made
    grid = [[((each, value),) for value in each.values] for each in keys.values()]
    written = StudyFile(name=base.name, extends=base.source, axes={key: [] for key in keys}, repeats=repeats)
    return _made(base.name, written, base, grid, keys, None)


def _base(document: Document, name: str) -> Scenario:
    """The base scenario: the keys of `scenario` over the file of `extends`."""
    inner, root = document.root.child("scenario"), document.root
    entries: dict[str, Node] = dict(inner.value) if inner is not None and isinstance(inner.value, Mapping) else {}
    places = dict(inner.keys) if inner is not None else {}
    if "extends" in entries and root.child("extends") is not None:
        raise places["extends"].error("scenario.extends: expected 'extends' in one place only")
    if (extends := root.child("extends")) is not None:
        entries, places = {"extends": extends, **entries}, {"extends": root.keys["extends"], **places}
    place = inner.place if inner is not None else root.place
    return from_document(Document(Node(entries, place, places), document.source, document.text), known_names(), name)


def _made(
    name: str, written: StudyFile, base: Scenario, grid: Sequence[Sequence[Choice]], keys: Mapping[str, Axis],
    document: Document | None, spans: Mapping[str, Span] | None = None,
) -> Study:  # fmt: skip
    """The study, with its expressions read. spans: ranges that an optimization chooses from."""
    find = _find(written, base, document)
    if find is not None and find.key in keys:
        raise _place(document, base)("find").error(f"find: {find.key} is an axis, too")
    chosen = written.optimize.trials if written.optimize is not None else prod(len(dimension) for dimension in grid)
    count = chosen * written.repeats
    if count > MOST_POINTS:
        raise InputError(f"{base.source}: expected at most {MOST_POINTS:,} runs, found {count:,}")
    if written.repeats > 1 and SEED in keys:
        raise InputError(f"{base.source}: expected either an axis over 'seed' or repeats, found both")

    place = _place(document, base)
    known = [*keys, *([find.key] if find is not None else []), *METRICS]
    columns: dict[str, Expression] = {}
    for column, text in written.columns.items():
        if column in known:
            raise place("columns", column).error(f"columns.{column}: there is a column of this name already")
        columns[column] = _located(place("columns", column), f"columns.{column}", str(text), [*known, *columns])
    constraints = [
        _located(place("constraints", i), f"constraints[{i}]", text, [*known, *columns])
        for i, text in enumerate(written.constraints)
    ]
    if find is not None:
        constraints = _within(constraints, base, place("find"))
    objectives = {}
    for objective, sense in _objectives(written, find).items():
        found = _located(place("objectives", objective), f"objectives.{objective}", objective, [*known, *columns])
        if len(found.columns) != 1:
            raise place("objectives", objective).error(f"objectives.{objective}: expected the name of a column")
        objectives[next(iter(found.columns))] = sense
    source = document.source if document is not None else base.source
    return Study(
        name=name, description=written.description, source=source, base=base, grid=grid, keys=keys, repeats=written.repeats,
        columns=columns, constraints=constraints, objectives=objectives, asked="objectives" in written.model_fields_set,
        find=find, optimize=_optimize(written, spans or {}),
    )  # fmt: skip


def _optimize(written: StudyFile, spans: Mapping[str, Span]) -> Optimize | None:
    asked = written.optimize
    if asked is None:
        return None
    return Optimize(trials=asked.trials, sampler=asked.sampler, seed=asked.seed, batch=asked.batch, spans=spans)


def _place(document: Document | None, base: Scenario) -> Callable[..., Place]:
    """The place of a key in the file of a study."""

    def place(*path: str | int) -> Place:
        return document.place(path) if document is not None else Place(base.source)

    return place


def _objectives(written: StudyFile, find: Find | None) -> dict[str, Any]:
    """Objectives as written; by default the value that is searched for."""
    if find is None or "objectives" in written.model_fields_set:
        return dict(written.objectives)
    return {find.key: "max" if find.largest else "min"}


def _find(written: StudyFile, base: Scenario, document: Document | None) -> Find | None:
    """The search; its range is read as those of axes are."""
    asked = written.find
    if asked is None:
        return None
    key, place = str(asked.largest or asked.smallest), _place(document, base)
    if asked.low is None or asked.high is None:
        node: Node | None = from_plain(base.to_dict(), base.source).root
        for name in key_path(key):
            node = None if node is None else node.child(name)
        value = None if node is None else node.value
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise place("find").error(f"find: {key}: expected 'from' and 'to', because the scenario writes no number there")
        ends = [value, value]
    else:
        ends = [asked.low, asked.high]
    span = between(key, place("find"), *(plain(end) if not isinstance(end, str) else end for end in ends))
    return Find(key=key, largest=asked.largest is not None, low=span.low, high=span.high, whole=span.whole,
                dimension=span.dimension, tolerance=asked.tolerance)  # fmt: skip


def _within(constraints: Sequence[Expression], base: Scenario, place: Place) -> list[Expression]:
    """The conditions of a search: constraints, and the objective of the scenario."""
    found = list(constraints)
    if base.report.slo is not None:
        found.append(replace(parse("slo_attained == 1", METRICS), text="report.slo is attained"))
    if not found:
        raise place.error("find: expected report.slo in the scenario, or constraints")
    return found


def _located(place: Place, key: str, text: str, columns: Iterable[str]) -> Expression:
    try:
        return parse(text, columns)
    except InputError as error:
        raise place.error(f"{key}: {error}") from None


def _grid(document: Document, written: StudyFile) -> tuple[list[list[Choice]], dict[str, Axis], dict[str, Span]]:
    """The dimensions of the grid, all axes by key, and the ranges that an optimization chooses from."""
    grid: list[list[Choice]] = []
    keys: dict[str, Axis] = {}
    spans: dict[str, Span] = {}
    for key in written.axes:
        _refuse_second(document, ("axes", key), key, keys)
        made = read_axis(key, document.find(("axes", key))[0])
        if isinstance(made, Span):
            if written.sample is None and written.optimize is None:
                raise document.place(("axes", key)).error(
                    f"{key}: a range needs a count, or the key 'sample' or 'optimize' beside 'axes'"
                )
            spans[key] = made
        else:
            keys[key] = made
            grid.append([((made, value),) for value in made.values])
    for i, group in enumerate(written.zip):
        grid.append(_zipped(document, i, group, keys))
    if written.cases:
        grid.append(_cases(document, written.cases, keys))
    if written.sample is not None:
        if not spans:
            raise document.place(("sample",)).error("sample: expected a range without a count among the axes")
        shares = sample(written.sample.method, written.sample.points, len(spans), written.sample.seed)
        grid.append(_sampled(spans, shares, keys))
    if written.optimize is not None:
        for key, span in spans.items():
            keys[key] = axis(key, [span.at(share) for share in (0, 1)])
    return grid, keys, spans


def _refuse_second(document: Document, path: tuple[str | int, ...], key: str, keys: Mapping[str, Axis]) -> None:
    if key in keys:
        raise document.place(path, key=True).error(f"{key}: a second axis of the same key")


def _zipped(document: Document, number: int, group: Mapping[str, Any], keys: dict[str, Axis]) -> list[Choice]:
    """One dimension of axes that go together."""
    columns: list[list[tuple[Axis, Value]]] = []
    for key in group:
        path = ("zip", number, key)
        _refuse_second(document, path, key, keys)
        node = document.find(path)[0]
        if not isinstance(node.value, list):
            raise node.place.error(f"{key}: expected a list of values in 'zip'")
        keys[key], values = placed(key, node.value)
        columns.append([(keys[key], value) for value in values])
    lengths = {len(column) for column in columns}
    if len(lengths) != 1:
        raise document.place(("zip", number)).error("zip: expected lists of equal length")
    return list(zip(*columns, strict=True))


def _cases(document: Document, cases: Sequence[Mapping[str, Any]], keys: dict[str, Axis]) -> list[Choice]:
    """One dimension of named cases, each with its own keys."""
    nodes = [document.find(("cases", i))[0] for i in range(len(cases))]
    named = [node.child("name") for node in nodes]
    labels = [plain(name.value) if name is not None else f"case {i}" for i, name in enumerate(named)]
    if len(set(labels)) < len(labels):
        raise document.place(("cases",)).error("cases: expected a different name for each case")
    case = Axis(CASE, tuple(Value(label, label, Node(label, node.place)) for label, node in zip(labels, nodes, strict=True)))
    keys[CASE] = case
    settings = [[(case, value)] for value in case.values]
    for key in dict.fromkeys(key for each in cases for key in each if key != "name"):
        having = [i for i, each in enumerate(cases) if key in each]
        _refuse_second(document, ("cases", having[0], key), key, keys)
        keys[key], values = placed(key, [document.find(("cases", i, key))[0] for i in having])
        for i, value in zip(having, values, strict=True):
            settings[i].append((keys[key], value))
    return [tuple(each) for each in settings]


def _sampled(spans: Mapping[str, Span], shares: npt.NDArray[np.float64], keys: dict[str, Axis]) -> list[Choice]:
    """One dimension of samples, [point, dimension] as shares of the ranges."""
    columns: list[list[tuple[Axis, Value]]] = []
    for (key, span), column in zip(spans.items(), shares.T, strict=True):
        keys[key], values = placed(key, [span.at(share) for share in column.tolist()])
        columns.append([(keys[key], value) for value in values])
    return list(zip(*columns, strict=True))


def check(study: Study) -> None:
    """Raise InputError, that of the first, if of some points from all over a study none is a valid scenario.

    Then a key is misspelled, or its values are of another kind. Points that only cannot be run are rows with an error.
    """
    first: InputError | None = None
    for point in spread(study, CHECKED):
        try:
            study.scenario(point)
            return
        except InputError as error:
            first = first or error
    if first is not None:
        raise first


def spread(study: Study, count: int) -> list[Point]:
    """A few points, from all over the study; of searches, with the value that is run first."""
    if study.optimize is not None:
        chosen = study.space.random(min(count, len(study)), study.optimize.seed)
        return [Point(number, study.base.seed, settings) for number, settings in enumerate(chosen)]
    step = max(1, len(study) * study.repeats // count)
    points = list(islice(study.points(), 0, None, step))[:count]
    return points if study.find is None else [study.at(point, study.find.first) for point in points]
