"""The channel and the engine pool against queueing theory. `python -m tests.theory` runs it all and prints the table."""
