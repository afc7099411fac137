"""The code of ``v1fast rsa``: it compares files of responses with each other, or analyses the published recordings."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage

from v1fast import _arrays, _choices, _files, functional
from v1fast.rsa import plots
from v1fast.rsa._matrices import to_squares
from v1fast.rsa.comparisons import ModelComparison, compare_models, write_table
from v1fast.rsa.embedding import mds, pca, rows_nearest, tuning_curves
from v1fast.rsa.files import rdm_to_file
from v1fast.rsa.inference import average_repeats
from v1fast.rsa.noise import CROSSVALIDATED, DISTANCES, noise_precision, rdm_of_repeats, stimulus_noise
from v1fast.rsa.permutation import PERMUTED, permutation_test, permutation_tests
from v1fast.rsa.recordings import antolik, ecker, kriegeskorte, model_activations
from v1fast.rsa.repeats import reliability
from v1fast.rsa.resampling import bootstrap
from v1fast.rsa.similarity import RSATOOLBOX_NAMES, STREAMED, compare, rdm_correlation
from v1fast.rsa.studentized import studentized_tests
from v1fast.rsa.tables import interval_text, p_text, print_comparison, print_differences, print_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

MOST_IN_MEMORY = 20_000  # stimuli, for a matrix of 0.8 GB; with more, similarities come directly from the responses
MOST_CROSSVALIDATED = 10_000  # stimuli, of matrices that are computed in memory
SPLITS, FEWEST_SPLITS, MOST_PRODUCTS = 100, 10, 1e12  # of a reliability: fewer for large matrices, to take minutes
MOST_RESAMPLED = 1000  # stimuli up to which resampling and permutations take seconds
LEVEL = 0.95  # of intervals
ALPHA = 0.05  # familywise p below it are marked in figures
STUDENTIZED = "studentized permutations"  # the test for entries that are not equally precise
COUNTED = 1 << 24  # entries of a matrix that are processed together
MOST_FOLDERS = 5  # that a file's name may begin with
SESSION, CONTRAST, ORIENTATIONS = 1, 10.0, (0.0, 45.0, 90.0, 135.0)  # which part of the macaque recording is drawn


def compare_files(
    files: Sequence[str],
    out: Path,
    *,
    dissimilarity: str = "correlation",
    similarity: str = "pearson",
    noise: str = "none",
    crossvalidate: bool = True,
    sigma_k: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute, store, compare and draw the dissimilarity matrices of responses in files.

    Matrices of repeated responses are cross-validated over the repeats, so that noise does not bias them (see
    ``rdm_of_repeats``). Up to version 0.1 they were those of the mean responses, as they are with
    ``crossvalidate=False``. Matrices of more than 10,000 stimuli still are.

    Args:
        files: ``.npy``, ``.npz`` or ``.mat`` with responses [S, N] or [repeats, S, N] to the same stimuli.
            ``FILE:NAME`` selects one of several arrays in a file. Each is a separate system, whatever its name; see
            ``names_of``.
        out: folder, created if missing: ``NAME_rdm.npy`` (condensed), ``summary.json`` and pictures. A matrix whose
            computation was interrupted is completed; other files of an earlier run are replaced.
        dissimilarity: "correlation", "cosine", "euclidean", or its other names "mahalanobis" and "crossnobis". Of
            responses without repeats all three are the Euclidean distance.
        similarity: as the method of ``compare``; the first file's matrix is compared with each of the others.
        noise: for distances, the covariance of the neurons' noise, from the repeats of each file: "none", "diagonal" or
            "ledoit-wolf", as the shrinkage of ``noise_covariance``.
        crossvalidate: False: the matrices of mean responses.
        sigma_k: for the whitened measures: take the variance of each stimulus' noise into account, the mean over the
            two systems, of those that have repeats (see ``stimulus_noise``).
        seed: of resampling and permutations.

    Returns:
        The contents of ``summary.json``, which is written before anything is printed. Undefined values (see
        ``v1fast.rsa``) are NaN in it and counted.

    Raises:
        ValueError: a file cannot be read, or has no such array, or the numbers of stimuli differ.
        OSError: a file cannot be written.
    """
    from rich.console import Console

    given = dict(zip(names_of(files), (load_responses(spec) for spec in files), strict=True))
    means = {name: average_repeats(values)[0] if values.ndim == 3 else values for name, values in given.items()}
    if len({len(values) for values in means.values()}) != 1:
        raise ValueError(f"files: want the same stimuli in all, got {[len(values) for values in means.values()]}")
    if len(next(iter(means.values()))) < 2:
        raise ValueError("files: want at least 2 stimuli, got 1")
    out.mkdir(parents=True, exist_ok=True)
    matrices = {
        name: _matrix(values, means[name], out / f"{name}_rdm.npy", dissimilarity, noise, crossvalidate)
        for name, values in given.items()
    }
    rdms = {name: matrix.rdm for name, matrix in matrices.items()}
    summary: dict[str, Any] = {"dissimilarity": dissimilarity, "similarity": similarity, "systems": {}}
    for name, values in given.items():
        about: dict[str, Any] = {"stimuli": len(means[name]), "neurons": values.shape[-1]}
        about |= _counted("undefined_pairs", _undefined(rdms[name]))
        if values.ndim == 3 and len(values) > 1:
            about |= {"repeats": len(values), "matrix": matrices[name].what}
            about |= _reliability(values, matrices[name], similarity)
        summary["systems"][name] = about
    first, *others = means
    summary["similarities"] = {
        name: _similarity(
            means[first], means[name], matrices[first], matrices[name], dissimilarity, similarity, sigma_k, seed
        )
        for name in others
    }
    method = RSATOOLBOX_NAMES.get(similarity, similarity)
    compared, tests = _tests(matrices, first, method, summary["similarities"], seed)
    if compared is not None:
        summary["differences"] = compared.differences()
    if tests:
        summary["notes"] = tests + ([] if compared is None else compared.notes)
    # Before anything is printed: the reader of the output may be gone.
    _files.write_report(out, summary, {})
    rows = _rows(first, summary["similarities"])
    for table, content in (("similarities", rows), ("differences", summary.get("differences"))):
        if tests and content:
            write_table(out / f"{table}.csv", content)
    _files.write_report(out, summary, _pictures_of_files(rdms, summary, first))
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    for name, about in summary["systems"].items():
        console.print(f"{name}: " + ", ".join(f"{key} {_text(value, 4)}" for key, value in about.items()))
    if rows:
        _print_similarities(console, rows, f"{similarity} similarity of {dissimilarity} RDMs", tests)
    if compared is not None:
        print_differences(console, compared)
    console.print(f"Matrices, summary.json and pictures are in {out}")
    return summary


