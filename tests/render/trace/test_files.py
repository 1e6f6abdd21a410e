"""Files are whole or not there, equal for equal input, and in the format that their name asks for."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sim.base.errors import InputError
from sim.base.files import whole_file
from sim.log.tables import EventLog
from sim.render import trace
from sim.render.trace import FORMATS, perfetto, write
from tests.render.trace.logs import decoder, run
from tests.tools.full_disk import fill_disk
from tests.tools.trace_processor import TraceProcessor

FACTS: Mapping[str, str] = {"scenario": "toy", "seed": "0"}


@pytest.fixture(scope="module")
def toy() -> EventLog:
    return run(decoder())


@pytest.mark.parametrize("suffix", FORMATS)
def test_equal_input_gives_equal_bytes(toy: EventLog, tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    assert write(toy, first, metadata=FACTS) == write(run(decoder()), second, metadata=FACTS) > 0
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(("plain", "packed"), [("pftrace", "pftrace.gz"), ("json", "json.gz")])
def test_compressed_is_the_same_inside(toy: EventLog, tmp_path: Path, plain: str, packed: str) -> None:
    write(toy, tmp_path / f"a.{plain}", metadata=FACTS)
    write(toy, tmp_path / f"a.{packed}", metadata=FACTS)
    assert gzip.decompress((tmp_path / f"a.{packed}").read_bytes()) == (tmp_path / f"a.{plain}").read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
def test_trace_processor_reads_every_format(
    toy: EventLog, tmp_path: Path, suffix: str, load: Callable[[Path], TraceProcessor]
) -> None:
    path = tmp_path / f"a.{suffix}"
    written = write(toy, path, metadata=FACTS)
    loaded = load(path)
    assert loaded.problems() == []
    assert loaded.query("SELECT count(*) AS n FROM slice") == [{"n": written}]


def test_chrome_json_agrees_with_the_native_trace(
    toy: EventLog, tmp_path: Path, load: Callable[[Path], TraceProcessor]
) -> None:
    found = []
    for name in ("a.pftrace", "a.json"):
        write(toy, tmp_path / name, metadata=FACTS)
        loaded = load(tmp_path / name)
        rows = loaded.query(
            "SELECT ts, dur, slice.name AS name, category, depth, extract_arg(arg_set_id, 'debug.start_ps') AS a, "
            "extract_arg(arg_set_id, 'args.start_ps') AS b, "
            "coalesce(track.name, thread.name) AS track FROM slice JOIN track ON track_id = track.id "
            "LEFT JOIN thread_track ON thread_track.id = track.id LEFT JOIN thread USING (utid)"
        )
        exact = [{**row, "a": row["a"] if row["a"] is not None else row["b"], "b": None} for row in rows]
        flows = loaded.query("SELECT count(*) AS n FROM flow")
        found.append((sorted(exact, key=str), flows))
    assert found[0] == found[1]


def test_chrome_json_is_json_with_the_facts(toy: EventLog, tmp_path: Path) -> None:
    write(toy, tmp_path / "a.json", metadata=FACTS)
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["otherData"] == FACTS
    assert {event["ph"] for event in content["traceEvents"]} == {"M", "X", "s", "f", "C"}


@pytest.mark.parametrize("name", ["a.txt", "a", "a.gz", "a.pftrace.zip"])
def test_a_name_without_a_format(toy: EventLog, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="pftrace"):
        write(toy, tmp_path / name, metadata=FACTS)


def test_a_format_that_does_not_exist_or_does_not_fit(toy: EventLog, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'pftrace'"):
        write(toy, tmp_path / "a.pftrace", metadata=FACTS, format="pftrac")
    with pytest.raises(InputError, match="compression"):
        write(toy, tmp_path / "a.pftrace", metadata=FACTS, format="pftrace.gz")
    write(toy, tmp_path / "a.trace", metadata=FACTS, format="json")
    json.loads((tmp_path / "a.trace").read_text())


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_no_file(
    toy: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise failure

    old = tmp_path / "old.pftrace"
    old.write_bytes(b"as it was")
    monkeypatch.setattr(perfetto, "counter_packets", fail)  # by then slices are written
    for path in (old, tmp_path / "new.pftrace"):
        with pytest.raises(type(failure)):
            trace.write_perfetto(toy, path, metadata=FACTS)
    assert [each.name for each in tmp_path.iterdir()] == ["old.pftrace"]
    assert old.read_bytes() == b"as it was"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left") as told, whole_file(tmp_path / "a.pftrace") as file:
        file.write(b"x" * 100_000)
    assert told.value.filename == str(tmp_path / "a.pftrace")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(toy: EventLog, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as told:
        write(toy, tmp_path / "missing" / "a.pftrace", metadata=FACTS)
    assert told.value.filename == str(tmp_path / "missing" / "a.pftrace")  # not the name it has until it is whole


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_trace_is_readable_like_any_other_file(toy: EventLog, tmp_path: Path) -> None:
    write(toy, tmp_path / "a.pftrace", metadata=FACTS)
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.pftrace").stat().st_mode == (tmp_path / "plain").stat().st_mode
