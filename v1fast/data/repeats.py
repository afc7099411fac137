"""Statistics of responses to repeated images, of simulated recordings and of real ones."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast.data.animals import SimulatedRecording
from v1fast.metrics import explainable_variance

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of responses to repeated images; images with one trial are left out.

    Attributes:
        noise_correlation: [N (N - 1) / 2], correlation of two neurons' deviations from the average response to the
            image, over all trials (Cohen & Kohn 2011, Nat. Neurosci. 14, 811).
        signal_correlation: [N (N - 1) / 2], correlation of two neurons' average responses, over images. What noise
            correlation and finite repeats do to it (Pospisil & Bair 2021, J. Neurosci. 41, 5638) stays in it.
        explainable_variance: [N]; see :func:`v1fast.metrics.explainable_variance`.
        lifetime_sparsity: [N], (1 - mean(a)^2 / mean(a^2)) / (1 - 1 / I) of average responses a >= 0 to I images: 0 if
            all are alike, 1 if one image alone drives the neuron (Vinje & Gallant 2002, J. Neurosci. 22, 2904).
        zeros: [N], fraction of trials without a response.

    All float64. A pair is NaN where either neuron does not vary, a neuron where it does not vary or never responds.
    """

    noise_correlation: Tensor
    signal_correlation: Tensor
    explainable_variance: Tensor
    lifetime_sparsity: Tensor
    zeros: Tensor

    def __str__(self) -> str:
        """A line for each: median, quartiles and mean of what is defined."""
        return "\n".join(f"{name.name}: {summary(getattr(self, name.name))}" for name in fields(self))


def statistics(recording: SimulatedRecording) -> Statistics:
    """Statistics of the responses to the repeated test images."""
    return response_statistics(recording.test.responses, recording.test.image_ids)


def response_statistics(responses: Tensor, image_ids: Tensor) -> Statistics:
    """Statistics of the repeats in any recording.

    Args:
        responses: [T, N], finite, >= 0.
        image_ids: [T], whole numbers.

    Raises:
        ValueError: the operands do not fit together, responses are negative or not finite, or no image is repeated.
    """
    if responses.ndim != 2 or image_ids.shape != responses.shape[:1]:
        got = f"{tuple(responses.shape)} and {tuple(image_ids.shape)}"
        raise ValueError(f"responses and image_ids: want [T, N] and [T], got {got}")
    values = responses.double().numpy()
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError("responses: want finite values >= 0")
    _, image, counts = np.unique(image_ids.numpy(), return_inverse=True, return_counts=True)
    kept = counts[image] > 1
    if not kept.any():
        raise ValueError("image_ids: want an image with several trials, got none")
    values = values[kept]
    _, image = np.unique(image[kept], return_inverse=True)
    averages = _averages(values, image)
    return Statistics(
        noise_correlation=_pairs(values - averages[image]),
        signal_correlation=_pairs(averages - averages.mean(0)),
        explainable_variance=explainable_variance(torch.from_numpy(values), torch.from_numpy(image)).per_neuron,
        lifetime_sparsity=torch.from_numpy(_sparsity(averages)),
        zeros=torch.from_numpy((values == 0).mean(0)),
    )


def _averages(values: Floats, image: NDArray[np.int64]) -> Floats:
    """[I, N] from trials [T, N]."""
    order = np.argsort(image, kind="stable")
    starts = np.searchsorted(image[order], np.arange(image.max() + 1))
    sums: Floats = np.add.reduceat(values[order], starts)
    return sums / np.bincount(image)[:, None]


def _pairs(deviations: Floats) -> Tensor:
    """Correlations of columns of mean zero, [N (N - 1) / 2]."""
    norm = np.linalg.norm(deviations, axis=0)
    # Of a column that does not vary, rounding is left.
    unit = deviations / np.where(norm > 1e-12 * len(deviations), norm, np.nan)
    upper = np.triu_indices(unit.shape[1], 1)
    return torch.from_numpy((unit.T @ unit)[upper])


def _sparsity(averages: Floats) -> Floats:
    images = len(averages)
    if images < 2:
        return np.full(averages.shape[1], np.nan)
    power = (averages**2).mean(0)
    ratio = averages.mean(0) ** 2 / np.where(power > 0, power, np.nan)
    sparsity: Floats = (1 - ratio) / (1 - 1 / images)
    return sparsity


def summary(values: Tensor) -> str:
    """Median, quartiles and mean of what is not NaN."""
    known = values[~values.isnan()]
    if not len(known):
        return "undefined"
    low, middle, high = np.quantile(known.numpy(), [0.25, 0.5, 0.75])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}], mean {known.mean():.2f}"
