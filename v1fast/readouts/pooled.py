"""Readouts that look at one point per neuron in the features and in their successive average poolings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from v1fast import functional
from v1fast.ops import pooled_readout as op
from v1fast.readouts._frames import fold_frames, unfold_frames
from v1fast.readouts._points import GridReadout, SeveralOutputs, stacked
from v1fast.readouts._ranges import Change, at_least_zero, within_map
from v1fast.readouts.base import NeuronSelection, Reduction, select_neurons


def whole_number(name: str, value: float) -> int:
    """``value`` as an int; ValueError unless it is a whole number of at least 0."""
    if value < 0 or int(value) != value:
        raise ValueError(f"{name}: want a whole number of at least 0, got {value}")
    return int(value)


def _without_one(outputs: Tensor) -> Tensor:
    """[R, ...] without its first axis if R is 1. ONNX squeezes only axes of length 1."""
    return outputs.squeeze(0) if outputs.shape[0] == 1 else outputs


class PooledReadout(GridReadout):
    """Base class of the layers whose features grow with ``pool_steps``: (..., (pool_steps + 1) * C, 1, N)."""

    _pool_steps: int
    _shared_features = False

    @property
    def pool_steps(self) -> int:
        """Number of poolings. Setting another replaces ``features`` by a new parameter, all 1 / C.

        The new parameter has the device and the dtype of the old one. An existing optimiser does not hold it.
        """
        return self._pool_steps

    @pool_steps.setter
    def pool_steps(self, value: int) -> None:
        steps = whole_number("pool_steps", value)
        if steps != self._pool_steps:
            if self._shared_features:
                raise ValueError("pool_steps: want new readouts for another number, since features are shared")
            self._pool_steps = steps
            self._replace_features(like=getattr(self, self.stored_features))

    def _empty_features(self, like: Tensor | None = None) -> nn.Parameter:
        """Uninitialised features, for the current number of poolings."""
        empty = torch.empty if like is None else like.new_empty
        return nn.Parameter(empty((1, self.in_shape[0] * (self._pool_steps + 1), 1, self.outdims)))

    def _replace_features(self, like: Tensor) -> None:
        features = self._empty_features(like)
        with torch.no_grad():
            features.fill_(1 / self.in_shape[0])
        setattr(self, self.stored_features, features)


class PointPooled2d(PooledReadout):
    """Each neuron reads the features, and each of their average poolings, at one point, by bilinear interpolation.

    Sinz et al., "Stimulus domain transfer in recurrent models for large scale cortical population prediction on video",
    NeurIPS 2018: the gradient of a coarse map reaches far and that of a fine one is precise. Drop-in for
    ``PointPooled2d`` of neuralpredictors (once ``SpatialTransformerPooled2d``): same constructor, state_dict keys and
    shapes, forward arguments. The computation is :func:`v1fast.functional.pooled_readout`.

    Differences from neuralpredictors: docs/layers.md.

    Args:
        in_shape: (C, H, W) of the features.
        outdims: number of neurons N.
        pool_steps: number of poolings P, >= 0.
        bias: whether to add a bias per neuron.
        pool_kern: size and stride of each pooling, >= 1.
        init_range: positions start uniform in [-init_range, init_range]; in (0, 1].
        align_corners: as in ``torch.nn.functional.grid_sample``.
        mean_activity: [N], initial bias.
        feature_reg_weight: factor of the L1 penalty on the features; default 1.
        gamma_readout: deprecated name of ``feature_reg_weight``.
        return_weighted_features: forward returns the products before the sum over channels, see there.
        **kwargs: accepted and ignored, as neuralpredictors does.

    Raises:
        ValueError: an argument out of range; in forward, features that are not of ``in_shape`` or too
            small for the poolings.

    Shapes of the parameters: ``grid`` (1, N, 1, 2), (x, y) in [-1, 1]; ``features`` (1, (P + 1) * C, 1, N), first the
    weights of the unpooled channels, then those of the first pooling, ...; ``bias`` (N).

    >>> import torch
    >>> readout = PointPooled2d((64, 28, 56), outdims=100, pool_steps=2, bias=True, pool_kern=2, init_range=0.1)
    >>> readout(torch.randn(8, 64, 28, 56)).shape
    torch.Size([8, 100])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        pool_steps: int,
        bias: bool,
        pool_kern: int,
        init_range: float,
        align_corners: bool = True,
        mean_activity: Tensor | None = None,
        feature_reg_weight: float | None = None,
        gamma_readout: float | None = None,
        return_weighted_features: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_shape, outdims, mean_activity)
        if not 0 < init_range <= 1:
            raise ValueError(f"init_range: want a value in (0, 1], got {init_range}")
        if pool_kern < 1:
            raise ValueError(f"pool_kern: want at least 1, got {pool_kern}")
        self._pool_steps, self.pool_kern = whole_number("pool_steps", pool_steps), pool_kern
        self.init_range, self.align_corners = init_range, align_corners
        self.return_weighted_features = return_weighted_features
        self.feature_reg_weight = self.resolve_deprecated_gamma_readout(feature_reg_weight, gamma_readout, default=1.0)
        self._make_points_and_features(**kwargs)
        self._make_bias(bias)
        self.initialize(mean_activity)

    def _make_points_and_features(self, **options: Any) -> None:
        """Register the parameters of place and of features; ``options`` are further arguments of the constructor."""
        self.grid = nn.Parameter(torch.empty(1, self.outdims, 1, 2))
        self.features = self._empty_features()

    @torch.no_grad()
    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Draw new positions, set features to 1 / C and the bias to ``mean_activity`` or zero."""
        self.grid.uniform_(-self.init_range, self.init_range)
        self.features.fill_(1 / self.in_shape[0])
        self._start_bias(mean_activity)

    def forward(
        self, x: Tensor, shift: Tensor | None = None, out_idx: NeuronSelection | None = None, **kwargs: Any
    ) -> Tensor:
        """Read the features.

        Args:
            x: features [B, C, H, W], fastest in channels-last; or features of videos [B, C, T, H, W], fastest in
                ``torch.channels_last_3d``.
            shift: added to the positions after the clamp, e.g. from an eye-movement shifter: [B, 2], for videos also
                [B, T, 2]; B and T may be 1.
            out_idx: neurons to compute, as integer indices or a boolean mask (array, list or tensor).
            **kwargs: accepted and ignored.

        Returns:
            [B, N] or [B, len(out_idx)]. With ``return_weighted_features`` [B, (P + 1) * C, N]: the features at the
            points times their weights, before the sum over channels and without the bias. For videos [B, T, ...].

        Raises:
            ValueError: an operand does not fit; the message names it.
        """
        self._require_in_shape(x)
        if op.of_parameters is not None and out_idx is None and x.is_cpu and x.dim() == 4:
            small = self._read_small(op.of_parameters, x, shift)
            if small is not None:
                return small
        images, shift = fold_frames(x, shift)
        grid, weight, bias = self._neurons(self.features, out_idx, x.device)
        if self.return_weighted_features:
            levels = functional.pool_levels(images, kernel=self.pool_kern, steps=self.pool_steps)
            gathered = functional.gather_levels(levels, grid, shift, align_corners=self.align_corners)
            weight = weight.unsqueeze(0) if weight.dim() == 2 else weight.flatten(0, -3)  # [R, N, (P + 1) * C]
            return unfold_frames(_without_one((weight.unsqueeze(1) * gathered).mT), x, axis=-3)
        outputs = 0
        if weight.dim() > 2:  # in the class for several
            weight = weight.flatten(0, -3)
            outputs = weight.shape[0]
            grid, weight = grid.expand(outputs, -1, -1).flatten(0, 1), stacked(weight)
            bias = None if bias is None else bias.flatten()
        out = functional.pooled_readout(
            images,
            grid,
            weight,
            bias,
            shift,
            pool_kernel=self.pool_kern,
            pool_steps=self._pool_steps,
            align_corners=self.align_corners,
        )
        if outputs:
            out = _without_one(out.unflatten(1, (outputs, -1)).transpose(0, 1))
        return unfold_frames(out, x)

    def _read_small(self, small: Callable[..., Tensor | None], x: Tensor, shift: Tensor | None) -> Tensor | None:
        """Responses [B, N] by the parameters as they are; None where the call is not small, or more is computed."""
        cls: Any = type(self)
        if (
            cls._neurons is not GridReadout._neurons
            or cls._points is not GridReadout._points
            or self.return_weighted_features
            or self._ranges().get("grid") is not within_map
            or torch.compiler.is_compiling()
        ):
            return None
        features = self._as_read(self._parameter("features"))
        if features.dim() != 4:  # in the class for several outputs
            return None
        bias, options = self._parameter("bias"), (self.align_corners, self.pool_kern, self._pool_steps)
        return small(x, self._parameter("grid"), features, bias, shift, *options, self.training)

    def _details(self) -> list[str]:
        return [f"{self.pool_steps} poolings of {self.pool_kern} x {self.pool_kern}"]


SpatialTransformerPooled2d = PointPooled2d
"""The name that Sinz et al. gave :class:`PointPooled2d`."""


class GeneralizedPointPooled2d(SeveralOutputs, PointPooled2d):
    """:class:`PointPooled2d` with several outputs per neuron: the parameters of its response distribution.

    All outputs of a neuron read the same point. Drop-in for ``GeneralizedPointPooled2d`` of neuralpredictors.
    Differences from it: docs/layers.md.

    Args:
        in_shape: (C, H, W) of the features.
        outdims: number of neurons N.
        pool_steps: number of poolings P, >= 0.
        bias: whether to add a bias per output and neuron.
        pool_kern: size and stride of each pooling, >= 1.
        init_range: positions start uniform in [-init_range, init_range]; in (0, 1].
        inferred_params_n: number of outputs R per neuron, >= 1.
        **kwargs: as in :class:`PointPooled2d`; ``mean_activity`` [N], for all outputs, or [R, N].

    Shapes of the parameters: ``grid`` (1, N, 1, 2); ``features`` (R, 1, (P + 1) * C, 1, N); ``bias`` (R, N). The result
    is [R, B, N], with ``return_weighted_features`` [R, B, (P + 1) * C, N]; without the first axis if R = 1.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        pool_steps: int,
        bias: bool,
        pool_kern: int,
        init_range: float,
        inferred_params_n: int = 1,
        **kwargs: Any,
    ) -> None:
        self._set_outputs(inferred_params_n)
        super().__init__(in_shape, outdims, pool_steps, bias, pool_kern, init_range, **kwargs)

    def _empty_features(self, like: Tensor | None = None) -> nn.Parameter:
        one = super()._empty_features(like)
        return nn.Parameter(one.new_empty(self.inferred_params_n, *one.shape))


