"""One run of a scenario in this process, with its time and memory; `benchmarks.measure.alone` starts it.

    python -m benchmarks.alone '{"scenario": "llama_1b_context_256", "overrides": [], "work": "run"}'

scenario: name of a shipped scenario. overrides: changed values, as with `--set`. work: `simulate`, `run` or `repeats`. warm:
overrides of a small run before it, whose time does not count; without it, loading compiled code counts. executor: `compiled` if
not given. cores: use no more than so many.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks import entry
from benchmarks.measure import Meter, keep_to
from sim.executors import Executor
from sim.scenario import Scenario

REPEATS = 4


def done(work: str, scenario: Scenario, executor: Executor) -> dict[str, int]:
    """Do the work, and return the size of the run."""
    if work == "simulate":
        log = entry.simulate(entry.setup_of(scenario), executor, rows=scenario.record == "all")
        return entry.size(log)
    if work == "run":
        return entry.size(entry.run(scenario, executor).log)
    sizes = list(entry.repeat(scenario, REPEATS, executor))
    return {name: sum(size[name] for size in sizes) for name in sizes[0]}


def measured(request: Mapping[str, Any]) -> dict[str, float]:
    if "cores" in request:
        keep_to(request["cores"])
    name, overrides, work = (request[key] for key in ("scenario", "overrides", "work"))
    executor = request.get("executor", "compiled")
    scenario = entry.scenario(name, *overrides)
    if request.get("warm"):
        done(work, entry.scenario(name, *overrides, *request["warm"]), executor)
    meter = Meter()
    size = done(work, scenario, executor)
    return {**meter.read(), **size, "tokens": entry.tokens(scenario)}


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.argv[1]))))