def _counted(what: str, count: int) -> dict[str, int]:
    """Return the count by name, or nothing if it is zero."""
    return {what: count} if count else {}


def _undefined(rdm: NDArray[Any]) -> int:
    """Return the number of NaN entries of a matrix that is mapped from a file."""
    return sum(int(np.isnan(rdm[k : k + COUNTED]).sum()) for k in range(0, len(rdm), COUNTED))


def _text(value: Any, digits: int = 0) -> str:
    """Return a value as text: with 4 decimals, or so many significant digits."""
    if isinstance(value, (int, str)):
        return str(value)
    form = f".{digits}g" if digits else ".4f"
    return " to ".join(f"{v:{form}}" for v in value) if isinstance(value, list) else f"{value:{form}}"


class _Matrix(NamedTuple):
    """A matrix, how it was computed, in words, and what of."""

    rdm: NDArray[Any]
    what: str
    measure: str
    crossvalidated: bool
    precision: NDArray[np.float64] | None
    stimulus_noise: NDArray[np.float64] | None


def _matrix(
    values: NDArray[Any], means: NDArray[Any], path: Path, dissimilarity: str, noise: str, crossvalidate: bool
) -> _Matrix:
    """Compute a matrix and write it to ``path``."""
    repeats = len(values) if values.ndim == 3 else 1
    _choices.one_of("noise", noise, ("none", "diagonal", "ledoit-wolf"))
    if noise != "none" and dissimilarity not in DISTANCES:
        raise ValueError(f"noise: want none beside dissimilarity {dissimilarity!r}, got {noise}")
    plain = "euclidean" if dissimilarity in DISTANCES else dissimilarity
    crossvalidated = crossvalidate and repeats > 1 and dissimilarity in CROSSVALIDATED
    if crossvalidated and len(means) > MOST_CROSSVALIDATED:
        crossvalidated = False
    precision = noise_precision(values, shrinkage=noise) if noise != "none" and repeats > 1 else None
    stimuli = stimulus_noise(values, noise=precision) if repeats > 1 else None
    if crossvalidated or precision is not None:
        measure = plain if precision is None else "mahalanobis"
        rdm = rdm_of_repeats(values, measure, noise=precision, crossvalidate=crossvalidated)
        content = io.BytesIO()
        np.save(content, rdm)
        _files.replace(path, content.getvalue())
        del content
        rdm = np.load(path, mmap_mode="r")
    else:
        rdm, measure = rdm_to_file(means, path, method=plain, overwrite=True), plain
    if crossvalidated:
        what = f"{CROSSVALIDATED[measure]} of {repeats} repeats"
    else:
        what = f"{measure} of the mean of {repeats} repeats, which noise biases" if repeats > 1 else measure
    what += f"; noise covariance: {noise}" if precision is not None else ""
    return _Matrix(rdm, what, measure, crossvalidated, precision, stimuli)


