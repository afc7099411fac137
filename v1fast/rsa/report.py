"""What ``v1fast rsa`` runs: files of responses compared with each other, or the published recordings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage

from v1fast import _files, functional
from v1fast.rsa import plots
from v1fast.rsa._matrices import to_squares
from v1fast.rsa.embedding import mds, pca, rows_nearest, tuning_curves
from v1fast.rsa.files import rdm_to_file
from v1fast.rsa.inference import (
    PERMUTED,
    average_repeats,
    bootstrap,
    noise_ceiling,
    permutation_test,
    split_half,
)
from v1fast.rsa.recordings import antolik, ecker, kriegeskorte, model_activations
from v1fast.rsa.similarity import RSATOOLBOX_NAMES, STREAMED, compare, rdm_correlation

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

MOST_IN_MEMORY = 20_000  # stimuli, of which a matrix has 0.8 GB; beyond, similarities come from the responses
MOST_RESAMPLED = 1000  # stimuli up to which resampling and relabelling take seconds
SESSION, CONTRAST, ORIENTATIONS = 1, 10.0, (0.0, 45.0, 90.0, 135.0)  # drawn of the macaque recording


def compare_files(
    files: Sequence[str], out: Path, *, dissimilarity: str = "correlation", similarity: str = "pearson", seed: int = 0
) -> dict[str, Any]:
    """Compute, store, compare and draw the dissimilarity matrices of responses in files.

    Args:
        files: ``.npy``, ``.npz`` or ``.mat`` with responses [S, N] or [repeats, S, N] to the same stimuli;
            ``FILE:NAME`` picks one of several arrays in a file.
        out: folder, made where it is missing: ``NAME_rdm.npy`` (condensed), ``summary.json`` and pictures. A matrix
            whose computation was interrupted is completed; other files of an earlier run are replaced.
        dissimilarity: "correlation", "cosine" or "euclidean".
        similarity: as the method of ``compare``; the first file's matrix is compared with each other's.
        seed: of resampling and relabelling.

    Returns:
        What ``summary.json`` holds.

    Raises:
        ValueError: a file holds no such array, or the numbers of stimuli differ.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    given = {_name_of(spec, files): load_responses(spec) for spec in files}
    means = {name: average_repeats(values)[0] if values.ndim == 3 else values for name, values in given.items()}
    if len({len(values) for values in means.values()}) != 1:
        raise ValueError(f"files: want the same stimuli in all, got {[len(values) for values in means.values()]}")
    out.mkdir(parents=True, exist_ok=True)
    rdms = {
        name: rdm_to_file(values, out / f"{name}_rdm.npy", method=dissimilarity, overwrite=True)
        for name, values in means.items()
    }
    summary: dict[str, Any] = {"dissimilarity": dissimilarity, "similarity": similarity, "systems": {}}
    for name, values in given.items():
        about: dict[str, Any] = {"stimuli": len(means[name]), "neurons": values.shape[-1]}
        if values.ndim == 3 and len(values) > 1:
            about |= {"repeats": len(values)} | _reliability(values, dissimilarity, similarity)
        summary["systems"][name] = about
        console.print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in about.items()))
    first, *others = means
    summary["similarities"] = {
        name: _similarity(means[first], means[name], rdms[first], rdms[name], dissimilarity, similarity, seed)
        for name in others
    }
    for name, found in summary["similarities"].items():
        console.print(f"{first} and {name}: " + ", ".join(f"{key} {_text(value)}" for key, value in found.items()))
    _files.write_report(out, summary, _pictures_of_files(rdms, summary, first))
    console.print(f"Matrices, summary.json and pictures are in {out}")
    return summary


def _text(value: Any) -> str:
    return " to ".join(f"{v:.4f}" for v in value) if isinstance(value, list) else f"{value:.4f}"


def _reliability(values: NDArray[Any], dissimilarity: str, similarity: str) -> dict[str, float]:
    return {"split_half": float(split_half(values, similarity, dissimilarity=dissimilarity).mean())}


