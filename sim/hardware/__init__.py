"""The machine: engines, the memory channel and its arbiter, SRAM. Plain values in, SimPy processes inside."""
