"""Samples of ranges: shares from 0 to 1, one for each point and dimension, the same for the same seed."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import numpy.typing as npt

from sim.base.errors import InputError

METHODS = ("random", "latin_hypercube", "sobol")


def sample(method: str, points: int, dimensions: int, seed: int) -> npt.NDArray[np.float64]:
    """Shares [point, dimension], from 0 to below 1.

    method: `random` takes them independently; `latin_hypercube` one from each of `points` equal parts of each dimension (M. D.
    McKay, R. J. Beckman, W. J. Conover, Technometrics 21, 1979); `sobol` from a scrambled Sobol sequence, most even where
    `points` is a power of two. The last two need SciPy.
    Raises InputError if that is not installed.
    """
    if method == "random":
        return np.random.default_rng(seed).random((points, dimensions))
    try:
        qmc = import_module("scipy.stats.qmc")
    except ImportError:
        raise InputError(f"samples by {method!r} need SciPy: pip install 'decode-sim[study]'") from None
    if method == "sobol":
        even = 1 << (points - 1).bit_length()
        sampler = qmc.Sobol(dimensions, seed=seed)
    else:
        even, sampler = points, qmc.LatinHypercube(dimensions, seed=seed)
    return np.asarray(sampler.random(even), dtype=np.float64)[:points]
