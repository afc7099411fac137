"""How reliable the dissimilarity matrix of one system is, from its repeats, and how similar a true model could be."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from v1fast import _arrays, _choices, functional
from v1fast.rsa._sums import Floats
from v1fast.rsa.inference import _nanmean
from v1fast.rsa.noise import CROSSVALIDATED, DISTANCES, rdm_of_repeats
from v1fast.rsa.similarity import METHODS, RSATOOLBOX_NAMES, compare

WITHOUT_CEILING = ("tau-a", "tau-b")  # no sums of products: the square root of a reliability is not their ceiling


def step_up(similarity: float, factor: float) -> float:
    """The reliability of a measurement whose noise has ``factor`` times less variance (Spearman 1910, Brown 1910).

    It is k r / (1 + (k - 1) r), with the reliability r and the factor k. NaN if r is so negative that it has no value.
    """
    below = 1 + (factor - 1) * similarity
    return factor * similarity / below if below > 0 else float("nan")


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Result of ``reliability``.

    Attributes:
        halves: [splits], the similarity of the matrices of two halves of h repeats; NaN where undefined.
        repeats: R.
        half: h, the integer part of R / 2.
        crossvalidated: whether the matrices are.
        method: by which they are compared.
    """

    halves: Floats
    repeats: int
    half: int
    crossvalidated: bool
    method: str

    @property
    def undefined(self) -> int:
        """The number of splits that are NaN. The means leave them out."""
        return int(np.isnan(self.halves).sum())

    @property
    def of_half(self) -> float:
        """The mean r over splits: the reliability of the matrix of h repeats."""
        there = self.halves[~np.isnan(self.halves)]
        return float(there.mean()) if len(there) else float("nan")

    @property
    def of_all(self) -> tuple[float, float]:
        """The lowest and the highest reliability of the matrix of all repeats; see ``reliability``."""
        repeats, half = self.repeats, self.half
        linear, square = repeats / half, (repeats / half) ** 2
        if self.crossvalidated:
            square = repeats * (repeats - 1) / (half * (half - 1))
        low, high = sorted(step_up(self.of_half, factor) for factor in (linear, square))
        return low, high

    @property
    def ceiling(self) -> tuple[float, float]:
        """The lowest and the highest expected similarity of a true model, without noise, to the matrix of all repeats.

        These are the square roots of ``of_all``. NaN for Kendall's tau, and where r is negative.
        """
        low, high = self.of_all
        if self.method in WITHOUT_CEILING or not low >= 0:
            return float("nan"), float("nan")
        return float(np.sqrt(low)), float(np.sqrt(high))


