"""Names that no file can have, wherever a person writes one: one line that says so, and status 2."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sim.base.errors import InputError
from sim.base.files import kind_of, siblings
from sim.cli import COMMANDS
from sim.runs.run import run
from sim.scenario import parse
from sim.scenario.paths import PATHS, PRESET_PATH, TRACE_PATH
from tests.cli.conftest import Sim, error_of

LONG = "x" * 300
#: A name, and what the system says of it; those with a null character cannot be given on a command line.
UNUSABLE = {LONG: "too long", f"{LONG}/x": "too long", "loop": "symbolic links", "file/x/y": "no such"}
IN_FILES = {**UNUSABLE, "nul\0l": "null", "~nobody-has-this-name/x": "home"}

#: Commands with names of files among their words, where `{}` is the name; the others take none.
NAMED: dict[str, list[str]] = {
    "new": ["new {} --model llama-3.2-1b --device a100-80g-sxm --use latency"],
    "run": ["run {}", "run {}.yaml", "run parallel --out {}", "run parallel --out {}.pftrace",
            "run parallel --save-log {}", "run parallel --set cost.profile={}", "run parallel --set model.config={}"],
    "explain": ["explain {}"],
    "compare": ["compare {} parallel", "compare parallel {}.yaml"],
    "sweep": ["sweep {}", "sweep {}.yaml", "sweep {} --over hardware.engines.count=1,2",
              "sweep parallel --over hardware.engines.count=1,2 --out {}"],
    "study": ["study {}"],
    "report": ["report {}", "report parallel --no-what-if --out {}.html", "report parallel --no-what-if --out {}"],
    "explore": ["explore {} --no-browser"],
    "view": ["view {}", "view {}.pftrace"],
    "check": ["check {}", "check {}.yaml"],
    "capture": ["capture {}", "capture {}/config.json"],
    "validate": ["validate {}"],
    "profile": ["profile --quick --out {}.yaml", "profile --models {} --out x.yaml"],
    "import-kernels": ["import-kernels {} -o x.yaml", "import-kernels m.yaml --tables {} -o x.yaml"],
}  # fmt: skip
NAMELESS = {"list", "schema", "completion"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "loop").symlink_to("loop")
    for ending in (".yaml", ".pftrace", ".html"):
        (tmp_path / f"loop{ending}").symlink_to(f"loop{ending}")
    (tmp_path / "file").touch()
    (tmp_path / "m.yaml").write_text("device: d\ntables: [{file: t.csv}]\n")
    return tmp_path


def test_every_command_is_tried() -> None:
    assert NAMED.keys() | NAMELESS == set(COMMANDS)


@pytest.mark.parametrize("words", [line for lines in NAMED.values() for line in lines])
def test_a_name_that_no_file_can_have(words: str, folder: Path, sim: Sim) -> None:
    for name in UNUSABLE:
        error = error_of(sim(*words.format(name).split(), status=2))
        assert len(error) < 1000, "a long name is shortened"
    assert not (folder / "x.yaml").exists()


KEYS = (("extends",), ("model", "config"), PRESET_PATH, TRACE_PATH, *PATHS)


@pytest.mark.parametrize("key", KEYS, ids=".".join)
@pytest.mark.parametrize("ending", ["", ".yaml", "/x.json"])
def test_such_a_name_in_a_scenario(key: tuple[str, ...], ending: str, folder: Path, fails: Callable[..., str]) -> None:
    for name in IN_FILES:
        text = f'"{name}{ending}"'.replace("\0", "\\0")
        for part in reversed(key):
            text = f"{{{part}: {text}}}"
        (folder / "mine.yaml").write_text(text)
        error = fails("check", "mine.yaml")
        assert error.startswith("mine.yaml:1:"), "the place of the key is said"
        assert len(error) < 2000


@pytest.mark.parametrize("name", IN_FILES)
def test_such_a_name_in_python(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="unknown model" if name == "file/x/y" else IN_FILES[name]):
        run(parse(f"model: {{config: {name!r}}}".replace("\\x00", "\\0").replace("'", '"')))
    if name.startswith("~"):
        return
    if name == "file/x/y":
        assert kind_of(name) is None
        return
    with pytest.raises(InputError, match=IN_FILES[name]):
        kind_of(name)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_searched(folder: Path, fails: Callable[..., str]) -> None:
    (folder / "closed").mkdir(mode=0)
    for command in ("run", "check", "report", "sweep", "study", "view"):
        assert fails(command, "closed/x") == "closed/x: Permission denied"
    assert siblings(folder / "closed" / "x.yaml", {".yaml"}) == []
