"""`sim schema`."""

from __future__ import annotations

import json

import click

from sim.scenario import json_schema


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of scenario files, for editors."""
    click.echo(json.dumps(json_schema(), indent=2))
