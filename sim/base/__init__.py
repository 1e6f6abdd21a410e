"""Foundations: units, quantities, errors, documents, random numbers, compiled kernels."""