def _reliability(values: NDArray[Any], matrix: _Matrix, similarity: str) -> dict[str, Any]:
    """Return the reliability of a matrix, cross-validated if it is. Halves of 2 or 3 repeats cannot be."""
    crossvalidate = matrix.crossvalidated and len(values) >= 4
    products = float(values.size) * values.shape[1] * 2
    splits = int(np.clip(MOST_PRODUCTS / products, FEWEST_SPLITS, SPLITS))
    found = reliability(
        values,
        similarity,
        dissimilarity=matrix.measure,
        crossvalidate=crossvalidate,
        noise=matrix.precision,
        splits=splits,
    )
    about: dict[str, Any] = {"split_half": found.of_half} | _counted("undefined_splits", found.undefined)
    if matrix.crossvalidated and not crossvalidate:
        return about | {"split_half_of": "mean responses"}
    return about | {"reliability": list(found.of_all), "noise_ceiling": list(found.ceiling)}


def _similarity(
    x: NDArray[Any],
    y: NDArray[Any],
    matrix_x: _Matrix,
    matrix_y: _Matrix,
    dissimilarity: str,
    similarity: str,
    sigma_k: bool,
    seed: int,
) -> dict[str, Any]:
    method, (rdm_x, rdm_y) = RSATOOLBOX_NAMES.get(similarity, similarity), (matrix_x.rdm, matrix_y.rdm)
    if len(x) > MOST_IN_MEMORY and method in STREAMED:
        plain = "euclidean" if dissimilarity in DISTANCES else dissimilarity
        return {"similarity": rdm_correlation(x, y, method, dissimilarity=plain, progress=True)}
    sigma = _sigma_k(matrix_x, matrix_y) if sigma_k else None
    found: dict[str, Any] = {"similarity": float(compare(rdm_x, rdm_y, method, sigma_k=sigma))}
    if len(x) <= MOST_RESAMPLED and method in PERMUTED:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the reason is in the result
            resampled = bootstrap(rdm_x, rdm_y, method, seed=seed)
        found["interval"] = resampled.confidence(LEVEL)[:, 0].tolist()
        found |= {"no_interval": resampled.reason} if resampled.reason else {}
        found |= _counted("undefined_resamplings", int(resampled.undefined[0]))
        found |= _counted("undefined_pairs_of_stimuli", int(resampled.undefined_pairs[0]))
    return found


