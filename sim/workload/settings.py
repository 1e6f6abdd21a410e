"""Sections for requests that are not listed one by one: random requests, traces, and closed loops."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from sim.base.distributions import lognormal_parameters
from sim.base.quantities import Duration, RequestRate
from sim.base.section import LINE, ONE, TABLE, Section, Short, Whole, default, form, integral, real
from sim.workload.requests import MAX_CONTEXT, MAX_REQUESTS, MAX_TOKENS

Number = Annotated[float, BeforeValidator(real)]


class Arrivals(Section):
    """Arrival times of generated requests: the first at 0, each later one a gap after the previous one."""

    process: Literal["all_at_once", "constant", "poisson", "gamma"] = Field(
        default="all_at_once",
        description="Gaps: none, constant, exponential (a Poisson process), or gamma with a coefficient of variation.",
    )
    rate: RequestRate | None = Field(default=None, description="Requests per second, on average.", examples=["2/s"])
    cv: Number = Field(
        default=1.0, ge=0.01, le=100,
        description="For `gamma`: standard deviation of the gaps over their mean. 1: as `poisson`; above: in bursts.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _consistent(self) -> Arrivals:
        if self.process != "all_at_once" and self.rate is None:
            raise ValueError(f"expected the key 'rate' with process {self.process}")
        if self.process == "all_at_once" and self.rate is not None:
            raise ValueError("expected no rate where all requests arrive at once; process: constant, poisson or gamma")
        if self.process != "gamma" and "cv" in self.model_fields_set and self.cv != 1:
            raise ValueError(f"expected cv only with process gamma, found it with {self.process}")
        return self


class Lengths(Section):
    """A distribution of numbers of tokens."""

    distribution: Literal["constant", "uniform", "lognormal"] = Field(
        description="`constant`: `value`; `uniform`: whole numbers from `min` to `max`; `lognormal`: by its median or mean "
        "and by sigma or a percentile, rounded; values outside of `min` and `max` are set to the bound."
    )
    value: Annotated[int, Ge(0), Le(MAX_CONTEXT), BeforeValidator(integral)] | None = Field(
        default=None, description="For `constant`."
    )
    min: Annotated[int, Ge(0), Le(MAX_CONTEXT), BeforeValidator(integral)] | None = Field(
        default=None, description="Smallest number of tokens; null: 1."
    )
    max: Annotated[int, Ge(0), Le(MAX_CONTEXT), BeforeValidator(integral)] | None = Field(
        default=None, description="Largest number of tokens; null: as many as a request may have."
    )
    median: Number | None = Field(default=None, gt=0, le=MAX_CONTEXT, description="For `lognormal`.")
    mean: Number | None = Field(default=None, gt=0, le=MAX_CONTEXT, description="For `lognormal`, instead of the median.")
    sigma: Number | None = Field(default=None, ge=0, le=10, description="For `lognormal`: standard deviation of the logarithm.")
    p90: Number | None = Field(default=None, gt=0, le=MAX_CONTEXT, description="For `lognormal`, instead of sigma.")
    p99: Number | None = Field(default=None, gt=0, le=MAX_CONTEXT, description="For `lognormal`, instead of sigma.")

    @property
    def bounded(self) -> bool:
        """Whether it states its largest value."""
        return self.max is not None or self.value is not None

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest number of tokens."""
        if self.value is not None:
            return self.value, self.value
        return (1 if self.min is None else self.min), (MAX_CONTEXT if self.max is None else self.max)

    @property
    def tail(self) -> tuple[str, float] | None:
        """The percentile that is given instead of sigma, with its name."""
        return next(((name, value) for name in ("p90", "p99") if (value := getattr(self, name)) is not None), None)

    @model_validator(mode="after")
    def _consistent(self) -> Lengths:
        wanted = {
            "constant": [["value"]],
            "uniform": [["min"], ["max"]],
            "lognormal": [["median", "mean"], ["sigma", "p90", "p99"]],
        }
        allowed = {name for choice in wanted[self.distribution] for name in choice} | (
            {"min", "max"} if self.distribution != "constant" else set()
        )
        given = [name for name in type(self).model_fields if name != "distribution" and getattr(self, name) is not None]
        for choice in wanted[self.distribution]:
            found = [name for name in choice if name in given]
            if len(found) != 1:
                raise ValueError(
                    f"expected {'one of the keys' if len(choice) > 1 else 'the key'} {', '.join(map(repr, choice))} with "
                    f"distribution {self.distribution}, found {' and '.join(map(repr, found)) or 'none'}"
                )
        if wrong := next((name for name in given if name not in allowed), None):
            raise ValueError(f"expected no {wrong!r} with distribution {self.distribution}")
        if self.bounds[0] > self.bounds[1]:
            raise ValueError(f"expected a max of at least the min, {self.bounds[0]}, found {self.bounds[1]}")
        if self.distribution == "lognormal":
            lognormal_parameters(median=self.median, mean=self.mean, sigma=self.sigma, tail=self.tail)
        return self


