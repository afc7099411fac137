"""What an op's benchmark provides for the harness: cases, providers, and the steps that they prepare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Absent(Exception):
    """A provider that does not run here, or not in this run. The message gives the reason."""


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Return the root mean square of the error divided by that of the exact values."""
    return ((value.double() - exact).norm() / exact.norm()).item()


class Check(Protocol):
    """Exact results of one call, and the upstream gradient that they belong to."""

    upstream: Tensor

    def errors(self, output: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the relative error of the output and of each gradient."""


class Times(NamedTuple):
    """Seconds of one call's phases."""

    draw: float
    forward: float
    backward: float


class Step(ABC):
    """One provider's call on one case, with its operands prepared.

    Attributes:
        noise: the rows that its times belong to: "seed" includes ``draw`` in the forward pass, "given" does not; None:
            a computation without noise.
        upstream: gradient of the output in the timed calls; None for a forward pass alone, without autograd.
    """

    noise: tuple[str | None, ...] = (None,)
    upstream: Tensor | None

    def warm_up(self) -> None:  # noqa: B027 - most have nothing to compile
        """Do what is done once and not timed, such as compiling."""

    def draw(self) -> Any:
        """Draw what is new in every call, for ``forward``."""
        return None

    @abstractmethod
    def forward(self, drawn: Any) -> Tensor:
        """Return the output."""

    @abstractmethod
    def backward(self, output: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        """Return the gradients by the names of the operands."""

    @abstractmethod
    def check(self) -> Check:
        """Return the exact results of the next call. The harness seeds torch equally before both."""


@dataclass(frozen=True)
class Work:
    """The minimum that a phase must do: floating-point operations, and bytes between registers and cache."""

    flops: float
    bytes: float

    def seconds(self, ceiling: Mapping[str, Any]) -> float:
        """Return the time at this machine's peak rate of multiply-adds and its read bandwidth of L2."""
        seconds = self.flops / (1e9 * ceiling["fma_gflops"]["best"])
        if ceiling["L2"]:
            seconds = max(seconds, self.bytes / (1e9 * ceiling["L2"]["read_gbs"]["best"]))
        return seconds


@dataclass(frozen=True, eq=False)  # compared by identity: operands are kept by case
class Case:
    """Shapes of one call. Subclasses add what their op needs.

    Attributes:
        name: its name in the rows.
        shape: the sizes, for the rows.
        dtype: of the large operands.
        noise: the kinds of rows, as in ``Step.noise``.
        error_bound: largest relative error with which a provider is timed.
        work: by phase, "forward" and "backward", where known.
    """

    name: str
    shape: dict[str, int]
    dtype: str = "float32"
    noise: tuple[str | None, ...] = (None,)
    error_bound: float = 1e-4
    work: Mapping[str, Work] = field(default_factory=dict)


class Provider(NamedTuple):
    """A way to compute a case.

    Attributes:
        name: its name in the rows.
        prepare: prepares the operands; raises Absent if it cannot.
        baseline: whether speed is quoted against it, or against a better baseline.
    """

    name: str
    prepare: Callable[[], Step]
    baseline: bool = False
