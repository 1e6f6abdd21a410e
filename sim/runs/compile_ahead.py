"""Compile all shipped kernels into the cache: `python -m sim.runs.compile_ahead`, which `make setup` runs.

Kernels are compiled when they are first called, so three small scenarios are run that call all of them.
"""

from __future__ import annotations

from sim.log import derived
from sim.runs.run import run
from sim.scenario import from_dict

SEQUENCES = {"model": {"config": "llama-3.2-1b"}, "workload": {"sequences": [{"context": 64, "tokens": 10}]}}

BATCHES = {
    "model": {"config": "mixtral-8x7b", "layers": 2, "scope": "block"},
    "workload": {
        "sequences": [{"prompt": 40, "tokens": 60, "count": 4}], "batching": "continuous", "prefill": {"chunk": 16},
        "speculative": {"draft": 2, "acceptance": 0.5},
    },
}  # fmt: skip


EXCHANGES = BATCHES | {
    "hardware": {"devices": {"count": 2, "link": {"bandwidth": "100 GB/s"}}},
    "mapping": {"parallel": {"tensor": 2, "expert": 2, "sequence": True, "dispatch": "all_to_all"}},
}


def main() -> None:
    for data in (SEQUENCES, BATCHES, EXCHANGES):
        result = run(from_dict(data), executor="compiled")
        # These properties are computed when they are read.
        _ = result.critical_path, result.blame, derived.chains(result.log), derived.last_input(result.log)


if __name__ == "__main__":
    main()
