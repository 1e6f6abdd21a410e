"""Batching as a scenario sets it, resolved: the policy and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sim.serving.policies import BATCHING_POLICIES
from sim.serving.speculation import Speculation


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """The policy that makes up steps, and its limits; `sim.serving.settings` describes each.

    sequences: most in a step. tokens: most new tokens in a step, None for any number. chunk: most tokens of a prompt in a step,
    None for whole prompts. blocks: capacity of the KV cache, in blocks of `block` tokens; None if unbounded. full: what happens
    when it is full.
    """

    policy: str = "independent"
    sequences: int = 1
    tokens: int | None = None
    chunk: int | None = None
    blocks: int | None = None
    block: int = 16
    full: Literal["wait", "recompute", "swap"] = "wait"
    speculation: Speculation | None = None
    seed: int = 0

    @property
    def alone(self) -> bool:
        """Whether each request is served in a loop of its own."""
        return BATCHING_POLICIES.get(self.policy).alone
