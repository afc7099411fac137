"""From rsatoolbox's Datasets to its RDMs (https://github.com/rsagroup/rsatoolbox).

It does what ``rsatoolbox.rdm.calc_rdm`` and ``rsatoolbox.util.searchlight.get_searchlight_RDMs`` do, with the kernels
of this package: the same calls, conventions and numbers. Where rsatoolbox 0.3.2 deviates from its documentation, or is
wrong, this module does not follow it: see ``calc_rdm``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from v1fast import _arrays, _choices, _rdm_folds, functional, ops
from v1fast.rsa import _descriptors
from v1fast.rsa._matrices import condensed, stimuli_of
from v1fast.rsa.inference import average_repeats, searchlight_rdms

if TYPE_CHECKING:
    from rsatoolbox.data import Dataset
    from rsatoolbox.model import Model
    from rsatoolbox.rdm import RDMs

MEASURES = {
    "correlation": "correlation",
    "cosine": "cosine",
    "euclidean": "squared euclidean",
    "mahalanobis": "squared mahalanobis",
    "crossnobis": "crossnobis",
    "poisson": "poisson",
    "poisson_cv": "poisson_cv",
}
CROSSVALIDATED = ("crossnobis", "poisson_cv")
WITHOUT_MEAN = ("euclidean", "mahalanobis", "crossnobis")  # the methods that remove_mean changes
OCCURRENCES = "cv_desc"  # rsatoolbox's name for the folds that it creates itself


def calc_rdm(
    dataset: Dataset | Iterable[Dataset],
    method: str = "euclidean",
    descriptor: str | None = None,
    noise: ArrayLike | Sequence[Any] | Mapping[int, Any] | None = None,
    cv_descriptor: str | None = None,
    prior_lambda: float = 1.0,
    prior_weight: float = 0.1,
    remove_mean: bool = False,
    *,
    every_fold: bool = False,
    nan: str = "propagate",
    accuracy: str = "float32",
) -> RDMs:
    """Compute the dissimilarity matrices of datasets, like ``rsatoolbox.rdm.calc_rdm``.

    It differs where rsatoolbox 0.3.2 is imprecise, wrong, or ends in an error:

    - results have the dtype of the measurements, float32 or float64, whether these were averaged or not;
    - correlations are within [0, 2], and a constant pattern is NaN whatever its value;
    - euclidean distances of patterns far from the origin keep their digits;
    - automatic folds are also right for labels of one letter and for True and False; rsatoolbox mixes these up. A fold
      that lacks a condition is refused;
    - labels may be None, NaN, or of several types; words may also come in an object array;
    - without a ``descriptor``, several datasets are put in the order of the first one, by the descriptors that identify
      their observations. It is an error if these do not determine the order, or contradict each other;
    - ``nan="pairwise"`` correlates two patterns over the channels that both have. ``calc_rdm_unbalanced`` intends this,
      but divides by the number of all channels.

    "poisson_cv" compares only the last fold with the others, as rsatoolbox does, with a warning. ``every_fold=True``
    gives the mean over folds.

    Args:
        dataset: one of rsatoolbox's, or several, with one matrix for each. With a ``descriptor`` they may have
            different conditions. The matrices then have all conditions, with NaN where a dataset lacks one.
        method: "correlation", "cosine" (not in rsatoolbox), "euclidean", "mahalanobis", "crossnobis", "poisson"
            or "poisson_cv".
        descriptor: observation descriptor whose equal values are averaged; the matrix is in the order of its sorted
            values. None: every observation in the given order.
        noise: for mahalanobis and crossnobis (others ignore it) a precision matrix of the channels [N, N] or [N]. For
            crossnobis also one for the mean of each fold, in the order of the sorted folds: a list of [N, N] or a stack
            [F, N, N], see ``functional.rdm``. For several datasets, a list or a stack has one such entry for each
            dataset.
        cv_descriptor: observation descriptor of the folds, for crossnobis and poisson_cv (others ignore it). Each has
            every value of ``descriptor``, in any number of repeats. None: the k-th occurrences of each value are fold
            k, and all values must occur equally often.
        prior_lambda: for poisson and poisson_cv.
        prior_weight: for poisson and poisson_cv.
        remove_mean: subtract the mean over channels from each pattern, for euclidean, mahalanobis and crossnobis.
        every_fold: for poisson_cv.
        nan: "propagate": a missing measurement makes its pattern missing; "pairwise", for correlation: repeats are
            averaged, and patterns correlated, over the values that are present.
        accuracy: as for ``functional.rdm``.

    Returns:
        RDMs with ``rdm_descriptors`` of the datasets, ``pattern_descriptors`` of the observations, the measure's name,
        and, in ``descriptors``, the noise and the name of the folds. A pattern with a missing measurement is NaN in its
        row and column.

    Raises:
        ModuleNotFoundError: rsatoolbox is absent.
        ValueError: an operand does not fit; the message names it, and which of several datasets.

    Example:
        >>> import numpy as np
        >>> from rsatoolbox.data import Dataset
        >>> from v1fast.rsa.rsatoolbox import calc_rdm
        >>> labels = {"image": list("abcabc"), "run": [0, 0, 0, 1, 1, 1]}
        >>> trials = Dataset(np.random.rand(6, 50), obs_descriptors=labels)
        >>> calc_rdm(trials, "crossnobis", "image", cv_descriptor="run").get_matrices().shape
        (1, 3, 3)
    """
    _choices.one_of("method", method, tuple(MEASURES))
    if method in CROSSVALIDATED and descriptor is None:
        raise ValueError(f"descriptor: want one beside method {method!r}, got None")
    if method == "poisson_cv" and not every_fold:
        warnings.warn(
            "poisson_cv: the last fold alone, as rsatoolbox 0.3.2 has it; every_fold=True is the mean over folds",
            stacklevel=2,
        )
    _choices.one_of("nan", nan, ("propagate", "pairwise"))
    if nan == "pairwise" and method != "correlation":
        raise ValueError(f'nan: want "propagate" beside method {method!r}, got "pairwise"')
    several = isinstance(dataset, Iterable) and type(dataset).__name__ != "DataFrame"
    datasets: list[Any] = list(dataset) if several else [dataset]
    _check_datasets(datasets, several)
    uses_noise = noise is not None and method in ("mahalanobis", "crossnobis")
    precisions = _for_each(noise, len(datasets)) if uses_noise and several else [noise] * len(datasets)
    options = _Options(method, descriptor, cv_descriptor, prior_lambda, prior_weight, remove_mean, every_fold)
    found = []
    for k, (each, precision) in enumerate(zip(datasets, precisions, strict=True)):
        try:
            found.append(_single(each, precision if uses_noise else None, options, nan, accuracy))
        except ValueError as error:
            if not several:
                raise
            raise ValueError(f"dataset[{k}]: {error}") from None
    vectors, patterns = _joined(found, descriptor)
    every = {key: None for each in datasets for key in each.descriptors}
    rdm_descriptors: dict[str, Any] = {key: [each.descriptors.get(key) for each in datasets] for key in every}
    descriptors: dict[str, Any] = {"cv_descriptor": cv_descriptor or OCCURRENCES} if method == "crossnobis" else {}
    if uses_noise and all(_descriptors.equal(each.precision, found[0].precision) for each in found):
        descriptors["noise"] = found[0].precision
    elif uses_noise:
        rdm_descriptors["noise"] = [each.precision for each in found]
    measure = "euclidean" if method == "mahalanobis" and not uses_noise else method
    return _rdms(vectors, MEASURES[measure], descriptors, rdm_descriptors, patterns)


def get_searchlight_RDMs(
    data_2d: ArrayLike,
    centers: ArrayLike,
    neighbors: Sequence[ArrayLike],
    events: ArrayLike,
    method: str = "correlation",
    verbose: bool = True,
    *,
    noise: ArrayLike | Sequence[ArrayLike] | None = None,
    folds: ArrayLike | None = None,
) -> RDMs:
    """Compute the dissimilarity matrices of searchlights, like ``rsatoolbox.util.searchlight.get_searchlight_RDMs``.

    It also accepts noise and folds, which rsatoolbox's function does not.

    Args:
        data_2d: [R, N], observations of voxels.
        centers: [C], the voxel at the centre of each, which names its matrix: ``rdm_descriptors["voxel_index"]``.
        neighbors: C lists of the voxels of each, as from ``get_volume_searchlight`` of rsatoolbox.
        events: [R], the condition of each observation.
        method: as for ``calc_rdm``, except "poisson_cv".
        verbose: not used.
        noise: as for ``v1fast.rsa.searchlight_rdms``.
        folds: [R], for crossnobis, the fold of each observation. None: the k-th occurrences of each event are fold k.

    Returns:
        RDMs in the order of the sorted events. NaN for a searchlight without voxels.

    Raises:
        ModuleNotFoundError: rsatoolbox is absent.
        ValueError: an operand does not fit.
    """
    _choices.one_of("method", method, [name for name in MEASURES if name != "poisson_cv"])
    values = _measurements("data_2d", data_2d)
    grouping = _descriptors.groups("events", "events", events, len(values))
    voxels = [np.asarray(each, dtype=np.int64) for each in neighbors]
    places = np.asarray(centers)
    if len(voxels) != len(places):
        raise ValueError(f"neighbors: want {len(places)}, one list for each of centers, got {len(voxels)}")
    if method == "crossnobis":
        fold = _folds("folds", "folds", folds, grouping)
        vectors = searchlight_rdms(values, voxels, method=method, noise=noise, folds=fold.codes, stimuli=grouping.codes)
    else:
        vectors = searchlight_rdms(_means(values, grouping.codes, "propagate"), voxels, method=method, noise=noise)
    # As in rsatoolbox, they have the method's own name.
    return _rdms(vectors, method, None, {"voxel_index": places}, {"events": grouping.labels})


def to_rdms(
    rdms: ArrayLike | torch.Tensor,
    dissimilarity_measure: str | None = None,
    pattern_descriptors: dict[str, Any] | None = None,
    *,
    rdm_descriptors: dict[str, Any] | None = None,
    descriptors: dict[str, Any] | None = None,
) -> RDMs:
    """Convert matrices of this package, one or a set as for ``compare``, to rsatoolbox's RDMs, in their own dtype.

    Raises:
        ModuleNotFoundError: rsatoolbox is absent.
        ValueError: they are not dissimilarity matrices.
    """
    vectors, _ = condensed("rdms", rdms)
    return _rdms(vectors, dissimilarity_measure, descriptors, rdm_descriptors, pattern_descriptors)


def from_rdms(rdms: RDMs | Model) -> NDArray[Any]:
    """Return the entries above the diagonal, row by row, of rsatoolbox's RDMs: [M, S (S - 1) / 2].

    Of a model of rsatoolbox, those of its matrices.
    """
    return condensed("rdms", rdms)[0]


class Repeats(NamedTuple):
    """A dataset as arguments of ``rdm_of_repeats``, ``noise_covariance``, ``stimulus_noise`` and ``functional.rdm``.

    Attributes:
        responses: [T, N].
        stimuli: [T], the stimulus of each observation, from 0 on, in the order of ``labels``.
        folds: [T], the fold of each, from 0 on; None if there was no descriptor of folds.
        labels: [S], the sorted values of the descriptor.
    """

    responses: NDArray[Any]
    stimuli: NDArray[np.int64]
    folds: NDArray[np.int64] | None
    labels: list[Any]


def from_dataset(dataset: Dataset, descriptor: str, cv_descriptor: str | None = None) -> Repeats:
    """Return the observations of a dataset with the stimulus and the fold of each.

    Args:
        dataset: one of rsatoolbox's.
        descriptor: observation descriptor of the stimuli.
        cv_descriptor: observation descriptor of the folds.

    Raises:
        ValueError: it is no dataset, or has no such descriptor.

    Example:
        >>> import numpy as np
        >>> from rsatoolbox.data import Dataset
        >>> from v1fast import rsa
        >>> from v1fast.rsa.rsatoolbox import from_dataset, to_rdms
        >>> trials = Dataset(np.random.rand(7, 50), obs_descriptors={"image": list("abcabca")})
        >>> repeats = from_dataset(trials, "image")
        >>> vector = rsa.rdm_of_repeats(repeats.responses, stimuli=repeats.stimuli)
        >>> to_rdms(vector, "crossnobis", {"image": repeats.labels}).n_cond
        3
    """
    _check_datasets([dataset], False)
    values = _measurements("measurements", dataset.measurements)
    grouping = _grouping(dataset, "descriptor", descriptor)
    folds = None if cv_descriptor is None else _grouping(dataset, "cv_descriptor", cv_descriptor).codes
    return Repeats(values, grouping.codes, folds, grouping.labels)


def to_dataset(
    responses: ArrayLike | torch.Tensor,
    stimuli: ArrayLike | None = None,
    folds: ArrayLike | None = None,
    *,
    descriptor: str = "stimulus",
    cv_descriptor: str = "fold",
) -> Dataset:
    """Convert responses, as for ``rdm_of_repeats``, to a Dataset of rsatoolbox.

    Args:
        responses: [R, S, N], R repeats of S stimuli; or [T, N], T trials.
        stimuli: [T], for trials: the stimulus of each. None: each trial is its own. For repeats: [S], names of the
            stimuli. None: 0 .. S - 1.
        folds: [T], for trials: the fold of each, left out if None. Repeats are numbered.
        descriptor: name of the observation descriptor of the stimuli.
        cv_descriptor: name of that of the folds.

    Raises:
        ModuleNotFoundError: rsatoolbox is absent.
        ValueError: an operand does not fit.
    """
    try:
        from rsatoolbox.data import Dataset
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Datasets need rsatoolbox: pip install "v1fast[rsatoolbox]"') from error
    values = _arrays.to_array("responses", responses)
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(f"responses: want [repeats, S, N] or [T, N], got {values.shape}")
    names = np.arange(values.shape[-2]) if stimuli is None else np.asarray(stimuli)
    if names.shape != values.shape[-2:-1]:
        raise ValueError(f"stimuli: want [{values.shape[-2]}], one for each row of responses, got {names.shape}")
    if values.ndim == 3:
        if folds is not None:
            raise ValueError("folds: want None beside responses [repeats, S, N], whose repeats are the folds")
        repeats, count, neurons = values.shape
        values, names, folds = (
            values.reshape(-1, neurons),
            np.tile(names, repeats),
            np.repeat(np.arange(repeats), count),
        )
    labels = {descriptor: names.tolist()}
    if folds is not None:
        of_rows = np.asarray(folds)
        if of_rows.shape != names.shape:
            raise ValueError(f"folds: want [{len(names)}], one for each row of responses, got {of_rows.shape}")
        labels[cv_descriptor] = of_rows.tolist()
    return Dataset(values, obs_descriptors=labels)


def to_model(models: ArrayLike | torch.Tensor, name: str = "model", fit: str = "weighted") -> Model:
    """Convert matrices of this package to a model of rsatoolbox.

    ``fit_weights``, ``crossvalidate``, ``compare`` and the others accept its models as they are.

    Args:
        models: one matrix, for a ModelFixed; or K, as for ``fit_weights``.
        name: of the model.
        fit: "weighted", "select" or "interpolate": ModelWeighted, ModelSelect or ModelInterpolate.

    Raises:
        ModuleNotFoundError: rsatoolbox is absent.
        ValueError: they are not dissimilarity matrices.
    """
    _choices.one_of("fit", fit, ("weighted", "select", "interpolate"))
    vectors, one = condensed("models", models)
    rdms = to_rdms(vectors)
    from rsatoolbox import model

    if one:
        return model.ModelFixed(name, rdms)
    kinds = {"weighted": model.ModelWeighted, "select": model.ModelSelect, "interpolate": model.ModelInterpolate}
    return kinds[fit](name, rdms)


class _Options(NamedTuple):
    method: str
    descriptor: str | None
    cv_descriptor: str | None
    prior_lambda: float
    prior_weight: float
    remove_mean: bool
    every_fold: bool


class _Found(NamedTuple):
    """Results of one dataset: S (S - 1) / 2 dissimilarities, descriptors of its S patterns, its precision matrices."""

    vector: NDArray[Any]
    patterns: dict[str, list[Any]]
    precision: NDArray[Any] | None


def _rdms(
    vectors: NDArray[Any],
    measure: str | None,
    descriptors: dict[str, Any] | None,
    rdm_descriptors: dict[str, Any] | None,
    pattern_descriptors: dict[str, Any] | None,
) -> RDMs:
    try:
        from rsatoolbox.rdm import RDMs
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('RDMs need rsatoolbox: pip install "v1fast[rsatoolbox]"') from error
    return RDMs(
        vectors,
        dissimilarity_measure=measure,
        descriptors=descriptors,
        rdm_descriptors=rdm_descriptors,
        pattern_descriptors=pattern_descriptors,
    )


def _for_each(precision: Any, datasets: int) -> list[Any]:
    """Of each of several datasets its precision: a matrix, or, of folds, several. One matrix serves all."""
    if not isinstance(precision, (list, tuple, Mapping)) and np.ndim(precision) <= 2:
        return [precision] * datasets
    entries = _entries(precision)
    if len(entries) != datasets:
        raise ValueError(f"noise: want one or {datasets}, one for each dataset, got {len(entries)}")
    return entries


def _entries(precision: Any) -> list[Any]:
    if not isinstance(precision, Mapping):
        return list(precision)
    if set(precision) != set(range(len(precision))):
        raise ValueError(f"noise: want the keys 0 .. {len(precision) - 1} of a dictionary, got {list(precision)}")
    return [precision[k] for k in range(len(precision))]


def _precision(given: Any, channels: int, folds: int) -> NDArray[np.float64]:
    """[N, N], [N] or, where there are folds, [F, N, N]; lists are of matrices, or matrices themselves."""
    if isinstance(given, (list, tuple, Mapping)):
        entries = _entries(given)
        if any(getattr(each, "ndim", 0) for each in entries):
            for k, each in enumerate(entries):
                if np.shape(each) != (channels, channels):
                    raise ValueError(f"noise[{k}]: want [N, N] = {(channels, channels)}, got {np.shape(each)}")
            array = np.stack([np.asarray(each) for each in entries])
            array = array[0] if len(array) == 1 and not folds else array
        else:
            array = _matrix_of_lists(entries)
    else:
        array = np.asarray(given)
    wanted = [(channels, channels), (channels,), (folds, channels, channels)][: 3 if folds else 2]
    if array.dtype.kind not in "fiub" or array.shape not in wanted:
        forms = f"[N, N] or [N] with N = {channels}" + (f", or {folds} [N, N], one for each fold" if folds else "")
        raise ValueError(f"noise: want numbers {forms}, got {array.dtype} {array.shape}")
    return array.astype(np.float64, copy=False)


def _matrix_of_lists(entries: list[Any]) -> NDArray[Any]:
    try:
        return np.asarray(entries)
    except ValueError:
        raise ValueError("noise: want rows of one length, got lists of different ones") from None


def _measurements(name: str, given: Any) -> NDArray[Any]:
    """Return [R, N] in float32 or float64. Masked values become NaN."""
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().numpy()
    array = np.ma.asanyarray(given) if np.ma.isMaskedArray(given) else np.asarray(given)
    if array.dtype.kind not in "fiub" or array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name}: want numbers [observations, channels], got {array.dtype} {array.shape}")
    single = array.dtype.kind == "f" and array.dtype.itemsize == 4
    values = array.astype(np.float32 if single else np.float64, copy=False)
    return np.ma.filled(values, np.nan) if np.ma.isMaskedArray(values) else values


def _check_datasets(datasets: list[Any], several: bool) -> None:
    if not datasets:
        raise ValueError("dataset: want at least one, got none")
    for k, each in enumerate(datasets):
        name, got = f"dataset[{k}]" if several else "dataset", type(each).__name__
        if not hasattr(each, "obs_descriptors"):
            made = "; rsatoolbox.data.Dataset.from_df makes one of it" if got == "DataFrame" else ""
            raise ValueError(f"{name}: want a Dataset of rsatoolbox, got {got}{made}")
        if hasattr(each, "time_descriptors"):
            made = "its time_as_channels() is one, and time_as_observations() of each of its split_time()"
            raise ValueError(f"{name}: want a Dataset, got {got}; {made}")


def _single(dataset: Dataset, given: Any, options: _Options, nan: str, accuracy: str) -> _Found:
    values = _measurements("measurements", dataset.measurements)
    columns, method = dataset.obs_descriptors, options.method
    if options.descriptor is None:
        grouping, patterns = None, {name: _descriptors.column(each, len(values)) for name, each in columns.items()}
    else:
        grouping = _grouping(dataset, "descriptor", options.descriptor)
        patterns = _descriptors.of_patterns(columns, grouping, options.descriptor)
    if options.remove_mean and method in WITHOUT_MEAN:
        values = (values - values.mean(1, keepdims=True, dtype=np.float64)).astype(values.dtype)
    if grouping is not None and method in CROSSVALIDATED:
        name = options.cv_descriptor
        folds = _folds(
            "cv_descriptor", name or OCCURRENCES, None if name is None else _column_of(dataset, name), grouping
        )
        precision = None if given is None else _precision(given, values.shape[1], len(folds.labels))
        vector = _crossvalidated(values, grouping, folds, precision, options, accuracy)
        return _Found(vector, patterns, precision)
    precision = None if given is None else _precision(given, values.shape[1], 0)
    means = values if grouping is None else _means(values, grouping.codes, nan)
    priors: dict[str, Any] = {"prior_lambda": options.prior_lambda, "prior_weight": options.prior_weight}
    vector = functional.rdm(means, method=method, noise=precision, nan=nan, condensed=True, accuracy=accuracy, **priors)
    return _Found(vector, patterns, precision)


def _means(values: NDArray[Any], codes: NDArray[np.int64], nan: str) -> NDArray[Any]:
    """Return the means [S, N] over the observations of each pattern; "pairwise": over the non-missing ones."""
    if nan == "pairwise":
        return average_repeats(values, codes)[0]
    order, counts = np.argsort(codes, kind="stable"), np.bincount(codes)
    sums = np.add.reduceat(values[order], np.cumsum(counts) - counts, axis=0, dtype=np.float64)
    return (sums / counts[:, None]).astype(values.dtype)


def _column_of(dataset: Dataset, name: str, argument: str = "cv_descriptor") -> Any:
    return _choices.pick(argument, name, dataset.obs_descriptors)


def _grouping(dataset: Dataset, argument: str, name: str) -> _descriptors.Groups:
    return _descriptors.groups(argument, name, _column_of(dataset, name, argument), len(dataset.measurements))


def _folds(argument: str, name: str, given: Any, patterns: _descriptors.Groups) -> _descriptors.Groups:
    """Return the given folds, or the k-th occurrences of each pattern. Each pattern is in each fold."""
    if given is None:
        counts = np.bincount(patterns.codes)
        if (counts != counts[0]).any():
            got = f"None beside {counts.min()} to {counts.max()} repeats"
            raise ValueError(f"{argument}: want one where patterns are repeated unequally, got {got}")
        order = np.argsort(patterns.codes, kind="stable")
        occurrences = np.empty(len(order), dtype=np.int64)
        occurrences[order] = np.tile(np.arange(counts[0]), len(counts))
        found = _descriptors.Groups(list(range(counts[0])), occurrences)
    else:
        found = _descriptors.groups(argument, name, given, len(patterns.codes))
    if len(found.labels) < 2:
        raise ValueError(f"{argument}: want at least two folds, got {len(found.labels)}")
    shape = (len(found.labels), len(patterns.labels))
    counts = np.bincount(np.ravel_multi_index((found.codes, patterns.codes), shape), minlength=shape[0] * shape[1])
    for fold, there in zip(found.labels, counts.reshape(shape) > 0, strict=True):
        if not there.all():
            lacks = patterns.labels[int(np.argmin(there))]
            raise ValueError(f"{argument}: want every pattern in each fold, got no {lacks!r} in fold {fold!r}")
    return found


def _crossvalidated(
    values: NDArray[Any],
    patterns: _descriptors.Groups,
    folds: _descriptors.Groups,
    precision: NDArray[Any] | None,
    options: _Options,
    accuracy: str,
) -> NDArray[Any]:
    if options.method == "crossnobis":
        labels: dict[str, Any] = {"folds": folds.codes, "stimuli": patterns.codes}
        return functional.rdm(values, method="crossnobis", noise=precision, condensed=True, accuracy=accuracy, **labels)
    labels_of = torch.from_numpy(folds.codes), torch.from_numpy(patterns.codes)
    own, others, _ = _rdm_folds.fold_means(torch.from_numpy(np.array(values)), *labels_of)
    prior, weight = options.prior_lambda * options.prior_weight, 1 + options.prior_weight
    chosen = slice(None) if options.every_fold else slice(-1, None)
    rates = ((others[chosen] + prior) / weight).transpose(0, 1).flatten(1)  # [S, F N]
    logs = ((own[chosen] + prior) / weight).log().transpose(0, 1).flatten(1)
    x, y = torch.cat([rates, logs], 1)[None], torch.cat([logs, rates], 1)[None]  # the op's product is symmetric
    return ops.rdm.rdm(x, y, "euclidean", True, accuracy)[0].numpy().astype(values.dtype)


def _joined(found: list[_Found], descriptor: str | None) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return [M, P] and the descriptors of the patterns of all datasets."""
    if len(found) == 1:
        return found[0].vector[None], found[0].patterns
    patterns = [each.patterns for each in found]
    if descriptor is not None:
        merged, places = _descriptors.union(descriptor, patterns)
        count = len(merged[descriptor])
    else:
        if any(each.vector.shape != found[0].vector.shape for each in found):
            got = [len(each.vector) for each in found]
            raise ValueError(f"dataset: want as many observations in all, or a descriptor, got {got} pairs")
        count = stimuli_of(len(found[0].vector))
        merged, orders = _descriptors.alignment(patterns, count)
        # The target of an observation is the inverse of its source.
        places = [list(range(count)), *(np.argsort(order).tolist() for order in orders)]
    return np.stack([_placed(each.vector, where, count) for each, where in zip(found, places, strict=True)]), merged


def _placed(vector: NDArray[Any], places: list[int], count: int) -> NDArray[Any]:
    """Place the pairs of the given patterns in a matrix of ``count`` patterns. All other pairs are NaN."""
    where = np.array(places, dtype=np.int64)
    i, j = np.triu_indices(len(where), 1)
    low, high = np.minimum(where[i], where[j]), np.maximum(where[i], where[j])
    placed = np.full(count * (count - 1) // 2, np.nan, vector.dtype)
    placed[low * count - low * (low + 1) // 2 + high - low - 1] = vector
    return placed
