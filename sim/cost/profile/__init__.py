"""Device profiles: measurements of a device, from which models that it never ran are predicted.

    samples   raw measurements as a table, kept beside the profile
    fit       samples -> profile: coefficients of a physical form, per kind of op, number format and rows
    forms     the physical forms
    predict   times by a profile, and what of them is beyond what was measured
    device    what a profile holds
    machine   the `hardware` of a scenario that follows from it
    files     a profile as a YAML file
    tables    public tables of kernel times as samples

The cost model that costs the tasks of a run by a profile is `sim.cost.profiled`.
"""

from __future__ import annotations

from sim.cost.profile.device import (
    ATTENTION,
    ELEMENTWISE,
    MATMUL,
    MIXED,
    MULTI_HEAD,
    PREFILL,
    DeviceProfile,
    Provenance,
    Residual,
    RowFit,
    Step,
    Timing,
)
from sim.cost.profile.files import read_profile, write_profile
from sim.cost.profile.fit import fit, residual
from sim.cost.profile.forms import DIMENSIONS, FORMS, UNITS, Shapes
from sim.cost.profile.machine import hardware
from sim.cost.profile.predict import Outside, outside, predict, time
from sim.cost.profile.samples import STREAMS, Samples, read_samples, shapes_of, write_samples
from sim.cost.profile.tables import KernelTables, cache_advice, read_tables

__all__ = [
    "ATTENTION", "DIMENSIONS", "ELEMENTWISE", "FORMS", "MATMUL", "MIXED", "MULTI_HEAD", "PREFILL", "STREAMS", "UNITS",
    "DeviceProfile", "KernelTables", "cache_advice", "Outside", "Provenance", "Residual", "RowFit", "Samples", "Shapes",
    "Step", "Timing", "fit", "hardware", "outside", "predict", "read_profile", "read_samples", "read_tables", "residual",
    "shapes_of", "time", "write_profile", "write_samples",
]  # fmt: skip
