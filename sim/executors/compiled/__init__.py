"""The compiled executor: the state machine of `sim.executors.reference` over arrays, in one event loop that Numba compiles.

Read `loop.py` first: `advance` goes from instant to instant, and each phase of an instant is a function there. `state.py` says
what the arrays hold, `channels.py` divides a channel, `engines.py` dispatches tasks, `driver.py` feeds the loop with steps and
makes the event log.
"""
