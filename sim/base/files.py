"""Files: written whole or not at all, read within bounds, and never an output over an input of the same command."""

from __future__ import annotations

import gzip
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from sim.base.errors import InputError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: leftovers of killed runs stay
    fcntl = None

StrPath = str | os.PathLike[str]
FileKind = Literal["file", "folder", "device or pipe"]

LONGEST_NAME = 200  # bytes of a name that are kept in the temporary one; file systems allow 255

#: How much larger the content of a compressed file may be than the file, and the size up to which this does not matter. Traces
#: and logs compress to a tenth or a fiftieth; formats allow a thousandth and less, which fills memory from a small file.
EXPANSION, HARMLESS = 200, 2**26

#: Files that the current command has read, as (device, inode); None where there is no command, such as in Python.
_inputs: ContextVar[set[tuple[int, int]] | None] = ContextVar("inputs", default=None)


@contextmanager
def protected_inputs() -> Iterator[None]:
    """While the block runs, refuse to write over files that have been read in it."""
    token = _inputs.set(set())
    try:
        yield
    finally:
        _inputs.reset(token)


def is_input(path: StrPath) -> None:
    """Note that a file is read."""
    known = _inputs.get()
    if known is not None:
        with suppress(OSError, ValueError):
            found = Path(path).stat()
            known.add((found.st_dev, found.st_ino))


def check_output(path: StrPath) -> None:
    """Raise InputError if a file that is about to be written was read, or cannot be there; call it before a long run."""
    found = _stat(path)
    if found is None:
        above = next(each for each in Path(path).parents if kind_of(each) is not None)
        if kind_of(above) != "folder":
            raise InputError(f"{shown(path)}: {shown(above)} is no folder")
    if found is not None and stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) in (_inputs.get() or ()):
        raise InputError(f"{shown(path)}: this file is read by the same command; write to another one")


def shown(path: StrPath) -> str:
    """A path as errors name it: as it is, or quoted and shortened if it is very long or not printable."""
    text = str(path)
    if len(text) <= 200 and text.isprintable():
        return text
    return repr(text if len(text) <= 60 else f"{text[:56]}...")


def _stat(path: StrPath) -> os.stat_result | None:
    """The status of a file, None if there is none. Raises InputError for a name that no file can have."""
    try:
        return Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a name too long, no permission, a loop of links; ValueError: a null character
        raise InputError(f"{shown(path)}: {getattr(error, 'strerror', None) or error}") from None


def kind_of(path: StrPath) -> FileKind | None:
    """Find out what a name stands for that a user wrote, None if for nothing.

    Raises InputError where `Path.is_file` and its like end in an OSError or a ValueError: a name that is too long or has a null
    character, a folder without permission, links in a loop.
    """
    found = _stat(path)
    if found is None:
        return None
    return "file" if stat.S_ISREG(found.st_mode) else "folder" if stat.S_ISDIR(found.st_mode) else "device or pipe"


