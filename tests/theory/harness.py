"""Arrivals, closed loops and confidence intervals around the real channel and engine pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import sqrt

import numpy as np

from sim.hardware.arbiters import Arbiter, Transfer
from sim.hardware.channel import Channel
from sim.hardware.engines import EnginePool
from sim.hardware.instant import Environment

MEAN = 1_000_000  # ps: the mean service time in all random cases, so that rounding to 1 ps is far below the sampling error
BATCHES = 20
QUANTILE = 3.883  # of Student's t with BATCHES - 1 degrees of freedom: two-sided 99.9 %


@dataclass(frozen=True)
class Estimate:
    """A mean and the half width of its confidence interval."""

    mean: float
    half_width: float


def estimate(values: Sequence[float]) -> Estimate:
    """Batch means (Law and Kelton): the first tenth is warm-up, the rest is cut into batches that are nearly independent."""
    settled = np.asarray(values[len(values) // 10 :], dtype=np.float64)
    means = settled[: len(settled) // BATCHES * BATCHES].reshape(BATCHES, -1).mean(axis=1)
    return Estimate(float(means.mean()), QUANTILE * float(means.std(ddof=1)) / sqrt(BATCHES))


def poisson(rng: np.random.Generator, count: int, rate_per_mean: float) -> list[int]:
    """Instants of a Poisson process with `rate_per_mean` arrivals per MEAN."""
    return np.cumsum(np.rint(rng.exponential(MEAN / rate_per_mean, count))).astype(np.int64).tolist()


def sizes(rng: np.random.Generator, count: int, law: str) -> list[int]:
    """Service times of mean MEAN. `two_point`: 1/2 or 5/2 with probabilities 3/4 and 1/4; E[S^2] = 7/4."""
    match law:
        case "deterministic":
            drawn = np.full(count, MEAN)
        case "exponential":
            drawn = np.maximum(1, np.rint(rng.exponential(MEAN, count)))
        case "two_point":
            drawn = np.where(rng.random(count) < 0.75, MEAN // 2, 5 * MEAN // 2)
        case _:
            raise ValueError(law)
    return drawn.astype(np.int64).tolist()


SECOND_MOMENT = {"deterministic": 1.0, "exponential": 2.0, "two_point": 1.75}  # in units of MEAN^2


def sojourns(
    arbiter: Arbiter, arrivals: Iterable[int], works: Sequence[int], kinds: Sequence[str] | None = None, latency: int = 0
) -> list[int]:
    """From arrival to end of each transfer, each of its own requester, in order of arrival."""
    env = Environment()
    channel = Channel(env, arbiter, latency=latency, record=lambda *_: None)
    ended = [0] * len(works)
    instants = list(arrivals)

    def arrive():
        for i, instant in enumerate(instants):
            if instant > env.now:
                yield env.timeout(instant - env.now)

            def end(i: int = i, instant: int = instant) -> None:
                ended[i] = env.now - instant

            kind = kinds[i] if kinds else "load"
            channel.request(Transfer((0, i), i, kind, i, 0, works[i], works[i], age=i), end)

    env.process(arrive())
    env.run()
    assert not channel.pending
    return ended


def closed_loop(arbiter: Arbiter, engines: int, think: int, load: int, rounds: int) -> int:
    """Makespan of `engines` that load and then compute, `rounds` times each, all from 0."""
    env = Environment()
    channel = Channel(env, arbiter, record=lambda *_: None)

    def engine(number: int):
        for turn in range(rounds):
            loaded = env.event()
            channel.request(Transfer((turn, number), number, "load", number, turn, load, load), loaded.succeed)
            yield loaded
            yield env.timeout(think)

    for number in range(engines):
        env.process(engine(number))
    env.run()
    return env.now


@dataclass
class Jobs:
    """Independent tasks as the engine pool wants them: columns."""

    compute: list[int]
    rank: list[int] = field(default_factory=list)
    program: int = 0
    chain: list[int] | None = None
    home: dict[int, int] = field(default_factory=dict)
    work: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    loaded: list[int] = field(default_factory=list)
    engine: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.compute)
        self.rank, self.work, self.start, self.loaded, self.engine = self.rank or [0] * n, [0] * n, [0] * n, [0] * n, [0] * n


def pool_waits(engines: int, arrivals: Sequence[int], works: Sequence[int]) -> list[int]:
    """From arrival to start of each task of a pool of engines."""
    env = Environment()
    jobs = Jobs(list(works))

    def no_load(step: Jobs, task: int, requester: int, ended: Callable[[], object]) -> None:
        raise AssertionError("nothing to load")

    pool = EnginePool(env, engines, limit=None, overlap=False, load=no_load, finished=lambda step, task: None)

    def arrive():
        for i, instant in enumerate(arrivals):
            if instant > env.now:
                yield env.timeout(instant - env.now)
            pool.offer(jobs, i)

    env.process(arrive())
    env.run()
    return [start - arrival for start, arrival in zip(jobs.start, arrivals, strict=True)]
