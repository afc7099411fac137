"""Datasets of rsatoolbox in, its RDMs out (https://github.com/rsagroup/rsatoolbox).

What ``rsatoolbox.rdm.calc_rdm`` does, by the kernels of this package, with the same conventions: the order of pairs,
averaging over an observation descriptor and the order of its values, the names of the measures. Where the package does
something else than it says, or than is right, this module does not follow it: see ``calc_rdm``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from v1fast import _dissimilarities, functional
from v1fast.rsa._matrices import condensed
from v1fast.rsa.inference import average_repeats

if TYPE_CHECKING:
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import RDMs

MEASURES = {
    "correlation": "correlation",
    "cosine": "cosine",
    "euclidean": "squared euclidean",
    "mahalanobis": "squared mahalanobis",
    "crossnobis": "crossnobis",
    "poisson": "poisson",
}


def calc_rdm(
    dataset: Dataset | Sequence[Dataset],
    method: str = "euclidean",
    descriptor: str | None = None,
    *,
    noise: ArrayLike | Sequence[ArrayLike] | None = None,
    cv_descriptor: str | None = None,
    prior_lambda: float = 1.0,
    prior_weight: float = 0.1,
    nan: str = "propagate",
    accuracy: str = "float32",
) -> RDMs:
    """The dissimilarity matrices of datasets, as ``rsatoolbox.rdm.calc_rdm`` gives them.

    It differs where rsatoolbox 0.3.2 is imprecise or wrong: results have the dtype of the measurements, float32 or
    float64, rather than always float64; correlations are within [0, 2]; a constant pattern is NaN whatever its value;
    euclidean distances of patterns far from the origin keep their digits; crossnobis without ``noise`` makes no
    identity matrix. ``nan="pairwise"`` correlates two patterns over the channels where both are there, which
    ``calc_rdm_unbalanced`` means to but divides by the number of all channels. rsatoolbox's "poisson_cv", which returns
    the last fold alone, is not offered.

    Args:
        dataset: of rsatoolbox, or several with the same stimuli, one matrix for each.
        method: "correlation", "cosine" (which rsatoolbox has not), "euclidean", "mahalanobis", "crossnobis" or
            "poisson".
        descriptor: observation descriptor whose equal values are averaged; the matrix is in the order of its sorted
            values. None: every observation as it comes.
        noise: precision matrix of the channels [N, N] or [N], for mahalanobis and crossnobis; or one for each dataset.
        cv_descriptor: observation descriptor of the folds, for crossnobis, each of which has every value of
            ``descriptor``. None: the k-th occurrences of each value are fold k.
        prior_lambda: for poisson.
        prior_weight: for poisson.
        nan: as for ``functional.rdm``.
        accuracy: as for ``functional.rdm``.

    Returns:
        RDMs with ``descriptors`` of the datasets, ``pattern_descriptors`` of the observations, and the measure's name.

    Raises:
        ModuleNotFoundError: rsatoolbox is absent.
        ValueError: an operand does not fit; the message names it.
    """
    _dissimilarities.choice("method", method, tuple(MEASURES))
    datasets = list(dataset) if isinstance(dataset, Sequence) else [dataset]
    noises = list(noise) if isinstance(noise, (list, tuple)) else [noise] * len(datasets)
    if len(noises) != len(datasets):
        raise ValueError(f"noise: want one or {len(datasets)}, one for each dataset, got {len(noises)}")
    options = {"prior_lambda": prior_lambda, "prior_weight": prior_weight, "nan": nan, "accuracy": accuracy}
    vectors, patterns = [], []
    for each, precision in zip(datasets, noises, strict=True):
        values, found, folds = _patterns(each, method, descriptor, cv_descriptor)
        given = None if precision is None else np.asarray(precision, dtype=values.dtype)
        rdm = functional.rdm(values, method=method, noise=given, folds=folds, condensed=True, **options)  # type: ignore[arg-type]
        vectors.append(rdm)
        patterns.append(found)
    if any(vector.shape != vectors[0].shape for vector in vectors):
        raise ValueError(f"dataset: want the same stimuli in all, got {[len(vector) for vector in vectors]} pairs")
    descriptors = {key: [each.descriptors.get(key) for each in datasets] for key in datasets[0].descriptors}
    return to_rdms(np.stack(vectors), MEASURES[method], patterns[0], rdm_descriptors=descriptors)


def to_rdms(
    rdms: ArrayLike | torch.Tensor,
    dissimilarity_measure: str | None = None,
    pattern_descriptors: dict[str, Any] | None = None,
    *,
    rdm_descriptors: dict[str, Any] | None = None,
) -> RDMs:
    """Matrices of this package, one or a set as for ``compare``, as rsatoolbox's RDMs, in their own dtype.

    Raises:
        ModuleNotFoundError: rsatoolbox is absent.
        ValueError: they are no dissimilarity matrices.
    """
    try:
        from rsatoolbox.rdm import RDMs
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('RDMs need rsatoolbox: pip install "v1fast[rsatoolbox]"') from error
    vectors, _ = condensed("rdms", rdms)
    return RDMs(
        vectors,
        dissimilarity_measure=dissimilarity_measure,
        rdm_descriptors=rdm_descriptors,
        pattern_descriptors=pattern_descriptors,
    )


def from_rdms(rdms: RDMs) -> NDArray[Any]:
    """[M, S (S - 1) / 2]: the entries above the diagonal, row by row, of rsatoolbox's RDMs."""
    return condensed("rdms", rdms)[0]


