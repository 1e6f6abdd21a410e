"""Exact replay: many steps from one simulated step, as a few hundred NumPy additions and maxima.

In the simulation every event happens a delay after the event that caused it, or when the last of several has happened. So one
simulated step is a *tape*: a program of

    t[e] = t[cause] + delay          and          t[e] = max(t[a], t[b], ...)

Steps of the same structure differ only in the delays (which depend on the context), so the program runs on vectors with one
lane per step. What the causes rest on are decisions: who came first at the channel, which engine was free first, which ready
task had the lower rank. Each is written down as a comparison of two times of the tape, a <= b or a < b. A lane in which all
of them hold took the same decisions, so by induction over the instants its times are those that the simulation would give, to
the picosecond; other lanes go to another tape, or are simulated. Comparisons that the program itself implies are left out.

What may be replayed: a step that starts with nothing else running (a barrier), of one sequence or of a batch between arrivals,
scheduled by ranks, on a `fifo` or `processor_sharing` channel with any cap, latency and efficiency. Shared channels are not
max-plus: their recurrence runs on the lanes with the same integer arithmetic, and the order and ties of its instants are
decisions too.
"""

from sim.replay.driver import Part, Replayed, Tapes, obstacle, run, stream

__all__ = ["Part", "Replayed", "Tapes", "obstacle", "run", "stream"]
