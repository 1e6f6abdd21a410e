"""Simulators of others that can be installed, on the same kind of requests: optional, skipped where they are not there.

    python -m benchmarks.peers install      # or `make bench-peers`: into the user's cache folder, not into the repository
    python -m benchmarks.peers              # their speed on 1,000 requests

`@doublewordai/inference-lab` (MIT) is a model of vLLM's scheduler with continuous batching, chunked prefill and blocks of
KV cache, compiled to WebAssembly; it runs in Node. A step takes the longer of its FLOPs over the peak and its bytes over the
bandwidth, as a whole: it has no ops, engines, channels or contention, no energy, and no time breakdown. It draws
requests itself, from the same distributions.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.mooncake import HOUR, INPUT, OUTPUT, REQUESTS

PACKAGE, VERSION = "@doublewordai/inference-lab", "0.2.1"
LACKS = """It does not simulate ops, engines, channels or contention on them, and has no time breakdown: a step is
the longer of all its FLOPs over the peak and all its bytes over the bandwidth."""
DRIVER = Path(__file__).with_name("inference_lab.mjs")

LLAMA_8B = {
    "name": "Llama-3.1-8B", "num_parameters": 8_030_261_248, "num_layers": 32, "hidden_dim": 4096, "num_heads": 32,
    "num_kv_heads": 8, "max_seq_len": 131_072,
}  # fmt: skip


def folder() -> Path:
    """Where the packages of others are installed."""
    from platformdirs import user_cache_path  # noqa: PLC0415

    return Path(user_cache_path("decode-sim")) / "peers"


def install() -> None:
    """Install the pinned version with npm."""
    folder().mkdir(parents=True, exist_ok=True)
    where = ["--prefix", str(folder())]
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", *where, f"{PACKAGE}@{VERSION}"], check=True)


def missing() -> str:
    """Why the package cannot be run here; empty if it can."""
    package = folder() / "node_modules" / PACKAGE / "package.json"
    if shutil.which("node") is None:
        return "Node is not installed"
    if not package.exists():
        return f"{PACKAGE} is not installed: `make bench-peers` installs it into {folder()}"
    found = json.loads(package.read_text())["version"]
    return "" if found == VERSION else f"{PACKAGE} is there as {found}, expected {VERSION}: `make bench-peers` updates it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests and a device, as the package has them."""

    flops: float
    bandwidth: float
    memory: int
    rate: float
    requests: int
    prompt: dict[str, Any]
    tokens: dict[str, Any]

    def config(self, seed: int = 0) -> dict[str, Any]:
        return {
            "hardware": {
                "name": "device", "compute_flops": self.flops, "memory_bandwidth": self.bandwidth, "bytes_per_param": 2,
                "memory_capacity": self.memory, "kv_cache_capacity": 0, "gpu_memory_utilization": 0.9,
            },
            "model": LLAMA_8B,
            "scheduler": {
                "max_num_batched_tokens": 8192, "max_num_seqs": 32, "policy": "fcfs", "enable_chunked_prefill": True,
                "long_prefill_token_threshold": 0, "max_num_partial_prefills": 1, "block_size": 16,
            },
            "workload": {
                "arrival_pattern": "poisson", "arrival_rate": self.rate, "num_requests": self.requests, "seed": seed,
                "input_len_dist": self.prompt, "output_len_dist": self.tokens,
            },
            "simulation": {"log_interval": 1000},
        }  # fmt: skip


WORKLOADS = {
    "batch": Workload(
        flops=989e12, bandwidth=3.35e12, memory=80 * 10**9, rate=20, requests=1_000, prompt={"type": "fixed", "value": 512},
        tokens={"type": "fixed", "value": 128},
    ),
    "mooncake": Workload(
        flops=2250e12, bandwidth=8e12, memory=180 * 10**9, rate=REQUESTS / HOUR * 1000, requests=REQUESTS,
        prompt={"type": "lognormal", "mean": INPUT.mu, "std_dev": INPUT.sigma},
        tokens={"type": "lognormal", "mean": OUTPUT.mu, "std_dev": OUTPUT.sigma},
    ),
}  # fmt: skip


def run(name: str, rounds: int = 1) -> dict[str, Any]:
    """CPU seconds of each round, output tokens of one, requests that ended, simulated seconds, bytes of memory."""
    command = ["node", str(DRIVER), str(folder() / "node_modules" / PACKAGE), json.dumps(WORKLOADS[name].config()), str(rounds)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert math.isclose(found["requests"], WORKLOADS[name].requests)
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["install"]:
        install()
    elif reason := missing():
        print(reason)
    else:
        print(json.dumps(run("batch", 5)))
