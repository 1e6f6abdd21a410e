"""How far predicted decode steps are off on models that were not in the calibration.

    python -m benchmarks.fidelity.measure DEVICE.yaml [--threads N] [--dtype float32] [--seconds 150]
    python -m benchmarks.fidelity DEVICE.yaml... --write docs/reference/fidelity.md

The first calibrates as `sim profile --quick` does, and in the same rounds runs the models that it is judged by, so that what
drifts drifts for both. The second predicts their steps by the profile, through the simulation, and writes the page.
"""

from __future__ import annotations

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # as `sim.measure` does, before torch is loaded
