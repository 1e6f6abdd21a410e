"""`sim schema`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from sim.scenario import json_schema
from sim.study.sections import json_schema as json_schema_of_studies

SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {"scenario": json_schema, "study": json_schema_of_studies}


@click.command("schema")
@click.argument("kind", type=click.Choice(list(SCHEMAS)), default="scenario")
def command(kind: str) -> None:
    """Print the JSON Schema of scenario files, or of study files, for editors."""
    click.echo(json.dumps(SCHEMAS[kind](), indent=2))