def _sigma_k(*matrices: _Matrix) -> NDArray[np.float64]:
    """Return the mean variance of each stimulus' noise, of the systems that have repeats."""
    known = [matrix.stimulus_noise for matrix in matrices if matrix.stimulus_noise is not None]
    if not known:
        raise ValueError("sigma_k: want repeats in one of two files, got none")
    return np.mean([each / np.nanmean(each) for each in known], axis=0)


def _tests(
    matrices: dict[str, _Matrix], first: str, method: str, similarities: dict[str, dict[str, Any]], seed: int
) -> tuple[ModelComparison | None, list[str]]:
    """Add p to the similarities. Return how they differ, and what was tested, in words.

    The entries of a cross-validated matrix are not equally precise, so that its test is studentized. All systems have
    the same test if one of them needs it: p that are corrected together are of one kind.
    """
    if not similarities or not all("interval" in found for found in similarities.values()):
        return None, []
    rdm, models = matrices[first].rdm, np.stack([matrices[name].rdm for name in similarities])
    studentized = any(matrices[name].crossvalidated for name in (first, *similarities))
    tests = (studentized_tests if studentized else permutation_tests)(rdm, models, method, seed=seed)
    for k, found in enumerate(similarities.values()):
        found |= {"p": float(tests.p[k]), "p_familywise": float(tests.familywise[k]), "p_fdr": float(tests.fdr[k])}
        found["test"] = STUDENTIZED if studentized else "permutations"
    said = [
        "Intervals: over stimuli. They are for other stimuli, as many, and the same systems.",
        f"p: one-sided, {len(tests.null)} permutations of stimuli; familywise: of the largest of {len(models)}; "
        "FDR: Benjamini & Hochberg.",
    ]
    if studentized:
        said.append(
            "p are studentized: entries of cross-validated matrices are not equally precise, so each similarity is "
            "divided by its own standard error."
        )
    if len(models) < 2:
        return None, said
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the reason is in the result
        return compare_models(
            rdm, models, method, over="stimuli", names=list(similarities), level=LEVEL, seed=seed
        ), said


def _print_similarities(console: Console, rows: list[dict[str, Any]], title: str, notes: list[str]) -> None:
    header, cells = ["systems", "similarity"], [[row["systems"], f"{row['similarity']:.4f}"] for row in rows]
    if notes:
        header += [f"{100 * LEVEL:g} % interval", "p", "familywise", "FDR"]
        for cell, row in zip(cells, rows, strict=True):
            low, high = (value for key, value in row.items() if key.startswith(("low,", "high,")))
            cell += [interval_text((low, high)), *(p_text(row[key]) for key in ("p", "p_familywise", "p_fdr"))]
            if row.get("no_interval"):
                notes = [*notes, f"{row['systems']}: no interval {row['no_interval']}."]
            if row.get("undefined_resamplings"):
                notes = [
                    *notes,
                    f"{row['systems']}: undefined in {row['undefined_resamplings']} resamplings of stimuli.",
                ]
    print_table(console, title, header, cells, notes)


