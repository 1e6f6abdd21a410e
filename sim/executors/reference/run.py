"""Put together a machine and its sequences or loops from a setup, and simulate to the end."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np

from sim.base.errors import SimulationError
from sim.executors.reference.channel import Channel, Channels, Links
from sim.executors.reference.decode import Machine, Process, batched_loop, known_sequence, sampled_sequence
from sim.executors.reference.instant import Environment
from sim.executors.reference.record import Record
from sim.executors.reference.sram import Sram
from sim.executors.reference.step import Steps
from sim.executors.setup import Progress, Setup, Unit
from sim.log.tables import EventLog
from sim.machine.arbiters.paths import PathArbiter
from sim.serving.batcher import Batcher
from sim.serving.cache import in_all
from sim.serving.loops import loops
from sim.serving.queue import queue_times


def simulate(setup: Setup, progress: Progress | None = None) -> EventLog:
    """Simulate to the end. Raises InputError if operands do not fit SRAM, SimulationError if the simulation cannot end."""
    record, env = Record(setup, progress), Environment()
    machine, steps = _machine(env, setup, record), Steps(env, setup)
    batchers: list[Batcher] = []
    processes: list[Process] = []
    if setup.batching is not None:
        batchers = loops(setup.batching, setup.sequences, concurrency=setup.concurrency, think=setup.think)
        processes = [
            batched_loop(machine, number, batcher, steps.of_batch, setup.step_overhead)
            for number, batcher in enumerate(batchers, setup.batching.first_loop)
        ]
    else:
        sequence_process = sampled_sequence if setup.dependency == "sampled" else known_sequence
        for number, sequence in enumerate(setup.sequences):
            processes.append(sequence_process(machine, number, sequence.arrival, steps.of_sequence(number, sequence)))
    started = [env.process(process) for process in processes]
    env.run()
    if unfinished := [number for number, process in enumerate(started) if process.is_alive]:
        raise SimulationError(f"the simulation ended with work left in {len(unfinished)} loops, the first is {unfinished[0]}")
    times = {number: sequence.arrival for number, sequence in enumerate(setup.sequences)}
    for batcher in batchers:
        times |= batcher.arrivals.times
    arrival = np.array([times[number] for number in range(len(times))], dtype=np.int64)
    parts = [part for batcher in batchers for part in batcher.parts]
    log = record.log(arrival, in_all(part.blocks.use for part in parts))
    if not batchers:
        return log
    return replace(log, queue=queue_times((part.queue for part in parts), arrival, log.started, log.steps.released))


def _machine(env: Environment, setup: Setup, record: Record) -> Machine:
    names = [channel.name for channel in setup.machine.channels]
    channels = [_channel(env, unit, record, names[unit.channels.start]) for unit in setup.units]
    return Machine(
        env, devices=[device.engines for device in setup.machine.devices], limit=setup.scheduler.engines,
        overlap=setup.overlap,
        channels=Channels(
            env, channels, setup.route, memories=setup.memory_channels, devices=setup.devices, tiers=len(setup.machine.tiers)
        ),
        sram=None if setup.sram is None else Sram(env, setup.sram),
        ended=record.ended,
    )  # fmt: skip


def _channel(env: Environment, unit: Unit, record: Record, name: str) -> Channel:
    first, arbiter = unit.channels.start, deepcopy(unit.arbiter)
    if unit.joint:
        return Links(env, PathArbiter(arbiter, first, len(unit.channels)), record.served, latency=unit.latency)
    return Channel(env, arbiter, partial(record.served, first), latency=unit.latency, name=name)
