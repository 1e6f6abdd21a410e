"""Latencies of each request: time to first token, between tokens, end to end; percentiles; fairness.

A token is there when the step that emits it ends. With tokens at t_1 <= t_2 <= ... <= t_n of a request that arrived at a:

| name | is |
| --- | --- |
| queued | from a to the release of the first step that the request takes part in |
| TTFT, time to first token | t_1 - a: queueing, prefill and the step that emits it |
| ITL, inter-token latency | the n - 1 gaps t_{k+1} - t_k |
| TPOT, time per output token | (t_n - t_1) / (n - 1), the mean of the gaps, rounded to a picosecond; none if n = 1 |
| E2E, end to end | t_n - a = TTFT + the sum of all gaps, exactly |
| slowdown | E2E over the time that its steps' critical chains computed and transferred: 1 if nothing ever waited |

A step that verifies drafts may emit e tokens at once: that is one gap since the step before, and e - 1 gaps of 0. Percentiles
are nearest ranks: p is the smallest value that at least p percent of the values do not exceed, so it is one of them. Fairness
is Jain's index (sum x)^2 / (n sum x^2), from 1/n (one has it all) to 1 (all alike): R. Jain, D. Chiu, W. Hawe, "A quantitative
measure of fairness and discrimination for resource allocation in shared computer systems", DEC TR-301, 1984.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from sim.analysis.parts import COMPUTE, TRANSFER
from sim.analysis.sums import exact_sum
from sim.base.errors import SimulationError
from sim.base.units import PS_PER_S, ceil_div
from sim.log.tables import EventLog

Times = npt.NDArray[np.int64]

PERCENTILES = (50, 90, 99)

#: Names of what is measured of a request, and their titles.
TITLES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "end to end", "queued": "queued"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Distribution of `count` times in ps: their mean, rounded, percentiles and the largest."""

    count: int
    mean: int
    p50: int
    p90: int
    p99: int
    largest: int

    @classmethod
    def of(cls, times: Times) -> Distribution | None:
        """Distribution of some times; None if there are none."""
        n = len(times)
        if not n:
            return None
        ordered = np.sort(times)
        mean = (2 * exact_sum(ordered) + n) // (2 * n)
        p50, p90, p99 = (int(ordered[nearest_rank(p, n)]) for p in PERCENTILES)
        return cls(count=n, mean=mean, p50=p50, p90=p90, p99=p99, largest=int(ordered[-1]))


