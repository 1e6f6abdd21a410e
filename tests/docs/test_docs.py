"""README and docs are true: their commands are run, and print what the pages show.

In each page, in order and in one folder: a ```yaml block whose first line is `# NAME.yaml` is written to that file, ```python
blocks run, and ```console blocks run line by line: each line after `$ command` must appear in what the command prints, in
this order (blanks aside, for a terminal may be wider). ```text after ```python is its output. ```sh is for set-up, which
`.ci/run` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sim
from sim.log.tables import ServiceTable, StepTable, TaskTable
from sim.runs.run import read
from sim.scenario.shipped import SCENARIOS, scenarios
from tests.docs import MADE, ROOT, SESSIONS
from tests.docs.notebook import NOTEBOOK, executed, written
from tests.tools.command import call

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "traces" / "README.md", *(ROOT / "docs").rglob("*.md")])

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def squeeze(text: str) -> str:
    return " ".join(text.split())


def console(block: str) -> None:
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *expected = part.rstrip().splitlines()
        status, printed = typed(command)
        fails = any(line.startswith("error: ") for line in expected)
        assert (status != 0) == fails, printed
        rest = squeeze(printed)
        for line in expected:
            if line.strip() == "...":
                continue
            found = rest.find(squeeze(line))
            assert found >= 0, f"{command}\nnot printed, or not there: {line}\n{printed}"
            rest = rest[found + len(squeeze(line)) :]


def typed(command: str) -> tuple[int, str]:
    """Exit status of a command, and all that it prints; `sim` alone, with plain words, runs in this process."""
    name, *words = shlex.split(command)
    shell = shlex.shlex(command, posix=True, punctuation_chars=True)
    if name == "sim" and "$" not in command and not any(set(word) <= set(shell.punctuation_chars) for word in shell):
        status, printed, _ = call(words, together=True)
        return status, printed
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.returncode, done.stdout


#: Pages whose commands take more than two seconds of CPU time together.
LONG = {
    "docs/guides/batches.md",
    "docs/guides/engines_per_channel.md",
    "docs/guides/kernels.md",
    "docs/guides/large_runs.md",
    "docs/guides/machines.md",
    "docs/guides/own_model.md",
    "docs/guides/pipelines.md",
    "docs/guides/replicas.md",
    "docs/guides/sharing.md",
    "docs/guides/tensor_parallelism.md",
    "docs/guides/validate.md",
    "docs/guides/what_helps.md",
}


def _marked(page: Path) -> object:
    name = str(page.relative_to(ROOT))
    return pytest.param(page, id=name, marks=[pytest.mark.slow] if name in LONG else [])


@pytest.mark.parametrize("page", [_marked(page) for page in PAGES])
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BLOCK.findall(page.read_text())
    if not {"python", "console"} & {language for language, _ in blocks} or page.name == "own_arbiter.md" or page in MADE:
        pytest.skip("nothing to run, or run by a test of its own")
    shutil.copytree(SCENARIOS, tmp_path / "scenarios", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("COLUMNS", "128")
    names: dict[str, object] = {"__name__": "__page__"}
    printed = ""
    for language, block in blocks:
        file = re.match(r"# ([\w.-]+\.yaml)\n", block)
        if language == "yaml" and file:
            (tmp_path / file[1]).write_text(block)
        elif language == "console":
            console(block)
        elif language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block, str(page), "exec"), names)
            printed = out.getvalue()
        elif language == "text" and printed:
            assert squeeze(block) == squeeze(printed)
            printed = ""


def test_the_notebook_runs_and_its_outputs_are_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)
    notebook = executed(NOTEBOOK)
    drawn = len(pyplot.get_fignums())
    pyplot.close("all")
    assert written(notebook) == NOTEBOOK.read_text(encoding="utf-8"), "run `make docs` and commit what it writes"
    assert drawn == 2


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page == SESSIONS else []) for page in MADE]
)
def test_made_pages_are_current(page: Path) -> None:
    assert page.read_text() == MADE[page](), "run `make docs` and commit what it writes"


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not link.startswith("https://"):
            assert (page.parent / link).exists(), link


def test_event_log_page_names_every_column() -> None:
    text = (ROOT / "docs" / "reference" / "event_log.md").read_text()
    for table in (TaskTable, ServiceTable, StepTable):
        for column in dataclasses.fields(table):
            assert f"`{column.name}`" in text, column.name


def test_json_page_names_every_field() -> None:
    text = (ROOT / "docs" / "reference" / "json.md").read_text()
    data = json.loads(json.dumps(sim.summary(sim.run(scenarios()["parallel"]))))
    for name, value in data.items():
        assert f"`{name}`" in text, name
        first = value[0] if isinstance(value, list) and value else value
        for key in first if isinstance(first, dict) else ():
            assert f"`{key}`" in text, f"{name}: {key}"


def test_every_scenario_says_what_it_shows() -> None:
    for name, path in scenarios().items():
        assert len(read(path).description) > 20, name
        assert path.read_text().startswith("# yaml-language-server: $schema=../sim/schema.json\n"), name


def test_pictures_are_small() -> None:
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size < 400_000, picture
