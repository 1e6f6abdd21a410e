"""Renderers: pure functions of a result, to the terminal, JSON, HTML and traces."""
