"""`sim report`."""

from __future__ import annotations

from pathlib import Path

import click

from sim.base.files import check_output, kind_of, whole_file
from sim.cli.console import status
from sim.cli.options import check_folder, complete_scenario, needs_all_ops
from sim.cli.progress import simulating
from sim.render.page import render
from sim.runs.run import read, run
from sim.runs.what_if import to_json, what_if
from sim.scenario.shipped import find_scenario


@click.command("report")
@click.argument("name", metavar="SCENARIO", shell_complete=complete_scenario)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="PATH",
    help="Page to write (.html), or the folder for it.  [default: traces]",
)  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value, as in `sim run`.")
@click.option("--what-if/--no-what-if", "with_what_if", default=True,
              help="Rerun the scenario on better machines (faster memory, more engines, ...).")  # fmt: skip
def command(name: str, out: Path | None, overrides: tuple[str, ...], with_what_if: bool) -> None:
    """Write one self-contained HTML page of a run: timeline, charts, tables. It needs no network."""
    path = find_scenario(name)
    scenario = read(path, list(overrides))
    out = out or Path("traces")
    if kind_of(out) == "folder" or out.suffix not in {".html", ".htm"}:
        check_folder(out, "a name that ends in .html")
        out = out / f"{path.stem}.html"
    check_output(out)
    needs_all_ops(scenario, "a page")
    with simulating(scenario.name) as on_progress:
        result = run(scenario, on_progress=on_progress)
    changes = None
    if with_what_if:
        changes = to_json(what_if(result, status("simulating better machines")))
    with status(f"writing {out}"):
        page = render(result, what_if=changes, overrides=overrides).encode()
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as file:
            file.write(page)
    click.echo(f"{out}: {len(page) / 1e6:.1f} MB, open it in any browser")
