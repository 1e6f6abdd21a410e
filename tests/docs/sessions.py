"""Sessions of six users: what each types, and what the program prints, for docs/tutorial/sessions.md.

The commands run for real, in a folder of their own. Of long outputs only some lines are shown, and `...` for others.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from tests.tools.command import call

COLUMNS = 100

#: Columns that rich takes for a line, and no colors.
TERMINAL = {"COLUMNS": str(COLUMNS), "NO_COLOR": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command. say: the sentence before it. files: name -> content, written first. keep: beginnings of the lines to show,
    empty: all. fails: it is an error, with exit status 2.
    """

    type: str
    say: str = ""
    files: tuple[tuple[str, str], ...] = ()
    keep: tuple[str, ...] = ()
    fails: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A user with a question, the commands, and the answer."""

    user: str
    question: str
    steps: tuple[Step, ...]
    answer: str


HELP = (
    "What would help",
    "change",
    "bandwidth x2",
    "infinite",
    "engines x2",
    "weights",
    "no launches",
    "The ",
    "Launches",
    "(",
)

CHIP = """\
model: {config: llama-3.1-8b}
workload:
  sequences: [{context: 4000, tokens: 2, count: 16}]
  batching: continuous
hardware:
  engines: {count: 8, flops: 32 TFLOP/s, vector_flops: 1 TOP/s, overhead: 1 us}
  memory: {bandwidth: 800 GB/s, latency: 200 ns, arbiter: processor_sharing}
  sram: 48 MiB
