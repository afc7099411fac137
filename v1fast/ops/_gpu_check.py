"""The first use of a GPU kernel: it is compared with what runs in its place, and replaced by it where it fails.

A kernel is compiled anew for each form of a call (``v1fast.kernels._forms``). Before the first call of a form, a tiny
call of the same form is compared with the op's fallback on the CPU. What came of it is kept for the next process
(``_gpu_records``). A form whose kernel does not compile, does not run or is wrong runs on the fallback, after one
warning per op. ``V1FAST_GPU_CHECK=0`` turns the check off. A kernel that does not compile is replaced all the same.
"""

from __future__ import annotations

import functools
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor

from v1fast._warnings import warn_caller
from v1fast.ops import _gpu_records as records
from v1fast.ops._define import defaults

failures: dict[str, str] = {}
"""Op name -> why a form of its kernel was replaced in this process: the first reason."""

_lock = threading.RLock()


# Errors ----------------------------------------------------------------------------------------------------------


def _is_of_the_compiler(error: Exception) -> bool:
    from triton.errors import TritonError  # from Triton 3.4 on

    return isinstance(error, TritonError) or (type(error) is RuntimeError and "PassManager" in str(error))


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "out of memory" in str(error).lower()


def _is_passing(error: Exception) -> bool:
    """Whether the error is of the system, and may be mended with the same versions: a full disk, no C compiler."""
    return isinstance(error, (OSError, subprocess.SubprocessError)) or "C compiler" in str(error)


def reason_of(error: BaseException) -> str:
    """The first line of what the compiler says: it wraps that in the code that it was about."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _context_is_lost(device: torch.device) -> bool:
    """Whether an error has left this process without the device, as an access to a wrong address does."""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


# One form --------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What came of the check of one form."""

    failure: str | None  # what was wrong, None if nothing
    kept: bool = True  # whether it will be the same in the next process
    error: float | None = None  # the largest, of the result's largest value, beside what it may be
    allowed: float | None = None
    lost: Exception | None = None  # the error that has left this process without the device


def check(
    name: str, launcher: Callable[..., Any], self_test: Any, call: Sequence[Any], device: torch.device
) -> Outcome:
    """Compare the kernel of one form with what runs in its place, on tiny operands.

    Args:
        name: the op.
        launcher: of its kernel.
        self_test: the module ``v1fast.kernels._self_test``.
        call: legal arguments of the op; their form is checked, and their values are not read.
        device: where the kernel runs.

    Raises:
        RuntimeError: the device was lost before.
        MemoryError, torch.OutOfMemoryError: there is no room for the check now.
    """
    trials = self_test.trials(name, defaults[name], call)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # an error of what ran before is not the kernel's
    try:
        found = list(self_test.differences(name, launcher, trials, device))
    except Exception as error:
        if _is_out_of_memory(error):
            raise
        what = "does not compile" if _is_of_the_compiler(error) else "does not run"
        lost = error if device.type == "cuda" and _context_is_lost(device) else None
        return Outcome(f"{what}: {reason_of(error)}", kept=not _is_passing(error), lost=lost)
    worst = max(found, key=lambda difference: difference.share)
    failure = f"is wrong: {worst}" if worst.share > 1 else None
    return Outcome(failure, error=worst.error, allowed=worst.allowed)


def is_off() -> bool:
    """Whether the environment turns the check off."""
    return os.environ.get("V1FAST_GPU_CHECK") == "0"


def _must_not_launch(arguments: tuple[Any, ...]) -> bool:
    """Whether this call is captured into a CUDA graph, or only traced."""
    return (
        torch.cuda.is_current_stream_capturing()
        or torch.compiler.is_compiling()
        or any(isinstance(a, FakeTensor) for a in arguments)
    )


def _warn(name: str, failure: str, form: str, where: records.Machine, lost: bool = False) -> None:
    """Say once per op what to report."""
    if name in failures:
        return
    failures[name] = failure
    versions = ", ".join(f"{what} {value}" for what, value in where.items())
    restart = " The error has left this process without its GPU: start it again, and the op runs on its fallback."
    warn_caller(
        f"v1fast::{name} runs without a Triton kernel, slower: the kernel for ({form}) {failure}."
        f"{restart if lost else ''} Please report this, with what `v1fast doctor --gpu` prints: {versions}",
        RuntimeWarning,
    )


def guarded(name: str, launcher: Callable[..., Any], self_test: Any) -> Callable[..., Any]:
    """Return ``launcher`` for the forms whose kernel is right, and what runs op ``name`` without one for the others.

    ``self_test`` is the module ``v1fast.kernels._self_test``.
    """
    form_of = self_test.FORMS[name]
    usable: dict[tuple[Any, ...], bool] = {}

    @functools.wraps(launcher)  # whoever calls it sees which arguments it takes
    def launch(*arguments: Any, **given: Any) -> Any:
        form = form_of(*arguments)
        is_usable = usable.get(form)
        if is_usable is None:
            is_usable = first_use(form, arguments)
        if is_usable:
            try:
                return launcher(*arguments, **given)
            except Exception as error:
                if not _is_of_the_compiler(error):
                    raise
                fail(form, arguments, Outcome(f"does not compile: {reason_of(error)}"))
        return defaults[name](*arguments)

    def fail(form: tuple[Any, ...], arguments: tuple[Any, ...], outcome: Outcome) -> None:
        assert outcome.failure is not None
        usable[form] = False
        where, text = records.machine(form[0]), self_test.describe(name, form)
        if outcome.kept and not is_off():
            records.write(where, name, text, outcome.failure)
        _warn(name, outcome.failure, text, where, outcome.lost is not None)
        if outcome.lost is not None:
            raise outcome.lost

    def first_use(form: tuple[Any, ...], arguments: tuple[Any, ...]) -> bool:
        """Whether the kernel may run. Unless this call must not look, or had no room to, it is known from now on."""
        with _lock:
            if form in usable:
                return usable[form]
            if is_off():
                usable[form] = True
                return True
            where, text = records.machine(form[0]), self_test.describe(name, form)
            known = records.read(where, name, text)
            if _must_not_launch(arguments):
                return known is None or known.failure is None
            if known is not None:
                outcome = Outcome(known.failure, kept=False)
            else:
                try:
                    outcome = check(name, launcher, self_test, arguments, arguments[0].device)
                except Exception as error:
                    # No room now: the next call looks again. Anything else is no fault of the kernel.
                    if not _is_out_of_memory(error):
                        usable[form] = True
                    return True
            if outcome.failure is not None:
                fail(form, arguments, outcome)
                return False
            if outcome.kept:
                records.write(where, name, text, None)
            usable[form] = True
            return True

    return launch
