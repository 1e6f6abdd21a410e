"""A file of requests in the layout of Mooncake's public traces, at their size, made from a seed.

    python -m benchmarks.mooncake FILE.jsonl [--requests 23608] [--seed 0]

One JSON object a line: `timestamp` (ms), `input_length`, `output_length` and `hash_ids`, one for each block of 512 tokens of
the input; equal ids are a shared prefix. What the public trace is known by is met (R. Qin et al., "Mooncake", 2024, section 4;
github.com/kvcache-ai/Mooncake): 23,608 requests in one hour, 7,590 tokens of input and 182 of output on average, exactly;
arrivals in lumps about 3 s apart; inputs from 890 tokens to 126 thousand, the median near 6 thousand; two prefixes that most
requests begin with. Its own rows are not in here, and its rate of cache hits (about half) is not met.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

REQUESTS = 23_608
HOUR = 3_600_000  # ms
TICK = 3_053  # ms between lumps of arrivals
BLOCK = 512  # tokens of a hash


class Lengths(NamedTuple):
    """A lognormal distribution, cut off. sigma: of the logarithm. mean: of the numbers as they are written."""

    mean: int
    sigma: float
    least: int
    most: int

    @property
    def mu(self) -> float:
        """Mean of the logarithm, without the cut."""
        return float(np.log(self.mean) - self.sigma**2 / 2)

    def draw(self, random: np.random.Generator, count: int) -> Counts:
        """So many numbers, whose mean is exact."""
        return scaled(random.lognormal(self.mu, self.sigma, count), self.mean * count, self.least, self.most)


INPUT = Lengths(mean=7_590, sigma=0.76, least=890, most=126_000)
OUTPUT = Lengths(mean=182, sigma=1.25, least=1, most=2_000)

#: Share of requests that begin with a prefix, and its blocks.
PREFIXES = ((0.46, range(1)), (0.39, range(46, 58)))


def scaled(values: npt.NDArray[np.float64], total: int, least: int, most: int) -> Counts:
    """Whole numbers from least to most in proportion to the values, as far as that goes, with this sum."""
    if not least * len(values) <= total <= most * len(values):
        raise ValueError(f"expected a sum from {least * len(values)} to {most * len(values)}, found {total}")

    def by(factor: float) -> Counts:
        return (values * factor).astype(np.int64).clip(least, most)

    low, high = 0.0, 1.0
    while by(high).sum() < total:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if by(middle).sum() > total else (middle, high)
    found = by(low)
    while missing := total - int(found.sum()):
        found[np.flatnonzero(found < most)[:missing]] += 1
    return found


def arrivals(random: np.random.Generator, count: int) -> Counts:
    """Milliseconds, in order, from 0: each request in some lump of the hour."""
    ticks: Counts = np.sort(random.integers(0, HOUR // TICK, count))
    return TICK * (ticks - ticks[0])


def write(path: Path, requests: int = REQUESTS, seed: int = 0) -> None:
    """Write such a file. A smaller number of requests has the same rate."""
    random = np.random.default_rng(seed)
    inputs, outputs = INPUT.draw(random, requests), OUTPUT.draw(random, requests)
    times = arrivals(random, REQUESTS)[:requests]
    prefix = random.random(requests)
    fresh = max(blocks.stop for _, blocks in PREFIXES)
    with path.open("w") as file:
        for time, size, tokens, draw in zip(times.tolist(), inputs.tolist(), outputs.tolist(), prefix.tolist(), strict=True):
            count = -(-size // BLOCK)
            shared = list(_prefix(draw))[:count]
            ids = [*shared, *range(fresh, fresh + count - len(shared))]
            fresh += count - len(shared)
            row = {"timestamp": time, "input_length": size, "output_length": tokens, "hash_ids": ids}
            file.write(json.dumps(row) + "\n")


def _prefix(draw: float) -> range:
    """The prefix of a request, by a draw from 0 to 1."""
    for share, blocks in PREFIXES:
        if draw < share:
            return blocks
        draw -= share
    return range(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.file, options.requests, options.seed)


if __name__ == "__main__":
    main()
