"""What all readouts share that read whole maps instead of points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from v1fast.readouts.base import FeatureReadout, NeuronSelection, select_neurons


class MapReadout(FeatureReadout, ABC):
    """Base class of the layers whose neurons weight all pixels."""

    def forward(
        self, x: Tensor, shift: Tensor | None = None, out_idx: NeuronSelection | None = None, **kwargs: Any
    ) -> Tensor:
        """Read the features.

        Args:
            x: features [B, C, H, W], or features of videos [B, C, T, H, W].
            shift: moves the masks by (x, y), in units in which the map reaches from -1 to 1 and x runs along the width:
                [B, 2], for videos also [B, T, 2]; B and T may be 1. Between pixels the features are interpolated,
                outside the map they are zero.
            out_idx: neurons to compute, as integer indices or a boolean mask (array, list or tensor).
            **kwargs: accepted and ignored.

        Returns:
            [B, N] or [B, len(out_idx)]; for videos [B, T, N] or [B, T, len(out_idx)].

        Raises:
            ValueError: an operand does not fit; the message names it.
        """
        self._require_in_shape(x)
        index = None if out_idx is None else select_neurons(out_idx, self.outdims, x.device)
        return self._responses(x, shift, index)

    @abstractmethod
    def _responses(self, x: Tensor, shift: Tensor | None, index: Tensor | None) -> Tensor:
        """Responses of the neurons ``index``, or of all. ``x`` has been checked."""