def nearest_rank(percent: int, count: int) -> int:
    """The index, in ascending order, of a percentile: that of rank ceil(percent / 100 * count)."""
    return ceil_div(percent * count, 100) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """Work of replicas, or of devices that have sequences of their own, as `word` says. first, last: number of the one that
    gave the first and the last token [request]; they differ where some prefill and others decode. tokens: output tokens
    [replica].
    """

    word: Literal["replica", "device"]
    first: npt.NDArray[np.int32]
    last: npt.NDArray[np.int32]
    tokens: Times


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """One entry per request in all columns but `gaps` and `of_gap`.

    arrival, started, first, last: ps; when it came, when its first step was released, when its first and last token were there.
    tokens: output tokens. alone: ps that the critical chains of its steps computed and transferred. gaps: all inter-token
    latencies, request after request; of_gap: whose they are. counted: whether statistics take it in, or it belongs to the
    warm-up. begin, end: ps, the time that rates are of: from the end of the warm-up to the last token of the run.
    emitted: output tokens in that time, whosever. by: what each replica did; None if there is one. waits: ps [request, reason]
    of `queued`, by `sim.serving.queue.Reason`; None where nothing was batched.
    """

    arrival: Times
    started: Times
    first: Times
    last: Times
    tokens: Times
    alone: Times
    gaps: Times
    of_gap: npt.NDArray[np.int32]
    counted: npt.NDArray[np.bool_]
    begin: int
    end: int
    emitted: int
    by: Replicas | None = None
    waits: Times | None = None

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def queued(self) -> Times:
        return self.started - self.arrival

    @property
    def ttft(self) -> Times:
        return self.first - self.arrival

    @property
    def e2e(self) -> Times:
        return self.last - self.arrival

    @property
    def tpot(self) -> Times:
        """Rounded to the nearest ps, -1 where there is one token only."""
        gaps = self.tokens - 1
        return np.where(gaps > 0, (2 * (self.last - self.first) + gaps) // (2 * np.maximum(gaps, 1)), -1)

    @property
    def slowdown(self) -> npt.NDArray[np.float64]:
        return self.e2e / np.maximum(self.alone, 1)

    def times(self) -> dict[str, Distribution | None]:
        """The distributions over the counted requests (of ITL: over all their gaps)."""
        tpot = self.tpot[self.counted]
        return {
            "ttft": Distribution.of(self.ttft[self.counted]),
            "tpot": Distribution.of(tpot[tpot >= 0]),
            "itl": Distribution.of(self.gaps[self.counted[self.of_gap]]),
            "e2e": Distribution.of(self.e2e[self.counted]),
            "queued": Distribution.of(self.queued[self.counted]),
        }

    def only(self, which: npt.NDArray[np.bool_]) -> Requests:
        """The same requests, of which statistics take in only some."""
        return replace(self, counted=self.counted & which)

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of all requests, after the warm-up."""
        return _rate(self.emitted, self.end - self.begin)

    @property
    def requests_per_second(self) -> float:
        """Requests that ended after the warm-up."""
        return _rate(int((self.last > self.begin).sum()), self.end - self.begin)

    @property
    def in_system(self) -> float:
        """Requests that have arrived and not ended, on average after the warm-up."""
        stay = np.maximum(self.last, self.begin) - np.maximum(self.arrival, self.begin)
        return float(exact_sum(stay) / max(1, self.end - self.begin))

    def fairness(self) -> dict[str, float | None]:
        """Jain's index over the counted requests: of output tokens per second end to end, and of slowdowns."""
        rates = (int(n) / max(1, int(t)) for n, t in zip(self.tokens[self.counted], self.e2e[self.counted], strict=True))
        return {"tokens_per_s": jain(rates), "slowdown": jain(self.slowdown[self.counted].tolist())}


def jain(values: Iterable[float]) -> float | None:
    """Jain's fairness index; None if there are no values. Sums are exact before rounding, so their order does not matter."""
    x = list(values)
    total, squares = math.fsum(x), math.fsum(v * v for v in x)
    return total * total / (len(x) * squares) if squares else None


def _rate(count: int, ps: int) -> float:
    return count * PS_PER_S / ps if ps else 0.0


def requests(log: EventLog, chains: Times, *, warmup_time: int = 0, warmup_requests: int = 0) -> Requests:
    """Compute the latencies of each request.

    chains: [step, part], the times of `Breakdown.tokens`. What arrives before `warmup_time` (ps), and the first
    `warmup_requests` to arrive, is the warm-up. Raises SimulationError if a request got no token.
    """
    members, n = log.members, len(log.arrival)
    end = log.steps.end[members.step]
    order = np.lexsort((end, members.sequence))
    gives = order[members.emitted[order] > 0]
    sequence = np.repeat(members.sequence[gives], members.emitted[gives])
    token = np.repeat(end[gives], members.emitted[gives])  # when each output token was there
    tokens = np.bincount(sequence, minlength=n).astype(np.int64)
    if not tokens.all():
        raise SimulationError(f"invariant does not hold: every request ends: sequence {int(tokens.argmin())} got no token")
    after = np.cumsum(tokens)
    same = sequence[1:] == sequence[:-1]
    started = log.started
    if log.queue is not None and ((log.queue < 0).any() or (log.queue.sum(axis=1) != started - log.arrival).any()):
        raise SimulationError("invariant does not hold: the time of each request in the queue is the sum of its parts")
    alone = np.zeros(n, dtype=np.int64)
    np.add.at(alone, members.sequence, (chains[:, COMPUTE] + chains[:, TRANSFER])[members.step])
    arrived = np.argsort(log.arrival, kind="stable")
    counted = log.arrival >= warmup_time
    counted[arrived[:warmup_requests]] = False
    begin = max(warmup_time, int(log.arrival[arrived[warmup_requests]]) if 0 < warmup_requests < n else 0)
    finish = int(token.max())
    return Requests(
        arrival=log.arrival, started=started, first=token[after - tokens], last=token[after - 1], tokens=tokens, alone=alone,
        gaps=(token[1:] - token[:-1])[same], of_gap=sequence[1:][same], counted=counted, begin=min(begin, finish), end=finish,
        emitted=int((token > begin).sum()), by=_replicas(log, gives), waits=log.queue,
    )  # fmt: skip


def _replicas(log: EventLog, gives: Times) -> Replicas | None:
    """Work of each replica, or of each device where sequences are on several; None if there is one.

    gives: rows of members that got tokens, by sequence and time.
    """
    members, machine = log.members, log.machine
    of_devices = bool(members.home.any())
    many = len(machine.devices) if of_devices else machine.replicas
    if many == 1:
        return None
    first = [graph.first_device if of_devices else machine.replica_of(graph.first_device) for graph in log.graphs]
    number = np.array(first, dtype=np.int32)[log.steps.graph[members.step[gives]]] + members.home[gives]
    sequence = members.sequence[gives]
    begins = np.flatnonzero(np.append(True, sequence[1:] != sequence[:-1]))
    tokens = np.bincount(number, weights=members.emitted[gives], minlength=many).astype(np.int64)
    return Replicas(
        word="device" if of_devices else "replica", first=number[begins],
        last=number[np.append(begins[1:], len(sequence)) - 1], tokens=tokens,
    )  # fmt: skip
