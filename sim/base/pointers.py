"""Calls through a pointer: compiled code calls a function that is compiled separately.

A kernel compiles all kernels that it calls, by their names. The name of a third party's function is not known when the
event loop is compiled, so the loop calls it by its address: the cached loop stays valid, and only the function is compiled.

`pointer_to(function, compiled)` gives the address, or, where the loop runs as Python, a number that stands for the function.
`call(pointer, ...)` calls it on parts of an array.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from sim.base.kernel import compile_kernel, forgive, is_kernel, kernel, native

#: Takes records (a flat int64 array), how many there are, an array with a result for each, and an array that is kept
#: between calls; returns an integer.
Function = Callable[[Any, int, Any, Any], int]

_FUNCTIONS: list[Function] = []
_POINTERS: dict[int, Any] = {}  # by id of the code object; the code lives as long as these


class CannotCompileError(Exception):
    """A function that Numba cannot compile; the message is one line."""


def pointer_to(function: Function, *, compiled: bool) -> int:
    """A number to `call` the function by, from compiled code or from Python. Raises CannotCompileError."""
    if not compiled:
        if function not in _FUNCTIONS:
            _FUNCTIONS.append(function)
        return _FUNCTIONS.index(function)
    assert isinstance(function, FunctionType)
    key = id(function.__code__)
    if key not in _POINTERS:
        _POINTERS[key] = (_compiled(function), function)
    return int(_POINTERS[key][0].address)


def _compiled(function: FunctionType) -> Any:
    """The function as C would call it: with pointers for arrays. Cached under a name that follows from all that it calls."""
    import numba  # noqa: PLC0415  # only for runs that are compiled
    from numba.core.ccallback import CFunc  # noqa: PLC0415

    callee = compile_kernel(function, entry=False)
    adapter = FunctionType(_adapter.__code__, {"_callee": callee, "_carray": numba.carray})
    adapter.__module__ = __name__
    adapter.__qualname__ = f"{function.__name__}_{_digest(function)}"
    word, words = numba.types.int64, numba.types.CPointer(numba.types.int64)
    signature = word(words, word, word, words, words, word)
    found = CFunc(adapter, (signature.args, signature.return_type), locals={}, options={"error_model": "numpy"})
    found.enable_caching()
    forgive(found._cache)  # type: ignore[attr-defined]
    try:
        found.compile()
    except numba.core.errors.NumbaError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CannotCompileError(f"{function.__qualname__}: {' '.join(lines[1:3] or lines)}") from None
    return found


_callee: Any = None  # set in the globals of each copy of `_adapter`: the function that it calls
_carray: Any = None


def _adapter(records: Any, words: int, count: int, results: Any, memory: Any, size: int) -> Any:
    return _callee(_carray(records, words), count, _carray(results, count), _carray(memory, size))


def _digest(function: FunctionType) -> str:
    """A hash of the code and the constants of a kernel and of all that it calls."""
    return hashlib.sha256(repr(list(_parts(function, set()))).encode()).hexdigest()[:16]


def _parts(function: FunctionType, seen: set[str]) -> Iterator[Any]:
    code, seen = function.__code__, seen | {function.__qualname__}
    yield function.__module__, function.__qualname__, code.co_code, code.co_consts, code.co_names
    for name in code.co_names:
        used = function.__globals__.get(name)
        if isinstance(used, int):
            yield name, used
        elif is_kernel(used) and used.__qualname__ not in seen:  # type: ignore[union-attr]
            yield from _parts(used, seen)  # type: ignore[arg-type]


def _intrinsic() -> Any:
    """`call` in compiled code."""
    from llvmlite import ir  # noqa: PLC0415
    from numba import types  # noqa: PLC0415
    from numba.extending import intrinsic  # noqa: PLC0415

    word = ir.IntType(64)
    pointer = word.as_pointer()
    kind = ir.FunctionType(word, [pointer, word, word, pointer, pointer, word])

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        m, address, records, words, count, results, memory, size = arguments
        data = context.make_array(signature.args[0])(context, builder, m).data
        function = builder.inttoptr(address, kind.as_pointer())
        at, to, kept = (builder.gep(data, [each]) for each in (records, results, memory))
        return builder.call(function, [at, words, count, to, kept, size])

    def typed(_: Any, m: Any, pointer: Any, records: Any, words: Any, count: Any, results: Any, memory: Any, size: Any) -> Any:
        return types.int64(m, *(types.int64,) * 7), code

    return intrinsic(typed)


@native(_intrinsic)
@kernel
def call(m: Any, pointer: int, records: int, words: int, count: int, results: int, memory: int, size: int) -> int:
    """Call a function on parts of `m`: `words` of records, `count` results, `size` words of its own memory."""
    function = _FUNCTIONS[pointer]
    return function(m[records : records + words], count, m[results : results + count], m[memory : memory + size])
