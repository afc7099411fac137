"""Sums over trials, image by image: what every metric is made of.

A metric is given by three functions, each on blocks of trials x neurons or images x neurons:

    trials --terms--> [T, n], several --summed over the trials of an image--> [I, n]
           --features--> [I, n], several, which add up over images --value--> [n], one number for each neuron

so that leaving images out, or drawing them several times over (bootstrap), is another weighted sum of the features. All
sums are in float64. Nothing larger than a block is made: no tensor of trials x neurons besides the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = Tensor | NDArray[Any]
TRIAL_BLOCK = 2**15  # elements of float64 that pass through the cache together
FEATURE_BLOCK = 2**22  # elements of all features of one block of neurons: 32 MiB
GPU_FACTOR = 2**6  # on a GPU few large blocks


class Images(NamedTuple):
    """Sums over the trials of each image.

    Attributes:
        n: [I, 1], number of trials.
        sums: [I, n] each, one for each term.
        trials: [T, n], the first term, trial by trial in the order of the images; None unless asked for.
        columns: [T, 2], int64, image and number of the repeat of these trials.
        reference: 2 x [n], the constants of each neuron that the terms were made with.
    """

    n: Tensor
    sums: list[Tensor]
    trials: Tensor | None
    columns: Tensor
    reference: tuple[Tensor, Tensor]


class Measure(NamedTuple):
    """A metric, see the module.

    Attributes:
        terms: of responses [t, n], predictions [t, n] and reference (2 x [n]), all in float64.
        features: of ``Images``: [I, n] or [I, 1] each.
        value: of the sums of the features over images, [..., n] or [..., 1] each: [..., n].
        repeats: whether an image needs at least two trials.
        keeps_trials: whether ``features`` needs the first term trial by trial.
        reference: of responses and predictions [T, n] (a block of neurons): the constants of each neuron.
    """

    terms: Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], Sequence[Tensor]]
    features: Callable[[Images], Sequence[Tensor]]
    value: Callable[[Sequence[Tensor]], Tensor]
    repeats: bool = False
    keeps_trials: bool = False
    reference: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda r, p: (r[0].double(), p[0].double())


@dataclass(frozen=True)
class Trials:
    """Checked operands, and which trials belong to which image.

    Attributes:
        responses, predictions: [T, N], as given.
        order: [T'] the trials used, image after image, each image's in the order given; None: all, as they are.
        counts: [I], number of trials of each image, on the CPU.
        left_out: number of images left out because they have one trial.
    """

    responses: Tensor
    predictions: Tensor
    order: Tensor | None
    counts: Tensor
    left_out: int

    @classmethod
    def of(cls, responses: Array, predictions: Array | None, image_ids: Any, repeats: bool) -> Trials:
        """Check the operands, and sort the trials by image.

        Args:
            responses, predictions: [T, N]; predictions None for a metric of the responses alone.
            image_ids: [T], of any kind that sorts; None: all trials in one group.
            repeats: whether to leave out images with one trial.

        Raises:
            ValueError: the operands do not fit together.
        """
        r = _matrix(responses, "responses")
        p = r if predictions is None else _matrix(predictions, "predictions")
        if p.shape != r.shape:
            raise ValueError(f"predictions: want [T, N] = {tuple(r.shape)}, got {tuple(p.shape)}")
        if p.device != r.device:
            raise ValueError(f"predictions: want them where the responses are, {r.device}, got {p.device}")
        if image_ids is None:
            return cls(r, p, None, torch.tensor([len(r)]), 0)
        return cls(r, p, *_by_image(image_ids, r, repeats))

    @property
    def neurons(self) -> int:
        """N."""
        return self.responses.shape[1]

    def numbers(self) -> Tensor:
        """[T', 2]: image, and number of the repeat, of each trial in order."""
        image = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        first = torch.cumsum(self.counts, 0) - self.counts
        return torch.stack([image, torch.arange(len(image)) - first[image]], dim=1)


def features_of(trials: Trials, measure: Measure, block: slice) -> list[Tensor]:
    """The features of a block of neurons: [I, n] or [I, 1] each."""
    r, p = trials.responses[:, block], trials.predictions[:, block]
    reference = measure.reference(r, p)
    kept: list[Tensor] = []
    parts: list[list[Tensor]] = []
    for start, stop, counts in _trial_blocks(trials, r.shape[1], r.device):
        rows: Any = slice(start, stop) if trials.order is None else trials.order[start:stop]
        terms = measure.terms(r[rows].double(), p[rows].double(), reference)
        parts.append([_sum_segments(term, counts) for term in terms])
        if measure.keeps_trials:
            kept.append(terms[0])
    join = _total if trials.order is None else torch.cat
    sums = [join(part) for part in zip(*parts, strict=True)]
    n = trials.counts.to(r.device, torch.float64)[:, None]
    columns = trials.numbers().to(r.device) if measure.keeps_trials else trials.counts.new_empty(0, 2)
    return list(measure.features(Images(n, sums, torch.cat(kept) if kept else None, columns, reference)))


def neuron_blocks(trials: Trials, features: int) -> Iterator[slice]:
    """Blocks of neurons whose features fit."""
    size = max(1, FEATURE_BLOCK * _scale(trials.responses.device) // max(1, features * len(trials.counts)))
    for start in range(0, trials.neurons, size):
        yield slice(start, min(start + size, trials.neurons))


def _total(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _scale(device: torch.device) -> int:
    return 1 if device.type == "cpu" else GPU_FACTOR


def _trial_blocks(trials: Trials, neurons: int, device: torch.device) -> Iterator[tuple[int, int, Tensor]]:
    """First and last trial of blocks of whole images, and the images' counts; with one group, of any trials."""
    rows = max(1, TRIAL_BLOCK * _scale(device) // max(1, neurons))
    if trials.order is None:
        total = int(trials.counts[0])
        for start in range(0, total, rows):
            stop = min(start + rows, total)
            yield start, stop, torch.tensor([stop - start])
        return
    ends = torch.cumsum(trials.counts, 0)
    image = start = 0
    while image < len(ends):
        last = max(image + 1, int(torch.searchsorted(ends, start + rows, right=True)))
        stop = int(ends[last - 1])
        yield start, stop, trials.counts[image:last]
        image, start = last, stop


def _sum_segments(term: Tensor, counts: Tensor) -> Tensor:
    """[I, n]: sums of [T, n] over consecutive segments of the given lengths."""
    repeats = int(counts[0])
    if len(counts) == 1:
        return term.sum(0, keepdim=True)
    if bool((counts == repeats).all()):
        return term.view(len(counts), repeats, -1).sum(1)
    index = torch.repeat_interleave(torch.arange(len(counts)), counts).to(term.device)
    return term.new_zeros(len(counts), term.shape[1]).index_add_(0, index, term)


def _matrix(values: Array, name: str) -> Tensor:
    tensor = torch.as_tensor(values).detach()
    if tensor.dim() != 2 or len(tensor) == 0:
        raise ValueError(f"{name}: want [T, N] with at least one trial, got {tuple(tensor.shape)}")
    if tensor.is_complex():
        raise ValueError(f"{name}: want real numbers, got {tensor.dtype}")
    return tensor


def _by_image(image_ids: Any, responses: Tensor, repeats: bool) -> tuple[Tensor, Tensor, int]:
    """Order of the trials, trials of each image, images left out."""
    ids = image_ids.detach().cpu().numpy() if isinstance(image_ids, Tensor) else np.asarray(image_ids)
    if ids.shape != (len(responses),):
        raise ValueError(f"image_ids: want [T] = ({len(responses)},), got {ids.shape}")
    _, index, counts = np.unique(ids, return_inverse=True, return_counts=True)
    order = np.argsort(index, kind="stable")
    used = counts >= 2 if repeats else counts >= 1
    order = order[used[index[order]]]
    return torch.from_numpy(order).to(responses.device), torch.from_numpy(counts[used]), int((~used).sum())
