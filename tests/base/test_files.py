"""Files are written whole, under names of their own until then, and never over inputs; reading is bounded."""

from __future__ import annotations

import gzip
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from sim.base.errors import InputError
from sim.base.files import HARMLESS, check_output, check_readable, is_input, protected_inputs, whole_file
from sim.cost.profile import read_samples
from sim.workload import routing, trace


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".*.part"))


def test_the_temporary_name_is_random_and_no_link_is_followed(tmp_path: Path) -> None:
    """A link under every name that the process number gives leads nowhere."""
    (tmp_path / "victim").write_text("precious")
    for name in (f".a.{os.getpid()}.part", ".a.part"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    names = set()
    for _ in range(2):
        with whole_file(tmp_path / "a") as file:
            names |= {name for name in leftovers(tmp_path) if not (tmp_path / name).is_symlink()}
            file.write(b"mine")
    assert len(names) == 2
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "a").read_bytes() == b"mine"


def test_threads_write_one_file_whole(tmp_path: Path) -> None:
    def write(letter: bytes) -> None:
        for _ in range(20):
            with whole_file(tmp_path / "a") as file:
                file.write(letter * 100_000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = (tmp_path / "a").read_bytes()
    assert len(content) == 100_000
    assert len(set(content)) == 1
    assert leftovers(tmp_path) == []


def test_a_file_that_is_taken_for_a_leftover_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    lock, taken = fcntl.flock, list[Path]()

    def locked_by_another_first(handle: int, how: int) -> None:
        if not taken:
            taken.append(tmp_path / leftovers(tmp_path)[0])
            lock(os.open(taken[0], os.O_RDONLY), how)
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", locked_by_another_first)
    with whole_file(tmp_path / "a") as file:
        taken[0].unlink()
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert leftovers(tmp_path) == []


def test_what_a_killed_run_left_is_removed_by_the_next_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    killed = (
        "import sys, time; from sim.base.files import whole_file\n"
        "with whole_file(sys.argv[1]) as f: print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", killed, str(tmp_path / "a")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    (in_use,) = leftovers(tmp_path)
    with whole_file(tmp_path / "a") as file:
        file.write(b"1")
    assert leftovers(tmp_path) == [in_use]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (tmp_path / ".a.mine.part").write_text("not a name of this program")
    with whole_file(tmp_path / "b") as file:  # another file's leftovers are not its business
        file.write(b"2")
    assert in_use in leftovers(tmp_path)
    with whole_file(tmp_path / "a") as file:
        file.write(b"3")
    assert leftovers(tmp_path) == [".a.mine.part"]


def test_permissions_are_those_of_any_new_file_and_stay(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with whole_file(tmp_path / "a") as file:
        file.write(b"1")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "a").chmod(0o600)
    with whole_file(tmp_path / "a") as file:
        file.write(b"2")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_errors_name_the_path_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as found, whole_file(tmp_path / "none" / "a"):
        pass
    assert found.value.filename == str(tmp_path / "none" / "a")
    with pytest.raises(OSError, match="No such file") as found, whole_file(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert found.value.filename == str(tmp_path / "other")
    long = tmp_path / ("é" * 127)  # 254 bytes: with more around it, no file system would take it
    with whole_file(long) as file:
        file.write(b"1")
    assert long.read_bytes() == b"1"


def test_an_input_is_not_an_output_of_the_same_command(tmp_path: Path) -> None:
    (tmp_path / "in.yaml").write_text("precious")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "in.yaml")
    os.link(tmp_path / "in.yaml", tmp_path / "same.yaml")
    with protected_inputs():
        is_input(tmp_path / "in.yaml")
        for name in ("in.yaml", "link.yaml", "same.yaml"):
            with pytest.raises(InputError, match=f"{name}: this file is read by the same command"), whole_file(tmp_path / name):
                pass
        check_output(tmp_path / "other.yaml")
    assert (tmp_path / "in.yaml").read_text() == "precious"
    check_output(tmp_path / "in.yaml")


def test_devices_and_pipes_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (Path("/dev/zero"), tmp_path / "pipe.jsonl"):
        for read in (check_readable, routing.read, trace.read, read_samples):
            with pytest.raises(InputError, match="expected a file, found a device or pipe"):
                read(path)


@pytest.mark.slow
def test_bombs_are_refused(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "lines.csv.gz", "wb") as file:
        for _ in range(HARMLESS // 2**20 + 2):
            file.write(b"\n" * 2**20)
    with pytest.raises(InputError, match="more than 200 times as large"):
        trace.read(tmp_path / "lines.csv.gz")
    ones = pyarrow.table({"duration": pyarrow.array([1], pyarrow.int64()).take(pyarrow.array([0] * 20_000_000))})
    pyarrow.parquet.write_table(ones, tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
    with pytest.raises(InputError, match="more than 200 times as large"):
        read_samples(tmp_path / "bomb.parquet")
