"""Properties of all registries."""

from __future__ import annotations

from typing import Any

import pytest

from sim.base.errors import InputError
from sim.base.registry import Registry
from sim.cost import COST_MODELS
from sim.machine.arbiters import ARBITERS
from sim.machine.presets import PRESETS
from sim.machine.schedulers import SCHEDULERS


class Patient:
    """Waits for
    a while.

    patience: how long.
    """

    def __init__(self, *, cap: int, patience: int = 8) -> None:
        if patience < 0:
            raise ValueError(f"patience: expected a number from 0, found {patience}")
        self.patience = patience


WAYS: Registry[type[Patient]] = Registry("way to wait", {"patient": Patient}, given=("cap",))


def test_summaries_are_first_paragraphs_on_one_line() -> None:
    assert WAYS.summaries() == [("patient", "Waits for a while.")]


def test_a_parameter_that_the_program_passes_is_no_option() -> None:
    assert [option.name for option in WAYS.options("patient")] == ["patience"]
    with pytest.raises(InputError, match=r"^unknown option 'patienc' of way to wait 'patient' .*; valid: patience$"):
        WAYS.make("patient", {"cap": 1, "patienc": 2})


def test_a_constructor_that_does_not_take_what_the_program_passes() -> None:
    ways: Registry[type] = Registry("way to wait", {"bare": object}, given=("cap",))
    with pytest.raises(InputError, match=r"^way to wait 'bare': expected a constructor that takes 'cap', found one without$"):
        ways.make("bare", {"cap": 1})


def test_made_with_its_options() -> None:
    assert WAYS.make("patient", {"cap": 1, "patience": 3}).patience == 3
    with pytest.raises(InputError, match=r"^way to wait 'patient': the option 'cap' is missing$"):
        WAYS.make("patient", {})
    with pytest.raises(InputError, match=r"^way to wait 'patient': patience: expected a number from 0, found -1$"):
        WAYS.make("patient", {"cap": 1, "patience": -1})
    with pytest.raises(InputError, match=r"^unknown way to wait 'impatient' .*; known: patient$"):
        WAYS.make("impatient", {})


@pytest.mark.parametrize("registry", [ARBITERS, SCHEDULERS, COST_MODELS], ids=lambda registry: registry.what)
def test_whatever_ships_has_a_summary_and_lines_for_its_options(registry: Registry[Any]) -> None:
    for name, summary in registry.summaries():
        assert summary, name
        for option in registry.options(name):
            assert f"{option.name}: " in registry.get(name).__doc__, (name, option.name)


def test_groups_of_entry_points() -> None:
    """They are an interface: packages of others name them."""
    groups = [registry.group for registry in (ARBITERS, SCHEDULERS, COST_MODELS, PRESETS)]
    assert groups == ["decode_sim.arbiters", "decode_sim.schedulers", "decode_sim.cost_models", "decode_sim.hardware_presets"]
