"""What all readouts share: arguments, bias, ranges of parameters, penalties."""

from __future__ import annotations

import sys
from abc import ABCMeta
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from typing_extensions import Self  # torch brings it

from v1fast import _choices
from v1fast._warnings import warn_caller
from v1fast.readouts._arguments import ChecksArguments
from v1fast.readouts._frames import check_map
from v1fast.readouts._ranges import Change, in_range

Reduction = Literal["sum", "mean"] | None
NeuronSelection = Tensor | NDArray[Any] | Sequence[int] | Sequence[bool]


def require_finite(name: str, positions: ArrayLike | Tensor) -> None:
    """Raise ValueError if a position is NaN or infinite: it would make one neuron's responses NaN, or all of them."""
    values = np.asarray(positions)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        first = tuple(bad[0].tolist())
        raise ValueError(
            f"{name}: want finite positions, got {values[first]} at {list(first)} ({len(bad)} such values)"
        )


class ConfigurationError(ValueError):
    """Arguments of a readout exclude one another."""


def select_neurons(out_idx: NeuronSelection, outdims: int, device: torch.device) -> Tensor:
    """Indices of the chosen neurons as an int64 tensor, in the order given.

    Args:
        out_idx: integer indices (negative ones count from the end) or a boolean mask over all neurons, as an array,
            list or tensor.
        outdims: number of neurons.
        device: of the result.

    Raises:
        ValueError: a mask of another length, or indices that are not one list of integers.
        IndexError: an index out of range.
    """
    index = torch.as_tensor(out_idx)
    if index.dtype == torch.bool:
        if tuple(index.shape) != (outdims,):
            raise ValueError(f"out_idx: want a mask of {outdims} neurons, got shape {tuple(index.shape)}")
        return index.nonzero().flatten().to(device)
    if index.dim() != 1 or (index.is_floating_point() and index.numel() > 0):
        raise ValueError(f"out_idx: want a list of integers or a mask, got {index.dtype} of shape {tuple(index.shape)}")
    index = index.to(torch.int64)
    # On a GPU an index out of range fails an assertion and breaks every later call. A compiled graph checks by itself.
    if index.numel() and not (index.is_meta or torch.compiler.is_compiling()):
        low, high = torch.stack(index.aminmax()).tolist()
        if low < -outdims or high >= outdims:
            got = low if low < -outdims else high
            raise IndexError(f"out_idx: want indices from {-outdims} to {outdims - 1}, got {got}")
    return torch.arange(outdims, device=device)[index.to(device)]


def sharing_index(match_ids: ArrayLike, outdims: int) -> tuple[int, Tensor]:
    """Return the number of distinct ids, and for each neuron the rank of its id. ValueError unless there are N."""
    ids = np.asarray(match_ids)
    if ids.shape != (outdims,):
        raise ValueError(f"match_ids: want one id per neuron, ({outdims},), got {ids.shape}")
    unique, index = np.unique(ids, return_inverse=True)
    return len(unique), torch.from_numpy(index.astype(np.int64))


