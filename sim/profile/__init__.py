"""Device profiles: what was measured of a device once, from which models that it never ran are predicted.

    samples   raw measurements as a table, kept beside the profile
    fit       samples -> profile: coefficients of a physical form, per kind of op, number format and rows
    forms     the physical forms
    device    what a profile holds
    files     a profile as a YAML file

The cost model that costs the tasks of a run by a profile is `sim.cost.profiled`.
"""

from __future__ import annotations

from sim.profile.device import ATTENTION, ELEMENTWISE, PRODUCT, DeviceProfile, Provenance, Residual, RowFit, Step, Timing
from sim.profile.files import read_profile, write_profile
from sim.profile.fit import fit, residual
from sim.profile.forms import FORMS, Shapes
from sim.profile.samples import Samples, read_samples, write_samples

__all__ = [
    "ATTENTION", "ELEMENTWISE", "FORMS", "PRODUCT", "DeviceProfile", "Provenance", "Residual", "RowFit", "Samples", "Shapes",
    "Step", "Timing", "fit", "read_profile", "read_samples", "residual", "write_profile", "write_samples",
]  # fmt: skip
