"""The section `cost` of a scenario."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from models.formats import WeightFormat
from sim.base.quantities import Bandwidth, Duration
from sim.base.section import ONE, TABLE, Choice, Share, form

#: The name of a shipped table, or the table itself: duration by op kind.
CostTable = Annotated[
    Annotated[str, Field(min_length=1), Tag(ONE)] | Annotated[dict[str, Duration], Field(min_length=1), Tag(TABLE)],
    Discriminator(form),
]


#: One duration for all kernels, or a table by group and kind of op.
LaunchTimes = Annotated[
    Annotated[Duration, Tag(ONE)] | Annotated[dict[str, Duration], Field(min_length=1), Tag(TABLE)],
    Discriminator(form),
]

#: One share of the peak for all number formats, or a table by torch's name of the format.
PeakShares = Annotated[
    Annotated[Share, Tag(ONE)] | Annotated[dict[str, Share], Field(min_length=1), Tag(TABLE)],
    Discriminator(form),
]


class Cost(Choice):
    """Durations of tasks: the name of a cost model, or a mapping of `model` and its options."""

    key = "model"
    examples = ("roofline", "kernel", "fixed", "profiled")

    model: str = Field(
        min_length=1, description="Name of the cost model.", examples=["roofline", "kernel", "fixed", "profiled"]
    )
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
    otherwise: Literal["roofline", "kernel"] | None = Field(
        default=None,
        description="For `profiled`: what ops cost that the profile lacks, and the report lists them: a lower bound, or by "
        "`t0`, `peak_share` and `unpack`, of the preset or written, which then also hold for products of more rows than were "
        "measured; null: they are errors.",
    )
    t0: LaunchTimes | None = Field(
        default=None,
        description="For `kernel`: time that a kernel takes beside its bytes and FLOPs; one, or by `matmul` (products with "
        "weights), `attention`, `other`, `collective` (between devices; that of `other` if it is missing), and kinds of op; "
        "`prompt` is added to each kernel in steps that feed in several tokens of a sequence, which are not replayed as a "
        "graph (without drafts). By default that of the preset.",
        examples=["4 us", {"matmul": "3.6 us", "attention": "12 us", "other": "1.5 us"}],
    )
    peak_share: PeakShares | None = Field(
        default=None,
        description="For `kernel`: share of the peak FLOP/s that products reach; one, or by number format, with `any` for "
        "others. By default that of the preset.",
        examples=[0.8, {"bfloat16": 0.8, "any": 0.7}],
    )
    unpack: dict[WeightFormat, Bandwidth] | None = Field(
        default=None,
        min_length=1,
        description="For `kernel`: bytes/s of weights that an engine unpacks, by format of weights: time beside its products, "
        "hidden where it is shorter than the loading of the same bytes. Formats without a rate take no time. By default that "
        "of the preset.",
        examples=[{"q4_0": "290 GB/s"}],
    )
