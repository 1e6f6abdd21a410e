"""The section `cost` of a scenario."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from sim.base.quantities import Duration
from sim.base.section import ONE, TABLE, Choice, form

#: The name of a shipped table, or the table itself: duration by op kind.
CostTable = Annotated[
    Annotated[str, Field(min_length=1), Tag(ONE)] | Annotated[dict[str, Duration], Field(min_length=1), Tag(TABLE)],
    Discriminator(form),
]


class Cost(Choice):
    """Durations of tasks: the name of a cost model, or a mapping of `model` and its options."""

    key = "model"
    examples = ("roofline", "fixed", "profiled")

    model: str = Field(min_length=1, description="Name of the cost model.", examples=["roofline", "fixed", "profiled"])
    table: CostTable | None = Field(
        default=None,
        description="For `fixed`: the name of a shipped table, or a mapping of op kinds to durations.",
        examples=["block_estimates", {"norm": "300 us"}],
    )
    jitter: float = Field(
        default=0.0, ge=0, lt=1, description="For `fixed`: durations vary uniformly by this share, up and down."
    )
    profile: str | None = Field(
        default=None,
        min_length=1,
        description="For `profiled`: path of a device profile, from the folder of the scenario.",
        examples=["device.yaml"],
    )
    otherwise: Literal["roofline"] | None = Field(
        default=None,
        description="For `profiled`: what ops cost that the profile lacks, and the report lists them; null: they are errors.",
    )
