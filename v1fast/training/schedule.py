"""How the learning rate changes, and when training ends."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

Verdict = Literal["better", "worse", "decay", "stop"]


class Schedule(ABC):
    """Base class. One object serves one training run."""

    def begin(self, optimizer: Optimizer, steps: int) -> None:  # noqa: B027  (not every schedule needs it)
        """Called before the first step; ``steps`` is the number of optimiser steps that training may take at most."""

    def after_step(self) -> None:  # noqa: B027
        """Called after each optimiser step."""

    @abstractmethod
    def after_epoch(self, objective: float) -> Verdict:
        """Called with the validation objective, higher is better.

        Returns:
            "better" than all before; "worse"; "decay": the best weights come back and the rate has been lowered; or
            "stop".
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs to go on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; after ``begin``."""


@dataclass
class EarlyStopping(Schedule):
    """Wait for ``patience`` epochs without improvement, go back to the best weights, lower the rate; several times.

    The schedule of neuralpredictors' ``early_stopping``, as Lurz et al. (2020) and the Sensorium baselines use it. The
    optimiser keeps its moments. (There a rate falls up to ``patience`` epochs later, by another counter.)

    Args:
        patience: epochs without improvement that end a round, >= 1.
        lr_decay_steps: rounds, >= 1; the rate is lowered between them.
        factor: by which the rate is multiplied.
        min_lr: the rate stays above.
        tolerance: an objective is better if it exceeds the best by more than this.
    """

    patience: int = 5
    lr_decay_steps: int = 3
    factor: float = 0.3
    min_lr: float = 1e-4
    tolerance: float = 1e-6
    _best: float = field(default=-math.inf, repr=False)
    _waited: int = field(default=0, repr=False)
    _round: int = field(default=1, repr=False)

    def __post_init__(self) -> None:
        for name in ("patience", "lr_decay_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: want at least 1, got {getattr(self, name)}")
        if not 0 < self.factor <= 1:
            raise ValueError(f"factor: want a value in (0, 1], got {self.factor}")

    def begin(self, optimizer: Optimizer, steps: int) -> None:
        """Remember the optimiser."""
        self._optimizer = optimizer

    def after_epoch(self, objective: float) -> Verdict:
        """See :class:`Schedule`. A NaN objective is worse."""
        if objective > self._best + self.tolerance:
            self._best, self._waited = objective, 0
            return "better"
        self._waited += 1
        if self._waited < self.patience:
            return "worse"
        if self._round == self.lr_decay_steps:
            return "stop"
        self._round, self._waited = self._round + 1, 0
        for group in self._optimizer.param_groups:
            group["lr"] = max(group["lr"] * self.factor, min(self.min_lr, group["lr"]))
        return "decay"

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Schedule`. The rates are in the optimiser's state."""
        return {"best": self._best, "waited": self._waited, "round": self._round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Schedule`."""
        self._best, self._waited, self._round = state["best"], state["waited"], state["round"]


@dataclass
class OneCycle(Schedule):
    """The rate rises, then falls to almost 0 at the last epoch (Smith & Topin 2017); no early end.

    Args:
        rise: share of the steps in which the rate rises.
    """

    rise: float = 0.15
    _best: float = field(default=-math.inf, repr=False)

    def begin(self, optimizer: Optimizer, steps: int) -> None:
        """Set the first rate; the peak of each group is the rate that it has now."""
        rates = [group.get("peak_lr", group["lr"]) for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["peak_lr"] = rate
        self._schedule = OneCycleLR(optimizer, rates, total_steps=max(steps, 2), pct_start=self.rise)

    def after_step(self) -> None:
        """Go on by a step."""
        if self._schedule.last_epoch < self._schedule.total_steps - 1:
            self._schedule.step()

    def after_epoch(self, objective: float) -> Verdict:
        """See :class:`Schedule`."""
        if objective > self._best:
            self._best = objective
            return "better"
        return "worse"

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Schedule`."""
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self._schedule.optimizer.param_groups]
        return {"best": self._best, "steps": self._schedule.state_dict(), "groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Schedule`."""
        self._best = state["best"]
        self._schedule.load_state_dict(state["steps"])
        # OneCycleLR set the first rates and momenta when it was made.
        for group, kept in zip(self._schedule.optimizer.param_groups, state["groups"], strict=True):
            group.update(kept)


def parameter_groups(module: torch.nn.Module, rate: float, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Groups of an optimiser: parameters whose name ends with an entry of ``rates`` get that rate, the others ``rate``.

    Args:
        module: its parameters that require grad.
        rate: learning rate.
        rates: end of a parameter's name, e.g. "sigma" -> learning rate. The longest that fits counts.

    Raises:
        ValueError: an entry fits no parameter.
    """
    groups: dict[str, list[torch.nn.Parameter]] = {"": [], **{name: [] for name in rates}}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            fits = [end for end in rates if name == end or name.endswith(f".{end}")]
            groups[max(fits, key=len, default="")].append(parameter)
    empty = [name for name in rates if not groups[name]]
    if empty:
        raise ValueError(f"learning_rates: want ends of the names of trained parameters, got {', '.join(empty)}")
    return [{"params": group, "lr": rates.get(name, rate)} for name, group in groups.items() if group]
