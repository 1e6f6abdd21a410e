"""Layouts of public traces: the columns of their fields, and the unit of arrivals that are plain numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

#: Fields of a request that a column may have.
COLUMNS = ("arrival", "tokens", "prompt", "context", "prefix")


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns of a known trace.

    columns: the column of each field. unit: of arrivals that are plain numbers; None without arrivals. keys: all columns of the
    trace, where another one has the same columns and another unit. optional: columns of further fields, if the file has them.
    prefix_tokens: tokens of a block that an id stands for; 0 if that is not known.
    """

    name: str
    columns: Mapping[str, str]
    unit: str | None = "s"
    keys: frozenset[str] = frozenset()
    optional: Mapping[str, str] = field(default_factory=dict)
    prefix_tokens: int = 0


_LENGTHS = {"arrival": "timestamp", "prompt": "input_length", "tokens": "output_length"}
_HASHES = {"prefix": "hash_ids"}

#: Layouts in the order in which they are tried; those with arrivals come first. Context or input tokens are a prompt here.
LAYOUTS = (
    Layout(
        "decode-sim", {"arrival": "arrival", "tokens": "tokens"},
        optional={"prompt": "prompt", "context": "context", **_HASHES},
    ),
    # https://github.com/Azure/AzurePublicDataset: AzureLLMInferenceDataset2023.md, AzureLLMInferenceDataset2024.md
    Layout("Azure", {"arrival": "TIMESTAMP", "prompt": "ContextTokens", "tokens": "GeneratedTokens"}),
    # https://github.com/Mutinifni/splitwise-sim: generate_trace.py; seconds
    Layout("Splitwise", {"arrival": "arrival_timestamp", "prompt": "prompt_size", "tokens": "token_size"}),
    # https://github.com/HPMLL/BurstGPT: BurstGPT_1.csv; seconds
    Layout("BurstGPT", {"arrival": "Timestamp", "prompt": "Request tokens", "tokens": "Response tokens"}),
    # https://github.com/kvcache-ai/Mooncake: FAST25-release; milliseconds
    Layout(
        "Mooncake", _LENGTHS, unit="ms", keys=frozenset({*_LENGTHS.values(), "hash_ids"}), optional=_HASHES, prefix_tokens=512
    ),
    # https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon; seconds
    Layout(
        "Bailian", _LENGTHS, optional=_HASHES, prefix_tokens=16,
        keys=frozenset({*_LENGTHS.values(), "hash_ids", "chat_id", "parent_chat_id", "type", "turn"}),
    ),
    # https://github.com/microsoft/vidur: trace_replay_request_generator.py; seconds
    Layout("Vidur", {"arrival": "arrived_at", "prompt": "num_prefill_tokens", "tokens": "num_decode_tokens"}),
    # https://github.com/microsoft/vidur: trace_request_length_generator.py
    Layout("Vidur's lengths", {"prompt": "num_prefill_tokens", "tokens": "num_decode_tokens"}, unit=None),
    # https://github.com/vllm-project/vllm: requests of its serving benchmark
    Layout("vLLM's lengths", {"prompt": "prompt_len", "tokens": "output_len"}, unit=None),
    Layout("lengths", {"prompt": "input_length", "tokens": "output_length"}, unit=None, optional=_HASHES),
    Layout("lengths", {"tokens": "tokens"}, unit=None, optional={"prompt": "prompt", "context": "context", **_HASHES}),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chosen:
    """Columns of a file. unit: of arrivals that are plain numbers; None if that is not known, `why` not. prefix_tokens: as of
    its layout.
    """

    columns: Mapping[str, str]
    unit: str | None
    why: str = ""
    prefix_tokens: int = 0


def layout_of(found: Collection[str]) -> Layout | None:
    """The layout of a file with these columns: the one of all of its keys, else the first that fits; None if none does."""
    fitting = [each for each in LAYOUTS if {*each.columns.values()} <= {*found}]
    return next((each for each in fitting if each.keys == {*found}), fitting[0] if fitting else None)


def unit_of(layout: Layout, found: Collection[str]) -> tuple[str | None, str]:
    """The unit of a layout's arrivals, or None and the reason why it is not certain.

    A layout that shares its columns with one of another unit is certain only by all of its keys.
    """
    alike = [each for each in LAYOUTS if each.columns == layout.columns]
    if layout.keys == {*found} or len({each.unit for each in alike}) == 1:
        return layout.unit, ""
    counts = " and ".join(f"{each.unit} in a trace of {each.name}" for each in alike)
    return None, f"it is {counts}, which have other columns beside these"