def _rows(first: str, similarities: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a table, with the same columns in all and one number or word in each cell."""
    given = [{"systems": f"{first} and {name}"} | found for name, found in similarities.items()]
    keys = list(dict.fromkeys(key for row in given for key in row))
    rows = []
    for row in given:
        filled = {key: row.get(key, "" if key == "no_interval" else 0) for key in keys}
        ends = filled.pop("interval", None)
        words = f"{100 * LEVEL:g} % over stimuli"
        cells = {f"low, {words}": ends[0], f"high, {words}": ends[1]} if ends else {}
        rows.append({key: filled.pop(key) for key in ("systems", "similarity")} | cells | filled)
    return rows


def _pictures_of_files(rdms: dict[str, NDArray[Any]], summary: dict[str, Any], first: str) -> dict[str, Figure]:
    stimuli = summary["systems"][first]["stimuli"]
    if stimuli > MOST_IN_MEMORY or stimuli < 3:
        return {}
    label = f"{summary['similarity']} similarity of {summary['dissimilarity']} RDMs"
    pictures = {"rdms": plots.rdm_heatmaps(rdms, percentiles=len(rdms) > 1)}
    found = summary["similarities"]
    if found:
        intervals = [each["interval"] for each in found.values() if "interval" in each]
        pictures["similarity"] = plots.similarity_bars(
            {name: each["similarity"] for name, each in found.items()},
            intervals=np.transpose(intervals) if intervals else None,
            label="similarity",
            title=f"{label}\nwith {first}",
            **_marks(list(found.values()), "stimuli" if intervals else ""),
        )
    if stimuli <= MOST_RESAMPLED and not any(np.isnan(rdm).any() for rdm in rdms.values()):
        maps = {name: mds(rdm).scores for name, rdm in rdms.items()}
        pictures["maps"] = plots.low_dimensional_map(maps, np.arange(stimuli), label="stimulus")
    return pictures


def _marks(found: Sequence[dict[str, Any]], lines_over: str) -> dict[str, Any]:
    """Return the marks of bars, by their familywise p, and what marks and intervals mean, for ``similarity_bars``."""
    above = {k: each["test"] for k, each in enumerate(found) if each.get("p_familywise", np.nan) < ALPHA}
    said = [f"lines: {100 * LEVEL:g} % over {lines_over}"] if lines_over else []
    said += [f"{plots.ABOVE} p < {ALPHA:g}, one-sided, familywise,\n{test}" for test in set(above.values())]
    return {"marks": [plots.ABOVE * (k in above) for k in range(len(found))], "explanation": "\n".join(said)}


def load_responses(spec: str) -> NDArray[Any]:
    """Load [S, N] or [repeats, S, N] from ``FILE`` or ``FILE:NAME``. An ``.npy`` file is mapped, not read.

    Integers become float64 unless float32 represents all of them.

    Raises:
        ValueError: the file cannot be read, is of another kind, or does not contain exactly one such array.
    """
    path, name = _path_and_name(spec)
    readers = {".npy": _of_npy, ".npz": _of_npz, ".mat": _of_mat}
    if path.suffix not in readers:
        raise ValueError(f"{spec}: want a file of {', '.join(readers)}, got {path.suffix or 'none'}")
    with _files.reading(path):
        every = readers[path.suffix](path)
    arrays = {key: value for key, value in every.items() if _is_responses(value)}
    chosen = [name] if name else list(arrays)
    if len(chosen) != 1 or chosen[0] not in arrays:
        others = [f"{key} {_kind(value)}" for key, value in every.items() if key not in arrays]
        raise ValueError(
            f"{spec}: want one array [S, N] or [repeats, S, N], got {', '.join(arrays) or 'none'}"
            + (f" (and {', '.join(others)})" if others else "")
            + "; FILE:NAME picks one of several"
        )
    values = _arrays.to_array(spec, arrays[chosen[0]])
    if values.dtype.kind == "f":
        return values
    exact = _arrays.floats(spec, values)
    return exact if np.abs(exact).max() > _arrays.EXACT_FLOAT32 else exact.astype(np.float32)


def _path_and_name(spec: str) -> tuple[Path, str]:
    """Split ``FILE`` or ``FILE:NAME`` into path and name."""
    if not Path(spec).exists() and ":" in spec:
        before, _, name = spec.rpartition(":")
        return Path(before), name
    return Path(spec), ""


def _is_responses(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.ndim in (2, 3) and value.size > 1


def _kind(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _of_npy(path: Path) -> dict[str, Any]:
    return {path.stem: np.load(path, mmap_mode="r")}


def _of_npz(path: Path) -> dict[str, Any]:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _of_mat(path: Path) -> dict[str, Any]:
    try:
        return {name: value for name, value in scipy.io.loadmat(path).items() if not name.startswith("__")}
    except NotImplementedError:  # MATLAB's format 7.3 is HDF5, which stores arrays with reversed axes
        try:
            import h5py
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f'{path}: this MATLAB file needs h5py: pip install "v1fast[rsa]"') from error
        with h5py.File(path) as file:
            return {name: value[()].T for name, value in file.items() if isinstance(value, h5py.Dataset)}


def names_of(specs: Sequence[str]) -> list[str]:
    """Return a distinct, valid file name for each file.

    The name is the file's stem. If another file has the same one, the array's name or as many parent folders as needed
    are added. If all of that is equal, a number is added.
    """
    given = [_path_and_name(spec) for spec in specs]
    names = [_fit_for_a_file(path.stem) for path, _ in given]
    for folders in range(1, MOST_FOLDERS):
        shared = {name for name in names if names.count(name) > 1}
        for k, (path, array) in enumerate(given):
            if names[k] in shared:
                parents = Path(os.path.abspath(path)).parts[1:-1]
                above = parents[max(0, len(parents) - folders + bool(array)) :]
                names[k] = _fit_for_a_file("_".join([*above, path.stem, *([array] if array else [])]))
    found: dict[str, None] = {}
    for name in names:
        number, different = 1, name
        while different.casefold() in {other.casefold() for other in found}:
            number += 1
            different = f"{name}_{number}"
        found[different] = None
    return list(found)


def _fit_for_a_file(name: str) -> str:
    """Remove separators, control characters and other unsuitable characters; at most 180 bytes."""
    return re.sub(r"[^\w.+=@ -]", "_", name).encode()[-180:].decode(errors="ignore")


def analyse_recordings(folder: Path, out: Path) -> dict[str, Any]:
    """Analyse and draw the published recordings: monkey and human IT, mouse V1 and a model of it, macaque V1.

    Args:
        folder: V1FAST_REAL_DATA.
        out: folder, created if missing, for ``summary.json`` and pictures.

    Returns:
        The contents of ``summary.json``.
    """
    from rich.console import Console

    console, errors = Console(highlight=False, soft_wrap=True), Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {}
    pictures: dict[str, Figure] = {}
    for name, analyse in (("inferotemporal", _inferotemporal), ("mouse_v1", _mouse_v1), ("macaque_v1", _macaque_v1)):
        with errors.status(name):
            summary[name], drawn = analyse(folder)
        compared = summary[name].pop("compared", None)
        if compared is not None:
            summary[name] |= {"models": compared.models(), "differences": compared.differences()}
        pictures |= drawn
        _files.write_report(out, summary, drawn)
        _say(console, name, summary[name])
        if compared is not None:
            print_comparison(console, compared, "Models of human IT")
    console.print(f"summary.json and {len(pictures)} pictures are in {out}")
    return summary


def _say(console: Console, name: str, found: dict[str, Any]) -> None:
    console.rule(name.replace("_", " "), align="left")
    for key, value in found.items():
        if isinstance(value, list) and isinstance(value[0], dict):  # tables, which are printed as such
            continue
        text = ", ".join(f"{k} {_text(v)}" for k, v in value.items()) if isinstance(value, dict) else _text(value)
        console.print(f"{key.replace('_', ' ')}: {text}")


def _inferotemporal(folder: Path) -> tuple[dict[str, Any], dict[str, Figure]]:
    data = kriegeskorte(folder)
    candidates = {"monkey IT": data.monkey} | data.models
    vectors = np.stack(list(candidates.values()))
    subjects = data.subjects.reshape(4, 2, -1).mean(1)  # two sessions of one subject do not count as two subjects
    test = permutation_test(data.monkey, data.human)
    similarity = dict(zip(candidates, compare(subjects, vectors).mean(0).tolist(), strict=True))
    order = sorted(similarity, key=similarity.__getitem__, reverse=True)
    compared = compare_models(subjects, {name: candidates[name] for name in order}, over="both")
    found = {
        "monkey_and_human": test.similarity,
        "p": test.p,
        "mean_of_subjects_and_published_human": float(compare(data.subjects.mean(0), data.human)),
        "noise_ceiling": list(compared.ceiling),
        "similarity_to_human_subjects": {name: similarity[name] for name in order},
        "compared": compared,
    }
    heat = plots.rdm_heatmaps(
        {"monkey IT": data.monkey, "human IT": data.human},
        groups=data.groups,
        percentiles=True,
        title=f"92 objects in monkey and human IT: r = {test.similarity:.4f}",
    )
    bars = plots.comparison_bars(compared, title="Similarity to human IT, mean of 4 subjects")
    return found, {"inferotemporal_rdms": heat, "inferotemporal_similarity": bars}


def _mouse_v1(folder: Path) -> tuple[dict[str, Any], dict[str, Figure]]:
    responses, images = antolik(folder)
    model = model_activations(folder, images)
    systems = {
        "mouse V1": average_repeats(responses)[0],
        "model neurons": model["neurons"],
        "model core": model["core"],
        "pixels": images.reshape(len(images), -1),
    }
    rdms = {name: functional.rdm(values, condensed=True, accuracy="high") for name, values in systems.items()}
    rdms["mouse V1"] = rdm_of_repeats(responses, "correlation")
    v1, others = rdms["mouse V1"], [name for name in rdms if name != "mouse V1"]
    reliable = reliability(responses, crossvalidate=True, splits=200)
    models = np.stack([rdms[name] for name in others])
    resampled, tests = bootstrap(v1, models), studentized_tests(v1, models)
    similarity = dict(zip(others, resampled.similarity.tolist(), strict=True))
    found: dict[str, Any] = {
        "split_half": reliable.of_half,
        "reliability": list(reliable.of_all),
        "noise_ceiling": list(reliable.ceiling),
        "similarity_to_v1": similarity,
        "test": STUDENTIZED,
        "p": dict(zip(others, tests.p.tolist(), strict=True)),
        "p_familywise": dict(zip(others, tests.familywise.tolist(), strict=True)),
        "model_neurons_and_pixels": float(compare(rdms["model neurons"], rdms["pixels"])),
    }
    # Neighbours in V1 are drawn next to each other, so that shared features can be seen.
    order = leaves_list(linkage(np.clip(v1, 0, None), "average", optimal_ordering=True))
    heat = plots.rdm_heatmaps(
        {name: to_squares(rdm[None])[0][order][:, order] for name, rdm in rdms.items()},
        percentiles=True,
        axis="image, in the order of V1",
        title="50 images in mouse V1, in a model of another mouse's V1, and as pixels",
    )
    bars = plots.similarity_bars(
        similarity,
        intervals=resampled.confidence(LEVEL),
        ceiling=reliable.ceiling,
        ceiling_name=f"noise ceiling: a true model, {len(responses)} repeats:",
        title="Similarity to mouse V1's RDM, cross-validated",
        **_marks([{"p_familywise": p, "test": STUDENTIZED} for p in tests.familywise], "images"),
    )
    return found, {"mouse_v1_rdms": heat, "mouse_v1_similarity": bars}


def _macaque_v1(folder: Path) -> tuple[dict[str, Any], dict[str, Figure]]:
    counts, orientations = ecker(folder, SESSION, CONTRAST)
    mean, _ = average_repeats(counts)
    rdm = rdm_of_repeats(counts, "correlation")
    halves = reliability(counts, crossvalidate=True).of_half
    trials = counts.reshape(-1, counts.shape[2])
    tuning = tuning_curves(trials, np.tile(orientations, len(counts)), period=180.0)
    places, rows = rows_nearest(rdm, orientations, ORIENTATIONS, period=180.0)
    plane = pca(mean, 2)
    axis = "orientation (degrees)"
    note = f"{counts.shape[2]} neurons of macaque V1, {CONTRAST:g} % contrast, {len(counts)} repeats"
    pictures = {
        "macaque_v1_tuning": plots.tuning_curves(tuning, axis=axis, label="spikes in 500 ms", title=note),
        "macaque_v1_rows": plots.rdm_rows(orientations, {note: rows}, places, axis=axis),
        "macaque_v1_map": plots.low_dimensional_map(
            {"principal components": plane.scores, "multidimensional scaling": mds(rdm).scores},
            orientations,
            period=180.0,
            label=axis,
            title=note,
        ),
    }
    return {"split_half": halves, "variance_in_two_dimensions": float(plane.explained.sum())}, pictures
