"""Pointwise nonlinearities of cores and encoders, under the names that ``nonlinearity_type`` takes."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v1fast import _choices


class AdaptiveELU(nn.Module):
    """``elu(x - xshift) + yshift``.

    Args:
        xshift: How far the kink lies to the right of 0.
        yshift: Added to the result; 1 makes it positive.
    """

    def __init__(self, xshift: float, yshift: float) -> None:
        super().__init__()
        self.xshift = xshift
        self.yshift = yshift

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to a tensor of any shape."""
        # In place only on a tensor made here: x may belong to a hook or to the readout.
        y = F.elu(x - self.xshift, inplace=True) if self.xshift else F.elu(x)
        return y + self.yshift if self.yshift else y

    def extra_repr(self) -> str:
        """The shifts, for ``repr``."""
        return f"xshift={self.xshift}, yshift={self.yshift}"


class Elu1(AdaptiveELU):
    """``elu(x) + 1``, which is positive."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)


class Exp(nn.Module):
    """``exp(x)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to a tensor of any shape."""
        return x.exp()


class Log1Exp(nn.Module):
    """``log(1 + exp(x))``, finite for every finite x."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to a tensor of any shape."""
        # Above 40, log(1 + exp(x)) equals x in float64 too; torch's default of 20 is off by 2e-9.
        return F.softplus(x, threshold=40.0)


class SoftThreshold(Log1Exp):
    """:class:`Log1Exp` with the constant buffer ``zero``, which checkpoints of this nonlinearity hold."""

    zero: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(()))


ACTIVATIONS: dict[str, type[nn.Module]] = {
    activation.__name__: activation for activation in (AdaptiveELU, Elu1, Exp, Log1Exp, SoftThreshold)
}

_NAMES: dict[str, type[nn.Module]] = {
    "elu": AdaptiveELU,
    "exp": Exp,
    "softplus": Log1Exp,
    "identity": nn.Identity,
    **ACTIVATIONS,
}


def nonlinearity(name: str, config: Mapping[str, Any] | None = None) -> nn.Module:
    """Return the nonlinearity ``name`` of an encoder, made with the arguments ``config``.

    Raises:
        ValueError: an unknown name.
    """
    return _choices.pick("nonlinearity_type", name, _NAMES)(**(config or {}))
