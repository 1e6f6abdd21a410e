"""Runs: a scenario becomes a plan, the plan a simulation, and the simulation a result."""