def in_home(path: str) -> Path:
    """A path with `~` replaced. Raises InputError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{shown(path)}: {error}") from None


def siblings(path: Path, suffixes: Collection[str]) -> list[str]:
    """Names beside a path that end in one of the suffixes, for hints; none where the folder cannot be read."""
    with suppress(OSError, ValueError):
        return sorted(each.name for each in path.parent.iterdir() if each.suffix in suffixes)
    return []


def check_readable(path: StrPath) -> None:
    """Raise InputError unless a path is a regular file: a device may be endless, and a pipe may never be written to."""
    match kind_of(path):
        case None:
            raise InputError(f"{shown(path)}: no such file")
        case "file":
            is_input(path)
        case found:
            raise InputError(f"{shown(path)}: expected a file, found a {found}")


def check_expansion(path: StrPath, size: int) -> None:
    """Raise InputError if a compressed file holds far more than its own size. size: bytes of its content so far."""
    if size > HARMLESS and size > EXPANSION * Path(path).stat().st_size:
        raise InputError(f"{shown(path)}: its content is more than {EXPANSION} times as large as the file")


def check_parquet(path: StrPath, metadata: Any) -> None:
    """Raise InputError if a Parquet file would fill memory. metadata: that of the file, as pyarrow has it."""
    # Not by column: pyarrow aborts the process where the statistics of a column are damaged.
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    check_expansion(path, sum(max(group.total_byte_size, 8 * group.num_rows * group.num_columns) for group in groups))


@contextmanager
def whole_file(path: StrPath) -> Iterator[BinaryIO]:
    """Open a binary file for writing; compress it if its name ends in `.gz`.

    It is written under another name in the same folder and renamed at the end. On any failure, Ctrl-C included, nothing is
    left, and a file that was there before stays as it was. What a killed process left is removed by the next one that writes
    the same file. A device or a pipe cannot be renamed over: it is written as it is.
    Raises OSError that names `path`, and InputError if the same command has read it.
    """
    check_output(path)
    target = Path(os.path.realpath(path))  # through a link, to what it stands for
    if target.exists() and not target.is_file():
        with _named(path, target), target.open("wb") as device, _packed(device, target) as file:
            yield file
        return
    made: list[Path] = []  # known before it is there, so that Ctrl-C leaves nothing
    try:
        raw = _temporary(target, path, made)
        with _named(path, made[0]), raw:
            with _packed(raw, target) as file:
                yield file
            raw.flush()
            made[0].replace(target)  # while it is open, and thereby locked
    except BaseException:
        for partial in made:
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def _named(path: StrPath, written: Path) -> Iterator[None]:
    """Errors about the file that is written name `path`; of a full disk the error names none."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(written)):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def _packed(raw: BinaryIO, target: Path) -> Iterator[BinaryIO]:
    if target.suffix != ".gz":
        yield raw
        return
    # No time and no name inside, so that equal content gives equal bytes; level 3 is half the time of 6 and costs traces a few
    # per cent.
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=3, mtime=0) as packed:
        yield cast("BinaryIO", packed)


def _temporary(target: Path, path: StrPath, made: list[Path]) -> BinaryIO:
    """A new file beside the target, locked as long as it is open, so that other processes see that it is in use.

    Its name is random, and it is not opened if anything has that name: neither a link nor a file that another made. path: what
    errors name. made: gets its path before it is made.
    """
    name = os.fsdecode(os.fsencode(target.name)[:LONGEST_NAME])
    _remove_leftovers(target.parent, name)
    while True:
        made[:] = [target.parent / f".{name}.{secrets.token_hex(4)}.part"]
        try:
            handle = os.open(made[0], os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except FileExistsError:
            continue
        except OSError as error:
            made.clear()
            error.filename = str(path)
            raise
        # Another process may have taken it for a leftover before it was locked: it is gone, or will be.
        if _locked(handle) and os.fstat(handle).st_nlink:
            break
        os.close(handle)
    with suppress(OSError, AttributeError):
        os.fchmod(handle, stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_mask())
    return os.fdopen(handle, "wb")


def _locked(handle: int) -> bool:
    """Lock a file, where its file system has locks; False if another process has locked it."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # no locks
            pass
    return True


def _mask() -> int:
    """The mask of the process for permissions of new files."""
    with suppress(OSError, StopIteration, ValueError):  # reading it by os.umask would change it for other threads
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _remove_leftovers(folder: Path, name: str) -> None:
    """Remove temporary files of a target that no process holds open: those of runs that were killed."""
    if fcntl is None:
        return
    temporary = re.compile(rf"\.{re.escape(name)}\.([a-z0-9_]{{8}}|\d+)\.part")
    with suppress(OSError):
        for each in [entry.path for entry in os.scandir(folder) if temporary.fullmatch(entry.name)]:
            with suppress(OSError):  # in use, of another user, or gone
                handle = os.open(each, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    Path(each).unlink()
                finally:
                    os.close(handle)
