"""Where does LLM decode wait? A discrete-event simulator of engines that share a memory channel.

    import sim

    result = sim.run("two_tokens_4_engines")
    print(result.makespan, result.bounds.lower)

`sim.load` reads a scenario, `sim.run` runs one and returns a `sim.Result`; `sim.explain`, `sim.compare` and `sim.report` show
results, `sim.sweep` runs a study, and `sim.write_trace` writes a trace.
`sim.save_log` and `sim.load_log` store event logs as Parquet.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: Public name -> module and attribute. Imported on first use, so that `import sim` costs nothing.
_PUBLIC = {
    "load": "sim.api.calls:load",
    "run": "sim.api.calls:run",
    "explain": "sim.api.calls:explain",
    "compare": "sim.api.calls:compare",
    "report": "sim.api.calls:report",
    "sweep": "sim.api.study:sweep",
    "Result": "sim.api.result:Result",
    "Scenario": "sim.scenario:Scenario",
    "InputError": "sim.base.errors:InputError",
    "SimulationError": "sim.base.errors:SimulationError",
    "summary": "sim.render.summary:summary",
    "write_trace": "sim.render.trace:write",
    "save_log": "sim.runs.saved:save",
    "load_log": "sim.runs.saved:load",
}

__all__ = [
    "InputError",
    "Result",
    "Scenario",
    "SimulationError",
    "__version__",
    "compare",
    "explain",
    "load",
    "load_log",
    "report",
    "run",
    "save_log",
    "summary",
    "sweep",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    module, attribute = _PUBLIC[name].split(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
