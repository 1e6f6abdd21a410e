"""`sim view`."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from threading import Event

import click

from sim.base.errors import InputError
from sim.render.trace import FORMATS
from sim.render.view import ONLINE, ONLINE_PORT, local_ui, served


@click.command("view")
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the local server.  [default: a free one]")
@click.option("--no-browser", is_flag=True, help="Serve the trace and print the address, without opening a browser.")
@click.option("--online", is_flag=True, help=f"Use {ONLINE} even if the extra `view` is installed.")
def command(trace: Path, port: int | None, no_browser: bool, online: bool) -> None:
    """Open a trace in the Perfetto UI, with the channel and the engines in view.

    The UI is local if the extra `view` is installed (pip install 'decode-sim[view]'). Otherwise it is ui.perfetto.dev, which
    loads the trace from this machine; the trace is not uploaded.
    """
    if not trace.is_file():
        raise InputError(f"{trace}: expected a trace file, found {'a folder' if trace.is_dir() else 'none'}")
    if trace.suffix in {".yaml", ".yml"}:
        raise InputError(f"{trace}: expected a trace ({', '.join(FORMATS)}), found a scenario; `sim run {trace}` writes one")
    if trace.suffix == ".parquet":
        raise InputError(
            f"{trace}: expected a trace ({', '.join(FORMATS)}), found an event log; `sim.load_log` reads it, in Python"
        )
    with trace.open("rb"):  # an unreadable file is an error here, not in the browser
        pass
    ui = None if online else local_ui()
    with served(trace, ui=ui, port=port) as viewer:
        if not viewer.offline:
            click.echo(f"{ONLINE} loads {trace} from port {ONLINE_PORT} of this machine; it is not uploaded", err=True)
        if no_browser or not webbrowser.open(viewer.address):
            click.echo(viewer.address)
        click.echo(
            f"serving {trace}; press Ctrl-C to stop"
            if viewer.offline
            else "waiting for the UI to load it; press Ctrl-C to stop",
            err=True,
        )
        try:
            # The online UI needs nothing more once it has the trace; the local one may ask for files of its own at any time.
            ended = Event() if viewer.offline else viewer.fetched
            while not ended.wait(1):
                pass
        except KeyboardInterrupt:
            click.echo(err=True)
