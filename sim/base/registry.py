"""Registries: the names of all that can be extended, such as arbiters, schedulers, batching policies and presets.

Each registry stands beside its interface and its implementations, in the `__init__` (or the only file) of their folder. What
ships is listed there, one entry for each; third parties register a Python entry point in the group `decode_sim.<what>s`. Entry
points are looked up only for a name that does not ship, or when all names are listed, so that a plain run does not pay for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from inspect import Parameter, cleandoc, signature
from typing import Any, Generic, TypeVar

from sim.base.errors import InputError, nearest, unknown

T = TypeVar("T")


class Registry(Collection[str], Generic[T]):
    """A table by name, as a collection of names: those that ship first, in the order of their table.

    what: the word for an entry in errors, e.g. `arbiter`; the entry-point group is `decode_sim.arbiters`.
    given: parameters that the program passes to a constructor itself; all others are options of the scenario.
    """

    def __init__(self, what: str, builtin: Mapping[str, T], *, given: Collection[str] = ()) -> None:
        self.what = what
        plural = f"{what.removesuffix('y')}ies" if what.endswith("y") else f"{what}s"
        self.group = f"decode_sim.{plural.replace(' ', '_')}"
        self.given = frozenset(given)
        self._builtin = dict(builtin)
        self._takes: dict[str, Mapping[str, Parameter]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def names(self) -> list[str]:
        """All names, third parties' last."""
        others = sorted(point.name for point in entry_points(group=self.group) if point.name not in self._builtin)
        return [*self._builtin, *others]

    def get(self, name: str) -> T:
        """Return the entry of this name.

        Raises InputError, with the nearest valid name, if there is none, and with its package if it cannot be loaded.
        """
        if name in self._builtin:
            return self._builtin[name]
        for point in entry_points(group=self.group):
            if point.name == name:
                try:
                    found: T = point.load()
                except Exception as error:  # whatever the code of a third party raises
                    raise self._broken(point, error) from error
                return found
        raise unknown(self.what, name, self.names())

    def _broken(self, point: EntryPoint, error: Exception) -> InputError:
        package = point.dist.name if point.dist is not None else "?"
        text = f"{self.what} {point.name!r} of the package {package!r} ({point.value}) cannot be loaded"
        return InputError(" ".join(f"{text}: {type(error).__name__}: {error}".split()))

    def options(self, name: str) -> list[Parameter]:
        """The parameters of an entry's constructor that are options of the scenario."""
        factory: Any = self.get(name)
        return [each for each in signature(factory).parameters.values() if each.name not in self.given]

    def summaries(self) -> list[tuple[str, str]]:
        """Each name with the first paragraph of its entry's docstring, on one line, or the reason why it cannot be loaded."""
        rows = []
        for name in self.names():
            try:
                text = cleandoc(self.get(name).__doc__ or "").split("\n\n")[0]
            except InputError as error:
                text = str(error)
            rows.append((name, " ".join(text.split())))
        return rows

    def make(self, name: str, options: Mapping[str, Any]) -> Any:
        """Call an entry's constructor. options: those of the scenario, and what is given.

        Raises InputError for an unknown option, a missing one, and whatever the constructor refuses.
        """
        factory: Any = self.get(name)
        takes = self.parameters(name)
        if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in takes.values()):
            for option in options:
                if option not in takes and option in self.given:  # by the program, not by a scenario
                    raise InputError(f"{self.what} {name!r}: expected a constructor that takes {option!r}, found one without")
                if option not in takes:
                    valid = [key for key in takes if key not in self.given]
                    known = f"{nearest(option, valid)}; valid: {', '.join(valid)}" if valid else ", which takes none"
                    raise InputError(f"unknown option {option!r} of {self.what} {name!r}{known}")
        for option, parameter in takes.items():
            if parameter.default is Parameter.empty and option not in options and parameter.kind is Parameter.KEYWORD_ONLY:
                raise InputError(f"{self.what} {name!r}: the option {option!r} is missing")
        try:
            return factory(**options)
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.what} {name!r}: {error}") from None
        except Exception as error:
            if name in self._builtin:
                raise
            raise InputError(" ".join(f"{self.what} {name!r}: {type(error).__name__}: {error}".split())) from error

    def parameters(self, name: str) -> Mapping[str, Parameter]:
        """Return the parameters of an entry's constructor; raises InputError as `get` does."""
        if name in self._takes:
            return self._takes[name]
        takes = signature(self.get(name)).parameters  # type: ignore[arg-type]  # it is called, whatever it is
        if name in self._builtin:  # to ask Python takes longer than to make most of them
            self._takes[name] = takes
        return takes
