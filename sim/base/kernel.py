"""Kernels: functions on integers and arrays that run as plain Python, or compiled by Numba.

`@kernel` marks a function and returns it as it is, so that Python calls it at full speed and importing it imports no Numba.
`launch(function, compiled)` gives a callable for arrays: the compiled function, or the Python one on memoryviews of the same
arrays (whose items are Python integers, several times faster than NumPy's, and which cannot overflow in silence).

Rules for the body of a kernel, so that both forms agree:

- Integers, booleans and arrays only; an array is always indexed down to one item (`table[i, j]`, never `table[i]` of a matrix).
- No index is negative: compiled, it would not count from the end.
- Quantities fit int64 by the bounds that are checked on the way in; where a product may not, `sim.base.integers` has it.
- `//` and `%` have non-negative operands. No unsigned integers: mixed with signed ones they become floats in Numba.
- It calls other kernels by their global names; module constants are integers, and frozen when it is compiled.

Compiled code is cached on disk, in a folder whose name is a hash of the versions of Python, NumPy, Numba and the processor, and
of the sources of all modules that define kernels or their constants (Numba alone does not notice a change in another file).
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

#: Tasks from which compiled code pays for its import: below, plain Python ends sooner.
MANY_TASKS = 25_000

_KERNELS: dict[int, FunctionType] = {}  # by id of the code object
_SMALL: set[int] = set()
_NATIVE: dict[int, Callable[[], Any]] = {}
_DISPATCHERS: dict[tuple[int, bool], Any] = {}
_UNAVAILABLE: list[str] = []  # the reason, once it is known
_LISTENERS: list[Callable[[], None]] = []


def kernel(function: F) -> F:
    """Mark a function as one that can be compiled; returns it unchanged."""
    assert isinstance(function, FunctionType)
    _KERNELS[id(function.__code__)] = function
    return function


def small(function: F) -> F:
    """Mark a kernel that is small and called often: its compiled code is inlined wherever it is called."""
    _SMALL.add(id(function.__code__))
    return function


def native(factory: Callable[[], Any]) -> Callable[[F], F]:
    """Mark a kernel whose body Numba cannot compile: in compiled code it is replaced by the result of the factory."""

    def marked(function: F) -> F:
        _NATIVE[id(function.__code__)] = factory
        return function

    return marked


def is_kernel(function: object) -> bool:
    """Whether `kernel` has marked it."""
    return isinstance(function, FunctionType) and _KERNELS.get(id(function.__code__)) is function


def unavailable() -> str:
    """Why nothing can be compiled here, in a few words; empty if it can. The first call imports Numba."""
    if not _UNAVAILABLE:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import numba  # noqa: F401, PLC0415  # half a second, so only for runs that are large enough
        except ImportError as error:
            _UNAVAILABLE.append(f"Numba cannot be used here: {str(error).splitlines()[0]}")
        else:
            _UNAVAILABLE.append("")
    return _UNAVAILABLE[0]


def loaded() -> bool:
    """Whether Numba has been imported already, so that compiled code costs nothing more."""
    return "numba" in sys.modules


def launch(function: F, *, compiled: bool) -> F:
    """The kernel as a callable on arrays: compiled (where that is possible), or as Python on memoryviews of the arrays."""
    if compiled and not unavailable():
        dispatcher: F = compile_kernel(function)
        return dispatcher

    def interpreted(*arguments: Any) -> Any:
        return function(*map(_viewed, arguments))

    return interpreted  # type: ignore[return-value]


def _viewed(argument: Any) -> Any:
    """An array, or a named tuple of arrays, as Python reads it fastest."""
    if isinstance(argument, np.ndarray):
        return memoryview(argument)  # type: ignore[arg-type]
    if isinstance(argument, tuple):
        return type(argument)(*map(_viewed, argument))
    return argument


def compile_kernel(function: Callable[..., Any], *, entry: bool = True) -> Any:
    """The function compiled for whatever types it is called with, with all kernels that it calls.

    entry: it is called from Python, and so kept in the cache, with the code of all that it calls.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__
    key = (id(code), entry)
    if key not in _DISPATCHERS:
        if id(code) in _NATIVE:
            return _DISPATCHERS.setdefault(key, _NATIVE[id(code)]())
        import numba  # noqa: PLC0415

        _use_cache_folder(numba)
        names = dict(function.__globals__)
        for name in code.co_names:
            called = names.get(name)
            if is_kernel(called):
                names[name] = compile_kernel(called, entry=False)  # type: ignore[arg-type]
        copy = FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
        copy.__module__, copy.__qualname__ = function.__module__, function.__qualname__
        # A kernel that only other kernels call needs no wrappers for Python, which are half of the code to compile.
        inner: dict[str, Any] = {} if entry else {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        inner["forceinline"] = id(code) in _SMALL
        dispatcher = numba.njit(cache=entry, nogil=True, error_model="numpy", _nrt=False, **inner)(copy)
        _take_any_constant(dispatcher, numba)
        if entry:
            compile_alone = dispatcher._compiler.compile

            def compile_linked(arguments: Any, result: Any) -> Any:  # called where the cache has no such code
                for listener in _LISTENERS:
                    listener()
                with _compiled_as_one():
                    return compile_alone(arguments, result)

            dispatcher._compiler.compile = compile_linked
            forgive(dispatcher._cache)
        _DISPATCHERS[key] = dispatcher
    return _DISPATCHERS[key]


@contextmanager
def when_compiling(listener: Callable[[], None]) -> Iterator[None]:
    """Call a function before anything is compiled that is not in the cache, which takes seconds."""
    _LISTENERS.append(listener)
    try:
        yield
    finally:
        _LISTENERS.remove(listener)


def _take_any_constant(dispatcher: Any, numba: Any) -> None:
    """Compile a kernel once for all constants that others pass to it: Numba would do so once for each of them."""
    template, general = dispatcher.get_call_template, numba.types.unliteral
    dispatcher.get_call_template = lambda arguments, named: template(
        tuple(map(general, arguments)), {name: general(each) for name, each in named.items()}
    )


@contextmanager
def _compiled_as_one() -> Iterator[None]:
    """While an entry is compiled, all kernels that it calls are compiled with it, not one by one.

    Numba optimizes every function, over all that it calls in turn, and turns it into machine code, although only the code that
    is linked into the entry ever runs: half of the time to compile. So that is done for the entry alone. There the others
    become private, as nothing else calls them: LLVM, which then knows all callers of each, passes on only what it uses (of an
    array the address, not seven words), and puts it where it is called if that is once. And an index is used as it is: what
    lets it count from the end is three instructions for each load and store. Both together halve the time of the event loop.

    Numba has no public way to ask for any of it, hence private functions; if a release lacks one of them, compiling takes
    longer, and nothing else changes.
    """
    from numba.core import event  # noqa: PLC0415

    inner = [False]  # whether each function that is being compiled is called by another; the innermost is last

    class Nesting(event.Listener):  # type: ignore[misc]
        def on_start(self, started: Any) -> None:
            inner.append(bool(started.data["dispatcher"].targetoptions.get("no_cfunc_wrapper")))

        def on_end(self, ended: Any) -> None:
            inner.pop()

    with event.install_listener("numba:compile", Nesting()), _replaced(_replacements(inner)):
        yield


def _replacements(inner: list[bool]) -> list[tuple[Any, str, Callable[..., Any]]]:
    """Replacements for functions of Numba: owner, name, and a function that takes the original before its arguments."""
    from numba.core import codegen, types  # noqa: PLC0415
    from numba.np import arrayobj  # noqa: PLC0415

    def optimize(original: Any, library: Any) -> None:
        if inner[-1]:
            return
        for function in library._final_module.functions:
            if function.linkage.name == "linkonce_odr" and not function.is_declaration:  # it was linked in
                function.linkage = "internal"
                # With another name: a function that is compiled alone and calls the same kernel would be bound to this one.
                function.name += ".private"
        original(library)

    def finalize(original: Any, library: Any) -> None:
        if not inner[-1]:
            original(library)
            return
        library._finalize_dynamic_globals()
        library._final_module.__library = weakref.proxy(library)
        library._finalized = True

    def set_env(original: Any, generator: Any, *args: Any) -> None:
        if not inner[-1]:
            original(generator, *args)

    def index(_: Any, context: Any, builder: Any, kind: Any, value: Any, _size: Any) -> Any:
        return context.cast(builder, value, kind, types.intp if kind.signed else types.uintp)

    return [
        (codegen.CPUCodeLibrary, "_optimize_final_module", optimize),
        (codegen.CPUCodeLibrary, "_finalize_final_module", finalize),
        (codegen.JITCPUCodegen, "set_env", set_env),
        (arrayobj, "fix_integer_index", index),
    ]


@contextmanager
def _replaced(replacements: list[tuple[Any, str, Callable[..., Any]]]) -> Iterator[None]:
    """Replace functions while the context lasts, provided that all of them exist."""
    if not all(hasattr(where, name) for where, name, _ in replacements):
        yield
        return
    originals = [getattr(where, name) for where, name, _ in replacements]
    for (where, name, instead), original in zip(replacements, originals, strict=True):
        setattr(where, name, _given(instead, original))
    try:
        yield
    finally:
        for (where, name, _), original in zip(replacements, originals, strict=True):
            setattr(where, name, original)


def _given(function: Callable[..., Any], first: Any) -> Callable[..., Any]:
    """A function, or a method, that passes something on before its own arguments."""
    return lambda *args: function(first, *args)


def forgive(cache: Any) -> None:
    """Tolerate a broken cache: what cannot be read is compiled anew, and what cannot be written is not kept."""
    load, save = cache.load_overload, cache.save_overload

    def load_if_sound(signature: Any, context: Any) -> Any:
        try:
            return load(signature, context)
        except Exception:  # pickle and LLVM raise any exception for damaged bytes
            with suppress(OSError):
                cache.flush()
            return None

    def save_if_possible(signature: Any, compiled: Any) -> None:
        with suppress(OSError):
            save(signature, compiled)

    cache.load_overload, cache.save_overload = load_if_sound, save_if_possible


class _Cache:
    """The folder of compiled code that this process uses."""

    folder: Path | None = None


_CACHE = _Cache()


def cache_folder() -> Path:
    """The folder of compiled code, named by a hash of sources and versions; in `DECODE_SIM_CACHE` or the user's cache."""
    from platformdirs import user_cache_path  # noqa: PLC0415  # only where something is compiled

    base = os.environ.get("DECODE_SIM_CACHE")
    folder = Path(base) if base else user_cache_path("decode-sim")
    return folder / f"kernels-{_fingerprint()}"


def _fingerprint() -> str:
    digest = hashlib.sha256()
    import llvmlite  # noqa: PLC0415
    import numba  # noqa: PLC0415

    versions = (platform.python_version(), np.__version__, numba.__version__, llvmlite.__version__, platform.machine())
    digest.update(repr(versions).encode())
    for path in _sources(Path(__file__).parents[2]):  # both packages lie in it, in a checkout and when installed
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


#: An import of a constant, whose name is upper-case; the group is the module.
_CONSTANTS = re.compile(
    rb"^from ((?:sim|models)[\w.]*) import (?=[^(\n]*\b[A-Z][A-Z0-9_]+\b|\([^)]*\b[A-Z][A-Z0-9_]+\b)", re.MULTILINE
)


def _sources(root: Path) -> list[Path]:
    """All modules that define kernels, and those from which they import constants, which are frozen into compiled code."""
    found = set[Path]()
    for path in (path for package in ("models", "sim") for path in (root / package).rglob("*.py")):
        source = path.read_bytes()
        if b"@kernel" in source:
            found.add(path)
            found |= {root / (name.decode().replace(".", "/") + ".py") for name in _CONSTANTS.findall(source)}
    return sorted(path for path in found if path.exists())


def _use_cache_folder(numba: Any) -> None:
    """Point Numba at the folder; where it cannot be written, at a copy that lasts as long as the process."""
    if _CACHE.folder is not None:
        return
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        kept, folder = folder, Path(tempfile.mkdtemp(prefix="decode-sim-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        with suppress(OSError, shutil.Error):
            shutil.copytree(kept, folder, dirs_exist_ok=True)
    _CACHE.folder = folder
    numba.config.CACHE_DIR = str(folder)
