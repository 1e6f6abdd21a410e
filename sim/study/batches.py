"""Batches of points, as they are sent to a process that needs no files: large parts are kept there.

A point that can be planned without files is sent as the values that it changes of the base scenario, others as plans. Points
of a study share their base, task graphs and models, which are far larger than the rest. A batch is pickled with a digest in
place of each of these; they follow as parts, which the receiving process makes once, however many batches name them. Points
that differ in delays alone have the same graph there, and all that is derived from it.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any, Literal

from models.graph import ModelGraph, OpGraph
from sim.analysis.goodput import Slo
from sim.analysis.rules import Rules
from sim.base.documents import Assignment
from sim.base.errors import SimError
from sim.executors.setup import Setup
from sim.mapping.tasks import TaskGraph
from sim.runs.plan import Plan
from sim.study.planner import Planner

#: Types whose objects points share.
SHARED = (Planner, TaskGraph, OpGraph, ModelGraph)

KEPT = 64  # parts that a process keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The part of a plan that is simulated and measured."""

    setup: Setup
    rules: Rules
    record: Literal["all", "steps", "none"]
    warmup_time: int
    warmup_requests: int
    slo: Slo | None

    @classmethod
    def of(cls, planned: Plan) -> Job:
        """The job of a plan."""
        setup = planned.setup
        if setup.batching is None:  # then there is one graph, and the others would only be sent along
            setup = replace(setup, graphs=None)
        return cls(
            setup=setup, rules=planned.rules, record=planned.record, warmup_time=planned.warmup_time,
            warmup_requests=planned.warmup_requests, slo=planned.slo,
        )  # fmt: skip

    def job(self) -> Job:
        """Itself: it is planned."""
        return self


@dataclass(frozen=True, slots=True)
class Unplanned:
    """A point that the process which runs it plans. values: that it changes of the base of its planner."""

    planner: Planner
    values: tuple[Assignment, ...]

    def job(self) -> Job:
        """Its job. Raises InputError if it cannot be run."""
        return Job.of(self.planner.plan(self.values))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a job: its metrics, or the error that it ended with."""

    values: dict[str, Any] | None
    error: str = ""


class Batch:
    """Jobs that one task of an executor runs. It is packed when it is pickled, so in one process it costs nothing."""

    def __init__(self, jobs: Sequence[Job | Unplanned]) -> None:
        self.jobs = jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[bytes, dict[str, bytes]]]:
        parts: dict[str, bytes] = {}
        return _unpacked, (_packed(list(self.jobs), parts), parts)


def run(batch: Batch, measure: Callable[[Job], dict[str, Any]]) -> list[Outcome]:
    """Run all jobs of a batch. An error is an outcome; only a lack of memory or an interrupt ends it."""
    found = []
    for each in batch.jobs:
        try:
            found.append(Outcome(measure(each.job())))
        except SimError as error:
            found.append(Outcome(None, str(error)))
        except Exception as error:  # a point must not end the study
            found.append(Outcome(None, f"{type(error).__name__}: {error}"))
    return found


class _Packer(pickle.Pickler):
    """Pickles an object with digests in place of shared ones, which it adds to `parts`."""

    def __init__(self, file: io.BytesIO, parts: dict[str, bytes], root: object = None) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._parts, self._root = parts, root

    def persistent_id(self, obj: Any) -> str | None:
        if not isinstance(obj, SHARED) or obj is self._root:
            return None
        return _add(obj, self._parts)


class _Unpacker(pickle.Unpickler):
    """Reads what `_Packer` wrote."""

    def __init__(self, file: io.BytesIO, parts: dict[str, bytes]) -> None:
        super().__init__(file)
        self._parts = parts

    def persistent_load(self, pid: Any) -> Any:
        with _LOCK:
            if pid not in _MADE:
                _MADE[pid] = _Unpacker(io.BytesIO(self._parts[pid]), self._parts).load()
            _MADE.move_to_end(pid)
            made = _MADE[pid]
            while len(_MADE) > KEPT:
                _MADE.popitem(last=False)
            return made


_LOCK = RLock()  # threads of a worker share parts

#: Parts that were received, by digest; the one used last comes last.
_MADE: OrderedDict[str, Any] = OrderedDict()

#: Shared objects that were sent, by identity: the object, its digest, its bytes and those of the parts in it.
_SENT: OrderedDict[int, tuple[object, str, dict[str, bytes]]] = OrderedDict()


def _packed(obj: object, parts: dict[str, bytes], root: object = None) -> bytes:
    file = io.BytesIO()
    _Packer(file, parts, root).dump(obj)
    return file.getvalue()


def _add(obj: object, parts: dict[str, bytes]) -> str:
    """Add a shared object and all that it shares to the parts; returns its digest."""
    if id(obj) not in _SENT:
        inside: dict[str, bytes] = {}
        content = _packed(obj, inside, obj)
        digest = hashlib.sha256(content).hexdigest()
        _SENT[id(obj)] = (obj, digest, {**inside, digest: content})  # the entry keeps the object alive, so no other has its id
        while len(_SENT) > KEPT:
            _SENT.popitem(last=False)
    _SENT.move_to_end(id(obj))
    _, digest, inside = _SENT[id(obj)]
    parts.update(inside)
    return digest


def keep(shared: object) -> None:
    """Let forks of this process have a shared object as it is here, with all that it has made, when it is sent to them."""
    digest = _add(shared, {})
    with _LOCK:
        _MADE[digest] = shared


def _unpacked(content: bytes, parts: dict[str, bytes]) -> Batch:
    return Batch(_Unpacker(io.BytesIO(content), parts).load())
