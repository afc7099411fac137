"""The factorised readout of videos, followed by a softplus, as openretina has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from v1fast import _choices
from v1fast._laplace import Laplace
from v1fast.readouts._maps import MapReadout
from v1fast.readouts._masks import masked_readout
from v1fast.readouts._ranges import Change, copied
from v1fast.readouts.base import Reduction

WeightsConstraint = Literal["abs", "norm", "absnorm"] | None
MaskConstraint = Literal["abs"] | None


class _Smoothness(nn.Module):
    """``sum (L m)^2 / (sum m^2 + 1e-6)`` over all masks, which does not depend on their scale."""

    def __init__(self) -> None:
        super().__init__()
        self.laplace = Laplace(padding=0)

    def forward(self, masks: Tensor) -> Tensor:
        """The penalty of masks [N, H, W], a scalar."""
        return self.laplace(masks.unsqueeze(1)).square().sum() / (masks.square().sum() + 1e-6)


def _divided_by_norm(weights: Tensor) -> Tensor:
    return weights / (weights.square().sum(0, keepdim=True) + 1e-5).sqrt()


def _absolute_norm(weights: Tensor) -> Tensor:
    return _divided_by_norm(weights.abs())


_CHANGES: dict[str, Change] = {"abs": torch.abs, "norm": _divided_by_norm, "absnorm": _absolute_norm}


class FactorizedReadout(MapReadout):
    """Each neuron weights the pixels by a mask and the channels by a vector, adds all up, and takes the softplus.

    Klindt, Ecker, Euler & Bethge, "Neural system identification for large populations separating 'what' and 'where'",
    NeurIPS 2017. Drop-in for ``FactorizedReadout`` of openretina: same constructor, state_dict keys and shapes. The
    order of the sums is the one with the smallest intermediate tensor, as in
    :class:`v1fast.readouts.FullFactorized2d`; videos often have more frames than pixels.

    Differences from openretina: docs/layers.md.

    Args:
        in_shape: (C, T, H, W) of the features; T may differ in a call.
        outdims: number of neurons N.
        mask_l1_reg: factor of the L1 norm of the masks, a mean over neurons.
        weights_l1_reg: factor of the L1 norm of the features, a mean over neurons.
        laplace_mask_reg: factor of the smoothness penalty on the masks.
        mask_size: (H, W), or H of a square.
        readout_bias: whether to add a bias per neuron; otherwise ``bias`` is an unused buffer.
        weights_constraint: constraint on the features: "abs", "norm" (L2 norm of 1) or "absnorm"; see :meth:`project_`.
        mask_constraint: constraint on the masks: "abs".
        init_mask: [N, 1, H', W'], initial masks; the middle H x W is used.
        init_weights: [C, N], initial features.
        init_scales: ((mean, standard deviation) of the initial masks, the same for the features), used where
            ``init_mask`` or ``init_weights`` is None.
        mean_activity: [N], initial bias.

    Raises:
        ValueError: an argument out of range; in forward, features that do not fit.

    Shapes of the parameters: ``mask_weights`` (H W, N), ``feature_weights`` (C, N), ``bias`` (N). Buffer
    ``_input_weights_regularizer_spatial.laplace.filter``.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        mask_l1_reg: float,
        weights_l1_reg: float,
        laplace_mask_reg: float,
        mask_size: int | tuple[int, int],
        readout_bias: bool = False,
        weights_constraint: WeightsConstraint = None,
        mask_constraint: MaskConstraint = None,
        init_mask: Tensor | None = None,
        init_weights: Tensor | None = None,
        init_scales: Sequence[tuple[float, float]] | None = None,
        mean_activity: Tensor | None = None,
    ) -> None:
        super().__init__(in_shape, outdims, mean_activity)
        _choices.one_of("weights_constraint", weights_constraint, (*_CHANGES, None))
        _choices.one_of("mask_constraint", mask_constraint, ("abs", None))
        self.reg = [mask_l1_reg, weights_l1_reg, laplace_mask_reg]
        self.readout_bias, self.weights_constraint = readout_bias, weights_constraint
        self.mask_constraint = mask_constraint
        self.mask_size = (mask_size, mask_size) if isinstance(mask_size, int) else mask_size
        self._input_weights_regularizer_spatial = _Smoothness()
        self.mask_weights = nn.Parameter(self._initial_masks(init_mask, init_scales))
        self.feature_weights = nn.Parameter(self._initial_weights(init_weights, init_scales))
        self._make_bias(readout_bias, buffer=True)
        self.initialize(mean_activity)

    def _initial_masks(self, given: Tensor | None, scales: Sequence[tuple[float, float]] | None) -> Tensor:
        height, width = self.mask_size
        if given is None:
            if scales is None:
                raise ValueError("init_mask, init_scales: want one of the two, got neither")
            return torch.empty(height * width, self.outdims).normal_(*scales[0])
        neurons, *size = given.shape[0], *given.shape[2:]
        if given.dim() != 4 or neurons != self.outdims or size[0] < height or size[1] < width:
            want = f"[N, 1, H', W'] with N = {self.outdims} and at least {height} x {width} pixels"
            raise ValueError(f"init_mask: want {want}, got {tuple(given.shape)}")
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        middle = given.detach()[:, :, top : top + height, left : left + width]
        return (
            middle.reshape(neurons, -1).t().to(torch.get_default_dtype()).clone(memory_format=torch.contiguous_format)
        )

    def _initial_weights(self, given: Tensor | None, scales: Sequence[tuple[float, float]] | None) -> Tensor:
        shape = (self.in_shape[0], self.outdims)
        if given is None:
            if scales is None:
                raise ValueError("init_weights, init_scales: want one of the two, got neither")
            return torch.empty(shape).normal_(*scales[1])
        if tuple(given.shape) != shape:
            raise ValueError(f"init_weights: want [C, N] = {shape}, got {tuple(given.shape)}")
        return given.detach().clone()

    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Set the bias to ``mean_activity`` or zero; masks and features stay."""
        self._start_bias(mean_activity)

    def apply_constraints(self) -> None:
        """Bring masks and features into their range, in place: openretina's name of :meth:`project_`."""
        self.project_()

    def _ranges(self) -> Mapping[str, Change]:
        kinds = {"mask_weights": self.mask_constraint, "feature_weights": self.weights_constraint}
        return {name: _CHANGES[kind] for name, kind in kinds.items() if kind is not None}

    def _in_range(self, name: str, write: bool = False, shape: Sequence[int] | None = None) -> Tensor:
        # A checkpointed pass runs again inside the backward pass: it must not normalise a second time.
        if torch.compiler.is_compiling() or not write:
            return super()._in_range(name, write, shape)
        normed: dict[str, int] = self.__dict__.setdefault("_normed", {})
        parameter: Tensor = getattr(self, name)
        before = parameter._version
        if torch._C._current_graph_task_id() != -1 and normed.get(name) == before:
            return copied(parameter, shape)
        values = super()._in_range(name, write, shape)
        if parameter._version != before:
            normed[name] = parameter._version
        return values

    def _constrained(self) -> tuple[Tensor, Tensor]:
        return self._in_range("mask_weights", write=True), self._in_range("feature_weights", write=True)

    def _magnitudes(self) -> Tensor:
        return self.feature_weights.abs()

    def regularizer(self, reduction: Reduction = None, average: bool | None = None) -> Tensor:
        """The three penalties; the third of them is divided by 3 for "mean"."""
        reduction = self.resolve_reduction_method(reduction, average)
        mask_l1, weights_l1, smoothness = self.reg
        masks = self.mask_weights.t().unflatten(1, self.mask_size)
        laplace = smoothness * self._input_weights_regularizer_spatial(masks)
        return (
            mask_l1 * self.mask_weights.abs().sum(0).mean()
            + weights_l1 * self._magnitudes().sum(0).mean()
            + (laplace / 3 if reduction == "mean" else laplace)
        )

    def _responses(self, x: Tensor, shift: Tensor | None, index: Tensor | None) -> Tensor:
        masks, weights = self._constrained()
        bias = self._bias_of(index) if self.readout_bias else None
        if index is not None:
            masks, weights = masks[:, index], weights[:, index]
        return F.softplus(masked_readout(x, masks.t().unflatten(1, self.mask_size), weights.t(), bias, shift))

    def _details(self) -> list[str]:
        return [f"masks of {' x '.join(map(str, self.mask_size))}"]


KlindtReadoutWrapper3D = FactorizedReadout
"""An older name of :class:`FactorizedReadout` in openretina."""
