"""Plans of the points of a study, made here or by a process that has no files of this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import RLock
from typing import Any

from models.library import ships
from sim.base.documents import Assignment, key_path
from sim.machine.presets import is_path
from sim.runs.plan import Plan, plan
from sim.runs.run import known_names
from sim.runs.shared import Shared
from sim.scenario import Scenario, assigned
from sim.scenario.paths import PATHS, PRESET_PATH, TRACE_PATH

#: Keys, beside those of paths, by which other files are read or models captured.
MODEL_KEYS = (
    ("extends",), ("model", "config"), ("model", "dtype"), ("mapping", "granularity"), ("mapping", "mla"),
    ("workload", "speculative"),
)  # fmt: skip


class Planner:
    """Makes scenarios of a base with some values changed, and their plans, which share what is equal.

    It is pickled as the base alone.
    """

    def __init__(self, base: Scenario) -> None:
        self.base = base
        self._latest: Scenario | None = None
        self._shared = Shared()
        self._lock = RLock()  # threads of a worker have one planner

    def __reduce__(self) -> tuple[Callable[[Scenario], Planner], tuple[Scenario]]:
        return Planner, (self.base,)

    def scenario(self, values: Sequence[Assignment]) -> Scenario:
        """The base with other values. Raises InputError if it is not valid."""
        with self._lock:
            self._latest = assigned(self.base, values, known_names(), like=self._latest)
            return self._latest

    def plan(self, values: Sequence[Assignment]) -> Plan:
        """The plan of the base with other values. Raises InputError if it cannot be run."""
        with self._lock:
            return plan(self.scenario(values), self._shared)


def needs_files(base: Scenario, changed: Mapping[str, Sequence[str]]) -> bool:
    """Whether plans need files that do not ship with the program, or the capture of a model.

    changed: values of keys as text. A key may be that of a section, or of a part of one.
    """
    presets, configs = changed.get("hardware.preset", ()), changed.get("model.config", ())
    keys = [key_path(key) for key in changed if key not in ("hardware.preset", "model.config")]
    if any(key[: len(way)] == way[: len(key)] for key in keys for way in (*PATHS, PRESET_PATH, TRACE_PATH, *MODEL_KEYS)):
        return True
    drafts = base.workload.speculative
    if any(named_files(base)) or (drafts is not None and drafts.model is not None):
        return True
    if any(map(is_path, filter(None, [base.hardware.preset, *presets]))):
        return True
    mapping, dtype = base.mapping, base.model.dtype
    return any(not ships(each, mapping.granularity, dtype, mapping.mla) for each in filter(None, [base.model.config, *configs]))


def named_files(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Paths that a scenario names, beside those of its model and of a preset, after their keys."""
    data = scenario.to_dict()
    for path in PATHS:
        value: Any = data
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str):
            yield ".".join(path), value
