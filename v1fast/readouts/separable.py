"""The factorised readout with masks of low rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from v1fast import _choices
from v1fast.readouts._maps import MapReadout
from v1fast.readouts._masks import masked_readout
from v1fast.readouts._ranges import Change, at_least_zero

Activation = Literal["elu", "relu"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"elu": F.elu, "relu": F.relu}


class SeparableReadout(MapReadout):
    r"""Each neuron weights rows, columns and channels by vectors of their own.

    .. math::
        \mathrm{out}_{bn} = \sum_r f\Big(\mathrm{bias}_{rn} + \sum_{cyx} W^c_{nrc}
            \sum_k W^y_{nky} W^x_{nkx}\, \mathrm{features}_{bcyx}\Big)

    with f the ELU or ReLU. The readout of Du et al., "A simplified minimodel of visual cortical neurons", bioRxiv 2024,
    whose code calls it ``Readout``: same constructor, state_dict keys and shapes, and penalties. The masks, of rank R,
    are computed first; the sums then run as in :class:`v1fast.readouts.FullFactorized2d`. Contracting the four factors
    one after the other costs as much and saves more for the backward pass. Differences from that code: docs/layers.md.

    Args:
        in_shape: (C, H, W) of the features.
        outdims: number of neurons N.
        y_init: [N], row where the initial mask is raised by ``Wxy_gabor_init``.
        x_init: [N], column where it is raised.
        c_init: [N, M], channels whose initial weights in a neuron's first vector are raised by ``coef_init / 2``.
        coef_init: [N, M].
        rank: R: each mask is the sum of R products, and there are R vectors of channels.
        yx_separable: False makes the masks free; ``rank`` must then be 1.
        bias_init: initial bias, in the shape of ``bias``; default ``mean_activity`` or 0.
        poisson: kept for compatibility, unused.
        activation: "elu" or "relu".
        Wc_coef: standard deviation of the initial weights of channels.
        Wxy_gabor_init: see ``y_init``.
        Wxy_init: standard deviation of the initial weights of rows and columns.
        positive: keep the weights of rows and columns at 0 or above, see :meth:`project_`; minimodel's trainer does
            that after every step.
        feature_reg_weight: factor of ``regularizer``.
        mean_activity: the other readouts' name of ``bias_init``.
        **kwargs: accepted and ignored.

    Raises:
        ValueError: an argument out of range; in forward, features that do not fit.

    Shapes of the parameters: ``Wy`` (N, R, H), ``Wx`` (N, R, W), or ``Wyx`` (N, H, W); ``Wc`` (N, R, C); ``bias`` (N),
    or (R, N) for R > 1.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        y_init: ArrayLike | None = None,
        x_init: ArrayLike | None = None,
        c_init: ArrayLike | None = None,
        coef_init: ArrayLike | None = None,
        rank: int = 1,
        yx_separable: bool = True,
        bias_init: ArrayLike | None = None,
        poisson: bool = False,
        activation: Activation = "elu",
        Wc_coef: float = 0.01,
        Wxy_gabor_init: float = 0.1,
        Wxy_init: float = 0.01,
        positive: bool = False,
        feature_reg_weight: float = 1.0,
        mean_activity: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        initial_bias = mean_activity if bias_init is None else torch.as_tensor(np.asarray(bias_init))
        super().__init__(in_shape, outdims, initial_bias)
        if rank < 1 or (rank > 1 and not yx_separable):
            raise ValueError(f"rank: want at least 1, and 1 where the mask is not separable, got {rank}")
        _choices.one_of("activation", activation, _ACTIVATIONS)
        if (c_init is None) != (coef_init is None):
            raise ValueError("c_init, coef_init: want both or neither, got one")
        self.rank, self.yx_separable = rank, yx_separable
        self.activation, self.positive = activation, positive
        self.feature_reg_weight = feature_reg_weight
        channels, height, width = in_shape
        if yx_separable:
            self.Wy = nn.Parameter(Wxy_init * torch.randn(outdims, rank, height))
            self.Wx = nn.Parameter(Wxy_init * torch.randn(outdims, rank, width))
        else:
            self.Wyx = nn.Parameter(0.01 * torch.randn(outdims, height, width))
        self.Wc = nn.Parameter(Wc_coef * torch.randn(outdims, rank, channels))
        self._make_bias(True)
        self._start_at(y_init, x_init, Wxy_gabor_init)
        self._start_with(c_init, coef_init)
        self.initialize()

    @torch.no_grad()
    def _start_at(self, y_init: ArrayLike | None, x_init: ArrayLike | None, amount: float) -> None:
        neurons = torch.arange(self.outdims)
        rows, columns = (None if v is None else torch.as_tensor(np.asarray(v)) for v in (y_init, x_init))
        if not self.yx_separable:
            if rows is not None and columns is not None:
                self.Wyx[neurons, rows, columns] += amount
            return
        if rows is not None:
            self.Wy[neurons, :, rows] += amount
        if columns is not None:
            self.Wx[neurons, :, columns] += amount

    @torch.no_grad()
    def _start_with(self, c_init: ArrayLike | None, coef_init: ArrayLike | None) -> None:
        if c_init is None or coef_init is None:
            return
        channels, amounts = torch.as_tensor(np.asarray(c_init)), torch.as_tensor(np.asarray(coef_init))
        neurons = torch.arange(self.outdims).view(-1, *(1,) * (channels.dim() - 1))
        self.Wc[neurons, 0, channels] += 0.5 * amounts.to(self.Wc.dtype)

    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Set the bias to ``mean_activity`` or zero; the other weights stay."""
        self._start_bias(mean_activity)

    def l1_norm(self) -> Tensor:
        """L1 norm of each neuron's weights of channels, [N]."""
        return self.Wc.abs().sum((1, 2))

    def l2_norm(self) -> Tensor:
        """Sum of the squares of each neuron's weights, [N]."""
        masks = (self.Wy, self.Wx) if self.yx_separable else (self.Wyx,)
        return torch.stack([w.square().flatten(1).sum(1) for w in (*masks, self.Wc)]).sum(0)

    def hoyer_square(self) -> Tensor:
        """Effective number of channels that a neuron uses, [N]: its squared L1 norm over its sum of squares.

        0 if all weights are 0.
        """
        squares = self.Wc.square().sum((1, 2))
        return self.l1_norm().square() / squares.clamp(min=torch.finfo(squares.dtype).tiny)

    def _magnitudes(self) -> Tensor:
        return self.l1_norm()

    @property
    def _bias_shape(self) -> tuple[int, ...]:
        return (self.rank, self.outdims) if self.rank > 1 else (self.outdims,)

    def masks(self, index: Tensor | None = None) -> Tensor:
        """The masks of all neurons or some, [N, H, W]."""
        return self._masks_of(index)

    @property
    def _factors(self) -> tuple[str, ...]:
        return ("Wy", "Wx") if self.yx_separable else ("Wyx",)

    def _ranges(self) -> Mapping[str, Change]:
        return dict.fromkeys(self._factors, at_least_zero) if self.positive else {}

    def _masks_of(self, index: Tensor | None, write: bool = False) -> Tensor:
        kept = [self._in_range(name, write) for name in self._factors]
        chosen = [w if index is None else w[index] for w in kept]
        if not self.yx_separable:
            return chosen[0]
        # flatten and unflatten: the gradient then has the strides of a contiguous parameter, also for rank 1.
        rows = chosen[0].flatten(1).unflatten(1, (self.rank, -1))
        return rows.mT @ chosen[1]

    def _responses(self, x: Tensor, shift: Tensor | None, index: Tensor | None) -> Tensor:
        weight = self.Wc.transpose(0, 1)  # [R, N, C]
        bias = self._bias_of(index)
        assert bias is not None
        bias = bias.view(self.rank, -1)
        if index is not None:
            weight = weight[:, index]
        masks = self._masks_of(index, write=True)
        return _ACTIVATIONS[self.activation](masked_readout(x, masks, weight, bias, shift)).sum(0)

    def _details(self) -> list[str]:
        return [f"rank {self.rank}" if self.yx_separable else "not separable", self.activation]