mapping: {softmax: online, kv_splits: 4, tiles: 16, fuse: {qkv: true, gate_up: true}, formats: {weights: int8}}
"""

SESSIONS = (
    Session(
        user="A newcomer",
        question="Is a Raspberry Pi 5 fast enough to chat with a model of 1B?",
        steps=(
            Step(type="sim new --model llama-3.2-1b --device raspberry-pi-5 --use one"),
            Step(type="sim run llama-3.2-1b-raspberry-pi-5.yaml", keep=("makespan", "tokens", "4.5 tokens", "memory", "trace")),
            Step(say="4.5 tokens per second, which is slow. What would make it faster?",
                 type="sim explain llama-3.2-1b-raspberry-pi-5.yaml", keep=HELP),
            Step(say="Memory is the limit, so weights in fewer bits should help as much as memory that is faster:",
                 type="sim run llama-3.2-1b-raspberry-pi-5.yaml --no-trace --set mapping.formats.weights=q4_0",
                 keep=("tokens", "memory")),
        ),
        answer="In 4 bits it may be: 14.7 tokens per second. `sim view` opens the trace in the Perfetto UI.",
    ),
    Session(
        user="An architect",
        question="An accelerator for Llama 3.1 8B: how many engines, and how much bandwidth?",
        steps=(
            Step(type="sim run chip.yaml --no-trace", files=(("chip.yaml", CHIP),),
                 keep=("makespan", "tokens", "memory", "SRAM", "engines", "bounds", "is ")),
            Step(type="sim explain chip.yaml", keep=(*HELP, "fewer", "SRAM", "unbounded")),
            Step(say="The channel is the limit. How many engines does a faster one need?",
                 type="sim sweep chip.yaml --over hardware.engines.count=2,4,8,16 "
                      "--over 'hardware.memory.bandwidth=400,800,1600 GB/s'"),
            Step(type="sim study studies/chip",
                 keep=("best by", "point", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "effects", "engines", "bandwidth",
                       "hardware.engines.count beyond")),
        ),
        answer="Eight, also at twice the bandwidth. And SRAM without a bound would be slower: loads of later layers would "
               "share the channel with those that are needed first.",
    ),
    Session(
        user="An inference engineer",
        question="What load does one H100 sustain with an 8B, and is fp8 worth it?",
        steps=(
            Step(type="sim new --model llama-3.1-8b --device h100-sxm --use serve"),
            Step(type="sim run llama-3.1-8b-h100-sxm.yaml --no-trace",
                 keep=("requests", "rates", "mean", "TTFT", "TPOT", "queued", "energy")),
            Step(type="sim explain llama-3.1-8b-h100-sxm.yaml", keep=(*HELP, "as it is", "batch", "more", "sustained", "last")),
            Step(type="sim compare llama-3.1-8b-h100-sxm.yaml --set-b mapping.formats.weights=fp8 "
                      "--set-b mapping.formats.arithmetic=fp8",
                 keep=("makespan", "TTFT", "TPOT", "bytes per token", "joules per token", "energy")),
        ),
        answer="It sustains 41.6 requests per second, and 51.6 with weights in 8 bits. At 2.26 per second steps have few "
               "sequences, and each token pays for all weights: with fp8 it takes 0.590x the time and 0.808x the energy.",
    ),
    Session(
        user="A researcher of scheduling",
        question="Does fair sharing of the memory channel serve sequences better than first come, first served?",
        steps=(
            Step(type="sim list arbiters", keep=("fifo", "processor_sharing", "weighted", "priority")),
            Step(type="sim compare arbiter_32_sequences_fifo arbiter_32_sequences_processor_sharing",
                 keep=("arbiter", "hardware", "makespan", "tokens/s", "TTFT", "TPOT", "end to end", "fairness")),
            Step(say="The mean latency is halved, at the price of first tokens that wait longer. Both run into the same bound:",
                 type="sim explain arbiter_32_sequences_fifo --no-what-if", keep=("bound", "longest", "work of", "bytes of")),
        ),
        answer="An arbiter of your own is [one class](../guides/own_arbiter.md); the same commands compare it.",
    ),
    Session(
        user="A student",
        question="Why did this token wait?",
        steps=(
            Step(type="sim run two_tokens_4_engines", keep=("makespan", "tokens", "trace", "open")),
            Step(type="sim explain two_tokens_4_engines --token 0.1"),
        ),
        answer="Its cache could not be read before the token before had stored it. Then 32 heads queued for four engines.",
    ),
    Session(
        user="Someone with bad luck",
        question="What else can go wrong?",
        steps=(
            Step(say="Misspelled, in another place each time:", type="sim rn chip.yaml", fails=True),
            Step(type="sim run chip.yml", fails=True),
            Step(type="sim run chip.yaml --set hardware.memory.bandwith=800GB/s", fails=True),
            Step(type="sim run chip.yaml --set hardware.memory.bandwidth=800", fails=True),
            Step(say="A tab in the file, a model that does not fit, too little SRAM:", type="sim run tab.yaml",
                 files=(("tab.yaml", "model:\n\tconfig: llama-3.2-1b\n"),), fails=True),
            Step(type="sim run big.yaml", fails=True,
                 files=(("big.yaml", "model: {config: llama-3.1-8b}\nhardware: {preset: raspberry-pi-5}\n"),)),
            Step(type="sim run chip.yaml --set 'hardware.sram=1 MiB'", fails=True),
            Step(say="A slip that would cost the file, and a file that is none:", type="sim run chip.yaml --save-log chip.yaml",
                 fails=True),
            Step(type="sim run noise.yaml", files=(("noise.yaml", "\x00\x93NUMPY\x01"),), fails=True),
        ),
        answer="Every error is one line, says where and what to write instead, has exit status 2, and has written nothing.",
    ),
)  # fmt: skip


def page() -> str:
    """docs/tutorial/sessions.md."""
    lines = [
        "# Six sessions", "",
        "What six people type, and what they get. `make docs` runs these commands and writes their output; `...` stands for "
        "lines that are left out.",
    ]  # fmt: skip
    with TemporaryDirectory() as folder, chdir(folder), patch.dict(os.environ, TERMINAL):
        for session in SESSIONS:
            lines += ["", f"## {session.user}", "", f"*{session.question}*"]
            printed = ""
            for step in session.steps:
                _holds(step.say, printed)
                shown = list(_step(step))
                printed += "\n".join(shown)
                lines += shown
            _holds(session.answer, printed)
            lines += ["", session.answer]
    return "\n".join(lines) + "\n"


def _holds(sentence: str, printed: str) -> None:
    """Raise AssertionError for a number with a decimal point in a sentence that no command has printed before it."""
    for number in re.findall(r"\d+\.\d+", sentence):
        if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", printed):
            raise AssertionError(f"no command has printed {number}: {sentence}")


def _step(step: Step) -> Iterator[str]:
    for name, content in step.files:
        Path(name).write_text(content, encoding="utf-8")
    if step.say:
        yield from ("", step.say)
    for name, content in () if step.fails else step.files:
        yield from ("", "```yaml", f"# {name}", content.rstrip(), "```")
    status, printed, _ = call(shlex.split(step.type)[1:], together=True)
    if status != (2 if step.fails else 0):
        raise AssertionError(f"{step.type}: status {status}\n{printed}")
    yield from ("", "```console", f"$ {step.type}", *_kept(printed, step.keep), "```")


def _kept(printed: str, keep: tuple[str, ...]) -> Iterator[str]:
    left_out = False
    for line in map(str.rstrip, printed.splitlines()):
        if keep and not line.lstrip().startswith(keep):
            left_out = left_out or bool(line)
            continue
        if left_out:
            yield "..."
        left_out = False
        if line or not keep:
            yield line
    if left_out:
        yield "..."
