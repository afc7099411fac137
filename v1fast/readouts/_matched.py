"""What matched neurons share, and where cortex says that neurons look: parts of several readouts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from v1fast._torch import without_autocast
from v1fast.readouts.base import FeatureReadout, Reduction, require_finite, sharing_index


class SharedFeatures(FeatureReadout):
    """Mixin of the layers in which neurons with equal ids may share a feature vector, up to a factor of each neuron.

    Attributes:
        stored_features: name of the parameter that holds the vectors of all neurons, or of all ids.
        by_rows: whether its first axis counts neurons, not its last.
        scales: the factors, if vectors are shared.
        feature_sharing_index: [N], the vector of each neuron, if vectors are shared.
    """

    # Class attributes because accelerated layers of other libraries do not set them.
    stored_features: ClassVar[str] = "_features"
    by_rows: ClassVar[bool] = False
    _axes: ClassVar[str] = ""  # of all vectors, for messages
    _features: nn.Parameter
    scales: nn.Parameter
    feature_sharing_index: Tensor

    def _weight_shape(self, channels: int, neurons: int) -> tuple[int, ...]:
        """Shape of so many vectors."""
        return (neurons, channels) if self.by_rows else (1, channels, 1, neurons)

    def _scales_shape(self) -> tuple[int, ...]:
        return self._weight_shape(1, self.outdims)

    @property
    def _channels(self) -> int:
        """Length of a vector."""
        return self.in_shape[0]

    def initialize_features(
        self, match_ids: ArrayLike | None = None, shared_features: nn.Parameter | None = None
    ) -> None:
        """Own a feature vector per neuron, or one per id, or use another readout's."""
        self._shared_features = match_ids is not None
        self._original_features = match_ids is None or shared_features is None
        if match_ids is None:
            setattr(self, self.stored_features, self._empty_vectors(self.outdims))
            return
        count, index = sharing_index(match_ids, self.outdims)
        shape = self._weight_shape(self._channels, count)
        if shared_features is not None and tuple(shared_features.shape) != shape:
            axes = f"{self._axes} = " if self._axes else ""
            raise ValueError(f"shared_features: want {axes}{shape}, got {tuple(shared_features.shape)}")
        setattr(self, self.stored_features, self._empty_vectors(count) if shared_features is None else shared_features)
        self.scales = nn.Parameter(torch.empty(self._scales_shape()))
        self.register_buffer("feature_sharing_index", index)

    def _empty_vectors(self, neurons: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(self._weight_shape(self._channels, neurons)))

    @property
    def shared_features(self) -> nn.Parameter:
        """The parameter to hand to another readout's ``shared_features``."""
        stored: nn.Parameter = getattr(self, self.stored_features)
        return stored

    @property
    def features(self) -> Tensor:
        """Feature weights of every neuron."""
        return self._features_of(None)

    def _features_of(self, index: Tensor | None, write: bool = False) -> Tensor:
        """Feature weights of the neurons ``index``, or of all; ``write``: see ``_in_range``."""
        vectors = self._in_range(self.stored_features, write)
        if not self._shared_features:
            return vectors if index is None else self._take(vectors, index)
        scales, chosen = self._in_range("scales", write), self.feature_sharing_index
        if index is not None:
            scales, chosen = self._take(scales, index), chosen[index]
        return scales * self._take(vectors, chosen)

    def _take(self, values: Tensor, index: Tensor) -> Tensor:
        return values[index] if self.by_rows else values[..., index]

    def _neuron_axes(self) -> dict[str, int]:
        axes = super()._neuron_axes() | {"scales": 0 if self.by_rows else -1, "feature_sharing_index": 0}
        axes[self.stored_features] = axes["scales"]
        if self._shared_features:
            del axes[self.stored_features]
        return axes

    def _magnitudes(self) -> Tensor:
        return self.features.abs()

    def feature_l1(  # type: ignore[override]
        self, reduction: Reduction = "sum", average: bool | None = None
    ) -> Tensor | int:
        """L1 norm of the features; 0 if they belong to another readout, which counts them."""
        if not self._original_features:
            return 0
        return super().feature_l1(reduction=reduction, average=average)

    def _sharing(self) -> list[str]:
        """What ``print`` shows of it."""
        return [f"{'own' if self._original_features else 'shared'} matched features"] if self._shared_features else []


