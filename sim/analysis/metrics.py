"""The plain numbers of a run: tokens, engines, memory, and what each kind of op took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from sim.analysis.moved import Moved, moved_by_kind
from sim.analysis.rules import ANY_RULES
from sim.analysis.tally import Tally
from sim.analysis.tally_kernels import COMPUTED, MOVED
from sim.log.tables import EventLog

Ints = npt.NDArray[np.integer]
Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One output token: from its release to the end of its last task, in ps."""

    sequence: int
    token: int
    start: int
    end: int


class Tokens(Sequence[Token]):
    """All output tokens, in columns [token]; each is made when it is asked for.

    sequence, token: its numbers. start, end: ps.
    """

    def __init__(self, sequence: Ints, token: Ints, start: Times, end: Times) -> None:
        self.sequence, self.token, self.start, self.end = sequence, token, start, end

    @classmethod
    def none(cls) -> Tokens:
        return cls(*[np.zeros(0, dtype=np.int64)] * 4)

    @property
    def times(self) -> Times:
        """Time of each token, ps."""
        return self.end - self.start

    def __len__(self) -> int:
        return len(self.end)

    @overload
    def __getitem__(self, index: int) -> Token: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Token, ...]: ...

    def __getitem__(self, index: int | slice) -> Token | tuple[Token, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        return Token(
            sequence=int(self.sequence[index]), token=int(self.token[index]),
            start=int(self.start[index]), end=int(self.end[index]),
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokens) and all(map(np.array_equal, vars(self).values(), vars(other).values()))

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """All tasks of one kind: their number, ps on engines, bytes through the channel, ps of channel time."""

    kind: str
    tasks: int
    compute: int
    transfer: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """`engine_busy`: ps per engine. `channel_busy`: ps in which some channel of the memory served.

    `delivered`: ps of bandwidth of each channel, links included. `bytes_sent`: to other devices. `bytes_tiers`: to or
    from each tier, the host first.
    """

    makespan: int
    tasks: int
    tokens: Tokens
    engine_busy: tuple[int, ...]
    channel_busy: int
    delivered: tuple[int, ...]
    bytes_read: int
    bytes_written: int
    bytes_sent: int
    bytes_tiers: tuple[int, ...] = ()
    kinds: tuple[Kind, ...]

    @property
    def bytes_host(self) -> int:
        """Bytes to and from all tiers."""
        return sum(self.bytes_tiers)


def metrics(log: EventLog, tally: Tally | None = None, *, totals: bool = False) -> Metrics:
    """Compute them all. tally: sums over the log, if they have been made; then the log needs no rows.

    totals: leave out tokens and kinds.
    """
    tally = Tally.of(log, ANY_RULES) if tally is None else tally
    moved, steps = moved_by_kind(log), log.steps
    return Metrics(
        makespan=log.makespan,
        tasks=tally.tasks,
        tokens=Tokens.none() if totals else Tokens(steps.sequence, steps.token, steps.released, steps.end),
        engine_busy=tuple(tally.engine_busy.tolist()),
        channel_busy=tally.channel_busy,
        delivered=tuple(tally.delivered.tolist()),
        bytes_read=sum(each.read for each in moved.values()),
        bytes_written=sum(each.written for each in moved.values()),
        bytes_sent=sum(each.sent for each in moved.values()),
        bytes_tiers=tuple(sum(each.tiers[tier] for each in moved.values()) for tier in range(len(log.machine.tiers))),
        kinds=() if totals else _kinds(tally, moved),
    )


def _kinds(tally: Tally, moved: dict[str, Moved]) -> tuple[Kind, ...]:
    """All kinds, the one that took longest first."""
    forms = tally.forms
    sums = {name: [0, 0, 0, sum(moved.get(name, ()))] for name in forms.kinds}
    for (kind, _), count, row in zip(forms.groups, tally.runs_of_groups().tolist(), tally.totals.tolist(), strict=True):
        for column, value in enumerate((count, row[COMPUTED], row[MOVED])):
            sums[forms.kinds[kind]][column] += value
    kinds = (Kind(kind=n, tasks=t, compute=c, transfer=w, bytes=b) for n, (t, c, w, b) in sums.items())
    return tuple(sorted(kinds, key=lambda kind: (-(kind.compute + kind.transfer), kind.kind)))
