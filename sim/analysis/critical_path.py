"""The critical path of a schedule as it ran: from the last end back to 0, without a gap.

Each link says what held up its start: an input, the KV cache of another token, the task that freed the engine, the transfer
that freed the channel, the scheduler, room in SRAM, the step before, or the arrival of the request. Unlike the chain of a
token (`breakdown`), it follows whoever held an engine or the channel; so shortening anything that is not on it changes
nothing, until another path is as long.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.analysis.context import Rules
from sim.analysis.links import Cause, Place
from sim.analysis.walk import links_of
from sim.analysis.wide import sum_by
from sim.base.errors import SimulationError
from sim.log import derived
from sim.log.columns import NONE
from sim.log.tables import EventLog

Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalPath:
    """Links in order of time; each begins where the one before ends, the first at 0, and the last ends the run.

    row: of the task table, -1 before an arrival. begin, end: ps. place: see `Place`. cause: see `Cause`.
    work: of a link on the channel, its time at full speed; the rest of it was lost to sharing and to the port.
    """

    row: Times
    begin: Times
    end: Times
    place: npt.NDArray[np.int8]
    cause: npt.NDArray[np.int8]
    work: Times

    def __len__(self) -> int:
        return len(self.row)

    @property
    def rows(self) -> Times:
        """The tasks on it in order of time, each once."""
        tasks = self.row[self.row != NONE]
        return np.asarray(tasks[np.append(True, tasks[1:] != tasks[:-1])[: len(tasks)]])

    def by_kind(self, log: EventLog) -> dict[str, int]:
        """Picoseconds of each kind of task, the largest first; `arrival` stands for the time before a request came."""
        forms, span, of_task = derived.forms(log), self.end - self.begin, self.row != NONE
        kind = derived.kind(log)[self.row[of_task]]
        sums = dict.fromkeys((forms.kinds[each] for each in np.unique(kind).tolist()), 0)
        for number, total in enumerate(sum_by(span[of_task], kind, len(forms.kinds)).tolist()):
            if forms.kinds[number] in sums:
                sums[forms.kinds[number]] = total
        if not of_task.all():
            sums["arrival"] = int(span[~of_task].sum())
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))

    def by_resource(self, log: EventLog) -> dict[str, int]:
        """Picoseconds of each resource: `engine n`, `channel` at full speed, `sharing` what it lost to that, and so on."""
        span = self.end - self.begin
        on = self.place == Place.ENGINE
        of_engine = sum_by(span[on], log.tasks.engine[self.row[on]], log.engines).tolist()
        sums = {f"engine {engine}": total for engine, total in enumerate(of_engine)}
        served = self.place == Place.CHANNEL
        sums["channel"] = int(self.work[served].sum())
        sums["sharing"] = int(span[served].sum()) - sums["channel"]
        for place in (Place.LATENCY, Place.WAIT, Place.ARRIVAL):
            sums[place.name.lower()] = int(span[self.place == place].sum())
        return {name: total for name, total in sums.items() if total}

    def by_cause(self) -> dict[str, int]:
        """How many links were held up by what."""
        counts = np.bincount(self.cause, minlength=len(Cause))
        return {cause.name.lower(): int(counts[cause]) for cause in Cause if counts[cause] and cause is not Cause.ITSELF}


def kind_of(log: EventLog, row: int) -> str:
    """The kind of the task of a row."""
    graph = log.graphs[int(log.steps.graph[log.tasks.step[row]])]
    return graph.kind_of(int(log.tasks.task[row]))


def critical_path(log: EventLog, rules: Rules) -> CriticalPath:
    """Walk back from the last end. Raises SimulationError if the links leave a gap."""
    if not len(log.tasks):
        row, begin, end, place, cause, work = np.zeros((6, 0), dtype=np.int64)
    else:
        row, begin, end, place, cause, work = links_of(log, rules)
    path = CriticalPath(
        row=row, begin=begin, end=end, place=place.astype(np.int8), cause=cause.astype(np.int8), work=work,
    )  # fmt: skip
    if len(path) and (path.begin[0] or path.end[-1] != log.makespan or (path.begin[1:] != path.end[:-1]).any()):
        raise SimulationError("invariant does not hold: the critical path covers the run without a gap")
    return path
