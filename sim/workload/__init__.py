"""Workloads: requests written out, generated or read from a trace, and the experts that tokens choose."""
