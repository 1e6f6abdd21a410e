"""Analyses of an event log: metrics, bounds, checks. Each is a function of the log and of the rules it came about under."""