class Readout(ChecksArguments):
    """Base class of the readouts.

    Attributes:
        outdims: number of neurons N.
        bias: [N] or None.
        feature_reg_weight: factor of ``regularizer``.
    """

    outdims: int
    bias: nn.Parameter | None
    feature_reg_weight: float

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make the object as usual; first register this class with openretina, if that has been imported."""
        join_openretina()
        return super().__new__(cls, *args, **kwargs)

    def number_of_neurons(self) -> int:
        """Return N; openretina's containers call this."""
        return self.outdims

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Reset the parameters to their initial distribution."""
        raise TypeError(f"{type(self).__name__} has to define initialize()")

    def regularizer(self, reduction: Reduction = "sum", average: bool | None = None) -> Tensor | int | float:
        """The penalty to add to the loss."""
        raise TypeError(f"{type(self).__name__} has to define regularizer()")

    def _ranges(self) -> Mapping[str, Change]:
        """Names of the parameters that are kept in a range -> the function that brings their values there."""
        return {}

    def _neuron_axes(self) -> dict[str, int]:
        """Names of the parameters and buffers that hold values of each neuron -> the axis that counts the neurons.

        Names that a readout does not have are skipped. What is in none of these is shared by the neurons.
        """
        return {"bias": -1}

    def _in_range(self, name: str, write: bool = False, shape: Sequence[int] | None = None) -> Tensor:
        """Return a parameter's values in range, for this pass.

        Args:
            name: of the parameter.
            write: whether to change the parameter itself too, in training mode.
            shape: of the result; None: that of the parameter.
        """
        parameter: Tensor = getattr(self, name)
        change = self._ranges().get(name)
        if change is not None:
            return in_range(parameter, change, write and self.training, shape)
        return parameter if shape is None else parameter.view(shape)

    def project_(self) -> None:
        """Bring the parameters into their range, in place: means into [-1, 1], weights that are kept positive to >= 0.

        A forward pass in training mode with gradients enabled does this before it computes. Every other pass, exporters
        and function transforms compute with values in range but leave the parameters as they are. Call this before
        using the parameters directly: after an optimiser's last step, or after loading weights of another library.
        """
        with torch.no_grad():
            for name, change in self._ranges().items():
                parameter: Tensor = getattr(self, name)
                parameter.copy_(change(parameter))

    def resolve_reduction_method(self, reduction: Reduction = "mean", average: bool | None = None) -> Reduction:
        """``reduction``, unless the deprecated ``average`` is given: True means "mean", False "sum"."""
        if average is None:
            return reduction
        warn_caller('average is deprecated: use reduction="mean" or "sum"', DeprecationWarning)
        return "mean" if average else "sum"

    def apply_reduction(self, x: Tensor, reduction: Reduction = "mean", average: bool | None = None) -> Tensor:
        """Mean or sum of ``x``, or ``x`` itself for None.

        Raises:
            ValueError: for any other reduction.
        """
        reduction = self.resolve_reduction_method(reduction, average)
        _choices.one_of("reduction", reduction, ("sum", "mean", None))
        if reduction is None:
            return x
        return x.mean() if reduction == "mean" else x.sum()

    def _sum_or_mean(self, reduction: Reduction, average: bool | None) -> Literal["sum", "mean"]:
        """The reduction of a penalty that has several terms, so that None makes no sense.

        Raises:
            ValueError: for anything but "sum" and "mean".
        """
        reduction = self.resolve_reduction_method(reduction, average)
        _choices.one_of("reduction", reduction, ("sum", "mean"))
        return cast("Literal['sum', 'mean']", reduction)

    def resolve_deprecated_gamma_readout(
        self, feature_reg_weight: float | None, gamma_readout: float | None, default: float = 1.0
    ) -> float:
        """Return ``feature_reg_weight``, else ``gamma_readout`` (its old name), else the default."""
        if gamma_readout is not None:
            warn_caller(
                "gamma_readout is deprecated: use feature_reg_weight, which takes precedence", DeprecationWarning
            )
        if feature_reg_weight is not None:
            return feature_reg_weight
        return default if gamma_readout is None else gamma_readout

    def initialize_bias(self, mean_activity: Tensor | None = None) -> None:
        """Set the bias to a copy of ``mean_activity`` [N], or to zero.

        The values are copied; the parameter keeps its dtype and device. (In neuralpredictors the parameter becomes the
        caller's tensor, which training then changes.)

        Raises:
            ValueError: ``mean_activity`` has another shape.
        """
        if self.bias is None:
            return
        with torch.no_grad():
            if mean_activity is None:
                self.bias.zero_()
            elif tuple(mean_activity.shape) != tuple(self.bias.shape):
                want, got = tuple(self.bias.shape), tuple(mean_activity.shape)
                raise ValueError(f"mean_activity: want [N] = {want}, got {got}")
            else:
                self.bias.copy_(mean_activity)


class FeatureReadout(Readout):
    """Base class of the layers that weight the features of a core: all that they share but forward.

    Args:
        in_shape: (C, H, W) of the features, or (C, T, H, W).
        outdims: number of neurons N.
        mean_activity: initial bias, of its shape.

    Attributes:
        in_shape: as given.
        outdims: as given.
        mean_activity: as given; the default of ``initialize``.
        bias: [N], for several outputs per neuron [P, N]; or None.
        feature_reg_weight: factor of ``regularizer``.
        first_neuron: index of the first neuron in a population of which these neurons are a part. What is drawn from a
            seed is counted by it.
        first_image: index of the first image in a larger batch, for calls without a seed: processes that share torch's
            seed and see different images then draw differently. See :func:`v1fast.distributed.split_images`.
    """

    # Class attributes because accelerated layers of other libraries do not set them.
    first_neuron: int = 0
    first_image: int = 0
    in_shape: Sequence[int]
    mean_activity: Tensor | None

    def __init__(self, in_shape: Sequence[int], outdims: int, mean_activity: Tensor | None = None) -> None:
        super().__init__()
        self.in_shape, self.outdims, self.mean_activity = in_shape, outdims, mean_activity

    @property
    def _map_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.in_shape[0], self.in_shape[-2], self.in_shape[-1]

    def _require_in_shape(self, x: Tensor) -> None:
        shape, in_shape = x.shape, self.in_shape
        if len(shape) != 4 or shape[1] != in_shape[0] or shape[2] != in_shape[-2] or shape[3] != in_shape[-1]:
            check_map(x, *self._map_shape)

    @property
    def _bias_shape(self) -> tuple[int, ...]:
        return (self.outdims,)

    def _make_bias(self, trained: bool, buffer: bool = False) -> None:
        """Register a trained bias, whose values ``_start_bias`` sets; or a ``buffer`` of zeros; or None."""
        if trained:
            self.bias = nn.Parameter(torch.empty(self._bias_shape))
        elif buffer:
            self.register_buffer("bias", torch.zeros(self._bias_shape))
        else:
            self.register_parameter("bias", None)

    def _start_bias(self, mean_activity: Tensor | None = None) -> None:
        """Set the bias to ``mean_activity``, else to the constructor's, else to zero."""
        self.initialize_bias(self.mean_activity if mean_activity is None else mean_activity)

    def _bias_of(self, index: Tensor | None) -> Tensor | None:
        """The biases [..., N] of the neurons ``index``, or of all."""
        bias: Tensor | None = self.bias
        return bias if bias is None or index is None else bias[..., index]

    def _magnitudes(self) -> Tensor:
        """Absolute weights; their sum is ``feature_l1``."""
        features: Any = self.features
        magnitudes: Tensor = features.abs()
        return magnitudes

    def feature_l1(self, reduction: Reduction = "sum", average: bool | None = None) -> Tensor:
        """L1 norm of the weights of the features."""
        return self.apply_reduction(self._magnitudes(), reduction=reduction, average=average)

    def regularizer(self, reduction: Reduction = "sum", average: bool | None = None) -> Tensor:
        """``feature_l1`` times ``feature_reg_weight``."""
        return self.feature_l1(reduction=reduction, average=average) * self.feature_reg_weight

    def _details(self) -> list[str]:
        """Words that ``print`` shows after shapes and bias."""
        return []

    def extra_repr(self) -> str:
        """What ``print`` shows of the configuration."""
        bias = ["bias"] if self.bias is not None and "bias" not in self._buffers else []
        return ", ".join([f"{' x '.join(map(str, self.in_shape))} -> {self.outdims}", *bias, *self._details()])


def join_openretina() -> None:
    """Register these readouts with openretina's abstract class, which its containers ask for.

    openretina is never imported here. Importing v1fast registers them if openretina has been imported before; making a
    readout does so if it was imported later.
    """
    theirs = getattr(sys.modules.get("openretina.modules.readout.base"), "Readout", None)
    if isinstance(theirs, ABCMeta) and not issubclass(Readout, theirs):
        theirs.register(Readout)


join_openretina()
