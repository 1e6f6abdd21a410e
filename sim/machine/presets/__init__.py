"""Machines by name: figures of real devices, each with its source and what is uncertain about it.

A preset is a YAML file; `a100-80g-sxm.yaml` beside this file is an example. Figures are of the whole device:

    title:          what the device is called
    sources:        short names for where figures are from
    engines:        how many engines it is simulated as (streaming multiprocessors, compute units, cores)
    peak:           dense FLOP/s by torch's name of the number format, or under `any` one rate for all
    vector:         elements per second of all that is no matrix product
    bandwidth:      peak bytes/s of memory; `unpublished: why` if there is no figure
    achievable:     share of it that kernels reach once they run, or a table of shares by number of concurrent readers
    port_bandwidth: the most that one engine draws
    capacity:       bytes of memory
    kernel:         constants of the cost model `kernel`: `t0` by `matmul`, `attention`, `other`, `collective` and kinds of op,
                    and `peak`, the share of the peak that products reach, by number format and `any`
    software:       software whose figures constants were fitted to: a list of `{name, version, constants}`
    energy:         `flop` by number format or `any`, `byte` by part of the way from memory to an engine, and `static`, the
                    power of the device; a run has energy if a preset knows all three, or the scenario adds what is missing
    defaults:       how software uses it: `gpu`, `cpu` (`sim.machine.presets.defaults`), or `engines: one | all`, `mapping` and
                    `cost` of its own
    on_chip:        sizes of caches and local memories, by name; for people, no run uses them

Each figure is `{value, source}`, with `derived: how` where it was computed and `unsure: why` where it may be wrong.
To add one: put such a file into this folder, name it by its path in the scenario, or register its path (a `Path` or
a text) as an entry point in the group `decode_sim.hardware_presets`.
"""

from __future__ import annotations

from sim.machine.presets.files import PRESETS, complete, find, is_path, over
from sim.machine.presets.preset import Figure, Preset, read_preset

__all__ = ["PRESETS", "Figure", "Preset", "complete", "find", "is_path", "over", "read_preset"]
