"""Batches of calls, each in a process of its own."""

import contextlib
import faulthandler
import os
import resource
import signal
from pathlib import Path

import hypothesis
import new_processes
import torch

from . import public, raw

GROUPS = {"raw": raw, "public": public}
SECONDS = 60  # for one call; sanitized and on a busy machine
MOST_MEMORY = 8 << 30


class Died(AssertionError):
    """The process ended with a call."""


def sanitized():
    return "libasan" in os.environ.get("LD_PRELOAD", "")


def make_calls(journal, seed, examples, names):
    """Of each (group, name), in this process."""
    if not sanitized():  # its shadow memory takes up all addresses
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory is NaN: what is not written shows
    for group, name in names:
        _make_calls(GROUPS[group], name, examples, seed, journal)


def _make_calls(module, name, examples, seed, journal):
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(module.calls(name, huge=not sanitized()))
    def run(call):
        with open(journal, "w") as file:
            file.write(repr(call))
        if os.environ.get("V1FAST_FUZZ_DIES"):
            os.kill(os.getpid(), signal.SIGSEGV)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            module.check(call)
        finally:
            faulthandler.cancel_dump_traceback_later()

    run()


def run(names, examples, seed, folder):
    """As ``make_calls``, in a process which may die: AssertionError with the call that did it, and what was said."""
    journal = Path(folder) / f"{'-'.join(names[-1])}-{seed}"
    code = "import faulthandler, sys, warnings; faulthandler.enable(); warnings.simplefilter('ignore')\n"
    code += f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
    code += f"from fuzz import batch; batch.make_calls({str(journal)!r}, {seed}, {examples}, {list(names)!r})"
    status, said = new_processes.ended(code)
    if status == 0:
        return
    with contextlib.suppress(OSError):
        if "Falsifying example" not in said:  # hypothesis had no chance to make it smaller
            raise Died(f"exit {status} in {journal.read_text()}\n{said[-6000:]}")
    raise AssertionError(said[-6000:])
