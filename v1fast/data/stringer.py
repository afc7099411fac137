"""Stringer's format: ``resp`` [S, N] and ``stimuli`` (orientations) or ``istim`` (numbers of images) in an ``.npz``.

Responses of mouse V1 to gratings (Stringer et al. 2021, Cell 184, 2767) and natural images (Stringer et al. 2019,
Nature 571, 361).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from v1fast import _files
from v1fast.data.gratings import Gratings
from v1fast.data.recording import TIERS, Recording
from v1fast.data.rows import Array, as_rows
from v1fast.data.sensorium import session_name
from v1fast.data.trees import Tree

HALVES = ("resp_train", "resp_test")  # of the trials, in files for cross-validation


def read_stringer(
    path: str | Path,
    *,
    images: Any = None,
    first_image: int = 0,
    bin_degrees: float | None = None,
    image_shape: tuple[int, int] = (48, 64),
    split: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
) -> Recording:
    """Read responses to gratings, or to images.

    Args:
        path: of the ``.npz``: "resp" [S, N], and "stimuli" [S], orientations in degrees, or "istim" [S]; also "images"
            [I, C, H, W] or [I, H, W], where ``images`` is not given. Or, of halves of the trials, "resp_train" and
            "resp_test", both [S, N], and "stimuli" [S]: those of one follow those of the other.
        images: that "istim" counts: an array, or a ``.npy`` file.
        first_image: number of the first image in "istim": 1 in files that come from MATLAB.
        bin_degrees: width of bins of orientations: a trial is then the mean response to the stimuli of a bin, and its
            orientation their mean.
        image_shape: (H, W) of the gratings, which are drawn when they are needed.
        split: shares of stimuli for "train", "validation" and "test", drawn by ``seed``; all trials of a stimulus are
            in one tier. Files of this format have no tiers of their own; "tiers" [S] is taken where it is there.
        seed: of the split.

    Returns:
        The recording; of gratings with ``trials["orientation"]`` [S].

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: in one line: the file, the array, what was wanted, what came.
    """
    tree = Tree(path)
    arrays = {name.removesuffix(".npy"): name for name in tree.files("")}
    if {*HALVES, "stimuli"} <= set(arrays) and "resp" not in arrays:
        return _read_halves(tree, arrays, path, bin_degrees, image_shape)
    if "resp" not in arrays or not {"stimuli", "istim"} & set(arrays):
        raise ValueError(f"{path}: want arrays resp, and stimuli or istim, got {', '.join(arrays) or 'none'}")
    responses = _numbers(tree, arrays["resp"], 2, "[S, N]")
    which = "stimuli" if "stimuli" in arrays else "istim"
    stimuli = _numbers(tree, arrays[which], 1, "[S]")
    if len(stimuli) != len(responses):
        want = f"[S], S = {len(responses)} as in resp"
        raise ValueError(f"{tree.where(which)}: want {want}, got {stimuli.shape}")
    fields: dict[str, Any] = {}
    if which == "istim":
        if bin_degrees is not None:
            raise ValueError(f"{path}: bin_degrees: want orientations (stimuli), got images (istim)")
        given = images if images is not None else arrays.get("images")
        if given is None:
            raise ValueError(
                f"{path}: want images [I, H, W] that istim counts, as an argument or in the file, got none"
            )
        fields["images"] = _images(tree, given)
        fields["image_index"] = stimuli - first_image
    else:
        if bin_degrees is not None:
            responses, stimuli = binned(responses, stimuli, bin_degrees)
        values, index = np.unique(stimuli, return_inverse=True)
        fields |= {"images": Gratings(values, image_shape), "image_index": index, "trials": {"orientation": stimuli}}
    if "tiers" in arrays and bin_degrees is None:
        fields["tiers"] = tree.array(arrays["tiers"])
    else:
        fields["tiers"] = split_tiers(fields["image_index"], split, seed)
    return Recording(**fields, responses=responses, name=session_name(Path(path).stem), source=str(path))


def _read_halves(
    tree: Tree, arrays: dict[str, str], path: str | Path, bin_degrees: float | None, image_shape: tuple[int, int]
) -> Recording:
    """A recording whose tiers are the halves of the trials."""
    stimuli = _numbers(tree, arrays["stimuli"], 1, "[S]")
    halves: list[Array] = []
    for name in HALVES:
        responses = _numbers(tree, arrays[name], 2, "[S, N]")
        wanted = (len(stimuli), halves[0].shape[1] if halves else responses.shape[1])
        if responses.shape != wanted:
            raise ValueError(f"{tree.where(name)}: want [S, N] = {wanted}, got {responses.shape}")
        halves.append(responses)
    orientations = stimuli
    if bin_degrees is not None:
        (first, orientations), (second, _) = (binned(half, stimuli, bin_degrees) for half in halves)
        halves = [first, second]
    values, index = np.unique(orientations, return_inverse=True)
    return Recording(
        images=Gratings(values, image_shape),
        responses=np.concatenate(halves),
        image_index=np.tile(index, 2),
        tiers=np.repeat(["train", "test"], len(orientations)),
        trials={"orientation": np.tile(orientations, 2)},
        name=session_name(Path(path).stem),
        source=str(path),
    )


def _numbers(tree: Tree, name: str, axes: int, want: str) -> Array:
    values = tree.array(name)
    if values.ndim != axes or values.dtype.kind not in "fiub" or not values.size:
        raise ValueError(f"{tree.where(name)}: want numbers {want}, got {values.dtype} {values.shape}")
    if axes == 1 and not np.isfinite(values).all():
        raise ValueError(f"{tree.where(name)}: want finite numbers, got {values[~np.isfinite(values)][0]}")
    return values


def _images(tree: Tree, given: Any) -> Any:
    values: Any
    if isinstance(given, str) and given in tree.files(""):
        where, values = tree.where(given), tree.array(given)
    elif isinstance(given, str | Path):
        own = Tree(Path(given).parent)
        where, values = str(given), own.array(Path(given).name)
    else:
        where, values = "images", as_rows("images", given)
    if len(values.shape) == 3:
        return np.asarray(values)[:, None]
    if len(values.shape) != 4:
        raise ValueError(f"{where}: want [I, C, H, W] or [I, H, W], got {values.shape}")
    return values


def binned(responses: Any, degrees: Any, width: float) -> tuple[Array, Array]:
    """Mean responses [B, N] and orientations [B] of the stimuli in each bin from 0, for bins that have any.

    Args:
        responses: [S, N].
        degrees: [S].
        width: of a bin, in degrees, > 0.

    >>> import numpy as np
    >>> means, orientations = binned(np.arange(4.0)[:, None], np.array([0, 1, 2, 3]), 2)
    >>> means.ravel().tolist(), orientations.tolist()
    ([0.5, 2.5], [0.5, 2.5])
    """
    if not width > 0:
        raise ValueError(f"bin_degrees: want a number > 0, got {width}")
    _, place, counts = np.unique(np.floor(np.asarray(degrees) / width), return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), responses.shape[1]))
    np.add.at(sums, place, responses)
    return sums / counts[:, None], np.bincount(place, weights=degrees) / counts


def split_tiers(ids: Any, shares: Sequence[float], seed: int) -> Array:
    """Tier [T] of each trial: a random split of the images or stimuli, so that none is in two tiers.

    Args:
        ids: [T], of images or stimuli.
        shares: of "train", "validation" and "test", of sum 1.
        seed: of the split, >= 0.
    """
    if len(shares) != len(TIERS) or min(shares) < 0 or not math.isclose(sum(shares), 1):
        raise ValueError(f"split: want 3 shares >= 0 of sum 1, got {tuple(shares)}")
    values, place = np.unique(ids, return_inverse=True)
    ends = np.rint(np.cumsum(shares) * len(values)).astype(int)
    tier = np.empty(len(values), "U10")
    tier[np.random.default_rng(seed).permutation(len(values))] = np.repeat(TIERS, np.diff(ends, prepend=0))
    tiers: Array = tier[place]
    return tiers


def write_stringer(recording: Recording, path: str | Path) -> None:
    """Write an ``.npz``: "resp", "istim", "images" and "tiers". What else a recording has, this format cannot hold.

    Raises:
        ValueError: another suffix.
        FileExistsError: there is something at ``path``.
        OSError: it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: want a name that ends in .npz")
    arrays = {
        "resp": recording.responses,
        "istim": recording.image_index,
        "images": recording.images,
        "tiers": recording.tiers,
    }
    with _files.new(path) as partial:
        np.savez(partial, allow_pickle=False, **{name: np.asarray(values) for name, values in arrays.items()})
