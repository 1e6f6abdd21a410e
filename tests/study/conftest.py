"""Small studies: one block of a model on a few engines, of 352 tasks a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sim.study.points import Study, load
from sim.study.pool import Here, Pool
from sim.study.store import Store
from sim.study.sweep import Counts, sweep

BASE = """\
model: {config: llama-3.2-1b, layers: 1, scope: block}
workload: {sequences: [{context: 4, tokens: 2}], dependency: known}
hardware:
  engines: {count: 4, flops: 1 TFLOP/s, vector_flops: 100 GFLOP/s}
  memory: {bandwidth: 80 GB/s, latency: 100 ns}
mapping: {heads: split, weights: streamed, execution: prefetch}
cost: roofline
"""

STUDY = """\
extends: base.yaml
axes:
  hardware.engines.count: [1, 2, 4]
  hardware.memory.bandwidth: 50,100 GB/s
columns: {area: 4 * engines.count + bandwidth / 10 GB/s}
objectives: {makespan: min, area: min}
"""

Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Writes the base and a study beside it, and returns the path of the study."""

    def write(text: str = STUDY, base: str = BASE, name: str = "study.yaml") -> Path:
        (tmp_path / "base.yaml").write_text(base)
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def study(written: Written) -> Study:
    return load(written())


def swept(study: Study, folder: Path, pool: Pool | None = None, **options: object) -> Counts:
    """Run a study in this process, or by a pool."""
    store = Store(folder, study)
    with store.opened():
        return sweep(study, store, pool or Here(), **options)  # type: ignore[arg-type]