def _similarity(
    x: NDArray[Any],
    y: NDArray[Any],
    rdm_x: NDArray[Any],
    rdm_y: NDArray[Any],
    dissimilarity: str,
    similarity: str,
    seed: int,
) -> dict[str, Any]:
    method = RSATOOLBOX_NAMES.get(similarity, similarity)
    if len(x) > MOST_IN_MEMORY and method in STREAMED:
        return {"similarity": rdm_correlation(x, y, method, dissimilarity=dissimilarity, progress=True)}
    found: dict[str, Any] = {"similarity": float(compare(rdm_x, rdm_y, method))}
    if len(x) <= MOST_RESAMPLED and method in PERMUTED:
        found["interval"] = bootstrap(rdm_x, rdm_y, method, seed=seed).confidence()[:, 0].tolist()
        found["p"] = permutation_test(rdm_x, rdm_y, method, seed=seed).p
    return found


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
        )
    if stimuli <= MOST_RESAMPLED and not any(np.isnan(rdm).any() for rdm in rdms.values()):
        maps = {name: mds(rdm).scores for name, rdm in rdms.items()}
        pictures["maps"] = plots.low_dimensional_map(maps, np.arange(stimuli), label="stimulus")
    return pictures


def load_responses(spec: str) -> NDArray[Any]:
    """[S, N] or [repeats, S, N] of ``FILE`` or ``FILE:NAME``.

    Raises:
        ValueError: the file is of another kind, or does not hold just one such array.
    """
    path, name = Path(spec), ""
    if not path.exists() and ":" in spec:
        before, _, name = spec.rpartition(":")
        path = Path(before)
    readers = {".npy": _of_npy, ".npz": _of_npz, ".mat": _of_mat}
    if path.suffix not in readers:
        raise ValueError(f"{spec}: want a file of {', '.join(readers)}, got {path.suffix or 'none'}")
    arrays = {key: value for key, value in readers[path.suffix](path).items() if _is_responses(value)}
    chosen = [name] if name else list(arrays)
    if len(chosen) != 1 or chosen[0] not in arrays:
        raise ValueError(
            f"{spec}: want one array [S, N] or [repeats, S, N], got {', '.join(arrays) or 'none'}; "
            f"FILE:NAME picks one of several"
        )
    values = arrays[chosen[0]]
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)


def _is_responses(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.ndim in (2, 3) and value.size > 1


def _of_npy(path: Path) -> dict[str, Any]:
    return {path.stem: np.load(path)}


def _of_npz(path: Path) -> dict[str, Any]:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _of_mat(path: Path) -> dict[str, Any]:
    try:
        return {name: value for name, value in scipy.io.loadmat(path).items() if not name.startswith("__")}
    except NotImplementedError:  # MATLAB's format 7.3 is HDF5, which holds arrays with their axes reversed
        try:
            import h5py
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f'{path}: this MATLAB file needs h5py: pip install "v1fast[rsa]"') from error
        with h5py.File(path) as file:
            return {name: value[()].T for name, value in file.items() if isinstance(value, h5py.Dataset)}


def _name_of(spec: str, files: Sequence[str]) -> str:
    """The file's stem, or the array's name where the file is given more than once, or the stem is."""
    path = Path(spec)
    before, _, name = spec.rpartition(":")
    stem = path.stem if path.exists() or not before else Path(before).stem
    stems = [
        Path(other).stem if Path(other).exists() else Path(other.rpartition(":")[0] or other).stem for other in files
    ]
    if stems.count(stem) == 1:
        return stem
    return f"{stem}_{name}" if name and not path.exists() else f"{path.parent.name}_{stem}"


