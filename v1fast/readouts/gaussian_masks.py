"""Readouts that weight the pixels by a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from v1fast import _choices
from v1fast.readouts._maps import MapReadout
from v1fast.readouts._masks import masked_readout
from v1fast.readouts._points import rows_of_one
from v1fast.readouts._ranges import Change, at_least_zero, within_map
from v1fast.readouts.base import Reduction

ConstrainMode = Literal["default", "abs", "elu"]


def _grid(outdims: int, row_end: float, rows: int, column_end: float, columns: int) -> Tensor:
    """(row, column) of every pixel, from -ends to +ends, for each neuron: (N, rows, columns, 2)."""
    axes = torch.linspace(-row_end, row_end, rows), torch.linspace(-column_end, column_end, columns)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).repeat(outdims, 1, 1, 1)


def _square_distance(grid: Tensor, centre: Tensor, index: Tensor | None) -> Tensor:
    """Squared distance of every pixel to every centre [N, 2], as [N, rows, columns], for neurons ``index`` or all."""
    rows, columns = grid[:, :, 0, 0], grid[:, 0, :, 1]
    if index is not None:
        rows, columns = rows[index], columns[index]
    return (rows - centre[:, :1]).square().unsqueeze(2) + (columns - centre[:, 1:]).square().unsqueeze(1)


class DeterministicGaussian2d(MapReadout):
    """Each neuron weights the pixels by a round Gaussian with a sum of 1 and the channels by a vector.

    Drop-in for ``DeterministicGaussian2d`` of neuralpredictors: same constructor, state_dict keys and shapes, forward
    arguments. Differences from it: docs/layers.md. The sums run in the order of
    :class:`v1fast.readouts.FullFactorized2d`.

    Args:
        in_shape: (C, H, W) of the features.
        outdims: number of neurons N.
        bias: whether to add a bias per neuron.
        init_mu_range: means start uniform in [-init_mu_range, init_mu_range]; in (0, 1].
        init_sigma: initial standard deviation, > 0, in units in which the map reaches from -1 to 1 in both directions.
        positive: keep the weights positive, by ``constrain_mode``.
        constrain_mode: "default" keeps the features at 0 or above, see :meth:`project_`; "abs" uses absolute
            values, "elu" ELU + 1, both of the features and of the masks.
        mean_activity: [N], initial bias.
        feature_reg_weight: factor of the penalty, which is on the features and on the variances; default 1.
        gamma_readout: deprecated name of ``feature_reg_weight``.

    Raises:
        ValueError: an argument out of range; in forward, features that are not of ``in_shape``.

    Shapes of the parameters: ``mu`` (N, 2), (row, column) in [-1, 1]; ``log_var`` (N); ``grid`` (N, H, W, 2), which is
    not trained; ``features`` (C, N); ``bias`` (N).
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        bias: bool,
        init_mu_range: float = 0.1,
        init_sigma: float = 1,
        positive: bool = False,
        constrain_mode: ConstrainMode = "default",
        mean_activity: Tensor | None = None,
        feature_reg_weight: float | None = None,
        gamma_readout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_shape, outdims, mean_activity)
        if not 0 < init_mu_range <= 1:
            raise ValueError(f"init_mu_range: want a value in (0, 1], got {init_mu_range}")
        if not init_sigma > 0:
            raise ValueError(f"init_sigma: want a positive value, got {init_sigma}")
        _choices.one_of("constrain_mode", constrain_mode, ("default", "abs", "elu"))
        self.init_mu_range, self.init_sigma = init_mu_range, init_sigma
        self.positive, self.constrain_mode = positive, constrain_mode
        self.feature_reg_weight = self.resolve_deprecated_gamma_readout(feature_reg_weight, gamma_readout, default=1.0)
        channels, height, width = in_shape
        self.mu = nn.Parameter(torch.empty(outdims, 2))
        self.log_var = nn.Parameter(torch.empty(outdims))
        self.grid = nn.Parameter(_grid(outdims, 1, height, 1, width), requires_grad=False)
        self.features = nn.Parameter(torch.empty(channels, outdims))
        self._make_bias(bias)
        self.initialize(mean_activity)

    @torch.no_grad()
    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Draw new means, set variances, features (1 / C) and the bias (``mean_activity`` or zero)."""
        self.mu.uniform_(-self.init_mu_range, self.init_mu_range)
        self.log_var.fill_(math.log(self.init_sigma**2))
        self.features.fill_(1 / self.in_shape[0])
        self._start_bias(mean_activity)

    def mask(self) -> Tensor:
        """The Gaussians, [N, H, W]."""
        return self._mask_of(None)

    def _ranges(self) -> Mapping[str, Change]:
        clamped = self.positive and self.constrain_mode == "default"
        return {"mu": within_map, **({"features": at_least_zero} if clamped else {})}

    def _mask_of(self, index: Tensor | None, write: bool = False) -> Tensor:
        mu = self._in_range("mu", write)
        log_var: Tensor = self.log_var
        if index is not None:
            mu, log_var = mu[index], log_var[index]
        exponent = -0.5 * _square_distance(self.grid, mu, index) / log_var.exp().view(-1, 1, 1)
        # A softmax, because the sum of exp(exponent) underflows to 0 for a narrow Gaussian between pixels.
        return exponent.flatten(1).softmax(1).view_as(exponent)

    def variance_l1(self, reduction: Reduction = "sum", average: bool | None = None) -> Tensor:
        """Sum of the variances."""
        return self.apply_reduction(self.log_var.exp(), reduction=reduction, average=average)

    def regularizer(self, reduction: Reduction = "sum", average: bool | None = None) -> Tensor:
        """``feature_l1`` plus ``variance_l1``, times ``feature_reg_weight``."""
        reduction = self.resolve_reduction_method(reduction, average)
        return (self.feature_l1(reduction) + self.variance_l1(reduction)) * self.feature_reg_weight

    def _responses(self, x: Tensor, shift: Tensor | None, index: Tensor | None) -> Tensor:
        features = self._in_range("features", write=True)
        if index is not None:
            features = features[:, index]
        mask = self._mask_of(index, write=True)
        if self.positive and self.constrain_mode == "abs":
            features = features.abs()
        elif self.positive and self.constrain_mode == "elu":
            mask, features = F.elu(mask) + 1, F.elu(features) + 1
        return masked_readout(x, mask, features.t(), self._bias_of(index), shift)


class GaussianMaskReadout(MapReadout):
    """Each neuron weights the pixels by a round Gaussian and the channels by a vector; a nonlinearity makes a rate.

    Höfling et al., "A chromatic feature detector in the retina signals visual context changes", eLife 2024. Drop-in for
    ``GaussianMaskReadout`` of openretina: same constructor, state_dict keys and shapes. Differences from it:
    docs/layers.md. The sums run in the order of :class:`v1fast.readouts.FullFactorized2d`.

    Args:
        in_shape: (C, T, H, W) of the features; T may differ in a call.
        outdims: number of neurons N.
        mean_activity: [N], initial bias.
        gaussian_mean_scale: the means are ``mask_mean`` times this.
        gaussian_var_scale: the logarithms of the variances are ``mask_log_var`` times this.
        positive: keep the features at 0 or above, see :meth:`project_`.
        scale: learn a factor per neuron; otherwise ``scale_param`` is a buffer of ones.
        bias: learn a bias per neuron; otherwise ``bias`` is a buffer, which is still added.
        nonlinearity_function: applied to scale times sum plus bias.
        mask_l1_reg: factor of the penalty on the variances and on the squares of the means.
        feature_weights_l1_reg: factor of the L1 norm of the features.

    Raises:
        ValueError: an argument does not fit; in forward, features that are not of ``in_shape``.

    Shapes of the parameters: ``mask_mean`` (N, 2), (row, column), in units in which the map's longer side reaches from
    -1 to 1; ``mask_log_var`` (N); ``features`` (1, C, 1, N); ``scale_param`` (N); ``bias`` (N). Buffer ``grid``
    (N, H, W, 2).
    """

    grid: Tensor
    scale_param: Tensor

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        mean_activity: Tensor | None = None,
        gaussian_mean_scale: float = 1.0,
        gaussian_var_scale: float = 1.0,
        positive: bool = False,
        scale: bool = False,
        bias: bool = True,
        nonlinearity_function: Callable[[Tensor], Tensor] = F.softplus,
        mask_l1_reg: float = 1.0,
        feature_weights_l1_reg: float = 1.0,
    ) -> None:
        super().__init__(in_shape, outdims, mean_activity)
        channels, _, height, width = in_shape
        self.gaussian_mean_scale, self.gaussian_var_scale = gaussian_mean_scale, gaussian_var_scale
        self.positive, self.nonlinearity_function = positive, nonlinearity_function
        self.mask_l1_reg, self.feature_weights_l1_reg = mask_l1_reg, feature_weights_l1_reg
        self.mask_mean = nn.Parameter(torch.zeros(outdims, 2))
        self.mask_log_var = nn.Parameter(torch.zeros(outdims))
        longer = max(height, width)
        self.register_buffer("grid", _grid(outdims, height / longer, height, width / longer, width))
        self.features = nn.Parameter(torch.empty(1, channels, 1, outdims).normal_(1 / channels, 0.01))
        if scale:
            self.scale_param = nn.Parameter(torch.empty(outdims).normal_(1.0, 0.01))
        else:
            self.register_buffer("scale_param", torch.ones(outdims))
        self._make_bias(bias, buffer=True)
        self.initialize(mean_activity)

    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Set the bias to ``mean_activity`` or zero; masks and features stay."""
        self._start_bias(mean_activity)

    def get_mask(self) -> Tensor:
        """The Gaussians, [N, H, W], clamped to at least exp(-10) before they are normalised."""
        return self._mask_of(None)

    def _mask_of(self, index: Tensor | None) -> Tensor:
        mean: Tensor = self.mask_mean
        log_var: Tensor = self.mask_log_var
        if index is not None:
            mean, log_var = mean[index], log_var[index]
        variance = (log_var * self.gaussian_var_scale).clamp(-20, 20).exp().view(-1, 1, 1) + 1e-8
        square = _square_distance(self.grid, mean * self.gaussian_mean_scale, index) / variance
        mask = torch.exp(-0.5 * square.clamp(max=20))
        return torch.nan_to_num(mask / mask.sum((1, 2), keepdim=True))

    @property
    def masks(self) -> Tensor:
        """The Gaussians, [H, W, N]."""
        return self.get_mask().permute(1, 2, 0)

    def feature_l1(self, average: bool = False) -> Tensor:  # type: ignore[override]  # as openretina's
        """L1 norm of the features; with ``average`` their mean absolute value."""
        return self.apply_reduction(self._magnitudes(), "mean" if average else "sum")

    def mask_l1(self, average: bool = False) -> Tensor:
        """Sum of the variances and of the squared means of the Gaussians; with ``average`` the two means, added."""
        reduction: Reduction = "mean" if average else "sum"
        variances = (self.mask_log_var * self.gaussian_var_scale).exp()
        squares = (self.mask_mean * self.gaussian_mean_scale).square()
        return self.apply_reduction(variances, reduction) + self.apply_reduction(squares, reduction)

    def regularizer(self, reduction: Reduction = "sum", average: bool | None = None) -> Tensor:
        """``mask_l1`` and ``feature_l1`` times their factors, added; with ``reduction="mean"`` each is a mean."""
        mean = self.resolve_reduction_method(reduction, average) == "mean"
        return self.mask_l1(mean) * self.mask_l1_reg + self.feature_l1(mean) * self.feature_weights_l1_reg

    def _ranges(self) -> Mapping[str, Change]:
        return {"features": at_least_zero} if self.positive else {}

    def _responses(self, x: Tensor, shift: Tensor | None, index: Tensor | None) -> Tensor:
        features = self._in_range("features", write=True)
        scale = self.scale_param
        bias = self._bias_of(index)
        assert bias is not None  # a parameter or a buffer, never None
        if index is not None:
            features, scale = features[..., index], scale[index]
        out = masked_readout(x, self._mask_of(index), rows_of_one(features), None, shift)
        return self.nonlinearity_function(out * scale + bias)
