"""`sim study`."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import click

from sim.base.errors import InputError
from sim.base.files import kind_of, shown, whole_file
from sim.cli.console import output, status
from sim.study.answers import read_answers
from sim.study.page import data, render
from sim.study.tables import best_again, csv_rows
from sim.study.tables import render as render_tables


@click.command("study")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--best",
    "count",
    type=click.IntRange(1, 1000),
    default=5,
    metavar="N",
    help="Show N best points of each objective.  [default: 5]",
)
@click.option("--page", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write one self-contained HTML page.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a line of CSV for each point, with means over seeds.")
@click.option("--json", "as_json", is_flag=True, help="Print the points, the front and the effects as JSON.")
def command(folder: Path, count: int, page: Path | None, as_csv: bool, as_json: bool) -> None:
    """Show the results of a study: best points, Pareto front, effects of axes, knees."""
    if as_csv and as_json:
        raise InputError("--csv: expected no --json beside it")
    if kind_of(folder) != "folder":
        raise InputError(f"{shown(folder)}: no such folder; `sim sweep` makes one")
    answers = read_answers(folder)
    if page is not None:
        with status(f"writing {page}"):
            text = render(answers).encode()
            page.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(page) as file:
                file.write(text)
        click.echo(f"{page}: {len(text) / 1e6:.1f} MB, open it in any browser", err=as_csv or as_json)
    if as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(csv_rows(answers))
    elif as_json:
        click.echo(json.dumps(data(answers)))
    elif page is None:
        console = output(120)
        console.print(render_tables(answers, count, again=False), highlight=False)
        if (again := best_again(answers)) is not None:
            console.print()
            console.print(again, highlight=False, soft_wrap=True)  # a command in one line can be copied
