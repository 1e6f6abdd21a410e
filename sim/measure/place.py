"""A device to run on, and all that differs between devices."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sim.base.errors import InputError

DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """device: one of `DEVICES`. threads: how many torch computes with, on a CPU."""

    device: str = "cpu"
    threads: int = 1

    @property
    def asynchronous(self) -> bool:
        """Whether ops are queued, so that the time of a call is not the time of its op."""
        return self.device != "cpu"

    def use(self) -> None:
        """Make torch compute with this number of threads."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)

    def synchronise(self) -> None:
        """Wait until all that was queued has been computed."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        elif self.device == "mps":
            torch.mps.synchronize()

    def activities(self) -> list[torch.profiler.ProfilerActivity]:
        """Activities that torch's profiler must watch."""
        kinds = torch.profiler.ProfilerActivity
        return [kinds.CPU, kinds.CUDA] if self.device == "cuda" else [kinds.CPU]

    @property
    def name(self) -> str:
        """Name of the device, as it reports it."""
        return torch.cuda.get_device_name() if self.device == "cuda" else _processor()

    @property
    def driver(self) -> str:
        """Version of what runs the device."""
        if self.device != "cuda":
            return f"{platform.system()} {platform.release()}"
        kernel = _number(Path("/proc/driver/nvidia/version"))
        return f"{f'NVIDIA {kernel}, ' if kernel else ''}CUDA {torch.version.cuda}"

    def free_memory(self) -> int | None:
        """Bytes available now, None if that is not known."""
        if self.device == "cuda":
            free: int = torch.cuda.mem_get_info()[0]
            return free
        if self.device == "mps":
            return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
        return _free_main_memory()


def place(device: str = "cpu", threads: int | None = None) -> Place:
    """The device by its name. threads: None for as many as torch takes by itself. Raises InputError if it is not here."""
    present: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device not in DEVICES:
        raise InputError(f"device: expected one of {', '.join(DEVICES)}, found {device!r}")
    if device in present and not present[device]():
        here = [name for name in DEVICES if name not in present or present[name]()]
        raise InputError(
            f"device: expected one that torch {torch.__version__} finds here ({', '.join(here)}), found {device!r}"
        )
    cores = usable_cores()
    if threads is not None and not 1 <= threads <= cores:
        raise InputError(f"threads: expected 1 to {cores}, the processors that this program may use, found {threads}")
    return Place(device=device, threads=threads or min(torch.get_num_threads(), cores))


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(path: Path) -> str:
    """The first version number in a file, empty if there is none."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", path.read_text(encoding="utf-8"))
    except OSError:
        return ""
    return found[0] if found else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _free_main_memory() -> int | None:
    amounts: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        amounts += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except OSError:
        pass
    if not amounts and "SC_PHYS_PAGES" in os.sysconf_names:
        amounts.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for most, used in _CONTROL_GROUPS:  # a container may have less than the machine
        try:
            amounts.append(int(Path(most).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or `max`
            continue
    return min(amounts, default=None)


_CONTROL_GROUPS: tuple[tuple[str, str], ...] = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
