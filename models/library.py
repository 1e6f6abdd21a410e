"""Get the op graph of a model: shipped with the package, else from the disk cache, else by capture.

Only a capture imports torch and transformers.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
import tempfile
import time
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from platformdirs import user_cache_path

from models.config import CAPTURE_VERSION, MLA_FORMS, ModelConfig, dtype_of, names, resolve
from models.graph import ModelGraph
from sim.base.errors import InputError, unknown
from sim.base.quantities import show

__all__ = ["load", "names"]

GRAPHS = Path(__file__).parent / "graphs"

#: Environment variable with the folder of captured graphs.
CACHE_VARIABLE = "DECODE_SIM_CACHE"

#: Time between two lines about the progress of a capture, where there is no terminal.
SECONDS = 10

GRANULARITIES = ("op", "aten")


def load(
    config: str | ModelConfig,
    *,
    granularity: str = "op",
    dtype: str | None = None,
    mla: str = MLA_FORMS[0],
    installed: bool = False,
) -> ModelGraph:
    """Op graphs of the whole model that `config` names (see `models.config.resolve`).

    granularity: `op` for named ops, `aten` for raw ones. dtype: instead of the config's own.
    mla: contents of a cache of latent attention, one of `MLA_FORMS`; ignored for models without it (`keeps_latents`).
    installed: whether to use the installed transformers, whose code may differ from that behind a shipped graph.
    Raises InputError, in one line, if no model has this name, or it cannot be captured.
    """
    if granularity not in GRANULARITIES:
        raise unknown("granularity", granularity, GRANULARITIES)
    if mla not in MLA_FORMS:
        raise unknown("form of latent attention", mla, MLA_FORMS)
    model = config if isinstance(config, ModelConfig) else resolve(config)
    dtype = dtype_of(model, dtype)
    # A model without latent attention is kept once, where the first form would be.
    for form in dict.fromkeys((mla, MLA_FORMS[0])):
        for shipped in (True, False):  # shipped graphs first: looking up versions of packages takes milliseconds
            path = shipped_path(model.name, granularity, form) if shipped else _cached(model, dtype, granularity, form)
            graph = _read(path)
            if graph is None or not _fits(graph, model, dtype, granularity, mla):
                continue
            if not installed or graph.provenance.get("transformers") == _version("transformers"):
                return graph
    what = f"capturing {show(model.name)} as {dtype}"
    if sys.stderr.isatty():
        sys.stderr.write(f"{what}, once; the graph is kept in {cache_folder()}\n")
    try:
        # torch is imported only here: it takes seconds, and a run of a known model must not wait for it.
        module = import_module("models.capture")
    except ImportError as error:
        raise InputError(f"{what} needs torch and transformers (pip install torch transformers)") from error
    captured: dict[str, ModelGraph] = module.capture(model, dtype, mla, _show if sys.stderr.isatty() else _Lines(what))
    for name, graph in captured.items():
        _write_cache(_cached(model, dtype, name, mla if keeps_latents(graph) else MLA_FORMS[0]), graph)
    return captured[granularity]


def ships(config: str, granularity: str, dtype: str | None, mla: str) -> bool:
    """Whether the graph that `load` returns ships with the package, so that it neither reads other files nor captures."""
    if config not in names():
        return False
    model = resolve(config)
    found = (_read(shipped_path(model.name, granularity, form)) for form in (mla, MLA_FORMS[0]))
    return any(graph is not None and _fits(graph, model, dtype_of(model, dtype), granularity, mla) for graph in found)


def _show(done: int, total: int) -> None:
    """Show how much of a capture is done, in one line of the terminal that the next one overwrites."""
    sys.stderr.write(f"\r{100 * done // total} %" + "\r\x1b[K" * (done == total))
    sys.stderr.flush()


class _Lines:
    """Lines on standard error that is no terminal, such as the log of a job: one for each ten seconds that a capture takes."""

    def __init__(self, what: str) -> None:
        self.what, self.last = what, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if (now := time.monotonic()) >= self.last + SECONDS and done < total:
            self.last = now
            sys.stderr.write(f"{self.what}: {100 * done // total} %\n")
            sys.stderr.flush()


def keeps_latents(graph: ModelGraph) -> bool:
    """Whether the model has multi-head latent attention, so that the form of its cache is a choice."""
    return graph.provenance.get("mla") in MLA_FORMS


def cache_folder() -> Path:
    """The folder in which captured graphs are kept."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else user_cache_path("decode-sim")


def encode(graph: ModelGraph) -> bytes:
    """The stored form of a graph: gzipped JSON, the same bytes for the same graph."""
    text = json.dumps(graph.to_json(), separators=(",", ":"), sort_keys=True)
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


def shipped_path(name: str, granularity: str, mla: str = MLA_FORMS[0]) -> Path:
    """Path of the shipped graph of a model, which need not exist. Default choices are not part of its name."""
    words = [name, *([mla] if mla != MLA_FORMS[0] else []), *([granularity] if granularity != GRANULARITIES[0] else [])]
    return GRAPHS / f"{'.'.join(words)}.json.gz"


def _cached(model: ModelConfig, dtype: str, granularity: str, mla: str) -> Path:
    key = json.dumps(
        [model.name, model.digest, dtype, granularity, mla, CAPTURE_VERSION, _version("torch"), _version("transformers")]
    )
    return cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json.gz"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _read(path: Path) -> ModelGraph | None:
    """The stored graph, or None if there is none or it is damaged: it can always be captured again."""
    try:
        return _decoded(path, path.stat().st_mtime_ns)
    except Exception:  # a flipped bit may raise anything that decompressing, parsing and checking raise
        return None


@lru_cache(maxsize=64)  # more than ship: loops over all of them decode each once
def _decoded(path: Path, _stamp: int) -> ModelGraph:
    return ModelGraph.from_json(json.loads(gzip.decompress(path.read_bytes())))


def _fits(graph: ModelGraph, model: ModelConfig, dtype: str, granularity: str, mla: str) -> bool:
    if not isinstance(graph.provenance, dict):
        return False
    wanted = {"config": model.digest, "granularity": granularity, "capture": str(CAPTURE_VERSION)}
    if keeps_latents(graph):
        wanted["mla"] = mla
    return graph.dtype == dtype and all(graph.provenance.get(key) == value for key, value in wanted.items())


def _write_cache(path: Path, graph: ModelGraph) -> None:
    """Store a graph in the cache. A cache that cannot be written is not an error: the graph is in memory."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(encode(graph))
            Path(temporary).replace(path)  # atomic: a reader sees all of it or nothing
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError:
        pass
