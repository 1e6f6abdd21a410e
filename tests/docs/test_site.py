"""The docs as a site: built strictly, with search and every public name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sim
from tests.words import ROOT

PAGE = (ROOT / "docs" / "reference" / "python.md").read_text()


@pytest.mark.parametrize("name", sorted(set(sim.__all__) - {"__version__", "Scenario"}))
def test_the_python_page_has_every_public_name(name: str) -> None:
    target = sim._PUBLIC[name].replace(":", ".")
    assert f"::: {target}\n    options: {{heading: sim.{name}}}\n" in PAGE


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Strict: a broken link, a page outside of the navigation or a name without documentation ends the build."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ".mkdocs.yml", "-d", tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    index = json.loads((tmp_path / "search" / "search_index.json").read_text())
    titles = {entry["title"].split(" ")[0] for entry in index["docs"]}  # without labels such as "dataclass"
    assert {f"sim.{name}" for name in sim.__all__ if name != "__version__"} <= titles
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")}
    assert all((tmp_path / page).exists() for page in pages)
