"""Errors that a user can cause or see.

`InputError` is for anything the user can correct: the command line turns it into one line and exit status 2.
`SimulationError` says that the program broke one of its own rules: exit status 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import PurePath


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

    If `word` has three letters or more, names that begin with it are preferred: `h100` is closer to `h100-sxm` than to `h200`.
    """
    return _hint(_closest(str(word), {v: v for v in valid}))


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
