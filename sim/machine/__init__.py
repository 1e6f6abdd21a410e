"""The parts of the machine that decide: arbiters of channels, and routes over several. No clock, no events."""
