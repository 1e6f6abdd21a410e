"""Workloads: requests listed, generated or read from a trace, and the experts that tokens choose."""
