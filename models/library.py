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

#: Environment variable that says where captured graphs are kept.
CACHE_VARIABLE = "DECODE_SIM_CACHE"

GRANULARITIES = ("op", "aten")


def load(
    config: str | ModelConfig, *, granularity: str = "op", dtype: str | None = None, mla: str = MLA_FORMS[0], here: bool = False
) -> ModelGraph:
    """The graph of the model that `config` means (see `models.config.resolve`), always of the whole model.

    granularity: `op` for the ops that people name, `aten` for the raw ones. dtype: instead of the config's own.
    mla: contents of a cache of latent attention, one of `MLA_FORMS`; ignored for models without it (`keeps_latents`).
    here: whether it must be of the transformers that is installed, whose code may differ from that of a shipped graph.
    Raises InputError, in one line, for what is no model, or cannot be captured.
    """
    if granularity not in GRANULARITIES:
        raise unknown("granularity", granularity, GRANULARITIES)
    if mla not in MLA_FORMS:
        raise unknown("form of latent attention", mla, MLA_FORMS)
    model = config if isinstance(config, ModelConfig) else resolve(config)
    dtype = dtype_of(model, dtype)
    # A model without latent attention is kept once, where the first form would be.
    for form in dict.fromkeys((mla, MLA_FORMS[0])):
        for shipped in (True, False):  # what is shipped first: versions of packages take milliseconds to find out
            path = shipped_path(model.name, granularity, form) if shipped else _cached(model, dtype, granularity, form)
            graph = _read(path)
            if graph is None or not _fits(graph, model, dtype, granularity, mla):
                continue
            if not here or graph.provenance.get("transformers") == _version("transformers"):
                return graph
    if sys.stderr.isatty():  # a person waits, and would wonder; a pipe gets the results alone
        sys.stderr.write(f"capturing {show(model.name)} as {dtype}, once: it is kept in {cache_folder()}\n")
    try:
        # Only here is torch imported, which takes seconds: a run of a known model must not wait for it.
        module = import_module("models.capture")
    except ImportError as error:
        raise InputError(
            f"capturing {show(model.name)} as {dtype} needs torch and transformers (pip install torch transformers)"
        ) from error
    captured: dict[str, ModelGraph] = module.capture(model, dtype, mla)
    for name, graph in captured.items():
        _write_cache(_cached(model, dtype, name, mla if keeps_latents(graph) else MLA_FORMS[0]), graph)
    return captured[granularity]


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
    """Path of the shipped graph of a model, whether there is one or not. The usual choices are not part of its name."""
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
    """The stored graph, or None if there is none or it is damaged: it can always be made anew."""
    try:
        return _decoded(path, path.stat().st_mtime_ns)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        return None


@lru_cache(maxsize=32)
def _decoded(path: Path, _stamp: int) -> ModelGraph:
    return ModelGraph.from_json(json.loads(gzip.decompress(path.read_bytes())))


def _fits(graph: ModelGraph, model: ModelConfig, dtype: str, granularity: str, mla: str) -> bool:
    wanted = {"config": model.digest, "granularity": granularity, "capture": str(CAPTURE_VERSION)}
    if keeps_latents(graph):
        wanted["mla"] = mla
    return graph.dtype == dtype and all(graph.provenance.get(key) == value for key, value in wanted.items())


def _write_cache(path: Path, graph: ModelGraph) -> None:
    """Keep a graph for next time. A cache that cannot be written is no error: the graph is there all the same."""
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
