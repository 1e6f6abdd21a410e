"""Names for things that third parties may add: arbiters, schedulers, cost models.

Ours are listed where they are defined. Others register a Python entry point in the group `decode_sim.<what>s`; entry
points are looked up only when a name is not ours, or when all names are listed, so that a plain run does not pay for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from sim.errors import InputError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """What a scenario may call by name. `what` is the word used in errors, e.g. `arbiter`."""

    def __init__(self, what: str, builtin: Mapping[str, T]) -> None:
        self.what = what
        self.group = f"decode_sim.{what.replace(' ', '_')}s"
        self._builtin = dict(builtin)

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
        try:
            return factory(**options)
        except (TypeError, ValueError) as error:
            text = str(error).replace(f"{getattr(factory, '__name__', name)}.__init__()", f"{self.what} {name!r}")
            raise InputError(f"{self.what} {name!r}: {text}") from None

    def names(self) -> list[str]:
        """All names, ours first."""
        others = sorted(point.name for point in entry_points(group=self.group) if point.name not in self._builtin)
        return [*self._builtin, *others]
