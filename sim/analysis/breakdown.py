"""Breakdown of time: each picosecond of tasks and of tokens in exactly one of seven parts.

A task's time is [ready, end]:

| execution          | [ready, start]               | [start, loaded]                     | [loaded, end] |
| ------------------ | ---------------------------- | ----------------------------------- | ------------- |
| blocking           | wait_engine or wait_policy   | transfer, the excess wait_channel   | compute       |
| transfer by a DMA  | wait for SRAM, see below     | transfer, the excess wait_channel   |               |

Where an engine loads operands, the first part of [start, loaded] is the launch: compute. Under `stream` load and compute
overlap in [start, end]: if compute is no shorter than launch and transfer, it is compute, else launch and transfer; the rest
is wait_channel. `transfer` is latency plus the time at the full speed of the channel, as if it were the
only transfer and no port in the way; so what a port slows down counts as wait_channel. While a task waits for an engine
and all engines are busy, that is wait_engine; while one is idle that the scheduler declines to use, wait_policy, or if the
scheduler never does so, and the task loads operands itself into bounded SRAM, wait_sram.

A DMA issues the load of an operand once SRAM has space for it. `sim.analysis.sram` splits that wait by what the machine does:
wait_channel while some channel serves a transfer, else wait_engine while all engines are busy and a task is ready for one, else
wait_sram, because the space itself is missing.

A token's time is [released, end] of its step. Walk back from the task that ended last to the input that ended last, and so
on: the times of the tasks on this chain follow one another without a gap. Time on a task of another token, which only the
order of the KV cache can bring in, is wait_input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.analysis.parts import PART_COUNT
from sim.analysis.rules import Rules
from sim.analysis.sums import exact_sum, sum_by
from sim.analysis.tally import Tally
from sim.analysis.tally_kernels import SPENT, Fault
from sim.base.errors import SimulationError
from sim.log.tables import EventLog

Times = npt.NDArray[np.int64]

#: Name of the invariant that this module asserts.
INVARIANT = "time of tasks and tokens splits exactly"


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Picoseconds, with one column per entry of `PARTS`.

    tokens: [step, part], along the critical chain of each token; rows as in the step table, sums are the tokens' times.
    by_step, by_sequence, by_kind, by_layer: [.., part], totals over all tasks; `sequences`, `kinds`, `layers` name their rows
    (layer -1: outside of layers). Totals that int64 cannot hold are Python integers.
    """

    tokens: Times
    by_step: Times
    sequences: tuple[int, ...]
    by_sequence: Times
    kinds: tuple[str, ...]
    by_kind: Times
    layers: tuple[int, ...]
    by_layer: Times

    @property
    def total(self) -> Times:
        """[part]: over all tasks of the run."""
        return np.asarray(sum_by(self.by_kind, np.zeros(len(self.by_kind), dtype=np.int64), 1)[0])


def breakdown(log: EventLog, rules: Rules, tally: Tally | None = None) -> Breakdown:
    """Break down the time of a run. Raises SimulationError if a part is negative or the parts do not sum to the whole.

    tally: sums over the log, if they have been made; then the log needs no rows.
    """
    tally = Tally.of(log, rules) if tally is None else tally
    if Fault.TOO_FAST in tally.faults:
        raise SimulationError(f"invariant does not hold: {INVARIANT}: {tally.faults[Fault.TOO_FAST]}")
    columns, by_step, places = tally.totals, tally.by_step, tally.forms.places()
    totals = columns[:, :PART_COUNT]
    sequences, of_sequence = np.unique(log.steps.sequence, return_inverse=True)
    result = Breakdown(
        tokens=tally.tokens, by_step=by_step,
        kinds=places.kinds, by_kind=sum_by(totals, places.kind, len(places.kinds)),
        layers=places.layers, by_layer=sum_by(totals, places.layer, len(places.layers)),
        sequences=tuple(sequences.tolist()),
        by_sequence=sum_by(by_step, of_sequence, len(sequences)),
    )  # fmt: skip
    _verify(log, result, sum(columns[:, SPENT].tolist()))
    return result


def _verify(log: EventLog, result: Breakdown, whole: int) -> None:
    """The parts sum to the whole: per token along its chain, and over all tasks however they are grouped."""
    own = log.steps.end - log.steps.released
    bad = np.flatnonzero(result.tokens.sum(axis=1) != own)
    if len(bad):
        token = f"{log.steps.sequence[bad[0]]}.{log.steps.token[bad[0]]}"
        raise SimulationError(
            f"invariant does not hold: {INVARIANT}: token {token} took {own[bad[0]]} ps, "
            f"its parts sum to {result.tokens[bad[0]].sum()} ps"
        )
    for name in ("by_step", "by_sequence", "by_kind", "by_layer"):
        total = exact_sum(getattr(result, name))
        if total != whole:
            raise SimulationError(f"invariant does not hold: {INVARIANT}: {name} sums to {total} ps, tasks to {whole} ps")
