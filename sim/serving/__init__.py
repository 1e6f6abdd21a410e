"""Serving: which sequences are in the next step, and what the KV cache holds."""