class SourceFrame(TypedDict):
    """Where a ``source_grid`` lies: a position p is read as ``(p - centre) / scale``."""

    centre: list[float]  # [D]
    scale: float


def source_frame(source_grid: ArrayLike) -> SourceFrame:
    """The frame of positions [N, D]: their mean, and the largest distance from it along an axis, or 1 if that is 0.

    >>> source_frame([[0.0, 10.0], [4.0, 10.0]])
    {'centre': [2.0, 10.0], 'scale': 2.0}
    """
    places = np.asarray(source_grid)
    if not len(places):
        return {"centre": [0.0] * places.shape[1], "scale": 1.0}
    centre = places.mean(axis=0)
    # The rounded mean of equal values leaves a remainder, which the division would blow up.
    centre = np.where((places == places[:1]).all(axis=0), places[0], centre)
    largest = np.abs(places - centre).max(initial=0)
    return {"centre": centre.tolist(), "scale": float(largest) if largest > 0 else 1.0}


def _in_frame(places: NDArray[Any], frame: SourceFrame) -> NDArray[Any]:
    """[N, D], as the network that predicts positions takes them."""
    centre = np.asarray(frame["centre"], places.dtype)
    if centre.shape != places.shape[1:]:
        raise ValueError(f"source_frame: want a centre [D] = ({places.shape[1]},), got {centre.shape}")
    moved: NDArray[Any] = (places - centre) / places.dtype.type(frame["scale"])
    return moved


def _predictor(inputs: int, hidden_features: int, hidden_layers: int, final_tanh: bool) -> nn.Sequential:
    """[N, inputs] -> [N, 2]."""
    widths = [inputs, *[hidden_features] * hidden_layers, 2]
    layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for before, after in itertools.pairwise(widths[1:]):
        layers += [nn.ELU(), nn.Linear(before, after)]
    if final_tanh:
        layers.append(nn.Tanh())
    return nn.Sequential(*layers)


