"""`sim explore`."""

from __future__ import annotations

import webbrowser
from importlib import import_module
from threading import Event
from typing import Any

import click

from sim.base.errors import InputError
from sim.cli.options import complete_scenario, needs_all_ops
from sim.cli.progress import simulating
from sim.render.explore import Session
from sim.runs.run import read
from sim.scenario.shipped import find_scenario


@click.command("explore")
@click.argument("name", metavar="SCENARIO", shell_complete=complete_scenario)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value, as in `sim run`.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the local server.  [default: a free one]")
@click.option("--no-browser", is_flag=True, help="Serve the page and print its address, without opening a browser.")
def command(name: str, overrides: tuple[str, ...], port: int | None, no_browser: bool) -> None:
    """Open a page with sliders for a scenario, which is simulated and drawn again at each change.

    The page is served to this machine alone, under an address that cannot be guessed, and loads nothing from elsewhere.
    It needs the extra `explore` (pip install 'decode-sim[explore]').
    """
    serving = _server().serving
    scenario = read(find_scenario(name), list(overrides))
    needs_all_ops(scenario, "a live page")
    session = Session(scenario, name, overrides)
    with simulating(scenario.name) as on_progress:  # once, so that what is wrong with it is an error here
        session.view(on_progress=on_progress)
    with serving(session, port) as address:
        try:
            if no_browser or not webbrowser.open(address):
                click.echo(address)
            click.echo(f"serving {scenario.name}; press Ctrl-C to stop", err=True)
            while not Event().wait(1):
                pass
        except KeyboardInterrupt:
            click.echo(err=True)


def _server() -> Any:
    """The module of the server. Raises InputError if what it needs is not installed."""
    try:
        return import_module("sim.render.explore.server")
    except ModuleNotFoundError as error:
        if error.name not in {"starlette", "uvicorn"}:
            raise
        raise InputError(f"`sim explore` needs {error.name}: pip install 'decode-sim[explore]'") from None
