"""Renderers of a result: each is a pure function from a `Result` to text or data."""
