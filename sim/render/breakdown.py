"""Time breakdown, causes of waits, critical path and optimum of a run as plain data.

Each function is pure and gives JSON-ready data in a fixed order; times are integers of picoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sim.analysis.blame import Blame, Matrix
from sim.analysis.critical_path import Cause, Place
from sim.analysis.parts import PARTS, WITHOUT_LINKS
from sim.analysis.rules import Rules
from sim.cost import Extrapolation
from sim.log.tables import EventLog
from sim.render.rows import Index, Rows
from sim.runs.result import Result

if TYPE_CHECKING:  # needs OR-tools, which is an extra
    from sim.analysis.optimal import Optimum

Times = npt.NDArray[np.int64]


def parts(row: Times | Sequence[int]) -> dict[str, int]:
    """Map part names to the times of one row of a breakdown, in ps; parts of links only where there is some."""
    return {name: int(ps) for name, ps in zip(PARTS, row, strict=True) if ps or name in WITHOUT_LINKS}


def titles(log: EventLog) -> tuple[str, ...]:
    """Titles of the parts of a step's time: where the host prepares steps, these wait for it and for no token before them."""
    return tuple("host" if part == "wait_input" and log.step_overhead else part for part in PARTS)


def extrapolations(found: Sequence[Extrapolation]) -> list[str]:
    """Extrapolation warnings: one sentence per reason, sorted by share of engine time, largest first."""
    by_reason: dict[str, list[Extrapolation]] = {}
    for extrapolation in found:
        by_reason.setdefault(extrapolation.why, []).append(extrapolation)
    texts = []
    for why, group in sorted(by_reason.items(), key=lambda item: -sum(extrapolation.share for extrapolation in item[1])):
        ops, share = sum(extrapolation.ops for extrapolation in group), sum(extrapolation.share for extrapolation in group)
        kinds = ", ".join(extrapolation.kind for extrapolation in group)
        texts.append(f"{kinds}: {why} ({ops} op{'s' if ops > 1 else ''}, {share:.1%} of the time on engines)")
    return texts


def totals(result: Result) -> dict[str, Any]:
    """Over all tasks: `total`, `by_kind`, `by_layer`, `by_token`, `by_sequence`; the last two are `Rows`."""
    b, steps = result.breakdown, result.log.steps

    def tokens(rows: Index) -> list[dict[str, Any]]:
        columns = (steps.sequence, steps.token, b.by_step)
        return [
            {"sequence": sequence, "token": token, **parts(row)}
            for sequence, token, row in zip(*(column[rows].tolist() for column in columns), strict=True)
        ]

    def sequences(rows: Index) -> list[dict[str, Any]]:
        columns = (np.array(b.sequences), b.by_sequence)
        return [
            {"sequence": number, **parts(row)}
            for number, row in zip(*(column[rows].tolist() for column in columns), strict=True)
        ]

    return {
        "total": parts(b.total),
        "by_kind": [{"kind": name, **parts(row)} for name, row in zip(b.kinds, b.by_kind, strict=True)],
        "by_layer": [{"layer": layer, **parts(row)} for layer, row in zip(b.layers, b.by_layer, strict=True)],
        "by_token": Rows(len(b.by_step), tokens),
        "by_sequence": Rows(len(b.sequences), sequences),
    }


#: Causes of a wait that no other transfer caused, by `Rules.limit`.
ALONE = {"port": "its own port", "efficiency": "the channel's efficiency"}


def blame(found: Blame, rules: Rules) -> dict[str, Any]:
    """`engine` and `channel`, each by `owner` and by `kind`: `wait_ps[waiting][cause]`, and `alone_ps`: due to `alone`."""

    def table(matrix: Matrix) -> dict[str, Any]:
        return {"names": list(matrix.names), "wait_ps": matrix.wait.tolist(), "alone_ps": matrix.alone.tolist()}

    return {
        "owner": found.owner,
        "alone": ALONE[rules.limit],
        "engine": {"by_owner": table(found.engine_by_owner), "by_kind": table(found.engine_by_kind)},
        "channel": {"by_owner": table(found.channel_by_owner), "by_kind": table(found.channel_by_kind)},
    }


def critical_path(result: Result, *, links: bool = False) -> dict[str, Any]:
    """Shares of the critical path, and with `links` all of it."""
    log, path = result.log, result.critical_path
    data: dict[str, Any] = {
        "tasks": len(path.rows),
        "by_kind_ps": path.by_kind(log),
        "by_resource_ps": path.by_resource(log, result.plan.rules),
        "causes": path.by_cause(),
    }
    if links:
        data["links"] = [
            {
                "task": log.name(row) if row >= 0 else "",
                "sequence": int(log.steps.sequence[log.tasks.step[row]]) if row >= 0 else None,
                "token": int(log.steps.token[log.tasks.step[row]]) if row >= 0 else None,
                "engine": int(log.tasks.engine[row]) if row >= 0 and log.tasks.engine[row] >= 0 else None,
                "place": Place(place).name.lower(),
                "because": Cause(cause).name.lower(),
                "begin_ps": begin,
                "end_ps": end,
            }
            for row, place, cause, begin, end in zip(
                path.row.tolist(), path.place.tolist(), path.cause.tolist(), path.begin.tolist(), path.end.tolist(), strict=True
            )
        ]
    return data


def optimal(answer: Optimum, makespan: int) -> dict[str, Any]:
    """`best_ps` and `bound_ps` are null where it is not supported, and `sentence` says why."""
    return {
        "best_ps": answer.best,
        "bound_ps": answer.bound,
        "proved": answer.proved,
        "sentence": answer.sentence(makespan),
    }