#: A number of tokens, or a distribution of them.
Tokens = Annotated[
    Annotated[int, Ge(0), Le(MAX_CONTEXT), BeforeValidator(integral), Tag(ONE)] | Annotated[Lengths, Tag(TABLE)],
    Discriminator(form),
]
OutputTokens = Annotated[
    Annotated[int, Ge(1), Le(MAX_TOKENS), BeforeValidator(integral), Tag(ONE)] | Annotated[Lengths, Tag(TABLE)],
    Discriminator(form),
]


class Prefixes(Section):
    """Beginnings of prompts, each of them shared by the requests that draw it."""

    count: Whole = Field(default=1, ge=1, le=MAX_REQUESTS, description="Number of beginnings; each is as likely as others.")
    tokens: Whole = Field(ge=1, le=MAX_CONTEXT, description="Tokens of each.")


class Generate(Section):
    """Random requests. The seed is that of the scenario, and each quantity has its own random stream."""

    count: Whole = Field(ge=1, le=MAX_REQUESTS, description="Number of requests.")
    arrivals: Arrivals = default({}, description="Arrival times.")
    context: Tokens = default(0, description="Tokens already in the KV cache: a number, or a distribution.")
    prompt: Tokens = default(0, description="Tokens to prefill: a number, or a distribution.")
    tokens: OutputTokens = default(1, description="Tokens to decode: a number, or a distribution.")
    prefixes: Prefixes | None = Field(
        default=None,
        description="Beginnings that prompts share, such as system prompts; they come before the tokens of `prompt`.",
        examples=[{"count": 4, "tokens": 2000}],
    )
    turns: Whole = Field(
        default=1, ge=1, le=1000,
        description="Turns of a conversation, each a request whose prompt is all of the turns before, answers included, and "
        "then its own; only in a closed loop. `count` is that of conversations.",
    )  # fmt: skip
    samples: Whole = Field(
        default=1, ge=1, le=1024,
        description="Output sequences that each request samples from its prompt, sharing the KV cache of the prompt; all are "
        "as long. `count` is that of prompts.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _few_enough(self) -> Generate:
        if self.samples > 1 and self.turns > 1:
            raise ValueError("expected samples 1 with turns: a turn follows one answer")
        if self.count * self.samples > MAX_REQUESTS:
            raise ValueError(f"expected at most {MAX_REQUESTS} sequences (count x samples), found {self.count * self.samples}")
        return self

    @field_validator("tokens")
    @classmethod
    def _at_least_one(cls, tokens: int | Lengths) -> int | Lengths:
        if isinstance(tokens, Lengths):
            low, high = tokens.bounds
            if low < 1:
                raise ValueError(f"expected at least 1 token, found {low}")
            if tokens.bounded and high > MAX_TOKENS:
                raise ValueError(f"expected at most {MAX_TOKENS} tokens, found {high}")
        return tokens


class Columns(Section):
    """Names of columns (CSV) or keys (JSON)."""

    arrival: str | None = Field(default=None, min_length=1, max_length=200, pattern=LINE, description="Arrival time.")
    tokens: str | None = Field(default=None, min_length=1, max_length=200, pattern=LINE, description="Tokens to decode.")
    prompt: str | None = Field(
        default=None, min_length=1, max_length=200, pattern=LINE, description="Tokens to prefill; null: none."
    )
    context: str | None = Field(
        default=None, min_length=1, max_length=200, pattern=LINE, description="Tokens already in the KV cache; null: none."
    )
    prefix: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        pattern=LINE,
        description="Ids of the blocks of the prompt (a list), equal where prompts begin alike; null: `hash_ids`, if known.",
    )


