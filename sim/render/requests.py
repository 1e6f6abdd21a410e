"""Request metrics as data and on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.table import Table

from sim.analysis.goodput import Goodput
from sim.analysis.requests import TITLES, Distribution, Replicas, Requests
from sim.base.units import format_bytes, format_time
from sim.render.narrow import fitted, glued
from sim.render.rows import Index, Rows
from sim.runs.result import Result
from sim.serving.queue import TITLES as TITLES_OF_REASONS
from sim.serving.queue import Reason

MOST_REPLICAS = 16  # that a terminal has a row of


def worth_showing(result: Result) -> bool:
    """Whether request metrics add anything: a single request that only decodes is described by its tokens."""
    if result.goodput is not None:
        return True
    return len(result.requests) > 1 or bool((result.log.members.query > 1).any())


def _cache(result: Result) -> dict[str, Any]:
    """The key `prefix_cache`; none without one. bytes_saved: of keys and values that were not computed and written again."""
    cache = result.log.cache
    if cache is None:
        return {}
    return {
        "prefix_cache": {
            "tokens": cache.tokens,
            "hits": cache.hits,
            "hit_rate": round(cache.hits / cache.tokens, 6) if cache.tokens else None,
            "bytes_saved": bytes_saved(result),
            "evicted_blocks": cache.evicted,
            **({"tiers": _tiers(result)} if cache.tiers else {}),
        }
    }


def _tiers(result: Result) -> list[dict[str, Any]]:
    """Use of each tier by the prefix cache; tokens that were found there are among all that were."""
    cache = result.log.cache
    of_tiers = () if cache is None else cache.tiers
    return [
        {"name": name, "hits": use.hits, "bytes_spilled": use.bytes, "evicted_blocks": use.evicted}
        for name, use in zip(result.log.machine.tiers, of_tiers, strict=False)
    ]


def queued_for(waits: Iterable[int]) -> dict[str, int]:
    """JSON-ready time in the queue by reason, ps."""
    return {reason.name.lower(): int(ps) for reason, ps in zip(Reason, waits, strict=True)}


def largest_first(waits: Iterable[int]) -> list[tuple[Reason, int]]:
    """Reasons for which requests waited, the one for which they waited longest first; ps."""
    return sorted(((reason, int(ps)) for reason, ps in zip(Reason, waits, strict=True) if ps), key=lambda each: -each[1])


def _queue(r: Requests) -> dict[str, Any]:
    """The key `queued_for_ps`; none where nothing was batched."""
    return {} if r.waits is None else {"queued_for_ps": queued_for(r.waits[r.counted].sum(axis=0))}


def _queue_line(r: Requests) -> str:
    """Shares of the time in the queue, by reason; empty if no request waited."""
    waits = [] if r.waits is None else largest_first(r.waits[r.counted].sum(axis=0))
    whole = sum(ps for _, ps in waits)
    shares = ", ".join(f"{ps / whole:.1%} for {TITLES_OF_REASONS[reason]}" for reason, ps in waits)
    return f"{format_time(whole)} summed over requests: {shares}" if waits else ""


def _replicas(result: Result) -> dict[str, Any]:
    """The key `replicas` or `devices`: requests that each served, output tokens, TTFT and TPOT; none where there is one."""
    by = result.requests.by
    return {} if by is None else {f"{by.word}s": [_replica(result.requests, number) for number in _numbers(by)]}


def _numbers(by: Replicas) -> range:
    """Numbers of the replicas, or of the devices."""
    return range(len(by.tokens))


def _replica(requests: Requests, number: int) -> dict[str, Any]:
    """Work of a replica: TTFT of requests whose first token it gave, the rest of those whose last token it gave."""
    by = requests.by
    assert by is not None
    first, last = by.first == number, by.last == number
    begun, ended = requests.only(first).times(), requests.only(last).times()
    latencies = {"ttft_ps": begun["ttft"], "tpot_ps": ended["tpot"], "e2e_ps": ended["e2e"]}
    return {
        "requests": len(np.flatnonzero(first | last)), "tokens": int(by.tokens[number]),
        **{name: _distribution(found) for name, found in latencies.items()},
    }  # fmt: skip


def _who(requests: Requests, number: int) -> dict[str, int]:
    """The replica or device that served a request, and the one that prefilled it if it is another; none where there is one."""
    by = requests.by
    if by is None:
        return {}
    first, last = int(by.first[number]), int(by.last[number])
    return {by.word: last} if first == last else {"prefilled_by": first, by.word: last}


def bytes_saved(result: Result) -> int:
    """Bytes of the KV cache of tokens that were found in the prefix cache."""
    hits = 0 if result.log.cache is None else result.log.cache.hits
    return hits * sum(group.token_bytes for group in result.plan.rules.kv_layers if group.window != 0)


def data(result: Result) -> dict[str, Any]:
    """Metrics as plain data. Times are integers of ps, null where nothing was measured; `each` has `Rows` of all requests."""
    r, s = result.requests, result.series
    times = r.times()
    return {
        "count": len(r),
        "counted": int(r.counted.sum()),
        "begin_ps": r.begin,
        "end_ps": r.end,
        **{f"{name}_ps": _distribution(times[name]) for name in TITLES},
        "tokens": int(r.tokens.sum()),
        "tokens_per_s": round(r.tokens_per_second, 6),
        "requests_per_s": round(r.requests_per_second, 6),
        "in_system": round(r.in_system, 6),
        "fairness": {name: None if index is None else round(index, 6) for name, index in r.fairness().items()},
        **({} if result.goodput is None else {"goodput": _goodput(result.goodput)}),
        **_queue(r),
        **_cache(result),
        **_replicas(result),
        "each": _each(r),
        "series": {
            "width_ps": s.width,
            "batch": _plain(s.batch),
            "in_system": _plain(s.in_system),
            "kv_tokens": _plain(s.kv_tokens),
            "kv_bytes": _plain(s.kv_bytes),
            "bytes_per_s": _plain(s.bytes_per_s),
        },
    }


def _each(r: Requests) -> Rows:
    number = np.arange(len(r), dtype=np.int64)
    columns = (number, r.arrival, r.queued, r.ttft, r.tpot, r.e2e, r.tokens, r.slowdown, r.counted)

    def make(rows: Index) -> list[dict[str, Any]]:
        return [
            {
                "sequence": sequence, "arrival_ps": arrival, "queued_ps": queued, "ttft_ps": ttft,
                "tpot_ps": None if mean < 0 else mean, "e2e_ps": e2e, "tokens": tokens,
                "slowdown": round(slowdown, 6), "counted": counted, **_who(r, sequence),
                **({} if r.waits is None else {"queued_for_ps": queued_for(r.waits[sequence])}),
            }
            for sequence, arrival, queued, ttft, mean, e2e, tokens, slowdown, counted in zip(
                *(column[rows].tolist() for column in columns), strict=True
            )
        ]  # fmt: skip

    return Rows(len(r), make)


def _distribution(found: Distribution | None) -> dict[str, int] | None:
    if found is None:
        return None
    return {
        "count": found.count,
        "mean": found.mean,
        "p50": found.p50,
        "p90": found.p90,
        "p99": found.p99,
        "max": found.largest,
    }


def _goodput(found: Goodput) -> dict[str, Any]:
    """JSON-ready goodput; `limits` has the limits that are set, with the requests that meet each."""
    return {
        "per_s": round(found.per_second, 6),
        "met": found.met,
        "share": round(found.share, 6),
        "percentile": found.slo.percentile,
        "attained": found.attained,
        "limits": {name: {"limit_ps": limit, "met": found.each[name]} for name, limit in found.slo.limits.items()},
    }


def _goodput_line(found: Goodput) -> str:
    """Goodput in a line: the rate, the share, and the limits, each with the share that meets it if there are several."""
    several = len(found.each) > 1
    limits = ", ".join(
        f"{TITLES[name]} {format_time(limit)}" + (f" ({_share(found.each[name], found.counted)})" if several else "")
        for name, limit in found.slo.limits.items()
    )
    held = "attained" if found.attained else "not attained"
    return (
        f"{_short(found.per_second)} requests/s, {_share(found.met, found.counted)} within {limits}; "
        f"{held} at {found.slo.percentile:g} %"
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "100.0%"


def _plain(values: npt.NDArray[np.float64]) -> list[float]:
    return [int(v) if v.is_integer() else round(v, 6) for v in values.tolist()]


def render(result: Result) -> RenderableType:
    """Lines of rates and fairness, and a table of percentiles."""
    r = result.requests
    left_out = len(r) - int(r.counted.sum())
    counted = f"{len(r):,}" if not left_out else f"{len(r) - left_out:,} of {len(r):,}, the others are warm-up"
    facts = Table.grid(padding=(0, 2))
    facts.add_row("requests", glued(f"{counted}; {_short(r.in_system)} in the system on average"))
    facts.add_row("rates", glued(f"{r.tokens_per_second:,.1f} tokens/s, {_short(r.requests_per_second)} requests/s"))
    if result.goodput is not None:
        facts.add_row("goodput", glued(_goodput_line(result.goodput)))
    of_tokens, of_slowdown = r.fairness().values()
    if len(r) - left_out > 1 and of_tokens is not None and of_slowdown is not None:
        facts.add_row("fairness", glued(f"{of_tokens:.3f} of tokens/s, {of_slowdown:.3f} of slowdowns (Jain's index)"))
    if line := _queue_line(r):
        facts.add_row("queue", glued(line))
    if (cache := result.log.cache) is not None:
        found = f"{cache.hits:,} of {cache.tokens:,} tokens of prompts"
        rate = f" ({cache.hits / cache.tokens:.1%})" if cache.tokens else ""
        saved = f"{format_bytes(bytes_saved(result))} of KV cache were there; {cache.evicted:,} blocks evicted"
        facts.add_row("prefix", glued(f"{found} found{rate}: {saved}"))
        for each in _tiers(result):
            spilled = f"{format_bytes(each['bytes_spilled'])} spilled to it, {each['evicted_blocks']:,} blocks evicted"
            facts.add_row(f"in {each['name']}", glued(f"{each['hits']:,} of these tokens, {spilled}"))
    if left_out == len(r):
        return Group(facts, *_table_of_replicas(result))
    rows = [
        (TITLES[name], *map(format_time, (found.mean, found.p50, found.p90, found.p99, found.largest)))
        for name, found in r.times().items()
        if found is not None and found.largest
    ]
    latencies = fitted(("", "mean", "p50", "p90", "p99", "max"), rows, drop=("p90", "max", "mean"))
    return Group(facts, latencies, *_table_of_replicas(result))


def _table_of_replicas(result: Result) -> Iterator[RenderableType]:
    """A table of what each replica or device served; none where there is one. Of many, the first ones."""
    by, rows = result.requests.by, []
    if by is None:
        return
    for number in _numbers(by)[:MOST_REPLICAS]:
        found = _replica(result.requests, number)
        means = [format_time(times["mean"]) if (times := found[f"{name}_ps"]) else "-" for name in ("ttft", "tpot", "e2e")]
        p99 = format_time(found["e2e_ps"]["p99"]) if found["e2e_ps"] else "-"
        rows.append((str(number), f"{found['requests']:,}", f"{found['tokens']:,}", *means, p99))
    columns = (by.word, "requests", "tokens", "TTFT, mean", "TPOT, mean", "end to end, mean", "p99")
    yield fitted(columns, rows, drop=("p99", "end to end, mean", "tokens"))


def _short(number: float) -> str:
    """Three significant digits, or all digits before the decimal point."""
    return f"{number:.3g}" if number < 999.5 else f"{number:,.0f}"
