"""Calibrate a device, and in the same rounds measure the models that the profile is judged by. It can be interrupted."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.fidelity.models import ALL, UNSEEN
from models.config import DTYPES
from sim.measure.calibrate import calibrate
from sim.measure.place import place
from sim.measure.plan import QUICK, plan_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("out", type=Path, metavar="DEVICE.yaml")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--rounds", type=int, default=QUICK.rounds)
    parser.add_argument("--seconds", type=float, default=QUICK.seconds, help="after which no further round begins")
    parser.add_argument("--cuda-graph", action="store_true", help="replay the steps as CUDA graphs")
    names, usual = ([config.name for config in configs] for configs in (ALL, UNSEEN))
    parser.add_argument("--unseen", nargs="+", choices=names, default=usual, help="judge by these")
    options = parser.parse_args()
    unseen = tuple(config for config in ALL if config.name in options.unseen)
    plan = replace(plan_for(options.device, quick=True), unseen=unseen, rounds=options.rounds, seconds=options.seconds)
    on = place(options.device, options.threads)
    calibrate(plan, on, options.dtype, options.out, lambda text: print(text, flush=True), graphs=options.cuda_graph)


if __name__ == "__main__":
    main()
