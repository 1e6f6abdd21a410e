"""Text of a first scenario: a model on a device for a use, with a comment on each choice."""

from __future__ import annotations

import json
import re

#: Uses, and what each is.
USES = {
    "one": "one sequence: the latency of a token",
    "batch": "a batch of sequences: the tokens per second of a full machine",
    "serve": "requests that arrive over time: TTFT, TPOT, and the load that the machine sustains",
}

_WORKLOADS = {
    "one": """\
workload:
  sequences:
    - context: 2000  # tokens in the KV cache at first
      tokens: 4      # to decode; every token reads the weights and the cache again
""",
    "batch": """\
workload:
  sequences:
    - context: 2000  # tokens in the KV cache at first
      tokens: 4      # to decode, for each sequence
      count: 16      # sequences
  batching: continuous  # one step decodes a token of each; independent: each on its own
""",
    "serve": """\
workload:
  generate:
    count: 40                                 # requests
    arrivals: {process: poisson, rate: 2/s}   # or constant, or gamma with a cv above 1: bursts
    prompt: {distribution: lognormal, median: 500, p99: 4000, max: 8000}
    tokens: {distribution: uniform, min: 8, max: 64}
  batching: {policy: continuous, max_batch: 32}
  prefill: {chunk: 512}  # tokens of a prompt in a step; without it a whole prompt delays the tokens of others
seed: 1  # of arrivals and lengths
""",
}


def starter(model: str, device: str, use: str, *, title: str, schema: str) -> str:
    """The scenario as YAML.

    Args:
        model: Name of a model that ships, id on the Hugging Face hub, or path of a `config.json`.
        device: Name of a preset.
        use: One of `USES`.
        schema: Path of the JSON Schema, for editors.
        title: A line about the device.
    """
    config = model if re.fullmatch(r"[\w./-]+", model) else json.dumps(model)
    return f"""\
# yaml-language-server: $schema={schema}
description: >-
  {model} on {device}, {USES[use].partition(":")[0]}.
model:
  config: {config}  # or any other of `sim list models`, an id on the Hugging Face hub, or a config.json
{_WORKLOADS[use]}\
hardware:
  preset: {device}  # {title}; `sim list hardware` has others
  # What is written here replaces a figure of the preset, such as:
  # memory: {{bandwidth: 2 TB/s}}
# mapping:
#   formats: {{weights: int4}}  # weights in fewer bits; `sim check` shows what the preset has chosen
"""