def analyse_recordings(folder: Path, out: Path) -> dict[str, Any]:
    """Analyse and draw the published recordings: monkey and human IT, mouse V1 and a model of it, macaque V1.

    Args:
        folder: V1FAST_REAL_DATA.
        out: folder, made where it is missing, for ``summary.json`` and pictures.

    Returns:
        What ``summary.json`` holds.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    out.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {}
    pictures: dict[str, Figure] = {}
    for name, analyse in (("inferotemporal", _inferotemporal), ("mouse_v1", _mouse_v1), ("macaque_v1", _macaque_v1)):
        with console.status(name):
            summary[name], drawn = analyse(folder)
        pictures |= drawn
        _say(console, name, summary[name])
        _files.write_report(out, summary, drawn)
    console.print(f"summary.json and {len(pictures)} pictures are in {out}")
    return summary


def _say(console: Console, name: str, found: dict[str, Any]) -> None:
    console.rule(name.replace("_", " "), align="left")
    for key, value in found.items():
        text = ", ".join(f"{k} {_text(v)}" for k, v in value.items()) if isinstance(value, dict) else _text(value)
        console.print(f"{key.replace('_', ' ')}: {text}")


def _inferotemporal(folder: Path) -> tuple[dict[str, Any], dict[str, Figure]]:
    data = kriegeskorte(folder)
    candidates = {"monkey IT": data.monkey} | data.models
    vectors = np.stack(list(candidates.values()))
    subjects = data.subjects.reshape(4, 2, -1).mean(1)  # two sessions of one subject are no two subjects
    resampled = bootstrap(subjects, vectors, "pearson", over="both")
    test = permutation_test(data.monkey, data.human)
    similarity = dict(zip(candidates, resampled.similarity.tolist(), strict=True))
    order = sorted(similarity, key=similarity.__getitem__, reverse=True)
    intervals = resampled.confidence()[:, [list(candidates).index(name) for name in order]]
    ceiling = noise_ceiling(subjects)
    found = {
        "monkey_and_human": test.similarity,
        "p": test.p,
        "mean_of_subjects_and_published_human": float(compare(data.subjects.mean(0), data.human)),
        "noise_ceiling": list(ceiling),
        "similarity_to_human_subjects": {name: similarity[name] for name in order},
    }
    heat = plots.rdm_heatmaps(
        {"monkey IT": data.monkey, "human IT": data.human},
        groups=data.groups,
        percentiles=True,
        title=f"92 objects in monkey and human IT: r = {test.similarity:.4f}",
    )
    bars = plots.similarity_bars(
        {name: similarity[name] for name in order},
        intervals=intervals,
        ceiling=ceiling,
        title="Similarity to human IT, mean of 4 subjects\n(lines: 95 % over subjects and stimuli)",
    )
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
    v1, others = rdms["mouse V1"], [name for name in rdms if name != "mouse V1"]
    halves = float(split_half(responses, splits=200).mean())
    resampled = bootstrap(v1, np.stack([rdms[name] for name in others]))
    similarity = dict(zip(others, resampled.similarity.tolist(), strict=True))
    found = {
        "split_half": halves,
        "similarity_to_v1": similarity,
        "p": {name: permutation_test(v1, rdms[name]).p for name in others},
        "model_neurons_and_pixels": float(compare(rdms["model neurons"], rdms["pixels"])),
    }
    # Neighbours in V1 stand beside each other, so that the eye can find in the others what they share with it.
    order = leaves_list(linkage(v1, "average", optimal_ordering=True))
    heat = plots.rdm_heatmaps(
        {name: to_squares(rdm[None])[0][order][:, order] for name, rdm in rdms.items()},
        percentiles=True,
        axis="image, in the order of V1",
        title="50 images in mouse V1, in a model of another mouse's V1, and as pixels",
    )
    bars = plots.similarity_bars(
        similarity,
        intervals=resampled.confidence(),
        ceiling=(halves, 2 * halves / (1 + halves)),
        ceiling_name="reliability of V1's RDM, 5 to 10 repeats:",
        title="Similarity to mouse V1's RDM\n(lines: 95 % over images)",
    )
    return found, {"mouse_v1_rdms": heat, "mouse_v1_similarity": bars}


def _macaque_v1(folder: Path) -> tuple[dict[str, Any], dict[str, Figure]]:
    counts, orientations = ecker(folder, SESSION, CONTRAST)
    mean, _ = average_repeats(counts)
    rdm = functional.rdm(mean, condensed=True, accuracy="high")
    halves = float(split_half(counts).mean())
    trials = counts.reshape(-1, counts.shape[2])
    tuning = tuning_curves(trials, np.tile(orientations, len(counts)), period=180.0)
    places, rows = rows_nearest(rdm, orientations, ORIENTATIONS)
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