class SpatialTransformerPooled3d(PooledReadout):
    """:class:`PointPooled2d` for videos: every frame is read at the same points.

    Drop-in for ``SpatialTransformerPooled3d`` of neuralpredictors: same constructor, state_dict keys and shapes,
    forward arguments. Differences from it: docs/layers.md.

    Args:
        in_shape: (C, T, H, W) of the features; T, H and W may differ in a call.
        outdims: number of neurons N.
        pool_steps: number of poolings P, >= 0.
        positive: keep the weights at 0 or above, see :meth:`project_`.
        bias: whether to add a bias per neuron.
        init_range: positions start uniform in [-init_range, init_range].
        kernel_size: of each pooling, >= 1.
        stride: of each pooling, >= 1.
        grid: positions (1, N, 1, 2) of another readout, to share.
        stop_grad: let no gradient pass to the features.
        align_corners: as in ``torch.nn.functional.grid_sample``.
        mean_activity: [N], initial bias.
        feature_reg_weight: factor of the L1 penalty on the features; default 1.
        gamma_readout: deprecated name of ``feature_reg_weight``.

    Raises:
        ValueError: an argument out of range; in forward, features that do not fit.

    Shapes of the parameters: ``grid`` (1, N, 1, 2), (x, y) in [-1, 1]; ``features`` (1, (P + 1) * C, 1, N);
    ``bias`` (N). Buffer ``mask``, in the shape of ``features``: 0 where :meth:`prune` removed a
    weight.
    """

    mask: Tensor

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        pool_steps: int = 1,
        positive: bool = False,
        bias: bool = True,
        init_range: float = 0.05,
        kernel_size: int = 2,
        stride: int = 2,
        grid: nn.Parameter | None = None,
        stop_grad: bool = False,
        align_corners: bool = True,
        mean_activity: Tensor | None = None,
        feature_reg_weight: float | None = None,
        gamma_readout: float | None = None,
    ) -> None:
        super().__init__(in_shape, outdims, mean_activity)
        if grid is not None and tuple(grid.shape) != (1, outdims, 1, 2):
            raise ValueError(f"grid: want (1, N, 1, 2) = (1, {outdims}, 1, 2), got {tuple(grid.shape)}")
        self.positive, self.stop_grad = positive, stop_grad
        self._pool_steps, self.kernel_size, self.stride = whole_number("pool_steps", pool_steps), kernel_size, stride
        self.init_range, self.align_corners = init_range, align_corners
        self.feature_reg_weight = self.resolve_deprecated_gamma_readout(feature_reg_weight, gamma_readout, default=1.0)
        self.grid = nn.Parameter(torch.empty(1, outdims, 1, 2)) if grid is None else grid
        self.features = self._empty_features()
        self.register_buffer("mask", torch.ones_like(self.features))
        self._make_bias(bias)
        self.reset_fisher_prune_scores()
        self.initialize(mean_activity, grid=grid is None)

    def _replace_features(self, like: Tensor) -> None:
        super()._replace_features(like)
        self.mask = torch.ones_like(self.features, requires_grad=False)
        self.reset_fisher_prune_scores()

    @torch.no_grad()
    def initialize(
        self, mean_activity: Tensor | None = None, grid: bool = True, init_noise: float | None = None
    ) -> None:
        """Draw new positions if ``grid``, set features to 1 / C and the bias to ``mean_activity`` or zero.

        ``init_noise`` has no effect, as in neuralpredictors.
        """
        self.features.fill_(1 / self.in_shape[0])
        if grid:
            self.grid.uniform_(-self.init_range, self.init_range)
        self._start_bias(mean_activity)

    def feature_l1(
        self, reduction: Reduction = "sum", average: bool | None = None, subs_idx: NeuronSelection | None = None
    ) -> Tensor:
        """L1 norm of the features, of all neurons or some."""
        features: Tensor = self.features
        if subs_idx is not None:
            features = features[..., select_neurons(subs_idx, self.outdims, features.device)]
        return self.apply_reduction(features.abs(), reduction=reduction, average=average)

    def reset_fisher_prune_scores(self) -> None:
        """Forget all scores."""
        self._prune_n = 0
        self._prune_scores: Tensor | None = None

    def update_fisher_prune_scores(self) -> None:
        """Add the last backward pass to the average of the scores: (gradient * weight)^2 / 2 for each weight.

        Raises:
            ValueError: the features have no gradient yet.
        """
        if self.features.grad is None:
            raise ValueError("features: want a gradient, from a backward pass, got none")
        scores = 0.5 * (self.features.grad * self.features.detach()).square()
        self._prune_n += 1
        self._prune_scores = scores if self._prune_scores is None else self._prune_scores + scores

    @property
    def fisher_prune_scores(self) -> Tensor:
        """The average of the scores, in the shape of the features.

        Raises:
            ValueError: there are none yet.
        """
        if self._prune_scores is None:
            raise ValueError("fisher_prune_scores: want an update_fisher_prune_scores() first, got none")
        return self._prune_scores / self._prune_n

    @torch.no_grad()
    def prune(self) -> None:
        """Remove, permanently, the weight with the lowest score from each neuron."""
        scores = self.fisher_prune_scores.masked_fill(self.mask == 0, torch.inf)
        least = scores.argmin(dim=1, keepdim=True)  # (1, 1, 1, N)
        self.mask.scatter_(1, least, 0)
        self.features.scatter_(1, least, 0)

    def _ranges(self) -> Mapping[str, Change]:
        return {**super()._ranges(), "features": self._keep}

    def _keep(self, features: Tensor) -> Tensor:
        """The features in their range, 0 where they were pruned."""
        return (at_least_zero(features) if self.positive else features) * self.mask

    def forward(
        self, x: Tensor, shift: Tensor | None = None, subs_idx: NeuronSelection | None = None, **kwargs: Any
    ) -> Tensor:
        """Read the features of every frame.

        Args:
            x: features [B, C, T, H, W].
            shift: [B, T, 2], or [B, 2] for all frames, added to the positions after the clamp.
            subs_idx: neurons to compute, as integer indices or a boolean mask (array, list or tensor).
            **kwargs: accepted and ignored.

        Returns:
            [B, T, N], or [B, T, len(subs_idx)].

        Raises:
            ValueError: an operand does not fit; the message names it.
        """
        if x.dim() != 5 or x.shape[1] != self.in_shape[0]:
            raise ValueError(f"features: want [B, C, T, H, W] with C = {self.in_shape[0]}, got {tuple(x.shape)}")
        images, shift = fold_frames(x.detach() if self.stop_grad else x, shift, as_stored=self._reads_as_stored(x))
        features = self._in_range("features", write=True)
        levels = functional.pool_levels(images, kernel=self.kernel_size, stride=self.stride, steps=self.pool_steps)
        return unfold_frames(self._read_levels(levels, features, subs_idx, shift, self.align_corners), x)

    def _details(self) -> list[str]:
        words = [f"{self.pool_steps} poolings of {self.kernel_size} x {self.kernel_size}"]
        return [*words, "stop_grad"] if self.stop_grad else words
