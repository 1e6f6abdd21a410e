"""Charts of a result with Matplotlib: a timeline, bandwidth over time, where the time of tokens went, requests."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from sim.analysis.parts import PARTS
from sim.base.errors import InputError
from sim.base.units import PS_PER_MS, PS_PER_NS, PS_PER_S, PS_PER_US
from sim.log import derived
from sim.render.headline import COLORS
from sim.runs.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY = 5_000  # tasks on a timeline; more of them are less than a pixel wide
FEW = 60  # bars whose names fit


class Plots:
    """Charts of one result. Each takes the axes to draw on, by default new ones, and returns them."""

    def __init__(self, result: Result) -> None:
        self._result = result

    def timeline(self, ax: Axes | None = None, *, first: int = MANY) -> Axes:
        """Tasks on engines and transfers on channels, colored by kind: the first ones to start.

        Raises InputError if ops were not recorded.
        """
        result, log = self._result, self._result.rows("a timeline")
        axes = _axes(ax, (10, 0.35 * (log.engines + log.channels) + 1.5))
        order = np.argsort(log.tasks.start, kind="stable")[:first]
        unit, size = _unit(int(log.tasks.end[order].max(initial=0)))
        kinds = derived.forms(log).kinds
        ranked = [kind.kind for kind in sorted(result.metrics.kinds, key=lambda kind: -kind.compute - kind.transfer)]
        palette = import_module("matplotlib").colormaps["tab20"]
        service, kind = derived.service(log), derived.kind(log)
        for number in dict.fromkeys(kind[order].tolist()):
            mine = order[kind[order] == number]
            color = palette(ranked.index(kinds[number]) % 20) if kinds[number] in ranked else "gray"
            ran, moved = mine[log.tasks.engine[mine] >= 0], mine[service.moves[mine]]
            for rows, line, start, end in (
                (ran, log.tasks.engine[ran], log.tasks.start[ran], log.tasks.end[ran]),
                (moved, log.engines + service.channel[moved].astype(int), service.first[moved], service.last[moved]),
            ):
                if len(rows):
                    axes.barh(line, (end - start) / size, left=start / size, height=0.8, color=color, label=kinds[number])
        names = [*log.machine.engine_names, *(channel.name for channel in log.machine.channels)]
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(xlabel=f"time ({unit})", title=_title(result, f"first {len(order):,} tasks" if first < len(log.tasks) else ""))
        _legend(axes)
        return axes

    def bandwidth(self, ax: Axes | None = None) -> Axes:
        """Bandwidth that all channels of the memory deliver together over time, against what they have."""
        result, series = self._result, self._result.series
        axes = _axes(ax, (10, 3))
        unit, size = _unit(result.makespan)
        edges = np.minimum(np.arange(len(series.bytes_per_s) + 1) * series.width, max(result.makespan, 1))
        spans = np.maximum(np.diff(edges), 1)
        delivered = series.bytes_per_s * series.width / spans  # the last part may reach beyond the end of the run
        axes.stairs(delivered / 1e9, edges / size, fill=True, color=COLORS[1])
        axes.axhline(result.log.bandwidth * result.log.machine.memories / 1e9, color="gray", linestyle="--", label="peak")
        axes.set(xlabel=f"time ({unit})", ylabel="GB/s", title=_title(result, "bandwidth"), xlim=(0, edges[-1] / size))
        axes.legend(loc="lower right")
        return axes

    def breakdown(self, ax: Axes | None = None) -> Axes:
        """Parts of the time of each token (of each step, where they are batched), along its critical chain."""
        result = self._result
        rows, steps = result.breakdown.tokens, result.log.steps
        if not len(rows):
            raise result.scenario.error("record", f"expected all or steps for this chart, found {result.scenario.record}")
        axes = _axes(ax, (10, 4))
        unit, size = _unit(int(rows.sum(axis=1).max()))
        place, below, wide = np.arange(len(rows)), np.zeros(len(rows)), 1 if len(rows) > FEW else 0.8
        for part, (name, color) in enumerate(zip(PARTS, COLORS, strict=True)):
            if rows[:, part].any():
                height = rows[:, part] / size
                axes.bar(place, height, bottom=below, width=wide, color=color, label=name.replace("_", " "))
                below += height
        if len(rows) <= FEW:
            names = [f"{s}.{t}" for s, t in zip(steps.sequence.tolist(), steps.token.tolist(), strict=True)]
            axes.set_xticks(place, names, rotation=90 if len(rows) > 16 else 0)
        one = result.log.owner_words[1]
        axes.set(xlabel=one, ylabel=f"time ({unit})", title=_title(result, f"where the time of each {one} went"))
        _legend(axes)
        return axes

    def requests(self, ax: Axes | None = None) -> Axes:
        """Each request over time: queued, until its first token, and until its last."""
        result, r = self._result, self._result.requests
        axes = _axes(ax, (10, max(2.0, min(8.0, 0.25 * len(r) + 1.5))))
        unit, size = _unit(int(r.last.max(initial=0)))
        place = np.arange(len(r))
        for name, begin, end, color in (
            ("queued", r.arrival, r.started, "#bbbbbb"), ("first token", r.started, r.first, COLORS[2]),
            ("decode", r.first, r.last, COLORS[0]),
        ):  # fmt: skip
            axes.barh(place, (end - begin) / size, left=begin / size, height=0.8, color=color, label=name)
        axes.invert_yaxis()
        axes.set(xlabel=f"time ({unit})", ylabel="request", title=_title(result, "requests"))
        _legend(axes)
        return axes


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes given, or new ones. Raises InputError if Matplotlib is not installed."""
    if ax is not None:
        return ax
    try:
        pyplot = import_module("matplotlib.pyplot")
    except ModuleNotFoundError:
        raise InputError("charts need Matplotlib: pip install 'decode-sim[plot]'") from None
    axes: Axes = pyplot.subplots(figsize=size, layout="constrained")[1]
    return axes


def _unit(largest: int) -> tuple[str, int]:
    """Unit of an axis, and its size in ps."""
    units = (("s", PS_PER_S), ("ms", PS_PER_MS), ("us", PS_PER_US), ("ns", PS_PER_NS))
    return next(((name, size) for name, size in units if largest >= size), ("ps", 1))


def _title(result: Result, what: str) -> str:
    return f"{result.scenario.name}: {what}" if what else result.scenario.name


def _legend(axes: Axes) -> None:
    """One entry for each label, beside the axes."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(once.values(), once.keys(), loc="upper left", bbox_to_anchor=(1, 1), fontsize="small",
                ncols=1 + len(once) // 10)  # fmt: skip
