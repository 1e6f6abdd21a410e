"""Goodput: the requests per second that meet a service level objective, and the share that does.

A request meets an objective if it exceeds none of its limits: on TTFT, on TPOT (one token has no TPOT, and meets any), and end
to end. With warm-up requests left out, over the time that rates are of:

    attainment = requests that meet it / requests
    goodput    = requests that meet it / time

The objective is attained if the attainment is at least its percentile: for a single limit, if that percentile of the latency,
as a nearest rank, is within the limit. Several limits must hold for the same request, as in DistServe (Y. Zhong et al.,
"DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving", OSDI 2024), whose goodput
is the highest rate of requests at which the objective is attained, for each GPU; a study with `find` searches for that rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from sim.analysis.requests import Requests, Times
from sim.base.units import PS_PER_S

#: The latencies that an objective may limit.
LIMITED = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """A service level objective. ttft, tpot, e2e: the most that a request may take, ps. percentile: of the requests."""

    ttft: int | None = None
    tpot: int | None = None
    e2e: int | None = None
    percentile: float = 99.0

    @property
    def limits(self) -> dict[str, int]:
        """The limits that are set, ps."""
        found = {name: getattr(self, name) for name in LIMITED}
        return {name: limit for name, limit in found.items() if limit is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Attainment of an objective. counted: requests without the warm-up. met: those that meet all limits, each: one limit."""

    slo: Slo
    counted: int
    met: int
    each: dict[str, int]
    per_second: float

    @property
    def share(self) -> float:
        """The attainment; 1 if no request is counted."""
        return self.met / self.counted if self.counted else 1.0

    @property
    def attained(self) -> bool:
        """Whether at least the percentile of requests meets it."""
        return self.met * 100 >= Fraction(str(self.slo.percentile)) * self.counted


def goodput(served: Requests, slo: Slo) -> Goodput:
    """The requests that meet an objective."""
    within = {name: _latency(served, name) <= limit for name, limit in slo.limits.items()}
    met = int((served.counted & np.logical_and.reduce(list(within.values()))).sum())
    time = served.end - served.begin
    return Goodput(
        slo=slo, counted=int(served.counted.sum()), met=met,
        each={name: int((served.counted & found).sum()) for name, found in within.items()},
        per_second=met * PS_PER_S / time if time else 0.0,
    )  # fmt: skip


def _latency(served: Requests, name: str) -> Times:
    """A latency of each request, ps; -1 for the TPOT of one token."""
    found: Times = getattr(served, name)
    return found
