"""From an event log to tracks: which slices and counters a trace shows, and where.

    Machine
      Engines     busy engines, ready queue (counters); engine n: what ran, with `channel wait` and `load` nested
      Memory      GB/s (or TB/s) delivered, outstanding transfers (counters), and MB in SRAM, where it is bounded; for each
                  channel lanes of transfers being served, and below them lanes of transfers that queue; with links, outstanding
                  transfers are below all of them
      power       watts (counter), where energy figures are known
      critical path (if it is given)
      Requests    batch size, KV cache (counters), where there are several sequences
    Sequences
      sequence n
        token k   the chain of tasks that decided its end, as token > layer > op, with waiting as slices of its own
          ops     every task of the token, preceded by its wait for an engine, in as many lanes as run or wait at once

Where steps are batched, each sequence has one track with the part it took in each step, and the tracks of tokens are
those of steps, `Steps` > loop n > step k.

Tokens that do not overlap share a track (a thousand tokens of sampled decode are one line to scroll along); tokens that
do overlap get one each. A chain never overlaps itself, so that line can be read from left to right without a gap.
"""

from __future__ import annotations

from collections.abc import Iterator

from sim.analysis.power import Power
from sim.log.tables import EventLog
from sim.render.trace.canvas import Canvas, Rows, Window
from sim.render.trace.machine import counters, machine
from sim.render.trace.sequences import sequences
from sim.render.trace.tracks import Counter, Slices

#: Tracks that a viewer should expand on arrival, by name: all but the two that have a line for each of many things.
EXPANDED = r"^(?!ops$|.* queue$)"


class Layout:
    """The tracks of a log, declared as its groups of slices are asked for: machine first, then sequences and counters.

    window: ps; keeps what overlaps it. critical: rows of the critical path in order; they get a track of their own.
    power: watts over time, for a counter.
    """

    def __init__(
        self, log: EventLog, window: Window = None, critical: Rows | None = None, power: Power | None = None
    ) -> None:  # fmt: skip
        self.critical, self._canvas, self._power = critical, Canvas(log, window), power
        self.tracks, self.names, self.categories = self._canvas.tracks, self._canvas.names, self._canvas.categories

    def machine(self) -> Slices:
        """Slices of the engines and of the memory channels."""
        slices, self._counters = machine(self._canvas, self.critical, powered=self._power is not None)
        return slices

    def counters(self) -> Iterator[Counter]:
        """Values over time, after `machine` has declared their tracks."""
        return counters(self._canvas, self._counters, self._power)

    def sequences(self) -> Iterator[Slices]:
        """Slices of the tokens, one group per sequence."""
        return sequences(self._canvas)
