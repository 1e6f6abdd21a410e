"""Options of policies that do not exist, kinds that no transfer has, and SRAM that is too small: one line, before any run."""

from __future__ import annotations

import pytest

from sim.base.errors import InputError
from sim.runs.plan import plan
from sim.runs.run import read
from sim.scenario.shipped import scenarios


def check(name: str, *changes: str) -> None:
    scenario = read(scenarios()[name], list(changes))
    plan(scenario)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("hardware.memory.arbiter={name: priority, classes: [kv_laod]}", "did you mean 'kv_load'"),
        ("hardware.memory.arbiter={name: weighted, weight: {kv_load: 3}}", "did you mean 'weights'"),
        ("hardware.memory.arbiter={name: weighted}", "the option 'weights' is missing"),
        ("scheduler={name: earliest, x: 1}", "which takes none"),
        ("cost={model: roofline, machine: 3}", "not an option of a cost model"),
        ("cost={model: roofline, jitter: 0.1}", "unknown option 'jitter'"),
        ("hardware.memory.arbiter={name: round_robin, burst: 1}", "a burst so small"),
    ],
)
def test_an_option_that_cannot_be_used(change: str, message: str):
    scale = "workload.sequences.0.tokens=1000000" if "burst" in change else "seed=0"
    with pytest.raises(InputError, match=message):
        check("two_tokens_8_engines", change, scale)


def test_the_advice_on_tiles_is_right():
    with pytest.raises(InputError, match=r"mapping\.tiles of 251, or of .* would fit twice"):
        check("llama_1b_context_256", "hardware.sram=4 MiB")
    check("llama_1b_context_256", "hardware.sram=4 MiB", "mapping.tiles=251")
