"""The reference executor: the specification of a simulation, as SimPy processes and resources.

It is written to be read and extended. `sim.executors.compiled` is the same state machine over arrays, for large runs; its log
is equal bit by bit. Read the files in this order, each from its top:

1. `decode.py`. A *sequence* is a process (`sampled_sequence`, `known_sequence`): it waits for its arrival, releases a step,
   waits until that has ended, and goes on; known tokens are released together and ordered by the KV cache (`KVOrder`). A *loop*
   (`batched_loop`) is the same with the step that its batcher makes up. The `Machine` runs released steps: a task whose inputs
   have ended waits for an engine or is moved by a DMA, and a task that has ended lets others start. `Machine.admit` is a
   process, too: it gives SRAM to the operands of a step, in the order in which tasks need them.

2. `engines.py`. An *engine* is a process: take a task from the pool, load its operands, compute, and again. The `EnginePool`
   gives the ready tasks of an instant to the free engines: lowest rank first, lowest engine first, chains at home.

3. `channel.py`. A *channel* is a resource that transfers request and an arbiter divides: shares are exact fractions, work is
   delivered in whole picoseconds, and a plan holds until a transfer arrives, departs, or a quantum is over. `Channels` sends a
   transfer to the one it belongs to, or in stripes to all.

4. `sram.py`. *SRAM* is a resource of bytes that operands wait for: weights and the KV cache that a step loads.

5. `instant.py`. The order within an instant, which makes the result independent of the order of SimPy's queue: all that ends
   comes first, then steps, SRAM, dispatch and plans, each in a `Phase` of its own. Among equals, program order decides.

6. `step.py`, `record.py`, `run.py`. How a step is made (costs, ranks, owners of its tasks), what is recorded of it, and how
   a machine and its processes are put together from a setup and run.
"""

from sim.executors.reference.run import simulate

__all__ = ["simulate"]
