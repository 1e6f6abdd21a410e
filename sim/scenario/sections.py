"""The sections of a scenario, as frozen models. Quantities are integers of base units: ps, bytes, bytes/s, FLOP/s.

The descriptions go into the JSON Schema, so that an editor shows them. `Choice` is a section that names a policy: its names are
open, because third parties register policies; a caller that validates a scenario passes the names that it knows. Validation
opens no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from sim.base.documents import Document, key_path
from sim.base.errors import ConfigError, InputError
from sim.base.quantities import Duration
from sim.base.section import LINES, NAME, Section, Whole, default, integral, real
from sim.cost.settings import Cost
from sim.machine.settings import Hardware, Scheduler
from sim.mapping.settings import ModelMapping
from sim.scenario.graph_op import MAX_OPS, GraphOp
from sim.scenario.paths import folder_of, with_absolute_paths
from sim.serving.settings import Batching, Prefill, Router, Routing, Speculative
from sim.workload.requests import MAX_CONTEXT, MAX_REQUESTS, MAX_TOKENS
from sim.workload.settings import Concurrency, Generate, RequestTrace


class Model(Section):
    """The model: by its config, or as a graph of ops."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["config"]}, {"required": ["graph"]}]})

    config: str | None = Field(
        default=None,
        min_length=1,
        description="A shipped model, the path of a config.json or of its folder, from the folder of the scenario, or a "
        "Hugging Face id.",
        examples=["llama-3.2-1b"],
    )
    graph: tuple[GraphOp, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_OPS,
        strict=False,  # YAML has lists, not tuples
        description="Instead of a config: the ops of a step, which is repeated for each token.",
    )
    layers: Annotated[int, Ge(1), Le(10_000), BeforeValidator(integral)] | None = Field(
        default=None, description="Keep only this many of the first layers; null keeps all."
    )
    scope: Literal["block", "model"] = Field(
        default="model", description="`block`: the decoder layers alone; `model`: with embedding and LM head."
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None,
        description="Number format of weights and KV cache; null takes that of the config, bfloat16 if it names none.",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Model:
        if self.config is None and self.graph is None:
            raise ValueError("expected the key 'config' or 'graph'")
        if self.config is not None and self.graph is not None:
            raise ValueError("expected only one of the keys 'config' and 'graph', found both")
        if self.graph is not None and self.layers is not None:
            raise ValueError("expected 'layers' only with 'config': a graph is taken as it is written")
        return self


class SequenceGroup(Section):
    """One request, or several equal ones."""

    context: Whole = Field(
        default=0, ge=0, le=MAX_CONTEXT, description="Tokens already in the KV cache when the sequence starts."
    )
    prompt: Whole = Field(
        default=0, ge=0, le=MAX_CONTEXT, description="Tokens to prefill first; the last of them gives the first output token."
    )
    tokens: Whole = Field(default=1, ge=1, le=MAX_TOKENS, description="Tokens to decode: output tokens in all.")
    arrival: Duration = default("0 us", description="Arrival time, from the start of the simulation.")
    count: Whole = Field(default=1, ge=1, le=MAX_REQUESTS, description="Number of such sequences.")
    samples: Whole = Field(
        default=1,
        ge=1,
        le=1024,
        description="Output sequences that each request samples from its prompt, sharing the KV cache of the prompt.",
    )


#: Keys of a workload that define its requests.
_SOURCES = ("sequences", "generate", "trace")


class Workload(Section):
    """The requests: their tokens, their arrivals, and how they share steps."""

    sequences: Annotated[tuple[SequenceGroup, ...], Field(min_length=1, strict=False)] | None = default(
        [{}],
        description="The sequences, in program order; null where they are generated or read from a trace.",
    )
    generate: Generate | None = Field(default=None, description="Instead of `sequences`: randomly generated requests.")
    trace: RequestTrace | None = Field(
        default=None,
        description="Instead of `sequences`: requests from a file, by its path or with options.",
        examples=["AzureLLMInferenceTrace_conv.csv"],
    )
    concurrency: Concurrency | None = Field(
        default=None,
        description="A closed loop: a fixed number of requests at a time, the next when one has ended; arrivals are not used.",
        examples=[8],
    )
    dependency: Literal["sampled", "known"] = Field(
        default="sampled",
        description="`sampled`: a token depends on the one before it, so a step waits for all of the previous one. "
        "`known`: tokens are given beforehand (drafts, teacher forcing) and their steps overlap.",
    )
    batching: Batching = default("independent", description="Which sequences share a step.")
    router: Router = default(
        "round_robin",
        description="Which replica of the model serves a request (`mapping.parallel.data`), or which device where each has "
        "sequences of its own (`mapping.parallel.attention: data`); chosen as it arrives. Only with these.",
    )
    prefill: Prefill = default({}, description="How prompts are prefilled.")
    speculative: Speculative | None = Field(default=None, description="Speculative decoding; null: one token at a time.")
    step_overhead: Duration = default(
        "0 s",
        description="Host time before each step, in which the device waits: scheduling, sampling, transfers of tokens.",
    )
    routing: Routing = default(
        "uniform",
        description="Experts that tokens choose in a mixture of experts; a step reads each chosen expert once. `uniform`: for "
        "each token and layer all sets of experts are equally likely, drawn from the seed.",
        examples=["uniform", {"file": "routes.jsonl"}],
    )

    @field_validator("sequences")
    @classmethod
    def _few_enough(cls, sequences: tuple[SequenceGroup, ...] | None) -> tuple[SequenceGroup, ...] | None:
        total = sum(group.count * group.samples for group in sequences or ())
        if total > MAX_REQUESTS:
            raise ValueError(f"expected at most {MAX_REQUESTS} sequences, found {total}")
        return sequences

    @model_validator(mode="before")
    @classmethod
    def _no_sequences(cls, value: object) -> object:
        """Drop the default, which would be one sequence beside those that are generated or traced."""
        if isinstance(value, Mapping) and (value.get("generate") is not None or value.get("trace") is not None):
            return {"sequences": None, **value}
        return value

    @property
    def source(self) -> str:
        """The key that defines the requests."""
        return next(name for name in _SOURCES if getattr(self, name))

    @model_validator(mode="after")
    def _one_source(self) -> Workload:
        sources = [name for name in _SOURCES if getattr(self, name)]
        if not sources:
            raise ValueError("expected the key 'sequences', 'generate' or 'trace'")
        if len(sources) > 1:
            raise ValueError(
                f"expected only one of the keys 'sequences', 'generate' and 'trace', found {sources[0]!r} and {sources[1]!r}"
            )
        timed = any(group.arrival for group in self.sequences or ()) or (
            self.generate is not None and self.generate.arrivals.rate is not None
        )
        if self.concurrency is not None and timed:
            raise ValueError(
                "expected either arrival times or the key 'concurrency', found both: in a closed loop each waits for one to end"
            )
        return self

    def each(self) -> Iterator[SequenceGroup]:
        """Each of `sequences`, in program order; a group with `count` n is repeated n times."""
        for group in self.sequences or ():
            yield from [group] * group.count

    @model_validator(mode="after")
    def _consistent(self) -> Workload:
        if not self.batching.known:
            return self
        alone = self.batching.alone
        plain = alone and self.speculative is None and self.concurrency is None and not self.step_overhead
        if self.dependency == "known" and not plain:
            raise ValueError("expected dependency 'known' only without batching, speculation, concurrency and step_overhead")
        samples = [group.samples for group in self.sequences or ()] + ([] if self.generate is None else [self.generate.samples])
        if max(samples, default=1) > 1 and (alone or self.batching.kv.full != "wait"):
            raise ValueError("expected samples only with 'static' or 'continuous' batching and kv.full 'wait'")
        return self


class Window(Section):
    """A part of the simulated time."""

    start: Duration = default("0 us", description="Start of the time.")
    end: Duration | None = Field(default=None, description="End of the time; null: the end of the run.")

    @model_validator(mode="after")
    def _not_empty(self) -> Window:
        if self.end is not None and self.end <= self.start:
            raise ValueError("expected an end after the start")
        return self


class Trace(Section):
    """Contents of the trace."""

    detail: Literal["full", "ops", "engines"] = Field(
        default="full", description="`full`: everything; `ops`: no waiting slices; `engines`: engines and channel only."
    )
    flows: Literal["all", "critical", "none"] = Field(
        default="all", description="Arrows for all dependencies, for those on the critical path, or none."
    )
    window: Window | None = Field(default=None, description="Only events in this time; null: all.")


#: Percentage of requests, above none.
Percent = Annotated[float, Field(gt=0, le=100), BeforeValidator(real)]


class Slo(Section):
    """A service level objective: limits that a request meets if it exceeds none of them."""

    ttft: Duration | None = Field(default=None, description="Longest time to the first token.")
    tpot: Duration | None = Field(default=None, description="Longest mean time per output token after the first.")
    e2e: Duration | None = Field(default=None, description="Longest time from arrival to the last token.")
    percentile: Percent = Field(
        default=99.0, description="Percentage of requests that must meet all limits for the objective to be attained."
    )

    @model_validator(mode="after")
    def _has_limits(self) -> Slo:
        if self.ttft is None and self.tpot is None and self.e2e is None:
            raise ValueError("expected at least one of the keys 'ttft', 'tpot' and 'e2e'")
        return self


class Report(Section):
    """Requests that statistics leave out, and the service level that they are compared with."""

    warmup_time: Duration = default(
        "0 s", description="Requests that arrive earlier than this are not counted, and rates are of the time after it."
    )
    warmup_requests: Whole = Field(
        default=0,
        ge=0,
        lt=MAX_REQUESTS,
        description="This many of the first requests are not counted, and rates are of the time after them.",
    )
    slo: Slo | None = Field(
        default=None,
        description="A service level objective; reports have the goodput: requests per second that meet it, and their share.",
        examples=[{"ttft": "500 ms", "tpot": "30 ms"}],
    )


class Scenario(Section):
    """Model, machine, workload and mapping: everything that a run depends on."""

    _document: Document = PrivateAttr()
    _from_preset: tuple[str, ...] = PrivateAttr(default=())
    _written: dict[str, str] = PrivateAttr(default_factory=dict)  # sections as text, where others are made like this one

    name: str = Field(
        default="scenario",
        pattern=NAME,
        description="Name in reports; by default the name of the file. No slash, no leading dot.",
    )
    description: str = Field(default="", max_length=10_000, pattern=LINES, description="Purpose of the scenario, for readers.")
    extends: str | None = Field(
        default=None,
        exclude=True,
        description="A scenario whose keys hold where this one writes none: a path relative to this file, or the name of a "
        "shipped scenario. Mappings are joined key by key; name and description are not inherited.",
        examples=["llama_1b_context_2048"],
    )
    model: Model = Field(description="The model. Required, unless `extends` brings it.")
    workload: Workload = default({}, description="The requests.")
    hardware: Hardware = default({}, description="The machine.")
    mapping: ModelMapping = default({}, description="How the model is mapped onto the machine.")
    scheduler: Scheduler = default("earliest", description="Which ready task a free engine takes.")
    cost: Cost = default("roofline", description="How long tasks take.")
    seed: Whole = Field(default=0, ge=0, lt=2**63, description="Seed of all random numbers.")
    record: Literal["all", "steps", "none"] = Field(
        default="all",
        description="What is kept of a run. `all`: every op; `steps`: steps, requests and totals, so that a run of any length "
        "fits memory; `none`: requests and totals. Ops in `trace.window` are always kept.",
    )
    trace: Trace = default({}, description="Contents of the trace.")
    report: Report = default({}, description="Requests that statistics leave out.")

    @property
    def source(self) -> str:
        """Source of the scenario: a path as it was given, or a name in angle brackets."""
        return self._document.source

    @property
    def from_preset(self) -> tuple[str, ...]:
        """Settings beside figures of the device that the preset brought, as `key: value`."""
        return self._from_preset

    @property
    def text(self) -> str:
        """The YAML text it was read from, without overrides; empty if it came from a dict."""
        return self._document.text

    @property
    def folder(self) -> Path:
        """The folder of its file, to which its paths are relative; the working directory if it came from no file."""
        return folder_of(self._document)

    def locate(self, key: str) -> str:
        """Place of `key`, such as `model.layers` or `workload.sequences[0].tokens`: `file:3:12`.

        For a key that is not written, because its default holds, the place of the section around it.
        """
        return str(self._document.place(key_path(key)))

    def error(self, key: str, message: str) -> InputError:
        """The error for a value that a later stage cannot use: `file:3:12: model.layers: expected 1 to 16, found 40`."""
        return self._document.place(key_path(key)).error(f"{key}: {message}")

    @contextmanager
    def located(self) -> Iterator[None]:
        """Add the place in the file to errors about a key of this scenario."""
        try:
            yield
        except ConfigError as error:
            raise self.error(error.key, error.message) from None

    def to_dict(self, *, absolute: bool = False) -> dict[str, Any]:
        """Everything, defaults included, as plain data with quantities as text: `from_dict` gives an equal scenario.

        absolute: paths are written so that they mean the same files in any working directory.
        """
        data: dict[str, Any] = self.model_dump(mode="json")
        return with_absolute_paths(data, self.folder) if absolute else data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scenario) and self.__dict__ == other.__dict__  # wherever it was read from

    __hash__ = None  # type: ignore[assignment]
