"""Files that are either whole or not there."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file for writing; compress it if its name ends in `.gz`.

    It is written under another name in the same folder and renamed at the end. On any failure, Ctrl-C included, nothing is
    left, and a file that was there before stays as it was. A device or a pipe cannot be renamed over: it is written as it is.
    Raises OSError that names `path`.
    """
    target = Path(os.path.realpath(path))  # through a link, to what it stands for
    in_place = target.exists() and not target.is_file()
    partial = target if in_place else target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as raw:
            if target.suffix == ".gz":
                # No time and no name inside, so that equal content gives equal bytes; level 3 is half the time of 6 and
                # costs traces a few per cent.
                with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=3, mtime=0) as packed:
                    yield cast("BinaryIO", packed)
            else:
                yield raw
        if not in_place:
            partial.replace(target)
    except BaseException as error:
        if not in_place:
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            error.filename = str(path)  # not the name it has until it is whole; of a full disk the error names none
        raise
