"""`sim new`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import models.library
import sim.scenario
from models.config import resolve
from sim.base.errors import InputError, unknown
from sim.base.files import check_output
from sim.machine.presets import PRESETS, find
from sim.runs.run import known_names
from sim.scenario.starter import USES, starter

SCHEMA = Path(sim.__file__).with_name("schema.json")


@click.command("new")
@click.argument("path", metavar="[FILE]", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model", help="A name of `sim list models`, an id on the Hugging Face hub, or a config.json.")
@click.option("--device", help="A name of `sim list hardware`.")
@click.option("--use", type=click.Choice(list(USES)), help="; ".join(f"{name}: {text}" for name, text in USES.items()) + ".")
def command(path: Path | None, model: str | None, device: str | None, use: str | None) -> None:
    """Write a commented scenario to begin with. On a terminal it asks for what is not given.

    FILE is by default MODEL-DEVICE.yaml; a file that exists stays as it is. A model that does not ship is captured first.
    """
    model = model or _asked("model", "Which model? A name of `sim list models`, an id on the hub, or a config.json")
    if "/" not in model and not model.endswith(".json") and model not in models.library.names():
        raise InputError(f"--model: {unknown('model', model, models.library.names())}")
    device = device or _asked("device", "Which device? A name of `sim list hardware`")
    if device not in PRESETS.names():
        raise InputError(f"--device: {unknown('device', device, PRESETS.names())}")
    use = use or _asked("use", "For what? " + "; ".join(f"{name}: {text}" for name, text in USES.items()), list(USES))
    path = path or Path(f"{Path(model).stem if model.endswith('.json') else model.rpartition('/')[2]}-{device}.yaml")
    check_output(path)
    text = starter(model, device, use, title=find(device).title, schema=str(SCHEMA))
    if path.exists():
        raise InputError(f"{path}: expected a new file, found one that exists")
    scenario = sim.scenario.parse(text, str(path), known=known_names())
    try:
        models.library.load(resolve(model, scenario.folder))  # so that a model that cannot be captured gets no scenario
    except InputError as error:
        raise InputError(f"--model: {error}") from None
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path}: expected a new file, found one that exists") from None
    click.echo(f"{path}: {model} on {device}; `sim check {path}` shows all of it, `sim run {path}` runs it")


def _asked(name: str, question: str, choices: list[str] | None = None) -> str:
    """The answer of a person. Raises InputError if there is no terminal."""
    if not sys.stdin.isatty():
        raise InputError(f"expected --{name}, because there is no terminal to ask")
    answer: str = click.prompt(question, type=None if choices is None else click.Choice(choices), err=True, show_choices=False)
    return answer.strip()
