"""Device profiles: what was measured of a device once, from which models that it never ran are predicted.

    samples   raw measurements as a table, kept beside the profile
    fit       samples -> profile: coefficients of a physical form, per kind of op, number format and rows
    forms     the physical forms
    predict   times by a profile, and what of them is beyond what was measured
    device    what a profile holds
    machine   the `hardware` of a scenario that follows from it
    files     a profile as a YAML file

The cost model that costs the tasks of a run by a profile is `sim.cost.profiled`.
"""

from __future__ import annotations

from sim.profile.device import ATTENTION, ELEMENTWISE, PRODUCT, DeviceProfile, Provenance, Residual, RowFit, Step, Timing
from sim.profile.files import read_profile, write_profile
from sim.profile.fit import fit, residual
from sim.profile.forms import DIMENSIONS, FORMS, UNITS, Shapes
from sim.profile.machine import hardware
from sim.profile.predict import Outside, outside, time
from sim.profile.samples import Samples, read_samples, write_samples

__all__ = [
    "ATTENTION", "DIMENSIONS", "ELEMENTWISE", "FORMS", "PRODUCT", "UNITS", "DeviceProfile", "Outside", "Provenance", "Residual",
    "RowFit", "Samples", "Shapes", "Step", "Timing", "fit", "hardware", "outside", "read_profile", "read_samples", "residual",
    "time", "write_profile", "write_samples",
]  # fmt: skip
