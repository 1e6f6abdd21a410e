"""Links by name: the bandwidth and the latency of kinds of links, each with its source (`presets.yaml` beside this file).

`hardware.devices.link`, `islands.link` and `hardware.host.link` take such a name as `preset`; what is written beside it holds
instead.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pydantic import Field

from sim.base.documents import read
from sim.base.errors import unknown
from sim.base.problems import validated
from sim.base.section import Section, Text
from sim.machine.presets.preset import PresetLink


class NamedLink(PresetLink):
    """A link, and what it is called."""

    title: Text


class _File(Section):
    sources: dict[str, Text] = Field(default_factory=dict)
    links: dict[str, NamedLink]


@lru_cache(maxsize=1)
def _shipped() -> dict[str, NamedLink]:
    document = read(Path(__file__).parent / "presets.yaml")
    sources = document.root.child("sources")
    return validated(document, _File, context={"sources": {} if sources is None else sources.plain()}).links


def names() -> list[str]:
    """Names of all links."""
    return list(_shipped())


def find(name: str) -> NamedLink:
    """The link of this name. Raises InputError, with the nearest name, if there is none."""
    if name not in _shipped():
        raise unknown("link", name, names())
    return _shipped()[name]
