"""Sections of a scenario on serving: batching, KV cache, prefill, speculation; `sim.serving.batcher` has their semantics."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from sim.base.quantities import Size
from sim.base.section import LINE, ONE, TABLE, Choice, Section, Short, Whole, default, form, real
from sim.serving.policies import BATCHING_POLICIES


class KVPages(Section):
    """The paged KV cache: blocks of some tokens each, allocated to sequences, and freed where windows have left them."""

    capacity: Size | None = Field(
        default=None,
        description="Bytes for KV caches; null: what the weights leave of `hardware.memory.capacity`, if it is given.",
    )
    block: Whole = Field(default=16, ge=1, le=65536, description="Tokens in a block, of each layer.")
    full: Literal["wait", "recompute", "swap"] = Field(
        default="wait",
        description="When the KV cache is full. `wait`: a request is admitted only when all that it will ever hold fits. "
        "Otherwise it is admitted when its prompt fits, and when others need blocks, the sequence admitted last is pre-empted: "
        "`recompute`: it is prefilled again later; `swap`: its cache moves out of the memory and back in, over the link to the "
        "host (`hardware.host`) or the next tier that has space (`hardware.tiers`; where none has, it is prefilled again), or "
        "without any at the speed of the memory channel.",
    )
    prefix_cache: bool = Field(
        default=False,
        description="Full blocks stay in memory and are shared by requests whose tokens begin alike, least recently used first "
        "to go; a prompt computes what is not there. Of layers with a sliding window it needs the blocks that the window sees, "
        "of those with a state a copy at the end of a block, where a step has ended; chunks of prompts end there.",
    )

    evicted: Literal["lost", "tiers"] = Field(
        default="lost",
        description="Blocks of the prefix cache that are evicted: they are lost, or go to the first tier (`hardware.host`, "
        "`hardware.tiers`), and down the list from one that is full. What is found there is loaded over the link of its tier.",
    )

    moves: Literal["beside", "between"] = Field(
        default="beside",
        description="Moves of caches and blocks to and from tiers. `beside`: they go on beside steps, one after another, and a "
        "sequence takes part in steps once its own have ended. `between`: each is a step of its own, for which all wait; only "
        "with `full: swap` or `evicted: tiers`.",
    )

    @property
    def spills(self) -> bool:
        """Whether blocks that are evicted go to tiers."""
        return self.evicted == "tiers"

    @property
    def moving(self) -> bool:
        """Whether caches or blocks move to tiers and back."""
        return self.full == "swap" or self.spills

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> KVPages:
        if self.spills and not self.prefix_cache:
            raise ValueError("expected 'evicted: tiers' only with prefix_cache: true")
        if self.moves == "between" and not self.moving:
            raise ValueError("expected 'moves: between' only with 'full: swap' or 'evicted: tiers': nothing else moves")
        return self


class Batching(Short):
    """Sequences that share a step: a policy, or a mapping of `policy` and its limits."""

    key, types, expected = "policy", (str,), "independent, static or continuous, or a mapping with the key 'policy'"

    policy: str = Field(
        default="independent",
        min_length=1,
        examples=["independent", "static", "continuous"],
        description="Name of the policy. `independent`: each sequence decodes in a loop of its own, and they only contend; "
        "`static`: the requests that wait when the last batch has ended decode together to their end; "
        "`continuous`: each step takes all that wait.",
    )
    max_batch: Whole | None = Field(default=None, ge=1, le=65536, description="Most sequences in a step; null: any number.")
    max_tokens: Whole | None = Field(
        default=None, ge=1, le=100_000_000, description="Most new tokens in a step, prefill included; null: any number."
    )
    kv: KVPages = default({}, description="The KV cache, and what happens when it is full.")

    @property
    def known(self) -> bool:
        """Whether the policy is registered. An unknown name has an error of its own, so that other checks leave it alone."""
        return self.policy in BATCHING_POLICIES

    @property
    def alone(self) -> bool:
        """Whether each request is served in a loop of its own."""
        return BATCHING_POLICIES.get(self.policy).alone

    @model_validator(mode="after")
    def _limits_of_a_batch(self) -> Batching:
        if self.known and self.alone:
            none = {"max_batch": None, "max_tokens": None, "kv": KVPages.model_construct()}
            given = [name for name, value in none.items() if getattr(self, name) != value]
            if given:
                raise ValueError(
                    f"expected {given[0]!r} only with 'static' or 'continuous': a request alone has nothing to limit"
                )
        return self


class Router(Choice):
    """Choice of the replica that serves a request: a name, or a mapping of `name` and its options."""

    examples = ("round_robin", "least_loaded", "prefix_hash", "prefix_aware")

    name: str = Field(default="round_robin", min_length=1, description="Name of the router.")


class Prefill(Section):
    """Prefill of prompts."""

    chunk: Whole | None = Field(
        default=None, ge=1, le=100_000_000, description="Most tokens of a prompt in one step; null: whole prompts."
    )


class RoutingFile(Section):
    """Known choices of experts."""

    file: str = Field(
        min_length=1, pattern=LINE,
        description="Path, from the folder of the scenario: JSON Lines with the keys `sequence`, `position`, `layer` (numbers "
        "from 0) and `experts` (a list of them), one line for each token that is fed in, in each layer with experts.",
        examples=["routes.jsonl"],
    )  # fmt: skip


#: Choices of experts: drawn, or known.
Routing = Annotated[Annotated[Literal["uniform"], Tag(ONE)] | Annotated[RoutingFile, Tag(TABLE)], Discriminator(form)]

#: The probability that a draft token is accepted.
Probability = Annotated[float, Field(ge=0, le=1), BeforeValidator(real)]


def _several(value: object) -> str:
    return TABLE if isinstance(value, list | tuple) else ONE


class DraftModel(Short):
    """The model that drafts: one step for each draft token, on the same machine and mapping as the model that verifies."""

    key, types, expected = "config", (str,), "a config, or a mapping with the key 'config'"

    config: str = Field(
        min_length=1, max_length=1000, pattern=LINE,
        description="As `model.config`: a name that ships, a path, or a Hugging Face model id; or `mtp` for the "
        "multi-token-prediction head of the model itself.",
        examples=["llama-3.2-1b", "mtp"],
    )  # fmt: skip
    layers: Whole | None = Field(default=None, ge=1, description="As `model.layers`.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(default=None, description="As `model.dtype`.")


class Speculative(Section):
    """Speculative decoding: drafts of the next tokens are verified together, in one step."""

    draft: Whole = Field(ge=1, le=1024, description="Tokens drafted for each step.")
    model: DraftModel | None = Field(
        default=None,
        description="The model that drafts, with a KV cache of its own; null: drafts take no time, as n-grams of the prompt.",
        examples=["llama-3.2-1b"],
    )
    acceptance: Annotated[
        Annotated[Probability, Tag(ONE)]
        | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=100_000, strict=False), Tag(TABLE)],
        Discriminator(_several),
    ] = Field(
        description="Probability that a draft token is right, where those before it are; or numbers of tokens accepted, step "
        "by step and over and over.",
        examples=[0.7, [2, 0, 4]],
    )
