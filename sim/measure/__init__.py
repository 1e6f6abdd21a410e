"""The real model on a real device: built with random weights, run for decode steps, and timed op by op.

    place      a device, its memory, and what differs between devices
    real       the model and its KV caches; steps
    align      which events of the profiler are which ops
    step       one measured step: when each op started, how long it took, and that as samples
    streams    memory under several streams
    plan       what a calibration measures
    partial    its rounds so far, on disk
    calibrate  rounds of steps and streams, to a device profile

Everything here needs torch and transformers.
"""

from __future__ import annotations

import os

#: Torch's profiler tells the terminal when it starts and stops, unless this is set before torch is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