def reliability(
    responses: ArrayLike | Tensor,
    method: str = "pearson",
    *,
    dissimilarity: str = "correlation",
    crossvalidate: bool = False,
    noise: ArrayLike | None = None,
    sigma_k: ArrayLike | None = None,
    splits: int = 100,
    seed: int = 0,
) -> Reliability:
    """How reliable a dissimilarity matrix is, by the similarity r of the matrices of two halves of the repeats.

    r is the reliability of a matrix of h repeats, where h is the integer part of R / 2. That of the matrix of all R
    follows from how its noise falls. Noise in responses enters a dissimilarity linearly, with a variance that falls as
    1 / R, and squared, with a variance that falls as 1 / R^2. So the variance falls by a factor between k = R / h (2
    for even R, 3 for R = 3, 2.5 for R = 5) and k^2, or R (R - 1) / (h (h - 1)) if cross-validated. ``of_all`` is
    k r / (1 + (k - 1) r) for both factors. The lower one, Spearman's and Brown's, is right if responses are much larger
    than noise, and low otherwise. In simulations of 20 stimuli, 50 neurons, and 5 repeats whose noise is as large as
    the signal, r is .44, the reliability of all repeats is .70, and ``of_all`` is .67 to .83; with noise 2.5 times as
    large, these are .06, .20, and .14 to .28.

    A true model, without noise, is more similar to the measured matrix than another measurement is: by the square root
    of the reliability (``ceiling``). In the simulations above its similarity is .84 for bounds of .82 and .91, and .45
    for bounds of .37 and .53.

    Both hold if noise adds no structure. If stimuli differ in noise, averages of repeats have a bias that halves share:
    it passes for reliability. With threefold differences in noise and a common mean response, the bounds are .85 and
    .93 but a true model has .52 (correlation, 5 repeats). Cross-validated matrices do not have this bias: bounds .66
    and .78, true model .69 (8 repeats).

    Args:
        responses: [R, S, N], R >= 2 repeats of S stimuli. If R is odd, each split leaves out one random repeat.
        method: as for ``compare``.
        dissimilarity: as the method of ``functional.rdm``: correlation, cosine, euclidean, mahalanobis, poisson; or
            "crossnobis", which is cross-validated.
        crossvalidate: cross-validate each half, as ``rdm_of_repeats`` does. This needs R >= 4.
        noise: precision of the neurons for mahalanobis and crossnobis, [N, N] or [N]. It is the same in both halves.
        sigma_k: for the whitened measures, as for ``compare``.
        splits: number of random splits.
        seed: of the splits.

    Returns:
        See ``Reliability``.

    Raises:
        ValueError: an operand does not fit.

    Example:
        >>> import numpy as np
        >>> from v1fast import rsa
        >>> draw = np.random.default_rng(0)
        >>> found = rsa.reliability(draw.normal(size=(20, 50)) + draw.normal(size=(5, 20, 50)))
        >>> found.half, found.of_half < found.of_all[0] < found.ceiling[0] < found.ceiling[1] < 1
        (2, True)
    """
    method = RSATOOLBOX_NAMES.get(method, method)
    _choices.one_of("method", method, METHODS)
    values = _arrays.to_array("responses", responses)
    if values.ndim != 3 or len(values) < 2:
        raise ValueError(f"responses: want [repeats >= 2, S, N], got {values.shape}")
    if splits < 1:
        raise ValueError(f"splits: want at least 1, got {splits}")
    crossvalidate = crossvalidate or dissimilarity == "crossnobis"
    if crossvalidate and len(values) < 4:
        raise ValueError(f"responses: want at least 4 repeats to cross-validate halves, got {len(values)}")
    if crossvalidate:
        _choices.one_of("dissimilarity", dissimilarity, tuple(CROSSVALIDATED))
    if noise is not None and (dissimilarity not in DISTANCES or dissimilarity == "euclidean"):
        raise ValueError(f"noise: want None beside dissimilarity {dissimilarity!r}, got an array")
    precision = None if noise is None else _arrays.floats("noise", noise).astype(np.float64)
    draw, half = np.random.default_rng(seed), len(values) // 2
    found = np.empty(splits)
    for split in range(splits):
        order = draw.permutation(len(values))
        parts = order[:half], order[half : 2 * half]
        if crossvalidate:
            first, second = (rdm_of_repeats(values[part], dissimilarity, noise=precision) for part in parts)
        else:
            means = np.stack([_nanmean(values, part) for part in parts])
            first, second = functional.rdm(means, method=dissimilarity, noise=precision, condensed=True)
        found[split] = compare(first, second, method, sigma_k=sigma_k)
    return Reliability(found, len(values), half, crossvalidate, method)


def split_half(
    responses: ArrayLike | Tensor,
    method: str = "pearson",
    *,
    dissimilarity: str = "correlation",
    crossvalidate: bool = False,
    noise: ArrayLike | None = None,
    sigma_k: ArrayLike | None = None,
    splits: int = 100,
    seed: int = 0,
) -> Floats:
    """The similarity of the dissimilarity matrices of two halves of the repeats.

    Args:
        responses: [R, S, N], R >= 2 repeats of S stimuli. If R is odd, each split leaves out one random repeat.
        method: as for ``compare``.
        dissimilarity: as for ``reliability``, as are the others.
        crossvalidate: cross-validate each half.
        noise: precision of the neurons.
        sigma_k: for the whitened measures.
        splits: number of random splits, at least 1.
        seed: of the splits.

    Returns:
        [splits] similarities, NaN where undefined. Their mean is the reliability of the matrix of h repeats, where h is
        the integer part of R / 2. ``reliability`` says what follows for all R repeats, and for a true model.

    Raises:
        ValueError: an operand does not fit.
    """
    options: dict[str, ArrayLike | None] = {"noise": noise, "sigma_k": sigma_k}
    return reliability(
        responses,
        method,
        dissimilarity=dissimilarity,
        crossvalidate=crossvalidate,
        splits=splits,
        seed=seed,
        **options,
    ).halves
