"""Names for things that third parties may add: arbiters, schedulers, cost models.

Ours are listed where they are defined. Others register a Python entry point in the group `decode_sim.<what>s`; entry
points are looked up only when a name is not ours, or when all names are listed, so that a plain run does not pay for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import entry_points
from inspect import Parameter, signature
from typing import Any, Generic, TypeVar

from sim.base.errors import InputError, nearest, unknown

T = TypeVar("T")

#: What the program hands to a policy itself: no option of a scenario.
GIVEN = ("cap", "bandwidth", "machine", "seed")


class Registry(Collection[str], Generic[T]):
    """What a scenario may call by name, as a collection of names. `what` is the word used in errors, e.g. `arbiter`."""

    def __init__(self, what: str, builtin: Mapping[str, T]) -> None:
        self.what = what
        self.group = f"decode_sim.{what.replace(' ', '_')}s"
        self._builtin = dict(builtin)
        self._takes: dict[str, Mapping[str, Parameter]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def get(self, name: str) -> T:
        """Return what is registered under `name`; raises InputError with the nearest valid name."""
        if name in self._builtin:
            return self._builtin[name]
        for point in entry_points(group=self.group):
            if point.name == name:
                found: T = point.load()
                return found
        raise unknown(self.what, name, self.names())

    def make(self, name: str, options: Mapping[str, Any]) -> Any:
        """Call what is registered under `name` with the options of the scenario; a wrong option is an InputError."""
        factory: Any = self.get(name)
        takes = self.parameters(name)
        if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in takes.values()):
            for option in options:
                if option not in takes:
                    valid = [key for key in takes if key not in GIVEN]
                    known = f"{nearest(option, valid)}; valid: {', '.join(valid)}" if valid else ", which takes none"
                    raise InputError(f"unknown option {option!r} of {self.what} {name!r}{known}")
        for option, parameter in takes.items():
            if parameter.default is Parameter.empty and option not in options and parameter.kind is Parameter.KEYWORD_ONLY:
                raise InputError(f"{self.what} {name!r}: the option {option!r} is missing")
        try:
            return factory(**options)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.what} {name!r}: {error}") from None

    def parameters(self, name: str) -> Mapping[str, Parameter]:
        """What is registered under `name` takes; raises InputError as `get` does."""
        if name in self._takes:
            return self._takes[name]
        takes = signature(self.get(name)).parameters  # type: ignore[arg-type]  # it is called, whatever it is
        if name in self._builtin:  # to ask Python takes longer than to make most of them
            self._takes[name] = takes
        return takes

    def names(self) -> list[str]:
        """All names, ours first."""
        others = sorted(point.name for point in entry_points(group=self.group) if point.name not in self._builtin)
        return [*self._builtin, *others]
