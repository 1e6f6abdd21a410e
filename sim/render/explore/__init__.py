"""The live page: a scenario that is simulated again at each change of a slider, and drawn as the report page draws a run.

`Session` answers the page: the data of a run, the scenario as YAML, a trace for the Perfetto UI. `controls.py` has the sliders
and choices of a scenario, `server.py` the server. Op graphs are captured or loaded once per process: a change costs the rest.
"""

from __future__ import annotations

import html
import io
import shlex
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from time import perf_counter
from typing import Any
from urllib.parse import quote

from ruamel.yaml import YAML

from sim.base.errors import InputError
from sim.executors.size import OnProgress, tasks_in_all
from sim.render.explore.controls import controls
from sim.render.page import DRAWING, finding, run_data
from sim.render.page.document import asset, document
from sim.render.trace.of_result import write_trace
from sim.render.view import ONLINE, address, local_ui, served
from sim.runs.plan import plan
from sim.runs.result import Result
from sim.runs.run import changed, run_plan
from sim.scenario import Scenario, as_written

MOST_TASKS = 2_000_000  # of a run at each change: seconds, and a gigabyte
SHOWN = 60_000  # tasks that the page draws one by one; of more, an overview


class SupersededError(Exception):
    """A newer change of the same page has come, so that this run is not wanted any more."""


class Session:
    """A scenario, and the runs that pages ask for: one at a time, of each page only the latest."""

    def __init__(self, scenario: Scenario, name: str, overrides: Sequence[str] = ()) -> None:
        """Initialize.

        Args:
            scenario: The scenario as given.
            name: What `sim run` takes to run it.
            overrides: Assignments of `--set` that are part of the scenario.
        """
        self.scenario, self._name, self._overrides = scenario, name, tuple(overrides)
        self._running, self._latest = Lock(), dict[str, int]()
        self._traces, self._kept = 0, ExitStack()
        self._viewer: tuple[Path, str] | None = None

    def page(self) -> str:
        """The page. It asks for its runs itself."""
        scenario = self.scenario
        return document(
            asset("explore", "template.html"),
            {"title": html.escape(scenario.name), "description": html.escape(scenario.description)},
            data={"explore": {"controls": [each.data() for each in controls(scenario, plan(scenario))]}},
            scripts=[*(asset("page", name) for name in DRAWING), asset("explore", "explore.js")],
            style=asset("explore", "explore.css"),
            policy="connect-src 'self'",
        )

    def view(
        self, assignments: Sequence[str] = (), *, page: str = "", number: int = 0, on_progress: OnProgress | None = None
    ) -> dict[str, Any]:
        """Simulate the scenario with some values changed, and return what the page draws, as plain data.

        Args:
            assignments: Values, as `--set` takes them.
            page: Name of the page that asks.
            number: Number of the change; it grows with each of a page.
            on_progress: As in `sim.runs.run.run`.

        Raises:
            InputError: A value cannot be used; one line says which.
            SupersededError: A newer change of the same page has come.
        """
        self._latest[page] = max(number, self._latest.get(page, 0))
        with self._running:
            result = self._run(assignments, page, number, on_progress)
            began = perf_counter()
            data = run_data(result, SHOWN, level=1, causes=False)
            timing = result.timing
            return {
                "facts": data["timeline-data"],
                "columns": data["columns"],
                "summary": data["summary"],
                "finding": finding(result, None),
                "command": self.command(assignments),
                "executor": timing.executed.executor,
                "seconds": {
                    "planned": timing.capture, "simulated": timing.simulate, "analyzed": timing.analysis,
                    "prepared": perf_counter() - began,
                },
            }  # fmt: skip

    def _run(self, assignments: Sequence[str], page: str, number: int, on_progress: OnProgress | None = None) -> Result:
        """Run the scenario with changes. The lock is held."""

        def progress(done: int, in_all: int, now: int) -> None:
            if on_progress is not None:
                on_progress(done, in_all, now)
            self._check(page, number)

        self._check(page, number)
        began = perf_counter()
        scenario = changed(self.scenario, assignments) if assignments else self.scenario
        if scenario.record != "all":
            raise scenario.error("record", f"expected all for a live page, found {scenario.record}")
        planned = plan(scenario)
        tasks, _ = tasks_in_all(planned.setup)
        if tasks > MOST_TASKS:
            raise InputError(
                f"{tasks:,} tasks: expected at most {MOST_TASKS:,} for a live page; `{self.command(assignments)}` runs it"
            )
        return run_plan(scenario, planned, perf_counter() - began, on_progress=progress, many=0)

    def _check(self, page: str, number: int) -> None:
        """Raise SupersededError if a page has asked for something newer."""
        if number < self._latest.get(page, 0):
            raise SupersededError

    def command(self, assignments: Sequence[str]) -> str:
        """The command that runs the scenario with these changes."""
        sets = [word for each in (*self._overrides, *assignments) for word in ("--set", each)]
        return shlex.join(["sim", "run", self._name, *sets])

    def yaml(self, assignments: Sequence[str]) -> str:
        """The scenario with these changes as YAML; paths in it are relative to the working directory. Raises InputError."""
        scenario = changed(self.scenario, assignments) if assignments else self.scenario
        text, writer = io.StringIO(), YAML()
        writer.width = 120
        writer.dump(as_written(scenario, Path.cwd()), text)
        return text.getvalue()

    def trace(self, assignments: Sequence[str]) -> str:
        """Write the trace of a run, serve it, and return the address that opens it in the Perfetto UI. Raises InputError."""
        with self._running:
            result = self._run(assignments, "", 0)
            folder, here = self._served()
            self._traces += 1
            path = folder / f"{self.scenario.name}-{self._traces}.pftrace"
            write_trace(result, path)
        ui = local_ui()
        return address(ONLINE if ui is None else here, f"{here}/traces/{quote(path.name)}")

    def _served(self) -> tuple[Path, str]:
        """A folder whose traces are served, and the address of its server. Raises InputError if its port is in use."""
        if self._viewer is None:
            folder = Path(self._kept.enter_context(TemporaryDirectory(prefix="decode-sim-", ignore_cleanup_errors=True)))
            viewer = self._kept.enter_context(served(folder, ui=local_ui()))
            self._viewer = folder, viewer.address.removesuffix("/traces/")
        return self._viewer

    def close(self) -> None:
        """Stop serving traces, and remove them."""
        with suppress(OSError):
            self._kept.close()
