"""Words of errors about scenarios, and names that are open to third parties."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from sim.base.documents import Document, KeyPath
from sim.base.problems import ANY, Problem, Wording, one_of
from sim.machine.settings import DTYPE, TIER_NAME
from sim.scenario.sections import Scenario

#: Names that are open to third parties: what they name, the path of the choice, and the key of the name in its long form.
OPEN_NAMES: tuple[tuple[str, KeyPath, str], ...] = (
    ("arbiter", ("hardware", "memory", "arbiter"), "name"),
    ("scheduler", ("scheduler",), "name"),
    ("batching", ("workload", "batching"), "policy"),
    ("router", ("workload", "router"), "name"),
    ("cost", ("cost",), "model"),
)


def unknown_names(document: Document, known: Mapping[str, Collection[str]]) -> Iterator[Problem]:
    """Names of policies that are not among the known ones; a kind that `known` does not list is not checked."""
    for what, path, key in OPEN_NAMES:
        if what not in known:
            continue
        choice, reached = document.find(path)
        if reached != path:
            continue
        written = choice.value if isinstance(choice.value, Mapping) else {key: choice}
        name = written[key].value if key in written else None
        if not isinstance(name, str):
            continue  # its type is a problem of its own
        if name not in known[what]:
            place = document.place((*path, key))
            yield Problem(place, document.find((*path, key))[1], one_of(known[what], name))


WORDING = Wording(
    root=Scenario,
    unions=(
        ("hardware", "engines", "flops"),
        ("cost", "table"),
        ("cost", "t0"),
        ("cost", "peak_share"),
        ("mapping", "weights"),
        ("mapping", "formats", "weights"),
        ("mapping", "tiles"),
        ("mapping", "offload"),
        ("mapping", "offload", "weights"),
        ("mapping", "offload", ANY, "weights"),
        ("workload", "routing"),
        ("workload", "speculative", "acceptance"),
        *(("workload", "generate", name) for name in ("context", "prompt", "tokens")),
    ),
    words={
        (("cost", "table"), "string_type"): "the name of a table, or a mapping of op kinds to durations",
        (("hardware", "memory", "efficiency"), "dict_type"): 'shares by number of transfers, such as {"1": 0.54, "4": 0.68}',
        (("workload", "batching", "kv", "evicted"), "literal_error"): (
            "lost, or tiers: hardware.host and hardware.tiers, nearest first"
        ),
        (("workload", "routing"), "literal_error"): "uniform, or a mapping with the key 'file'",
    },
    patterns={
        DTYPE: "torch's name of a number format, such as bfloat16",
        TIER_NAME: "a name of at most 32 lower-case letters, digits, - and _ that begins with a letter",
    },
)
