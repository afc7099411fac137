"""Error first, then time: the providers of one computation take turns on one case.

A provider is timed only if its error is within the case's bound. In round r the turns start with provider r mod P. So a
machine whose speed changes treats all providers alike.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .clocks import Clock, call
from .contract import Absent, Case, Provider, Step, Times, Work
from .memory import peak_of
from .rows import MEASURED, Memory, Quartiles, Row, Speedup

FINEST_OBSERVATION = 2e-3  # seconds: shorter calls are timed in groups, so the clock's resolution does not matter
MOST_OBSERVATIONS = 8  # per provider and turn
BEATEN = 1.5  # a baseline slower than the fastest by this factor in every phase takes no further turns


@dataclass(frozen=True)
class Effort:
    """How long to measure one case.

    Attributes:
        rounds: at most; there is always one.
        seconds: for all turns; no round begins that would probably end later. Preparation is not counted.
        turn: seconds of one provider's turn, which ends after the first observation beyond them.
        lasting: a call of at least this many seconds needs no warm-up. If the first call is that long, it counts as an
            observation. If the last call was shorter, a turn begins with a call that is not counted.
    """

    rounds: int = 50
    seconds: float = 6.0
    turn: float = 0.6
    lasting: float = 2.5


@dataclass
class _Entrant:
    provider: Provider
    step: Step | None = None
    observe: Callable[[], Times] | None = None  # what times the step once
    status: str = MEASURED
    errors: dict[str, float] = field(default_factory=dict)
    memory: Memory | None = None
    calls: int = 1
    times: list[Times] = field(default_factory=list)
    beaten: bool = False


class Contest:
    """Providers on one case, with one number of threads. ``rows`` may be called at any time, also after Ctrl-C."""

    def __init__(
        self,
        op: str,
        case: Case,
        providers: Sequence[Provider],
        *,
        clock: Clock,
        device: str = "cpu",
        threads: int | None = 1,
        effort: Effort | None = None,
        say: Callable[[str], None] = lambda text: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.op, self.case, self.clock, self.device, self.threads = op, case, clock, device, threads
        self.effort, self.say, self.now = effort or Effort(), say, now
        self.entrants = [_Entrant(provider) for provider in providers]
        self.rounds = 0
        self.preparing = 0.0  # seconds

    def run(self) -> None:
        """Measure."""
        with _torch_threads(self.threads):
            start = begun = self._spent()
            while self.rounds == 0 or self._worth_another(start, begun):
                begun = self._spent()
                first = self.rounds % max(1, len(self.entrants))
                for entrant in self.entrants[first:] + self.entrants[:first]:
                    if entrant.status == MEASURED and not entrant.beaten:
                        self.say(f"{self.case.name}: {entrant.provider.name}, round {self.rounds + 1}")
                        self._take_turn(entrant)
                self.rounds += 1
                self._retire_slow_baselines()
                if not any(entrant.status == MEASURED for entrant in self.entrants):
                    return

    def _retire_slow_baselines(self) -> None:
        """Drop slow baselines. Speed is quoted against the fastest one per phase; others need no better median."""
        baselines = [e for e in self.entrants if e.provider.baseline and e.status == MEASURED and e.times]
        found = {id(e): (_median(e, "forward"), _median(e, "step")) for e in baselines}
        fastest = [min(times) for times in zip(*found.values(), strict=True)]
        for entrant in baselines:
            own = found[id(entrant)]
            entrant.beaten = all(time > BEATEN * least for time, least in zip(own, fastest, strict=True))

    def _spent(self) -> float:
        return self.now() - self.preparing

    def _worth_another(self, start: float, begun: float) -> bool:
        now = self._spent()
        return self.rounds < self.effort.rounds and (now - start) + (now - begun) <= self.effort.seconds

    def _take_turn(self, entrant: _Entrant) -> None:
        if entrant.step is None:
            start = self.now()
            self._enter(entrant)
            lasted = sum(sum(times) for times in entrant.times)
            self.preparing += self.now() - start - lasted
            if entrant.times or entrant.step is None:
                return
        observe, spent = entrant.observe, 0.0
        assert observe is not None
        if self.rounds > 0 and sum(entrant.times[-1]) < self.effort.lasting:
            observe()  # others have used the caches and the memory since
        for _ in range(MOST_OBSERVATIONS):
            calls = [observe() for _ in range(entrant.calls)]
            mean = Times(*(sum(phase) / len(calls) for phase in zip(*calls, strict=True)))
            entrant.times.append(mean)
            spent += len(calls) * sum(mean)
            if spent >= self.effort.turn:
                return

    def _enter(self, entrant: _Entrant) -> None:
        """Make the first call, which gives error and memory. If it is long, it also counts as an observation."""
        try:
            step = entrant.provider.prepare()
            step.warm_up()
        except Absent as why:
            entrant.status = str(why)
            return
        torch.manual_seed(0)
        check = step.check()
        torch.manual_seed(0)
        upstream = None if step.upstream is None else check.upstream
        (times, output, gradients), peak = peak_of(lambda: call(step, self.clock, upstream), self.device)
        results = sum(tensor.nbytes for tensor in (output, *gradients.values()))
        entrant.memory = None if peak is None else Memory(results, max(0, peak - results))
        entrant.errors = check.errors(output, gradients)
        worst = max(entrant.errors, key=lambda name: _badness(entrant.errors[name]))
        if _badness(entrant.errors[worst]) > self.case.error_bound:
            error = entrant.errors[worst]
            entrant.status = f"not timed: error {error:.2g} in {worst}, beyond {self.case.error_bound:.2g}"
            return
        try:
            entrant.observe = self.clock.observer(step)
        except Absent as why:
            entrant.status = str(why)
            return
        if not self.clock.times_first_call:
            times = entrant.observe()
        entrant.step = step
        entrant.calls = max(1, math.ceil(FINEST_OBSERVATION / max(sum(times), 1e-9)))
        if sum(times) >= self.effort.lasting:
            entrant.times.append(times)

    def rows(self, run: Mapping[str, Any]) -> list[Row]:
        """Return what was measured so far. ``run`` is a ``v1fast.doctor.Report`` as a dict."""
        found = []
        for entrant in self.entrants:
            if entrant.status != MEASURED:
                found.append(self._row(entrant, self.case.noise[0], run))
            elif entrant.step is not None and entrant.times:
                found += [self._row(entrant, noise, run) for noise in entrant.step.noise]
        return [replace(row, speedup=_speedup(row, found)) for row in found]

    def _row(self, entrant: _Entrant, noise: str | None, run: Mapping[str, Any]) -> Row:
        milliseconds = _milliseconds(entrant, noise) if entrant.status == MEASURED else {}
        return Row(
            op=self.op,
            case=self.case.name,
            shape=dict(self.case.shape),
            dtype=self.case.dtype,
            noise=noise,
            provider=entrant.provider.name,
            baseline=entrant.provider.baseline,
            device=self.device,
            threads=self.threads,
            clock=self.clock.name,
            status=entrant.status,
            errors={name: error for name, error in entrant.errors.items() if math.isfinite(error)},
            error_bound=self.case.error_bound,
            milliseconds=milliseconds,
            observations=len(entrant.times),
            rounds=self.rounds,
            speedup={},
            limit_fraction=_limit_fraction(self.case.work, milliseconds, self._ceiling(run)),
            memory=entrant.memory,
            run=dict(run),
        )

    def _ceiling(self, run: Mapping[str, Any]) -> Mapping[str, Any] | None:
        found = (ceiling for ceiling in run.get("ceilings", ()) if ceiling["threads"] == self.threads)
        return next(found, None) if self.device == "cpu" else None


def _badness(error: float) -> float:
    return error if math.isfinite(error) else math.inf


def _median(entrant: _Entrant, phase: str) -> float:
    """Return the median seconds of the forward pass, or of a whole step."""
    return statistics.median(sum(times[: 2 if phase == "forward" else 3]) for times in entrant.times)


def _milliseconds(entrant: _Entrant, noise: str | None) -> dict[str, Quartiles]:
    step = entrant.step
    assert step is not None
    forward = [times.forward + (0 if noise == "given" else times.draw) for times in entrant.times]
    found = {"forward": Quartiles.of(forward)}
    if step.upstream is not None:
        backward = [times.backward for times in entrant.times]
        found["backward"] = Quartiles.of(backward)
        found["step"] = Quartiles.of(a + b for a, b in zip(forward, backward, strict=True))
    return found


def _speedup(row: Row, rows: Sequence[Row]) -> dict[str, Speedup]:
    found = {}
    for phase, own in row.milliseconds.items():
        rivals = [
            (other.milliseconds[phase].median, other.provider)
            for other in rows
            if other.baseline and other.noise == row.noise and other.measured
        ]
        if rivals and own.median > 0:
            median, provider = min(rivals)
            found[phase] = Speedup(median / own.median, provider)
    return found


def _limit_fraction(
    work: Mapping[str, Work], milliseconds: Mapping[str, Quartiles], ceiling: Mapping[str, Any] | None
) -> dict[str, float]:
    if ceiling is None:
        return {}
    limits = {phase: 1e3 * least.seconds(ceiling) for phase, least in work.items()}
    if {"forward", "backward"} <= limits.keys():
        limits["step"] = limits["forward"] + limits["backward"]
    return {
        phase: limits[phase] / taken.median
        for phase, taken in milliseconds.items()
        if phase in limits and taken.median > 0
    }


@contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before if count is None else count)
        yield
    finally:
        torch.set_num_threads(before)
