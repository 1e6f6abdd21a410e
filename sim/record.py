"""Names of the reference executor that replay imports from here."""

from sim.executors.reference.record import member_table
from sim.executors.setup import Progress

__all__ = ["Progress", "member_table"]
