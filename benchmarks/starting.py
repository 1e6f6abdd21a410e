"""Costs of a run before it runs: the start of the command, imports, compiling with an empty cache, loading from a full one."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.measure import ROOT, alone

#: A run that is large enough to be compiled, and one that is not.
SCENARIO = "llama_1b_context_256"
LARGE = "workload.sequences=[{context: 256, tokens: 40}]"
SMALL = "workload.sequences=[{context: 256, tokens: 1}]"
CACHE = "DECODE_SIM_CACHE"


def start_up() -> float:
    """CPU seconds of `sim run` of a small scenario, trace included, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "sim", "run", "scenarios/two_tokens_4_engines.yaml", "--out", folder]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compiling(cores: int) -> dict[str, dict[str, Any]]:
    """Results of `stages` with an empty cache, and then with the cache that the first left."""
    with tempfile.TemporaryDirectory() as folder:
        return {state: alone("benchmarks.starting", {}, cores=cores, env={CACHE: folder}) for state in ("cold", "warm")}


def seconds(work: Callable[[], Any]) -> dict[str, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def stages() -> dict[str, Any]:
    """Seconds of each stage, in a process that has done nothing else. numba: whether the small run imported it."""
    found: dict[str, Any] = {"import_sim": seconds(_import_sim)}
    from benchmarks import entry  # noqa: PLC0415  # what it imports was counted

    found["small"] = seconds(lambda: entry.run(entry.scenario(SCENARIO, SMALL), "auto"))
    found["numba"] = "numba" in sys.modules
    found["import_numba"] = seconds(_import_numba)
    found["first"] = seconds(lambda: entry.run(entry.scenario(SCENARIO, LARGE)))
    found["second"] = seconds(lambda: entry.run(entry.scenario(SCENARIO, LARGE)))
    return found


def _import_sim() -> None:
    import sim.runs.run  # noqa: F401, PLC0415


def _import_numba() -> None:
    import numba  # noqa: F401, PLC0415


if __name__ == "__main__":
    print(json.dumps(stages()))
