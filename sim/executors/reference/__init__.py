"""Reference executor."""

from sim.executors.reference.run import simulate, simulate_in_parts

__all__ = ["simulate", "simulate_in_parts"]
