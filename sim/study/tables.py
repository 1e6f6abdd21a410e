"""Answers of a study on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.base.quantities import Dimension
from sim.render.narrow import Fitting
from sim.study.answers import Answers, PointOf
from sim.study.effects import Change
from sim.study.metrics import METRICS, with_unit
from sim.study.search import Find

FEW = 5  # interactions and effects that are shown
MOST = 20  # points of the front that are shown


def title(column: str) -> str:
    """The title of a column for readers."""
    return METRICS[column].title if column in METRICS else column


def show(column: str, value: float | None, dimension: Dimension | None = None) -> str:
    """A value of a column with its unit. dimension: of a key that was searched for."""
    if value is None:
        return "-"
    if dimension is not None:
        return scaled(value, dimension)
    return with_unit(value, METRICS[column].unit if column in METRICS else "")


def spread(answers: Answers, point: PointOf, column: str) -> str:
    """The mean of a column, and half of its interval where there are several seeds."""
    dimension = answers.dimension(column)
    text = show(column, point.means.get(column), dimension)
    half = point.halves.get(column)
    return f"{text} ± {show(column, half, dimension)}" if half else text


def scaled(value: float, dimension: Dimension) -> str:
    """A quantity between those that can be written, with four significant digits."""
    unit = max((u for u in dimension.ladder if dimension.units[u] <= abs(value)), key=dimension.units.__getitem__,
               default=dimension.ladder[0])  # fmt: skip
    return f"{value / dimension.units[unit]:.4g} {unit}"


def setting(answers: Answers, key: str, value: Any) -> str:
    """A value of an axis as it is written."""
    return answers.axes[key].texts.get(value, str(value)) if value is not None else "-"


def render(answers: Answers, count: int = 5, *, again: bool = True) -> RenderableType:
    """All answers that fit a few screens. count: best points of each objective. again: with the command for the best point."""
    body: list[RenderableType] = [_head(answers)]
    if answers.find is not None:
        body += [Text(), _searches(answers, answers.find)]
    if not answers.feasible:
        body.append(Text(_nothing(answers), style="yellow"))
    for objective in answers.objectives:
        if answers.feasible:
            name = f"best by {title(objective)} ({answers.objectives[objective]})"
            body += [Text(), _points(answers, name, answers.best(objective, count))]
    if len(answers.objectives) > 1 and answers.feasible:
        front = answers.front()
        more = f", {MOST} of them" if len(front) > MOST else ""
        name = f"Pareto front: {len(front)} of {len(answers.feasible)} points{more}"
        body += [Text(), _points(answers, name, front[:MOST])]
    for objective in answers.objectives:
        body += _effects(answers, objective)
    if again and (command := best_again(answers)) is not None:
        body += [Text(), command]
    return Group(*body)


def best_again(answers: Answers) -> Text | None:
    """The command that runs the best point again, to be printed without line breaks; None if there is none."""
    best = answers.best(next(iter(answers.objectives)), 1)
    return Text.assemble(("the best point again, with its trace\n", "dim"), answers.command(best[0])) if best else None


def _nothing(answers: Answers) -> str:
    """The reason for which there is no best point: an objective that no run has, or constraints."""
    missing = [title(name) for name in answers.objectives if not any(name in point.means for point in answers.points)]
    if missing and answers.points:
        return f"no run has a value for {', '.join(missing)}, so no point is the best"
    return "no point meets all constraints and has all objectives"


def _head(answers: Answers) -> RenderableType:
    manifest = answers.manifest
    facts = Table.grid(padding=(0, 2))
    seeds = f" x {manifest['repeats']} seeds" if manifest["repeats"] > 1 else ""
    if answers.trials is None:
        facts.add_row("points", f"{len(answers.points):,} of {manifest['points']:,}{seeds}")
    else:
        sampler = manifest["optimize"]["sampler"]
        facts.add_row(
            "trials", f"{answers.trials:,} of {manifest['points']:,} by {sampler}: {len(answers.points):,} points{seeds}"
        )
    wanted, there, runs = manifest["points"] * manifest["repeats"], answers.runs, "runs"
    if answers.trials is not None:
        wanted, there, runs = manifest["points"], answers.trials, "trials"
    if answers.find is None and there < wanted:
        facts.add_row("missing", Text(f"{wanted - there:,} {runs}; `sim sweep` goes on with them", style="yellow"))
    if answers.skipped:
        facts.add_row(
            "proven",
            f"{_runs(answers.skipped)} skipped: dominated or infeasible by lower bounds; effects are of the others",
        )
    if answers.failed:
        facts.add_row("failed", Text(f"{_runs(answers.failed)}; {answers.errors[0][0]}", style="yellow"))
    if manifest["constraints"]:
        met = sum(point.feasible for point in answers.points)
        points = "1 point meets" if met == 1 else f"{met:,} points meet"
        facts.add_row("constraints", f"{'; '.join(manifest['constraints'])}: {points} them")
    for key, axis in answers.axes.items():
        texts = list(axis.texts.values())
        shown = ", ".join(texts) if len(texts) <= 8 else f"{texts[0]} to {texts[-1]}, {len(texts)} values"
        facts.add_row(key, shown)
    head = Text.assemble((manifest["name"], "bold"), "  " + " ".join(manifest["description"].split()))
    return Group(head, facts)


def _searches(answers: Answers, find: Find) -> RenderableType:
    """A table of searches: the interval of each, and what a reader must know."""
    title = f"{find.words} {find.key} at which {' and '.join(answers.manifest['constraints'])}"
    table = Fitting(title=title, drop=("runs", "interval"))
    for axis in answers.axes.values():
        table.add_column(axis.short, justify="right")
    for name in ("mean", "interval", "runs"):
        table.add_column(name, justify="right")
    table.add_column("")
    for point in answers.points:
        texts = (setting(answers, key, point.values.get(key)) for key in answers.axes)
        table.add_row(*texts, *search_cells(find, point))
    return table


def search_cells(find: Find, point: PointOf) -> tuple[str, str, str, str]:
    """The mean, the interval with its confidence, the runs and the notes of a search."""
    answer = point.found
    if answer is None or answer.mean is None or answer.low is None or answer.high is None:
        return "-", "-", f"{answer.runs if answer is not None else 0:,}", "; ".join(answer.notes) if answer is not None else ""
    mean, low, high = (show(find.key, value, find.dimension) for value in (answer.mean, answer.low, answer.high))
    confidence = f" ({answer.confidence:.0%})" if answer.confidence is not None else ""
    return mean, f"{low} to {high}{confidence}", f"{answer.runs:,}", "; ".join(answer.notes)


def _points(answers: Answers, name: str, points: Sequence[PointOf]) -> RenderableType:
    """A table of points: their axes, and columns that objectives and constraints are about."""
    manifest = answers.manifest
    asked = dict.fromkeys([*answers.objectives, *manifest["columns"], *manifest.get("limited", [])])
    columns = [name for name in asked if name not in answers.axes]
    least = [*reversed([title(column) for column in columns[1:]]), *reversed([axis.short for axis in answers.axes.values()])]
    table = Fitting(title=name, drop=least)
    table.add_column("point", justify="right")
    for axis in answers.axes.values():
        table.add_column(axis.short, justify="right")
    for column in columns:
        table.add_column(title(column), justify="right")
    for point in points:
        texts = (setting(answers, key, point.values.get(key)) for key in answers.axes)
        table.add_row(str(point.number), *texts, *(spread(answers, point, column) for column in columns))
    return table


def _effects(answers: Answers, objective: str) -> Iterable[RenderableType]:
    effects = answers.effects(objective)
    if not effects:
        return
    main = [each for each in effects if len(each.axes) == 1][:FEW]
    both = [each for each in effects if len(each.axes) == 2 and each.share >= 0.005][:FEW]
    table = Fitting(title=f"effects on {title(objective)}")
    table.add_column("axis")
    table.add_column("variance", justify="right")
    changes = answers.sensitivities(objective)
    if changes:
        table.add_column("twice as much", justify="right")
    table.add_column("means")
    for each in main:
        key = each.axes[0]
        changed = [change(changes[key]) if key in changes else "-"] if changes else []
        table.add_row(answers.axes[key].short, f"{each.share:.1%}", *changed, _means(answers, key, objective, each.means))
    for each in both:
        names = " x ".join(answers.axes[key].short for key in each.axes)
        table.add_row(names, f"{each.share:.1%}", *([""] if changes else []), "interaction")
    yield Text()
    yield table
    for knee in answers.knees(objective):
        where = setting(answers, knee.axis, knee.value)
        yield Text(
            f"{answers.axes[knee.axis].key} beyond {where} hardly helps: {knee.gained:.0%} of its whole gain is there",
            style="dim",
        )


def _runs(count: int) -> str:
    return f"{count:,} run{'s' * (count != 1)}"


def change(found: Change) -> str:
    """A relative change with its 95 % interval."""
    mean, low, high = (f"{value:+.0%}" if round(100 * value) else "0%" for value in (found.mean, found.low, found.high))
    return f"{mean} ({low} to {high})"


def _means(answers: Answers, key: str, objective: str, means: Mapping[Any, float]) -> str:
    items = list(means.items())
    chosen = items if len(items) <= 4 else [items[0], items[len(items) // 2], items[-1]]
    return "  ".join(
        f"{setting(answers, key, value)}: {show(objective, mean, answers.dimension(objective))}" for value, mean in chosen
    )


def csv_rows(answers: Answers) -> Iterable[list[str]]:
    """A header, then a line for each point: axes in base units, means of columns, halves of intervals if there are any."""
    halves = any(point.halves for point in answers.points)
    names = [name for name in answers.columns if any(name in point.means for point in answers.points)]
    head = ["point", "seeds", *answers.axes, "feasible", *names]
    yield [*head, *(f"{name}_half" for name in names)] if halves else head
    for point in answers.points:
        line = [point.number, point.seeds, *(point.values.get(key) for key in answers.axes), point.feasible]
        line += [point.means.get(name) for name in names]
        if halves:
            line += [point.halves.get(name) for name in names]
        yield ["" if value is None else str(value) for value in line]
