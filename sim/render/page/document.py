"""The frame of every HTML page: one head, one style sheet, the bundled libraries, and data and scripts embedded.

A page is `document.html` around a body of its own. It loads nothing from anywhere, and its content policy says so.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from sim import __version__

#: Bundled scripts and their licenses; `assets/README.md` has their sources.
LIBRARIES = (("d3-7.9.0.min.js", "d3-LICENSE.txt"), ("plot-0.6.17.umd.min.js", "plot-LICENSE.txt"))


def document(
    body: str,
    values: Mapping[str, str],
    *,
    data: Mapping[str, Any],
    scripts: Sequence[str],
    style: str = "",
    policy: str = "",
) -> str:
    """Return a page as text; the same arguments give the same bytes.

    Args:
        body: HTML with a `{{ name }}` for each value. `{{ toolbar }}` is that of a timeline.
        values: HTML to fill in. `title` is the title of the page, too.
        data: What is embedded, by the id of its element: text as it is, anything else as JSON.
        scripts: Sources of scripts, which run in this order, after the libraries.
        style: Rules that follow those of `page.css`.
        policy: Directives that follow those of the content policy.
    """
    values = {"version": html.escape(__version__), "toolbar": asset("page", "toolbar.html").rstrip(), **values}
    return filled(
        asset("page", "document.html"),
        {
            "title": values["title"],
            "version": values["version"],
            "policy": policy and f"; {policy}",
            "style": asset("page", "page.css") + style,
            "body": filled(body, values),
            "embedded": "\n".join(map(_embedded, data, data.values())),
            "libraries": "\n".join(
                f"<script>\n/*!\n{asset('assets', terms)}*/\n{asset('assets', file)}</script>" for file, terms in LIBRARIES
            ),
            "scripts": "\n".join(f"<script>\n{script}</script>" for script in scripts),
        },
    )


def _embedded(name: str, value: Any) -> str:
    kind, text = ("text/plain", value) if isinstance(value, str) else ("application/json", as_json(value))
    return f'<script type="{kind}" id="{name}">{text}</script>'


def as_json(data: Any) -> str:
    """JSON that is safe in a script element: no text in it can end the element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def asset(folder: str, name: str) -> str:
    """The text of a file in a folder of `sim.render`."""
    return (files("sim.render") / folder / name).read_text(encoding="utf-8")


def filled(template: str, values: Mapping[str, str]) -> str:
    """Replace each `{{ name }}` once, in one pass, so that nothing in a value is taken for a name."""
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: values[match[1]], template)
