"""Errors that a user can cause or see.

`InputError` is for anything the user can correct: the command line turns it into one line and exit status 2.
`SimulationError` says that the program broke one of its own rules: exit status 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import PurePath

#: Names of number formats that mean the same.
_FORMATS = (
    ("bf16", "bfloat16"),
    ("fp16", "float16", "f16", "half"),
    ("fp32", "float32", "f32", "float"),
    ("fp8", "float8_e4m3fn", "float8", "float8_e4m3", "fp8_e4m3", "e4m3"),
    ("fp4", "float4_e2m1fn_x2", "float4", "e2m1"),
    ("q4_K", "q4_k_m", "q4_k_s"),
)

#: Number formats of as many bits, which are suggested where the first is not known.
_AS_LARGE = {"fp16": "bf16", "float16": "bf16", "f16": "bf16", "half": "bf16", "fp8_e5m2": "fp8", "float8_e5m2": "fp8"}


def one_line(text: str) -> str:
    """A text on one line, with escapes for what a terminal would not print as it is, such as control characters."""
    text = " ".join(text.splitlines())
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class SimError(Exception):
    """Base of all errors that this package raises on purpose. As text, one printable line."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class InputError(SimError):
    """An error in the input. The message is one line that says where, what was expected and what was found."""


class ConfigError(InputError):
    """A value of the configuration that cannot be used: the key it is written under, such as `mapping.softmax`, and why.

    Raised where no scenario is known; `Scenario.located` adds the place in its file.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)  # as arguments, so that it can be pickled
        self.key, self.message = key, message

    def __str__(self) -> str:
        return one_line(f"{self.key}: {self.message}")


class SimulationError(SimError):
    """An invariant of the simulation does not hold: a defect of the program, never of its input."""


@contextmanager
def about(key: str) -> Iterator[None]:
    """Turn an InputError without a key into a ConfigError about `key`."""
    try:
        yield
    except ConfigError:
        raise
    except InputError as error:
        raise ConfigError(key, str(error)) from None


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the valid name closest to `word`, or an empty string.

    Another name of the same number format is the closest (`float16` for `fp16`). If `word` has three letters or more, names
    that begin with it are preferred then: `h100` is closer to `h100-sxm` than to `h200`.
    """
    word, names = str(word), tuple(valid)
    format_ = same_format(word, names) or same_format(_AS_LARGE.get(word.lower(), ""), names)
    return _hint(format_ or _closest(word, {v: v for v in names}))


def same_format(word: str, valid: Iterable[str]) -> str | None:
    """The valid name of the number format that `word` names, None if it names none, or no name of it is valid."""
    names, word = set(valid), word.lower().removeprefix("torch.")
    return next((name for group in _FORMATS if word in map(str.lower, group) for name in group if name in names), None)


def nearest_file(name: str, files: Iterable[str]) -> str:
    """The same hint for the name of a file: endings do not count, since all names share one."""
    return _hint(_closest(PurePath(name).stem, {PurePath(each).stem: each for each in files}))


def _hint(name: str | None) -> str:
    return f" (did you mean {name!r}?)" if name is not None else ""


def _closest(word: str, names: Mapping[str, str]) -> str | None:
    """The name whose key is closest to a word, None if none is near."""
    by_lower = {key.lower(): name for key, name in names.items()}
    low = word.lower()
    longer = [key for key in by_lower if len(low) >= 3 and key.startswith(low)]
    close = [min(longer, key=len)] if longer else get_close_matches(low, by_lower, n=1, cutoff=0.5 if len(low) <= 6 else 0.6)
    return by_lower[close[0]] if close else None


def unknown(what: str, word: str, valid: Iterable[str]) -> InputError:
    """The error for a name that is not among the valid ones: names it, the nearest, and all of them."""
    names = sorted(valid)
    return InputError(f"unknown {what} {word!r}{nearest(word, names)}; known: {', '.join(names)}")
