"""The file of a study: a base scenario, axes over its keys, and what is asked of the results.

extends: llama_1b_context_2048
axes:
  hardware.engines.count: [1, 2, 4, 8]
  hardware.memory.bandwidth: {from: 50 GB/s, to: 400 GB/s, count: 8, scale: log}
columns: {area: 4 * count + bandwidth / 10 GB/s}
constraints: [makespan < 30 ms]
objectives: {makespan: min, area: min}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from sim.base.section import IDENTIFIER, LINES, NAME, Section, Share, Text, Whole, default, real
from sim.runs.repeats import MOST as MOST_REPEATS
from sim.scenario import json_schema as json_schema_of_scenarios

MOST_POINTS = 1_000_000
MOST_TRIALS = 10_000

#: A name in expressions.
Identifier = Annotated[str, Field(pattern=IDENTIFIER)]
Number = Annotated[float, BeforeValidator(real)]


class Sampling(Section):
    """A sample of all axes that are ranges without a count."""

    method: Literal["random", "latin_hypercube", "sobol"] = Field(
        default="latin_hypercube",
        description="`random`: independent values; `latin_hypercube`: one from each of as many equal parts; "
        "`sobol`: a scrambled Sobol sequence. The last two need SciPy.",
    )
    points: Whole = Field(ge=1, le=MOST_POINTS, description="Number of samples.")
    seed: Whole = Field(default=0, ge=0, lt=2**63, description="Seed of the samples.")


class Search(Section):
    """The value of a key that is searched for; as text `largest KEY` or `smallest KEY`."""

    largest: str | None = Field(default=None, min_length=1, description="Key of the scenario that is to be large.")
    smallest: str | None = Field(default=None, min_length=1, description="Key of the scenario that is to be small.")
    low: Text | Whole | Number | None = Field(
        default=None,
        alias="from",
        description="Smallest value that is run; null: the value of the scenario is halved or doubled.",
    )
    high: Text | Whole | Number | None = Field(default=None, alias="to", description="Largest value that is run.")
    tolerance: Share = Field(
        default=0.02, description="Width of the interval of one seed at which bisection ends, as a share of its lower end."
    )

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        words = value.split() if isinstance(value, str) else []
        return {words[0]: words[1]} if len(words) == 2 and words[0] in ("largest", "smallest") else value

    @model_validator(mode="after")
    def _one(self) -> Search:
        if (self.largest is None) == (self.smallest is None):
            raise ValueError("expected either the key 'largest' or the key 'smallest'")
        if (self.low is None) != (self.high is None):
            raise ValueError("expected both of the keys 'from' and 'to', or neither")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        mapping = handler.resolve_ref_schema(handler(core))
        title, description = mapping.pop("title", cls.__name__), mapping.pop("description", "")
        alone = {"type": "string", "pattern": r"^\s*(largest|smallest)\s+\S+\s*$"}
        return {"title": title, "description": description, "anyOf": [alone, mapping]}


class Optimization(Section):
    """Settings chosen by results, a batch at a time, instead of all combinations; needs Optuna."""

    trials: Whole = Field(ge=1, le=MOST_TRIALS, description="Settings that are chosen.")
    sampler: Literal["nsga2", "nsga3", "tpe", "random"] = Field(
        default="nsga2",
        description="`nsga2`: a genetic algorithm for up to three objectives; `nsga3`: one for more; `tpe`: a model of good "
        "settings, for few trials; `random`: any settings, for comparison.",
    )
    seed: Whole = Field(default=0, ge=0, lt=2**63, description="Seed of the choices.")
    batch: Whole = Field(
        default=32, ge=2, le=1000, description="Settings that are chosen at a time: the population of `nsga2` and `nsga3`."
    )


class StudyFile(Section):
    """Many scenarios that differ in a few keys."""

    name: str = Field(default="study", pattern=NAME, description="Name in reports; by default the name of the file.")
    description: str = Field(default="", max_length=10_000, pattern=LINES, description="Purpose of the study, for readers.")
    extends: str | None = Field(
        default=None,
        min_length=1,
        description="The base scenario: a path relative to this file, or the name of a shipped scenario.",
        examples=["llama_1b_context_2048"],
    )
    scenario: dict[str, Any] | None = Field(
        default=None, description="Keys of a scenario, over those of `extends`; without `extends`, the whole base scenario."
    )
    axes: dict[str, Any] = default(
        {},
        description="Keys of the scenario and their values, of which all combinations are run: a list, a text such as "
        "`1..16` or `50,100,200 GB/s`, or a range `{from, to, count, scale}`.",
        examples=[{"hardware.engines.count": [1, 2, 4]}],
    )
    zip: list[dict[str, Any]] = default(
        [], description="Groups of axes of equal length whose values go together, the first with the first, and so on."
    )
    cases: list[dict[str, Any]] = default(
        [], description="Cases, each a mapping of keys to values and optionally a `name`; combined with all axes."
    )
    sample: Sampling | None = Field(default=None, description="Sample the ranges without a count, instead of all combinations.")
    find: Search | None = Field(
        default=None,
        description="Search for the largest or smallest value of a key at which constraints and `report.slo` hold, for each "
        "combination of the axes.",
        examples=["largest workload.generate.arrivals.rate"],
    )
    optimize: Optimization | None = Field(
        default=None,
        description="Choose settings by their results, instead of all combinations of the axes, to find the front of the "
        "objectives with few runs. Ranges need no count then.",
        examples=[{"trials": 200}],
    )
    repeats: Whole = Field(
        default=1,
        ge=1,
        le=MOST_REPEATS,
        description="Runs of each point, with the seed of the scenario and the following ones.",
    )
    columns: dict[Identifier, Text | Number] = default(
        {}, description="Derived columns: expressions over axes and metrics, such as area, dollars or watts.",
        examples=[{"area": "4 * count + 10"}],
    )  # fmt: skip
    constraints: list[Text] = default(
        [], description="Conditions that a point must meet.", examples=[["p99 TPOT < 30 ms", "energy per token < 2 J"]]
    )
    objectives: dict[Text, Literal["min", "max"]] = default(
        {"makespan": "min"}, description="Columns that are to be small or large; the front of a study is by these."
    )

    @model_validator(mode="after")
    def _has_points(self) -> StudyFile:
        if self.extends is None and self.scenario is None:
            raise ValueError("expected the key 'extends' or 'scenario'")
        if not (self.axes or self.zip or self.cases or self.find):
            raise ValueError("expected the key 'axes', 'zip', 'cases' or 'find'")
        other = "sample" if self.sample is not None else "find"
        if self.optimize is not None and (self.sample is not None or self.find is not None):
            raise ValueError(f"expected either the key 'optimize' or the key {other!r}")
        if not self.objectives:
            raise ValueError("expected at least one objective")
        return self


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of study files, for editors.

    It accepts every valid study. `scenario` may have any keys of a scenario, and no key of these is required there, because
    `extends` may bring it. Keys of axes, values of them, and names in expressions are checked only when a study is read.
    """
    schema, scenario = StudyFile.model_json_schema(mode="validation"), json_schema_of_scenarios()
    definitions = {name: _without_required(each) for name, each in scenario.pop("$defs").items()}
    for key in ("$schema", "anyOf"):
        del scenario[key]
    definitions["Scenario"] = {**_without_required(scenario), "title": "Scenario"}
    schema["$defs"] = {**schema["$defs"], **definitions}
    written = schema["properties"]["scenario"]
    written["anyOf"] = [{"$ref": "#/$defs/Scenario"}, {"type": "null"}]
    schema["anyOf"] = [{"required": ["extends"]}, {"required": ["scenario"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_required(schema: Any) -> Any:
    """A schema of which no key is required. Of several forms more than one may fit then."""
    if isinstance(schema, list):
        return [_without_required(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: each for key, each in schema.items() if key != "required" or not isinstance(each, list)}
    return {"anyOf" if key == "oneOf" else key: _without_required(each) for key, each in kept.items()}