@torch.no_grad()
def _start_within(predictor: nn.Module, places: Tensor, init_range: float) -> None:
    """Scale and move the last linear layer: what it makes of ``places`` [N, D] has mean 0, and this largest magnitude.

    A random network maps cortex anywhere, also beside the map of the features. A readout sees only what is near its
    positions, so that few trials may not bring it back from there.
    """
    layers: Any = list(predictor.children())
    last = max(index for index, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    predicted = nn.Sequential(*layers[: last + 1])(places)
    centred = predicted - predicted.mean(0)
    largest, rounding = centred.abs().max(), 1e-5 * predicted.abs().max()
    scale = init_range / largest if largest > rounding else 1.0  # else all lie at one place
    layers[last].weight.mul_(scale)
    layers[last].bias.copy_((layers[last].bias - predicted.mean(0)) * scale)


class PredictedPositions(FeatureReadout):
    """Mixin of the layers whose positions a small network may predict from places in cortex, with offsets or without.

    Attributes:
        source_frame: centre and scale of ``source_grid``.
        residual_reg_weight: factor of the penalty on ``mu_residual``; None: there is none.
    """

    # Class attributes because accelerated layers of other libraries do not set them.
    source_frame: SourceFrame | None = None
    residual_reg_weight: float | None = None
    _predicted_grid = False
    source_grid: Tensor
    mu_residual: nn.Parameter

    def init_grid_predictor(
        self,
        source_grid: ArrayLike | None,
        hidden_features: int = 20,
        hidden_layers: int = 0,
        final_tanh: bool = False,
        shared_transform: nn.Module | None = None,
        frame: SourceFrame | None = None,
        init_range: float | None = None,
    ) -> None:
        """Make the network that predicts the positions from ``source_grid`` [N, D], or take another readout's.

        Another readout's is left as it is, whatever ``init_range``.
        """
        if source_grid is None:
            raise ValueError("source_grid: want [N, D] for grid_mean_predictor, got None")
        source = np.asarray(source_grid)
        source = source if np.issubdtype(source.dtype, np.floating) else source.astype(np.float64)
        if source.ndim != 2 or source.shape[0] != self.outdims:
            raise ValueError(f"source_grid: want [N, D] with N = {self.outdims}, got {source.shape}")
        require_finite("source_grid", source)
        if init_range is not None and not 0 < init_range <= 1:
            raise ValueError(f"init_range: want a number in (0, 1], got {init_range}")
        own = shared_transform is None
        if shared_transform is None:
            shared_transform = _predictor(source.shape[1], hidden_features, hidden_layers, final_tanh)
        self.mu_transform: nn.Module = shared_transform
        like = next(shared_transform.parameters(), torch.empty(0))
        self.source_frame = source_frame(source) if frame is None else frame
        grid = torch.from_numpy(_in_frame(source, self.source_frame)).to(like.dtype)
        # On the meta device parameters get values later, but nobody would give these again.
        self.register_buffer("source_grid", grid if like.is_meta else grid.to(like.device))
        if own and init_range is not None and len(source):
            _start_within(shared_transform, self.source_grid, init_range)
        self._predicted_grid = True

    def _neuron_axes(self) -> dict[str, int]:
        return {**super()._neuron_axes(), "mu_residual": 1, "source_grid": 0}

    def _predicted(self) -> Tensor:
        """The positions (1, N, 1, 2), with the offsets, where the network and they put them."""
        # In bfloat16 they would be off by up to .07 pixels.
        with without_autocast(self.source_grid.device):
            predicted: Tensor = self.mu_transform(self.source_grid).view(1, self.outdims, 1, 2)
            return predicted if self.residual_reg_weight is None else predicted + self.mu_residual

    def place(self, positions: ArrayLike) -> Tensor:
        """Return the positions [M, 2], (x, y) in [-1, 1], that the trained network predicts for other neurons.

        Args:
            positions: [M, D], in the units of ``source_grid`` as it was given, e.g. micrometres of the same animal.

        Raises:
            ValueError: there is no such network; its frame is not known; the positions do not fit or are not finite.
        """
        if not self._predicted_grid:
            raise ValueError("place: want a readout with grid_mean_predictor, got one without")
        if self.source_frame is None:
            raise ValueError(
                "source_frame: want centre and scale of source_grid, which a state_dict does not hold, got None"
            )
        places = np.asarray(positions, np.float64)
        if places.ndim != 2:
            raise ValueError(f"positions: want [M, D], got {places.shape}")
        require_finite("positions", places)
        inputs = torch.from_numpy(_in_frame(places, self.source_frame)).to(self.source_grid)
        with without_autocast(inputs.device):
            placed: Tensor = self.mu_transform(inputs)
        return placed.clamp(-1, 1)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        loaded = state_dict.get(f"{prefix}source_grid")
        if self.source_frame is not None and isinstance(loaded, Tensor) and not _same_grid(loaded, self.source_grid):
            self.source_frame = None  # it is that of another grid
        super()._load_from_state_dict(state_dict, prefix, *args)

    def regularizer(  # type: ignore[override]
        self, reduction: Reduction = "sum", average: bool | None = None
    ) -> Tensor | int | float:
        """``feature_l1`` times ``feature_reg_weight``; 0 if ``feature_l1`` is 0; and the penalty on ``mu_residual``.

        Raises:
            ValueError: ``reduction=None`` with a ``residual_reg_weight``: the two terms are of different shapes.
        """
        if self.residual_reg_weight is None:
            return super().regularizer(reduction=reduction, average=average)
        reduction = self._sum_or_mean(reduction, average)
        offsets = self.apply_reduction(self.mu_residual.square(), reduction=reduction)
        return super().regularizer(reduction=reduction) + self.residual_reg_weight * offsets

    def _prediction(self) -> list[str]:
        """What ``print`` shows of it."""
        if not self._predicted_grid:
            return []
        return ["predicted grid" if self.residual_reg_weight is None else "predicted grid with residuals"]


def _same_grid(loaded: Tensor, own: Tensor) -> bool:
    if loaded.is_meta or own.is_meta:
        return True
    # Not allclose: DTensors do not have it.
    return loaded.shape == own.shape and bool(torch.isclose(loaded.to(own), own, rtol=1e-5, atol=1e-6).all())