def _patterns(
    dataset: Dataset, method: str, descriptor: str | None, cv_descriptor: str | None
) -> tuple[NDArray[Any], dict[str, Any], NDArray[Any] | None]:
    """Patterns [S, N], or for crossnobis [folds S, N]; their descriptors; and, for crossnobis, the folds."""
    values = np.asarray(dataset.measurements)
    values = values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)
    if method == "crossnobis":
        return _folded_patterns(dataset, values, descriptor, cv_descriptor)
    if cv_descriptor is not None:
        raise ValueError(f"cv_descriptor: want None beside method {method!r}, got {cv_descriptor!r}")
    if descriptor is None:
        return values, {key: list(value) for key, value in dataset.obs_descriptors.items()}, None
    labels = _labels(dataset, "descriptor", descriptor)
    means, found = average_repeats(values, labels)
    return means, _descriptors_of(dataset, labels, descriptor, found), None


def _folded_patterns(
    dataset: Dataset, values: NDArray[Any], descriptor: str | None, cv_descriptor: str | None
) -> tuple[NDArray[Any], dict[str, Any], NDArray[Any]]:
    if descriptor is None:
        raise ValueError("descriptor: want one beside method 'crossnobis', got None")
    labels = _labels(dataset, "descriptor", descriptor)
    folds = _occurrences(labels) if cv_descriptor is None else _labels(dataset, "cv_descriptor", cv_descriptor)
    parts: list[NDArray[Any]] = []
    kept: list[NDArray[Any]] = []
    every = np.unique(labels)
    for fold in np.unique(folds):
        means, found = average_repeats(values[folds == fold], labels[folds == fold])
        if not np.array_equal(found, every):
            raise ValueError(f"cv_descriptor: want every value of {descriptor!r} in each fold, got {found} in {fold}")
        parts.append(means)
        kept.append(np.full(len(means), len(kept)))
    descriptors = _descriptors_of(dataset, labels, descriptor, every)
    return np.concatenate(parts), descriptors, np.concatenate(kept)


def _labels(dataset: Dataset, argument: str, name: str) -> NDArray[Any]:
    if name not in dataset.obs_descriptors:
        raise ValueError(f"{argument}: want one of {', '.join(dataset.obs_descriptors)}, got {name!r}")
    return np.asarray(dataset.obs_descriptors[name])


def _occurrences(labels: NDArray[Any]) -> NDArray[np.int64]:
    """0 for the first observation of each label, 1 for the second."""
    seen: dict[Any, int] = {}
    found = np.empty(len(labels), dtype=np.int64)
    for i, label in enumerate(labels.tolist()):
        found[i] = seen.get(label, 0)
        seen[label] = found[i] + 1
    return found


def _descriptors_of(dataset: Dataset, labels: NDArray[Any], descriptor: str, found: NDArray[Any]) -> dict[str, Any]:
    """Of the sorted patterns; other descriptors where all observations of each pattern have the same value."""
    kept: dict[str, Any] = {descriptor: found.tolist()}
    for key, given in dataset.obs_descriptors.items():
        by_label = [np.unique(np.asarray(given)[labels == label]) for label in found]
        if key != descriptor and all(len(each) == 1 for each in by_label):
            kept[key] = [each[0].item() for each in by_label]
    return kept
