"""Compiled code is for arrays in row-major order: any other layout would compile all of it again, for many seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sim.base import kernel


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_compiled_for_other_layouts() -> Iterator[None]:
    yield
    for dispatcher in kernel._DISPATCHERS.values():
        for arguments in getattr(dispatcher, "signatures", ()):
            for array in arrays_in(arguments):
                assert array.layout == "C", f"{dispatcher.py_func.__name__} was compiled for {arguments}"


def arrays_in(types: object) -> Iterator[object]:
    """The types of arrays among those of arguments, also in named tuples."""
    if hasattr(types, "layout"):
        yield types
    elif hasattr(types, "types") or isinstance(types, tuple):
        for each in getattr(types, "types", types):
            yield from arrays_in(each)
