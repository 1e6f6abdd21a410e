"""Quality of measurements: their spread, and how well one half of the rounds predicts the other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sim.cost.profile.device import Residual
from sim.cost.profile.fit import IDENTITY, group, residual
from sim.cost.profile.samples import Samples

Times = npt.NDArray[np.int64]

#: Spread, and noise, above which a profile says that its machine was too noisy.
WIDE, NOISY = 0.35, 0.12


def repetitions(samples: Samples) -> Iterator[tuple[Times, Times]]:
    """Durations in even and in odd rounds of each distinct op and shape that has both."""
    index = group(samples, (*IDENTITY, "streams", "beside"))
    order = np.argsort(index, kind="stable")
    for mine in np.split(order, np.flatnonzero(np.diff(index[order])) + 1):
        even = samples.round[mine] % 2 == 0
        if even.any() and not even.all():
            yield samples.duration[mine[even]], samples.duration[mine[~even]]


def noise(samples: Samples) -> Residual | None:
    """Errors of predicting odd rounds by even ones; None with fewer than two rounds. No model can be known to be better."""
    pairs = np.array([(np.median(even), np.median(odd)) for even, odd in repetitions(samples)])
    return residual(pairs[:, 0], pairs[:, 1].astype(np.int64)) if len(pairs) else None


def spread(samples: Samples) -> float | None:
    """Median over ops and shapes of (p90 - p10) / median of their repetitions."""
    limits = [np.quantile(np.concatenate(both), (0.1, 0.5, 0.9)) for both in repetitions(samples)]
    return round(float(np.median([(high - low) / middle for low, middle, high in limits])), 4) if limits else None


def warnings(samples: Samples, load: float) -> Iterator[str]:
    """Reasons for caution, as sentences. load: average number of other programs that ran when it began."""
    wide, floor = spread(samples), noise(samples)
    if load > 0.5:
        yield f"the machine was not idle: {load:.1f} other programs ran when the measurement began"
    if wide is not None and wide > WIDE:
        yield f"the machine was noisy: repetitions of one op spread over {wide:.0%} of their median"
    if floor is not None and floor.median > NOISY:
        yield f"the machine was too noisy: one half of the rounds predicts the other with a median error of {floor.median:.0%}"
    if floor is None:
        yield "only one round: nothing is known about noise"
