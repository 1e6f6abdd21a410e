"""Non-negative least squares (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23), on a few columns.

SciPy has it, too, but nothing else here needs SciPy (Student's t is a table of 35 numbers, in `sim.runs.repeats`), and tens of
megabytes more to install do not earn these thirty lines.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def nnls(a: Floats, b: Floats) -> Floats:
    """The x >= 0 that minimises |a x - b|. a: [row, column]; b: [row].

    Columns are scaled to length 1 first, so that units do not matter.
    """
    length = np.sqrt((a * a).sum(axis=0))
    length[length == 0] = 1.0
    a = a / length
    columns = a.shape[1]
    x = np.zeros(columns)
    free = np.zeros(columns, dtype=bool)  # the columns that may be above 0
    for _ in range(3 * columns + 1):  # ends long before: each turn lowers the residual
        gradient = a.T @ (b - a @ x)
        gradient[free] = -np.inf
        best = int(gradient.argmax())
        if gradient[best] <= 1e-12 * max(1.0, float(np.abs(b).max(initial=0))):
            break
        free[best] = True
        while True:
            wanted = np.zeros(columns)
            wanted[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            if (wanted[free] > 0).all():
                x = wanted
                break
            below = free & (wanted <= 0)
            step = float((x[below] / (x[below] - wanted[below])).min())
            x = x + step * (wanted - x)  # as far as nothing falls below 0
            free &= x > 1e-15
            x[~free] = 0.0
    return np.asarray(x / length)
