"""Arrivals, closed loops and confidence intervals around the real channel and engine pool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from types import SimpleNamespace

import numpy as np

from sim.executors.reference.channel import Channel
from sim.executors.reference.engines import EnginePool, engine
from sim.executors.reference.instant import Environment
from sim.executors.reference.step import Task
from sim.machine.arbiters import Arbiter, Transfer

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
    channel = Channel(env, arbiter, lambda *_: None, latency=latency)
    ended = [0] * len(works)
    instants = list(arrivals)

    def arrive():
        for i, instant in enumerate(instants):
            if instant > env.now:
                yield env.timeout(instant - env.now)

            def end(_event: object, i: int = i, instant: int = instant) -> None:
                ended[i] = env.now - instant

            kind = kinds[i] if kinds else "load"
            channel.request(Transfer((0, 0, i), i, kind, i, 0, works[i], works[i], age=i)).callbacks.append(end)

    env.process(arrive())
    env.run()
    assert not channel.pending
    return ended


def closed_loop(arbiter: Arbiter, engines: int, think: int, load: int, rounds: int) -> int:
    """Makespan of `engines` that load and then compute, `rounds` times each, all from 0."""
    env = Environment()
    channel = Channel(env, arbiter, lambda *_: None)

    def loads_and_computes(number: int):
        for turn in range(rounds):
            yield channel.request(Transfer((turn, 0, number), number, "load", number, turn, load, load))
            yield env.timeout(think)

    for number in range(engines):
        env.process(loads_and_computes(number))
    env.run()
    return env.now


class Engines:
    """Tasks and a pool of engines, without a machine. then: tasks to offer when one has ended. load: ps that a load takes."""

    def __init__(
        self, engines: int, compute: Sequence[int], *, rank: Sequence[int] | None = None, chain: Sequence[int] | None = None,
        work: Sequence[int] | None = None, load: int = 0, limit: int | None = None, overlap: bool = False,
        then: Mapping[int, Sequence[int]] | None = None,
    ) -> None:  # fmt: skip
        self.env = Environment()
        self.pool = EnginePool(self.env, engines, limit=limit)
        self.then = then or {}
        step = SimpleNamespace(home={})
        self.tasks = [
            Task(
                step, number, (0, 0, number), rank=rank[number] if rank else 0, chain=chain[number] if chain else None, owner=0,
                dma=0, compute=compute[number], work=work[number] if work else 0, launch=0, waiting=0,
                on_engine=True,
            )
            for number in range(len(compute))
        ]  # fmt: skip
        for number in range(engines):
            loads = engine(self.env, number, self.pool, lambda *_: self.env.timeout(load), self.finished, overlap=overlap)
            self.env.process(loads)

    def offer(self, *numbers: int) -> None:
        for number in numbers:
            self.pool.put(self.tasks[number])

    def finished(self, task: Task) -> None:
        task.end = self.env.now
        self.offer(*self.then.get(task.number, ()))

    def run(self) -> list[Task]:
        self.env.run()
        return self.tasks


def pool_waits(engines: int, arrivals: Sequence[int], works: Sequence[int]) -> list[int]:
    """From arrival to start of each task of a pool of engines."""
    pool = Engines(engines, works)

    def arrive():
        for i, instant in enumerate(arrivals):
            if instant > pool.env.now:
                yield pool.env.timeout(instant - pool.env.now)
            pool.offer(i)

    pool.env.process(arrive())
    return [task.start - arrival for task, arrival in zip(pool.run(), arrivals, strict=True)]
