"""Memory that processes of a study share: the server of processes imports this module, and its forks begin with all of it."""

from __future__ import annotations

import gc
import os

from sim.base.cores import CORES
from sim.study.ready import load

os.environ[CORES] = "1"
load()
gc.collect()
gc.freeze()  # what is collected no more is not written to, so forks go on to share it
