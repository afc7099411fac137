"""Would the tests of the GPU kernels notice a wrong instruction? ``make mutate-gpu`` counts.

The battery of calls runs on emulated GPUs, each program of a kernel with one instruction changed at a time; a change is
killed when a result is wrong or the emulator refuses what the kernel does. Written to out/mutation/.
"""

import argparse
import json
import multiprocessing
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import ptx_emulator as emulator
import torch
from emulated import kernel_name
from ptx_emulator.mutants import Mutant, sample
from ptx_emulator.ptx import sources

from gpu_mutation.battery import POINTS, SUMS, Call, families, normals_calls, points_calls, readout_calls, sums_calls
from gpu_mutation.equivalent import equivalent

SECONDS = 15
"""CPU seconds for one mutant. The whole battery takes a few."""

_FORK = multiprocessing.get_context("fork")


@dataclass
class Program:
    """One form of a kernel, and the calls that launch it, quickest first."""

    name: str
    arch: int
    text: str
    calls: list[Call]


@dataclass
class Outcome:
    """What became of a mutant."""

    program: str
    kind: str
    line: int
    source: str
    before: str
    after: str
    killed_by: str | None  # None: it survived
    equivalent: str | None  # why a survivor computes the same; None: it does not, or nobody has looked
    seconds: float


def programs(arch: int, calls: dict[str, list[Call]]) -> list[Program]:
    """Of each kernel and family of calls the form that most calls launch, with all calls that do.

    All calls pass as the compiler made the kernels.
    """
    launched: dict[str, list[tuple[float, Call]]] = {}  # by PTX
    families: dict[tuple[str, str], Counter[str]] = {}
    for family, call in ((family, call) for family, several in calls.items() for call in several):
        seconds, texts = _launched(arch, call)
        for text in texts:
            launched.setdefault(text, []).append((seconds, call))
            families.setdefault((_kernel(text), family), Counter())[text] += 1
    result: dict[str, Program] = {}
    for (kernel, family), forms in families.items():
        text = max(forms, key=lambda text: forms[text])
        ordered = [call for _, call in sorted(launched[text], key=lambda pair: pair[0])]
        result.setdefault(text, Program(f"{kernel}, {family}, sm_{arch}", arch, text, ordered))
    return list(result.values())


def _launched(arch: int, call: Call) -> tuple[float, list[str]]:
    """Seconds and PTX of what a call launches, once compiled."""
    texts: list[str] = []
    with emulator.active(arch, transform=lambda text: texts.append(text) or text):
        call()
    start = time.perf_counter()
    with emulator.active(arch):
        call()
    return time.perf_counter() - start, list(dict.fromkeys(texts))


def _kernel(text: str) -> str:
    """Its name; the two forms of the sum of slabs are as good as two kernels."""
    name = kernel_name(text)
    return name if name not in ("slabs_kernel", "sums_kernel") else f"{name} of {'many' if 'shfl' in text else 'few'}"


def killer(program: Program, mutated: str) -> str | None:
    """The first call that notices, and how."""

    def transform(text: str) -> str:
        return mutated if text == program.text else text

    for call in program.calls:
        try:
            with emulator.active(program.arch, transform=transform):
                call()
        except AssertionError:
            return f"{call.name}: wrong result"
        except emulator.EmulatorError as error:
            return f"{call.name}: {type(error).__name__}"
    return None


def killer_within_limits(program: Program, mutated: str) -> str | None:
    """The same in a process of its own, which a mutant may end: the emulator waits minutes for an endless loop."""
    receiver, sender = _FORK.Pipe(duplex=False)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        sender.send(killer(program, mutated))

    process = _FORK.Process(target=work)
    process.start()
    process.join()
    if process.exitcode == 0:
        return receiver.recv()
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"{program.name}: a mutant ended with {process.exitcode}")
    return f"no end in {SECONDS} s"


def assembles(text: str) -> bool:
    """Whether a mutant is a program at all."""
    try:
        emulator.PtxKernel(text)
    except emulator.EmulatorError:
        return False
    return True


def mutate(program: Program, count: int, seed: int, report: Callable[[Outcome], None]) -> None:
    """Sample mutants of one program and see what becomes of them."""
    where = sources(program.text)
    for mutant in sample(program.text, count, seed):
        mutated = mutant.of(program.text)
        if assembles(mutated):
            start = time.perf_counter()
            by = killer_within_limits(program, mutated)
            seconds = time.perf_counter() - start
            report(_outcome(program, mutant, where[mutant.line], by, seconds))


def _outcome(program: Program, mutant: Mutant, source: str, by: str | None, seconds: float) -> Outcome:
    before, after = " ".join(mutant.before.split()), " ".join(mutant.after.split())
    why = None if by else equivalent(program.name.split()[0], mutant, source)
    return Outcome(program.name, mutant.kind, mutant.line, source, before, after, by, why, round(seconds, 2))


def write(outcomes: list[Outcome], folder: Path) -> None:
    """All outcomes as JSON, the counts and the survivors as markdown."""
    (folder / "outcomes.json").write_text(json.dumps([asdict(o) for o in outcomes], indent=1))
    every = Counter(o.program for o in outcomes)
    same = Counter(o.program for o in outcomes if o.equivalent)
    killed = Counter(o.program for o in outcomes if o.killed_by)
    rate = killed.total() / max(1, len(outcomes) - same.total())
    lines = ["| program | mutants | equivalent | killed |", "|---|---|---|---|"]
    lines += [f"| {name} | {n} | {same[name]} | {killed[name]} |" for name, n in every.items()]
    lines += [f"| all | {len(outcomes)} | {same.total()} | {killed.total()} ({rate:.1%} of the others) |", ""]
    lines += ["| survivor | line | source | program | change | why |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {o.kind} | {o.line} | {o.source} | {o.program} | `{o.before}` -> `{o.after}` | {o.equivalent or ''} |"
        for o in sorted(outcomes, key=lambda o: o.equivalent or "")
        if o.killed_by is None
    ]
    (folder / "report.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Run it all; the same seed gives the same mutants."""
    parser = argparse.ArgumentParser(prog="gpu_mutation", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/mutation"))
    parser.add_argument("--count", type=int, default=12, help="mutants of each program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="programs whose names hold this")
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory is NaN: what is not written shows
    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    batteries = {80: families(), 90: ["drawn"]}
    for arch, names in batteries.items():
        calls = {"normals": list(normals_calls())} | {name: list(readout_calls(name)) for name in names}
        calls |= {name: list(points_calls(name)) for name in POINTS} if arch == 80 else {}
        calls |= {name: list(sums_calls(name)) for name in SUMS}
        for program in programs(arch, calls):
            if options.only in program.name:
                print(f"{program.name}: {len(program.calls)} calls", flush=True)
                options.out.mkdir(parents=True, exist_ok=True)
                (options.out / f"{program.name.replace(', ', '-').replace(' ', '-')}.ptx").write_text(program.text)
                mutate(program, options.count, options.seed, outcomes.append)
                write(outcomes, options.out)
    print((options.out / "report.md").read_text())


if __name__ == "__main__":
    main()
