"""Every form of every GPU kernel, checked one after the other: what ``v1fast doctor --gpu`` shows.

They run in a process of their own. An access to a wrong address leaves a process without its GPU, and a kernel may also
crash it, or never end. Then a new process goes on after that form.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from v1fast.ops import _gpu_check
from v1fast.ops import _gpu_records as records

SECONDS = 300.0
"""What one form may take; compiling it takes seconds."""

LOST = 3
"""Exit code of a process that has lost its GPU, after it has said to which form."""


class Task(NamedTuple):
    """One form on one device."""

    device: torch.device
    machine: records.Machine
    op: str
    form: str
    call: list[Any]


def tasks() -> list[Task]:
    """Return all forms, on one device of each model."""
    self_test = importlib.import_module("v1fast.kernels._self_test")
    devices: list[tuple[torch.device, records.Machine]] = []
    for index in range(torch.cuda.device_count()):
        machine = records.machine(index)
        if all(machine != other for _, other in devices):
            devices.append((torch.device("cuda", index), machine))
    forms = self_test.all_forms()
    return [Task(*found, op, form, call) for found in devices for (op, form), call in forms.items()]


def check(task: Task) -> tuple[dict[str, Any], bool]:
    """Check one form, and keep what came of it. Return what is known then, and whether the GPU is lost."""
    kernels, self_test = (importlib.import_module(f"v1fast.kernels{name}") for name in ("", "._self_test"))
    start = time.perf_counter()
    try:
        outcome = _gpu_check.check(task.op, kernels.CUDA[task.op], self_test, task.call, task.device)
    except Exception as error:
        outcome = _gpu_check.Outcome(f"was not checked: {_gpu_check.reason_of(error)}", kept=False)
    if outcome.kept:
        records.write(task.machine, task.op, task.form, outcome.failure, renew=True)
    seconds = time.perf_counter() - start
    found = {"failure": outcome.failure, "error": outcome.error, "allowed": outcome.allowed, "seconds": seconds}
    return found, outcome.lost is not None


def main(start: int) -> int:
    """Check the forms from number ``start`` on. A line of JSON names each before, a second one says what came of it."""
    for number, task in enumerate(tasks()):
        if number < start:
            continue
        print(json.dumps({"number": number, "machine": task.machine, "op": task.op, "form": task.form}), flush=True)
        found, lost = check(task)
        print(json.dumps(found), flush=True)
        if lost:
            return LOST
    return 0


def _lines(child: subprocess.Popen[str], seconds: float) -> Iterator[dict[str, Any]]:
    """Yield what the process says. It is ended if it says nothing for so many seconds."""
    assert child.stdout is not None
    while True:
        timer = threading.Timer(seconds, child.kill)
        timer.start()
        try:
            line = child.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            return
        yield json.loads(line)


COMMAND = (sys.executable, "-m", "v1fast.ops._gpu_examination")


def examine(
    say: Callable[[str], None] = lambda what: None, command: Sequence[str] = COMMAND, seconds: float = SECONDS
) -> Iterator[dict[str, Any]]:
    """Check all forms. Yield for each: device, op, form, failure (None: it is right), error, allowed and seconds.

    Args:
        say: is told what is checked next.
        command: starts the process that checks; the number of the first form is its last argument.
        seconds: what one form may take.

    Raises:
        RuntimeError: the process ends before it checks anything.
    """
    start, code = 0, None
    while code != 0:
        begun: dict[str, Any] = {}
        first = start
        with subprocess.Popen([*command, str(start)], stdout=subprocess.PIPE, text=True) as child:
            try:
                for said in _lines(child, seconds):
                    if "number" in said:
                        begun = said
                        say(f"checking {begun['op']} on {begun['machine']['device']}")
                        continue
                    yield _row(begun, said)
                    start, begun = begun["number"] + 1, {}
            except BaseException:
                child.kill()
                raise
        code = child.returncode
        if begun:
            failure = f"does not end, or ends its process: code {code}, within {seconds:.0f} s"
            records.write(begun["machine"], begun["op"], begun["form"], failure, renew=True)
            yield _row(begun, {"failure": failure, "error": None, "allowed": None, "seconds": None})
            start = begun["number"] + 1
        elif code and start == first:
            raise RuntimeError(f"the check of the GPU's kernels ends with code {code} before it checks anything")


def _row(begun: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    return {"device": begun["machine"]["device"], "op": begun["op"], "form": begun["form"], **found}


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
