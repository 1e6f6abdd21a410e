"""One run of a scenario in this process, with its time and memory: what `benchmarks.measure.alone` starts.

    python -m benchmarks.alone '{"scenario": "llama_1b_context_256", "overrides": [], "work": "run"}'

scenario: the name of one that ships. overrides: what is different. work: `simulate`, `run` or `repeats`. warm: overrides of a
small run before it, whose time does not count; without, loading compiled code counts. executor: `compiled` if not given.
cores: keep to so many, whatever is asked for.
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
    """Do it, and say how much it was."""
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