class RequestTrace(Short):
    """A file of requests: CSV with a header, a JSON object in each line, or a JSON array of objects."""

    key, types, expected = "file", (str,), "the path of a file, or a mapping with the key 'file'"

    file: str = Field(
        min_length=1, max_length=1000, pattern=LINE,
        description="Path, relative to the scenario's file. A file whose name ends in `.gz` is decompressed.",
    )  # fmt: skip
    format: Literal["csv", "jsonl", "json"] | None = Field(
        default=None,
        description="null: `jsonl` or `json` if the name ends so, else `csv`. Either of the first two reads both lines of "
        "objects and an array of them.",
    )
    columns: Columns | None = Field(
        default=None, description="Column of each field, if the layout of the file is not known or another column is wanted."
    )
    unit: Literal["s", "ms", "us", "ns", "ps"] | None = Field(
        default=None,
        description="Unit of arrivals that are plain numbers; null: that of the layout. Needed where that is not certain.",
    )
    arrivals: Arrivals | None = Field(
        default=None,
        description="Generated arrival times, instead of those of the file, which then needs none.",
        examples=[{"process": "poisson", "rate": "2/s"}],
    )
    start: Duration = default("0 s", description="Leave out requests that arrive earlier than this after the first row.")
    duration: Duration | None = Field(
        default=None, description="Take only requests that arrive within this time from `start`; null: all."
    )
    limit: Annotated[int, Ge(1), Le(MAX_REQUESTS), BeforeValidator(integral)] | None = Field(
        default=None, description="Take only this many of the first rows; the rest is not read. null: all."
    )
    speed: Number = Field(
        default=1.0,
        ge=1e-6,
        le=1e6,
        description="Speed of the replay: 2 halves all gaps, which doubles the arrival rate.",
    )
    skip_empty: bool = Field(
        default=False,
        description="Leave out rows without output tokens, such as failed requests; otherwise they are an error.",
    )
    characters_per_token: Number | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="For conversations: characters of text for one token, rounded up; they depend on the tokenizer.",
    )
    prefix_tokens: Annotated[int, Ge(1), Le(MAX_CONTEXT), BeforeValidator(integral)] | None = Field(
        default=None,
        description="Tokens of each block that an id of `columns.prefix` stands for; null: as in the layout, if it is known.",
    )
    history: Literal["prompt", "context"] = Field(
        default="prompt",
        description="For conversations: whether a turn feeds in the earlier ones again (`prompt`), or has them in its KV cache "
        "already (`context`).",
    )

    @model_validator(mode="after")
    def _arrivals_of_one_kind(self) -> RequestTrace:
        if self.arrivals is not None and self.speed != 1:
            raise ValueError("expected 'speed' only with arrivals of the file: generated ones have a rate")
        return self


class Concurrency(Short):
    """A closed loop: users that each send the next request when their last one has ended."""

    key, types, expected = "users", (int, float), "a number of users, or a mapping with the key 'users'"

    users: Whole = Field(
        ge=1,
        le=MAX_REQUESTS,
        description="Most requests in the system, samples of a prompt counted as one; sent in order, each by a free user.",
    )
    think: Duration = default("0 s", description="Time from the end of a request to the next one of the same user.")
