"""Sums over trials, image by image, from which every metric is computed.

A metric is given by functions of blocks of neurons:

    trials [T, n] --sums or terms--> sums over the trials of each image [I, n], several
                  --features--> [I, n], several, which add up over images --value--> [n], one number for each neuron

So leaving images out, or drawing them several times (bootstrap), only changes the weights of a sum of features. Most
features are products of sums, weighted by image (``Products``). Their totals come from one op, which keeps nothing for
each image. All sums are in float64. Nothing larger than a block is allocated: no tensor of trials x neurons besides the
operands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast.contracts.trial_sums import which
from v1fast.ops.trial_sums import trial_products, trial_sums

Array = Tensor | NDArray[Any]
TRIAL_BLOCK = 2**17  # float64 elements that are allocated at a time for terms
FEATURE_BLOCK = 2**23  # elements of all features of one block of neurons: 64 MiB
GPU_FACTOR = 2**6  # fewer, larger blocks on a GPU


class Images(NamedTuple):
    """Sums over the trials of each image.

    Attributes:
        n: [I, 1], number of trials.
        sums: [I, n] each, by name: "x", "y", "xx", "yy", "xy" and "error" of :mod:`v1fast.reference.trial_sums`, or
            the names of a measure's terms.
        reference: [2, n], constants of each neuron that are subtracted before summing.
        trials: [T, n], responses minus the reference, in the order of the images; empty if not requested.
        numbers: [T, 2], int64, image and number of the repeat of these trials.
    """

    n: Tensor
    sums: Mapping[str, Tensor]
    reference: Tensor
    trials: Tensor
    numbers: Tensor


Terms = Callable[[Tensor, Tensor, Tensor], Mapping[str, Tensor]]
Product = tuple[Tensor, str, str]
"""Weights of the images [I, 1], and the names of two sums, whose product is weighted; "" stands for ones."""


@dataclass(frozen=True)
class Products:
    """Features that are sums of weighted products of two sums over trials.

    Attributes:
        of: function of the numbers of trials [I, 1] that returns the products that add up to each feature.
    """

    of: Callable[[Tensor], Sequence[Sequence[Product]]]

    def __call__(self, images: Images) -> list[Tensor]:
        """Return the features, [I, n] or [I, 1] each."""

        def product(weights: Tensor, *names: str) -> Tensor:
            return reduce(torch.mul, [images.sums[name] for name in names if name], weights)

        return [reduce(torch.add, [product(*each) for each in feature]) for feature in self.of(images.n)]


class Measure(NamedTuple):
    """A metric; see the module's docstring.

    Attributes:
        sums: names of the sums of the op that it needs.
        features: function of ``Images`` that returns [I, n] or [I, 1] each; ``Products`` where it can be.
        value: function of the features summed over images, [..., n] or [..., 1] each, that returns [..., n].
        repeats: whether an image needs at least two trials.
        keeps_trials: whether ``features`` needs the responses of single trials.
        terms: function of responses and predictions [t, n] and reference [2, n], in float64: other sums, by name.
        reference: function of the responses [T, n] that returns [2, n] for ``terms``; without it, the first trial.
    """

    sums: tuple[str, ...]
    features: Callable[[Images], Sequence[Tensor]]
    value: Callable[[Sequence[Tensor]], Tensor]
    repeats: bool = False
    keeps_trials: bool = False
    terms: Terms | None = None
    reference: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Trials:
    """Checked operands, and which trials belong to which image.

    Attributes:
        responses, predictions: [T, N], as given.
        order: [T'], the trials that are used, grouped by image; within an image in the given order.
        counts: [I], number of trials of each image, on the CPU.
        left_out: number of images left out because they have one trial.
    """

    responses: Tensor
    predictions: Tensor
    order: Tensor
    counts: Tensor
    left_out: int

    @classmethod
    def of(cls, responses: Array, predictions: Array | None, image_ids: Any, repeats: bool) -> Trials:
        """Check the operands, and sort the trials by image.

        Args:
            responses, predictions: [T, N]; predictions is None for a metric of responses only.
            image_ids: [T], of any sortable kind; None: all trials form one group.
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
            return cls(r, p, torch.arange(len(r), device=r.device), torch.tensor([len(r)]), 0)
        return cls(r, p, *_by_image(image_ids, r, repeats))

    @property
    def neurons(self) -> int:
        """N."""
        return self.responses.shape[1]

    def numbers(self) -> Tensor:
        """Return image and number of the repeat of each trial in order, [T', 2]."""
        image = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        first = torch.cumsum(self.counts, 0) - self.counts
        return torch.stack([image, torch.arange(len(image)) - first[image]], dim=1)


def features_of(trials: Trials, measures: Sequence[Measure], block: slice) -> list[list[Tensor]]:
    """Return the features of a block of neurons for each measure, [I, n] or [I, 1] each. Trials are read only once."""
    r, p = _alike(trials.responses[:, block], trials.predictions[:, block])
    center = _first(trials, r, p)
    sums = _summed(trials, r, p, center, tuple({name for each in measures for name in each.sums}))
    images: dict[Any, Images] = {}
    features: dict[Any, list[Tensor]] = {}  # shared by measures, so computed once
    for measure in measures:
        kind = measure.terms, measure.keeps_trials
        if kind not in images:
            images[kind] = _images(trials, measure, r, p, center, sums)
        if measure.features not in features:
            features[measure.features] = list(measure.features(images[kind]))
    return [features[measure.features] for measure in measures]


def totals_of(trials: Trials, measures: Sequence[Measure]) -> list[list[Tensor]]:
    """Return the features summed over images, [N] or [1] each, of measures by ``Products``. Trials are read once."""
    r, p = _alike(trials.responses, trials.predictions)
    n = trials.counts.to(r.device, torch.float64)[:, None]
    features = [measure.features.of(n) for measure in measures if isinstance(measure.features, Products)]
    products = [product for own in features for feature in own for product in feature if any(product[1:])]
    mask, order = which(tuple({name for _, *names in products for name in names if name}))
    at = {"": 0} | {name: k for k, name in enumerate(order, start=1)}
    rows = iter(
        trial_products(
            *(r, p, _first(trials, r, p)),
            *(trials.order, trials.counts.to(r.device)),
            torch.tensor([[at[left], at[right]] for _, left, right in products], device=r.device),
            torch.stack([weights[:, 0] for weights, *_ in products]),
            mask,
        )
    )

    def total(feature: Sequence[Product]) -> Tensor:
        return reduce(torch.add, [next(rows) if any(names) else weights.sum(0) for weights, *names in feature])

    return [[total(feature) for feature in own] for own in features]


def images_of(trials: Trials, measure: Measure, reference: Tensor | None) -> Images:
    """Return the sums of one measure for all neurons, about a given reference [2, N] or one of these trials."""
    r, p = _alike(trials.responses, trials.predictions)
    center = _first(trials, r, p) if reference is None else reference
    return _images(trials, measure, r, p, center, _summed(trials, r, p, center, measure.sums), reference)


def _first(trials: Trials, r: Tensor, p: Tensor) -> Tensor:
    """Return the first trial, [2, N] float64: what sums are about."""
    return torch.stack([r[trials.order[0]], p[trials.order[0]]]).double()


def _summed(trials: Trials, r: Tensor, p: Tensor, center: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    if not names:
        return {}
    mask, order = which(names)
    return dict(zip(order, trial_sums(r, p, center, trials.order, trials.counts.to(r.device), mask), strict=True))


def _images(
    trials: Trials,
    measure: Measure,
    r: Tensor,
    p: Tensor,
    center: Tensor,
    found: Mapping[str, Tensor],
    reference: Tensor | None = None,
) -> Images:
    n = trials.counts.to(r.device, torch.float64)[:, None]
    about = center if measure.reference is None or reference is not None else measure.reference(r[trials.order])
    if measure.terms is not None:
        found = {**found, **summed_terms(trials, measure.terms, r, p, about)}
    rows, numbers = r.new_empty(0, r.shape[1], dtype=torch.float64), trials.order.new_empty(0, 2)
    if measure.keeps_trials:
        rows, numbers = r[trials.order].double() - about[0], trials.numbers().to(r.device)
    return Images(n, found, about, rows, numbers)


def summed_terms(trials: Trials, terms: Terms, r: Tensor, p: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Sum the terms over the trials of each image: [I, n] by name."""
    image = trials.numbers()[:, 0].to(r.device)
    rows = max(1, TRIAL_BLOCK * _scale(r.device) // max(1, r.shape[1]))
    found: dict[str, Tensor] = {}
    for chosen, images in zip(trials.order.split(rows), image.split(rows), strict=True):
        for name, term in terms(r[chosen].double(), p[chosen].double(), reference).items():
            if name not in found:
                found[name] = term.new_zeros(len(trials.counts), term.shape[1])
            if len(trials.counts) == 1:
                found[name] += term.sum(0)
            else:
                found[name].index_add_(0, images, term)
    return found


def _alike(r: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both to one dtype that the op accepts, without loss."""
    small = all(t.dtype in (torch.float32, torch.float16, torch.bfloat16) for t in (r, p))
    dtype = torch.float32 if small else torch.float64
    return r.to(dtype), p.to(dtype)


def neuron_blocks(trials: Trials, features: int) -> Iterator[slice]:
    """Yield blocks of neurons whose features fit."""
    size = max(1, FEATURE_BLOCK * _scale(trials.responses.device) // max(1, features * len(trials.counts)))
    for start in range(0, trials.neurons, size):
        yield slice(start, min(start + size, trials.neurons))


def _scale(device: torch.device) -> int:
    return 1 if device.type == "cpu" else GPU_FACTOR


def _matrix(values: Array, name: str) -> Tensor:
    tensor = torch.as_tensor(values).detach()
    if tensor.dim() != 2 or len(tensor) == 0:
        raise ValueError(f"{name}: want [T, N] with at least one trial, got {tuple(tensor.shape)}")
    if tensor.is_complex():
        raise ValueError(f"{name}: want real numbers, got {tensor.dtype}")
    return tensor


def _by_image(image_ids: Any, responses: Tensor, repeats: bool) -> tuple[Tensor, Tensor, int]:
    """Return the order of the trials, the number of trials per image, and the number of images left out."""
    ids = image_ids.detach().cpu().numpy() if isinstance(image_ids, Tensor) else np.asarray(image_ids)
    if ids.shape != (len(responses),):
        raise ValueError(f"image_ids: want [T] = ({len(responses)},), got {ids.shape}")
    _, index, counts = np.unique(ids, return_inverse=True, return_counts=True)
    order = np.argsort(index, kind="stable")
    used = counts >= 2 if repeats else counts >= 1
    order = order[used[index[order]]]
    return torch.from_numpy(order).to(responses.device), torch.from_numpy(counts[used]), int((~used).sum())
