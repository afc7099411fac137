"""The Gaussian readout whose positions depend on the image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from v1fast import functional
from v1fast.readouts._convolutions import convolutions, initialize_convolutions
from v1fast.readouts._points import Noise, rows_of_one
from v1fast.readouts.gaussian import FullGaussian2d


class RemappedGaussian2d(FullGaussian2d):
    """:class:`FullGaussian2d` with positions moved by a vector field that a small network computes from the features.

    Drop-in for ``RemappedGaussian2d`` of neuralpredictors: same constructor, state_dict keys and shapes, forward
    arguments. Differences from it: docs/layers.md. The field is read at the drawn positions (after the clamp) and added
    to them, and the features are read there. Kernels of any size keep the size of the map.

    Args:
        *args: as in :class:`FullGaussian2d`.
        remap_layers: number of convolutions, >= 1.
        remap_kernel: size of their kernels.
        max_remap_amplitude: largest component of the field's vectors, in units of the positions.
        **kwargs: as in :class:`FullGaussian2d`.

    Raises:
        ValueError: an argument out of range; in forward, features that are not of ``in_shape``.

    Shapes of the parameters: as in :class:`FullGaussian2d`, and ``remap_field.conv0.weight``,
    ``remap_field.norm0.weight``, ...: convolutions and batch normalisations, the last numbered ``remap_layers``.
    """

    def __init__(
        self,
        *args: Any,
        remap_layers: int = 2,
        remap_kernel: int = 3,
        max_remap_amplitude: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.max_remap_amplitude = max_remap_amplitude
        channels = self.in_shape[0]
        self.remap_field = convolutions("remap_layers", remap_layers, channels, 2, remap_kernel)
        self.remap_field.add_module(f"norm{remap_layers}", nn.BatchNorm2d(2))
        self.remap_field.add_module(f"nonlin{remap_layers}", nn.Tanh())
        self.initialize_remap_field()

    def initialize_remap_field(self) -> None:
        """Draw new filters for the network."""
        initialize_convolutions(self.remap_field)

    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """As in :class:`FullGaussian2d`, and draw new filters for the network."""
        super().initialize(mean_activity)
        if "remap_field" in self._modules:  # not yet when FullGaussian2d's constructor calls this
            self.initialize_remap_field()

    def _check_features(self, x: Tensor) -> None:
        self._require_in_shape(x)

    def _read(
        self,
        images: Tensor,
        mu: Tensor,
        sigma: Tensor,
        shift: Tensor | None,
        index: Tensor | None,
        noise: Noise,
    ) -> Tensor:
        grid = self._positions(mu, sigma, noise, images.shape[0])
        features = self.features if index is None else self.features[..., index]
        if index is not None:
            grid = grid[:, index]
        field = self.max_remap_amplitude * self.remap_field(images)  # [B, 2, H, W]
        grid = grid + functional.gather_levels([field], grid, align_corners=self.align_corners)
        weight, bias = rows_of_one(self._as_read(features)), self._bias_of(index)
        return functional.levels_readout([images], grid, weight, bias, shift, align_corners=self.align_corners)
