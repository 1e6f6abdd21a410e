"""Executors: what runs a simulation. Two of them, one log."""
