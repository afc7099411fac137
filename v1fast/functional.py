"""The library's computations as functions of tensors.

Each function calls an op ``torch.ops.v1fast.*``, once or once for each level of a pyramid. The dispatcher picks the
kernel, and the op refuses what its contract does not allow.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from v1fast import _arrays, _choices, _rdm_methods, _rdm_rows, contracts, ops
from v1fast.contracts import _checks
from v1fast.reference import rdm as _rdm_reference
from v1fast.reference._common import compute_dtype
from v1fast.reference.pairwise_rdm import pairwise_rdm

__all__ = [
    "cross_rdm",
    "gather_levels",
    "gaussian_readout",
    "levels_readout",
    "philox_normal",
    "pool_levels",
    "pooled_readout",
    "rdm",
    "rdm_out",
]

Array = TypeVar("Array", Tensor, NDArray[Any])


def seed_tensor(seed: int | Tensor, device: torch.device) -> Tensor:
    """The seed as the ops take it; ValueError unless it is a tensor, which they check, or an integer of 64 bits."""
    if isinstance(seed, Tensor):
        return seed
    if isinstance(seed, np.integer):
        seed = int(seed)
    if not isinstance(seed, (int, torch.SymInt)):
        raise ValueError(f"seed: want an int, or an int64 tensor [1], got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: want an int in [-2**63, 2**63), got {seed}")
    return torch.full((1,), seed, dtype=torch.int64, device=device)


def _check_neuron_index(neuron_index: Tensor | None) -> None:
    """ValueError unless the neurons' counters are in range. On a GPU they are not looked at: it would wait."""
    if neuron_index is None or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    if neuron_index.device.type != "cpu" or neuron_index.dtype != torch.int64 or not neuron_index.numel():
        return
    low, high = (int(value) for value in neuron_index.aminmax())
    if low < 0 or high >= 2**32:
        raise ValueError(f"neuron_index: want indices in [0, 2**32), got {low if low < 0 else high}")


def shift_of_images(shift: Tensor | None, images: int) -> Tensor | None:
    """A shift [B, 2] as it is; one of all images, [1, 2], for each. Its gradient has its own shape."""
    return shift.expand(images, 2) if shift is not None and tuple(shift.shape) == (1, 2) else shift


def gaussian_readout(
    features: Tensor,
    mu: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    neuron_index: Tensor | None = None,
    image_offset: int = 0,
    share_noise: bool = False,
    align_corners: bool = True,
) -> Tensor:
    r"""Each neuron reads the features at one point, sampled from its Gaussian, and weights the channels.

    .. math::
        p_{bn} &= \mathrm{clamp}(\mu_n + A_n \epsilon_{bn}, -1, 1) + \mathrm{shift}_b \\
        \mathrm{out}_{bn} &= \mathrm{bias}_n
            + \sum_c \mathrm{weight}_{nc}\, \mathrm{bilinear}(\mathrm{features}_{bc}, p_{bn})

    The readout of Lurz et al., "Generalization in data-driven models of primary visual cortex", ICLR 2021. Positions
    are (x, y) with x along the width; -1 and 1 are the centres of the outermost pixels (``align_corners``) or their
    outer edges. Outside the map the features are zero. Conventions at the clamp, on the border and for NaN are those
    of ``torch.clamp`` and ``torch.nn.functional.grid_sample``.

    Noise is given (``noise``), drawn inside the kernel from a counter (``seed``), or absent (the mean positions). A
    draw depends on the seed, the neuron's index and the image's index only: not on the batch, its split, or threads.

    Args:
        features: [B, C, H, W] in float64, float32, bfloat16 or float16, of any memory format; channels-last is read in
            place.
        mu: [N, 2], mean positions.
        sigma: square root A of the covariance: [N, 2, 2] full, [N, 2] uncorrelated, [N, 1] isotropic, or None.
        weight: [N, C], any strides; its dtype may differ from that of the features. Its gradient has the layout of
            ``torch.empty_like(weight)``.
        bias: [N].
        shift: [B, 2], or [1, 2] for all images: added to the positions after the clamp, in their units.
        noise: standard normals [B, N, 2], or [1, N, 2] with ``share_noise``. A constant: it gets no gradient.
        seed: int in [-2**63, 2**63), or int64 tensor [1] on the features' device.
        neuron_index: int64 [N], the neurons' indices in the population that the draws are counted by, in [0, 2**32);
            default 0..N-1. Checked on the CPU; on a GPU the check would have to wait for it.
        image_offset: index of the first image of the batch, >= 0: two parts of one batch, with the same seed and the
            number of images of the first as offset of the second, draw what the whole batch draws.
        share_noise: one draw for each neuron, that of image 0, for all images.
        align_corners: as in ``torch.nn.functional.grid_sample``.

    Returns:
        [B, N] of dtype ``promote_types(features, weight)``. Arithmetic is float32, or float64 where an operand is.

    Raises:
        ValueError: an operand does not fit; the message names it, what is wanted and what came.

    >>> import torch
    >>> features = torch.arange(12.0).reshape(1, 1, 3, 4)  # one image, one channel, 3 x 4 pixels
    >>> corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    >>> gaussian_readout(features, corners, None, torch.ones(3, 1))
    tensor([[ 0.0000, 11.0000,  5.5000]])
    >>> drawn = gaussian_readout(features, corners, torch.full((3, 1), 0.2), torch.ones(3, 1), seed=1)
    >>> drawn.shape
    torch.Size([1, 3])
    """
    return ops.gaussian_readout.gaussian_readout(
        *gaussian_operands(
            features,
            mu,
            sigma,
            weight,
            bias,
            shift,
            noise=noise,
            seed=seed,
            neuron_index=neuron_index,
            image_offset=image_offset,
            share_noise=share_noise,
            align_corners=align_corners,
        )
    )


def gaussian_operands(
    features: Tensor,
    mu: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    neuron_index: Tensor | None = None,
    image_offset: int = 0,
    share_noise: bool = False,
    align_corners: bool = True,
) -> tuple[Any, ...]:
    """The arguments of a call of :func:`gaussian_readout`, as the op takes them.

    Raises:
        ValueError: a seed, index, shift or noise does not fit. The op checks the rest.
    """
    key = seed if seed is None or isinstance(seed, Tensor) else seed_tensor(seed, features.device)
    shift = None if shift is None else shift_of_images(shift, features.shape[0])
    if neuron_index is not None:
        _check_neuron_index(neuron_index)
    if noise is not None and noise.requires_grad:
        raise ValueError("noise: want a constant, got a tensor that requires grad; pass noise.detach()")
    return (
        features, mu, sigma, weight, bias, shift, noise, key, neuron_index, image_offset, share_noise, align_corners,
    )  # fmt: skip


suits_stored = ops.gaussian_readout.of_stored.suits


def philox_normal(
    seed: int | Tensor,
    images: int,
    neurons: int,
    *,
    neuron_index: Tensor | None = None,
    image_offset: int = 0,
) -> Tensor:
    """The standard normals that ``gaussian_readout`` draws from the same seed.

    Philox4x32-10 (Salmon et al. 2011), counter = (neuron, image // 2, 0, 0), and Box-Muller. Kernels agree in every
    bit; the reference is within 2e-6 of them.

    Args:
        seed: int in [-2**63, 2**63), or int64 tensor [1] on the device wanted.
        images: number of images B.
        neurons: number of neurons N.
        neuron_index: int64 [N], indices that the draws are counted by, in [0, 2**32), as in :func:`gaussian_readout`;
            default 0..N-1.
        image_offset: index of the first image, >= 0.

    Returns:
        [images, neurons, 2] float32: the noise of (x, y).

    Raises:
        ValueError: an operand does not fit; the message names it.

    >>> philox_normal(7, images=4, neurons=5)[2:].equal(philox_normal(7, images=2, neurons=5, image_offset=2))
    True
    """
    device = torch.device("cpu") if neuron_index is None else neuron_index.device
    key = seed_tensor(seed, device)
    _check_neuron_index(neuron_index)
    return ops.philox_normal.philox_normal(key, images, neurons, neuron_index, image_offset)


def pool_levels(features: Tensor, *, kernel: int, steps: int, stride: int | None = None) -> list[Tensor]:
    """The features and their successive average poolings.

    Args:
        features: [B, C, H, W]; channels-last stays channels-last.
        kernel: size of the square that is averaged, >= 1.
        steps: number of poolings, >= 0.
        stride: of the squares; default ``kernel``. What is left over at the right and lower border is not read.

    Returns:
        ``steps + 1`` maps, the first of which is ``features``. Each is rounded to the dtype of the features.

    Raises:
        ValueError: an argument out of range, features that are no floats, or a pooling would leave nothing of a map
            that is smaller than ``kernel``.

    >>> import torch
    >>> [tuple(level.shape) for level in pool_levels(torch.zeros(1, 8, 28, 56), kernel=2, steps=2)]
    [(1, 8, 28, 56), (1, 8, 14, 28), (1, 8, 7, 14)]
    """
    _checks.feature_map("features", features)
    _checks.floating("features", features)
    stride = kernel if stride is None else stride
    _checks.poolings(features, kernel, stride, steps)
    levels = [features]
    for _ in range(steps):
        levels.append(F.avg_pool2d(levels[-1], kernel, stride))
    return levels


def levels_readout(
    levels: Sequence[Tensor],
    grid: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    align_corners: bool = True,
) -> Tensor:
    r"""Each neuron reads all maps of a pyramid at the same normalised position and weights the channels.

    .. math::
        \mathrm{out}_{bn} = \mathrm{bias}_n
            + \sum_l \sum_c \mathrm{weight}_{nlc}\, \mathrm{bilinear}(\mathrm{level}_{lbc},
            \mathrm{grid}_n + \mathrm{shift}_b)

    Positions are as in ``torch.nn.functional.grid_sample``: (x, y) with x along the width; -1 and 1 are the centres of
    the outermost pixels (``align_corners``) or their outer edges; outside the map the features are zero, and nothing is
    clamped; a NaN or infinite position gives NaN. No tensor of images x neurons x channels is kept for the backward
    pass, and the kernels make none.

    Args:
        levels: maps [B, C, H, W], of which C, H, W and the dtype may differ; of float64, float32, bfloat16 or float16
            and any memory format; channels-last is read in place.
        grid: positions [N, 2], or [B, N, 2] where each image has its own.
        weight: [N, sum of C], first those of all channels of the first map, then of the second, ...; any strides.
        bias: [N].
        shift: [B, 2], or [1, 2] for all images: added to the positions, in their units.
        align_corners: as in ``torch.nn.functional.grid_sample``.

    Returns:
        [B, N] of the dtype that the levels and ``weight`` promote to. Arithmetic is float32, float64 where an operand
        is; the levels' parts are added in it too, and rounded once.

    Raises:
        ValueError: an operand does not fit; the message names it, what is wanted and what came.
    """
    shift = shift_of_images(shift, levels[0].shape[0]) if levels else shift
    contracts.pooled_readout.check_levels(levels, grid, weight, bias, shift)
    dtype = functools.reduce(torch.promote_types, (level.dtype for level in levels), weight.dtype)
    # The op's output is at least of the weight's dtype: with weights of the dtype to compute in, no part is rounded to
    # half precision before the sum.
    wide = weight.to(compute_dtype(*levels, grid, weight, bias, shift))
    # Split rather than sliced: the gradients of the parts are joined by one copy.
    parts = wide.split([level.shape[1] for level in levels], dim=1)
    options = (align_corners, 1, 0)  # each level by itself, not pooled
    out = ops.pooled_readout.pooled_readout(levels[0], grid, parts[0], bias, shift, None, *options)
    for level, part in zip(levels[1:], parts[1:], strict=True):
        out = out + ops.pooled_readout.pooled_readout(level, grid, part, None, shift, None, *options)
    return out.to(dtype)


def pooled_readout(
    features: Tensor,
    grid: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    pool_kernel: int,
    pool_steps: int,
    align_corners: bool = True,
) -> Tensor:
    """Each neuron reads the features and their successive average poolings at the same normalised position.

    The readout of Sinz et al., "Stimulus domain transfer in recurrent models for large scale cortical population
    prediction on video", NeurIPS 2018: coarse maps let a position find its way from afar, fine ones place it. It is
    :func:`levels_readout` of :func:`pool_levels`, in one op; features of low precision are averaged in float32 and the
    averages not rounded.

    Args:
        features: [B, C, H, W], as in :func:`levels_readout`.
        grid: [N, 2] or [B, N, 2].
        weight: [N, (pool_steps + 1) * C], first those of the features' own channels, then of the first pooling's, ...
        bias: [N].
        shift: [B, 2] or [1, 2].
        pool_kernel: size and stride of each pooling, >= 1; what is left over at the right and lower border is not read.
        pool_steps: number of poolings, >= 0.
        align_corners: as in ``torch.nn.functional.grid_sample``.

    Returns:
        [B, N] of dtype ``promote_types(features, weight)``.

    Raises:
        ValueError: an operand does not fit; a pooling would leave nothing of the map.

    >>> import torch
    >>> features, weight = torch.rand(4, 8, 28, 56), torch.rand(10, 3 * 8)  # 10 neurons, the map and two poolings
    >>> pooled_readout(features, torch.zeros(10, 2), weight, pool_kernel=2, pool_steps=2).shape
    torch.Size([4, 10])
    """
    shift = None if shift is None else shift_of_images(shift, features.shape[0])
    operands = (features, grid, weight, bias, shift)
    options = (align_corners, pool_kernel, pool_steps)
    pooled, stored = None, pool_steps and features.device.type in ops.pooled_readout.STORING
    if stored and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (grid, weight, shift)):
        # The backward pass reads the poolings again; where there is none, they stay in the cache, a few at a time.
        wide = compute_dtype(*operands) == torch.float64
        pooled = ops.pooled_readout.pooled_levels(features.detach(), pool_kernel, pool_steps, wide)
    return ops.pooled_readout.pooled_readout(*operands, pooled, *options)


def gather_levels(
    levels: Sequence[Tensor], grid: Tensor, shift: Tensor | None = None, *, align_corners: bool = True
) -> Tensor:
    """All channels of all maps at each neuron's position: what :func:`levels_readout` weights and adds.

    For readouts of another form, and to look at; the result is as large as what ``levels_readout`` does without.

    Args:
        levels: maps [B, C, H, W], as in :func:`levels_readout`.
        grid: [N, 2] or [B, N, 2].
        shift: [B, 2] or [1, 2].
        align_corners: as in ``torch.nn.functional.grid_sample``.

    Returns:
        [B, N, sum of C] of the dtype that the levels promote to.

    Raises:
        ValueError: an operand does not fit; the message names it, what is wanted and what came.
    """
    shift = shift_of_images(shift, levels[0].shape[0]) if levels else shift
    contracts.point_gather.check_levels(levels, grid, shift)
    parts = [ops.point_gather.point_gather(level, grid, shift, align_corners) for level in levels]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def rdm(
    responses: Array,
    *,
    method: str = "correlation",
    noise: Array | None = None,
    folds: Tensor | ArrayLike | None = None,
    stimuli: Tensor | ArrayLike | None = None,
    prior_lambda: float = 1.0,
    prior_weight: float = 0.1,
    nan: str = "propagate",
    condensed: bool = False,
    accuracy: str = "float32",
) -> Array:
    r"""Representational dissimilarity matrix: how much the responses to two stimuli differ, for each pair.

    .. math::
        M_{ij} = 1 - \frac{1}{N} \sum_n Z_{in} Z_{jn}, \qquad
        Z_{in} = (R_{in} - \mathrm{mean}_n R_{in}) / \mathrm{std}_n R_{in}

    for the default method, "correlation" (Kriegeskorte, Mur & Bandettini, "Representational similarity analysis",
    Frontiers in Systems Neuroscience 2, 2008). The others, with the conventions of rsatoolbox:

    - "cosine": 1 minus the cosine of the angle of two rows;
    - "euclidean": the square of the distance of two rows, divided by N;
    - "mahalanobis": the same with a precision matrix between; without ``noise`` it is "euclidean";
    - "crossnobis": the same, one difference from each fold in turn and one from the mean of the others, averaged: it is
      0 on average where two stimuli do not differ, and may be negative;
    - "poisson": the symmetrised Kullback-Leibler divergence of Poisson rates, regularised by a prior.

    The result is symmetric in every bit and 0 on its diagonal; correlation and cosine are clipped to [0, 2]. A row
    without a direction (correlation: all its values are equal; cosine: all are 0) or with a value that is not finite is
    NaN in its row and column, the diagonal included, and nowhere else; its gradient is zero. Of responses of few
    values, such as one-hot codes, ratings and counts, dissimilarities that are equal in exact arithmetic are equal in
    every bit (``v1fast.reference.rdm`` states the rule), but for poisson.

    Args:
        responses: [..., S, N], of any strides: S stimuli, N neurons, and leading dimensions for many matrices in one
            call. A tensor, or an array, which is not copied, even where it is read-only. Integers are taken as
            float32; those beyond 2^24, which it does not hold, are an error. Lists, data frames, datasets of h5py and
            the like are read; a masked array is refused, since a mask has no meaning here but NaN.
        method: one of the above.
        noise: precision matrix of the neurons [N, N], or [N] where it is diagonal, for mahalanobis and crossnobis. Of
            one that is not symmetric the symmetric part counts. It may be differentiated. For crossnobis also
            [F, N, N], the precision of the mean rows of each of F folds, in the order of their labels: two folds are
            then compared with the inverse of the mean of their covariances, and the result is the mean over pairs of
            folds.
        folds: [R], for crossnobis: the fold of each row of responses [..., R, N]; a tensor, or labels of any kind in an
            array or a list. The k-th row of each fold is stimulus k, so that S is R over the number of folds; or
            ``stimuli`` says which it is.
        stimuli: [R], for crossnobis: the stimulus of each row, each of them in every fold, in any order and with any
            number of repeats. The matrix is in the order of the S labels. Rows of one stimulus and fold are averaged;
            the mean of the other folds is that of all their rows, so that a fold with more repeats counts for more.
        prior_lambda: mean of the prior on the rates, for poisson.
        prior_weight: weight of the prior on the rates.
        nan: "propagate", or, for correlation, "pairwise": each pair is correlated over the neurons where neither row is
            NaN. That is slower, and computed in float64.
        condensed: return the upper triangle alone, row by row, as ``scipy.spatial.distance.squareform`` has it.
        accuracy: "float32"; "high": products in float64, and pairs that hardly differ computed from their difference;
            "bfloat16": products may be of values rounded to bfloat16.

    Returns:
        [..., S, S], or [..., S (S - 1) / 2]; float64 where responses are, else float32. Tensor for tensor, on its
        device, differentiable; array for array.

    Raises:
        ValueError: an operand does not fit; the message names it, what is wanted and what came.

    >>> import numpy as np
    >>> responses = np.array([[0.0, 1, 2], [0, 1, 2], [2, 1, 0]])  # 3 stimuli, 3 neurons
    >>> rdm(responses)
    array([[0., 0., 2.],
           [0., 0., 2.],
           [2., 2., 0.]])
    >>> rdm(responses, condensed=True)
    array([0., 2., 2.])
    """
    found: Tensor
    if ops.rdm.small is not None and nan == "propagate" and noise is folds is stimuli is None:
        small = ops.rdm.small(responses, method, condensed, accuracy)
        if small is not None:
            return small
    if not isinstance(responses, Tensor):
        found = rdm(
            _arrays.to_tensor("responses", responses),
            method=method,
            noise=cast("Any", noise),
            folds=folds,
            stimuli=stimuli,
            prior_lambda=prior_lambda,
            prior_weight=prior_weight,
            nan=nan,
            condensed=condensed,
            accuracy=accuracy,
        )
        return found.numpy(force=True)
    if noise is not None and not isinstance(noise, Tensor):
        noise = _arrays.to_tensor("noise", _arrays.floats("noise", noise)).to(responses.device)
    if folds is not None:
        folds = _labels("folds", folds, responses.device)
    if stimuli is not None:
        stimuli = _labels("stimuli", stimuli, responses.device)
    _choices.one_of("nan", nan, ("propagate", "pairwise"))
    if nan == "pairwise":
        return _pairwise(responses, method, condensed, accuracy)
    x, y, kernel = _rdm_methods.operands(responses, method, noise, folds, stimuli, prior_lambda, prior_weight)
    found = ops.rdm.rdm(x, y, kernel, condensed, accuracy)
    return found.reshape(*responses.shape[:-2], *found.shape[1:])


def _labels(name: str, labels: Tensor | ArrayLike, device: torch.device) -> Tensor:
    """Labels of rows as a tensor, of those on this device."""
    found = labels if isinstance(labels, Tensor) else torch.from_numpy(_arrays.distinct(name, labels)[1])
    if found.is_meta:
        raise ValueError(f"{name}: want labels, whose values count, got a tensor without values, on device meta")
    if found.device not in (device, torch.device("cpu")):
        raise ValueError(f"{name}: want device cpu, or {device}, that of responses, got {found.device}")
    return found


def _pairwise(responses: Tensor, method: str, condensed: bool, accuracy: str) -> Tensor:
    if method != "correlation":
        raise ValueError(f'nan: want "propagate" beside method {method!r}, got "pairwise"')
    _choices.one_of("accuracy", accuracy, _rdm_reference.ACCURACIES)
    x = _rdm_rows.rows("responses", responses)
    found = pairwise_rdm(_rdm_rows.by_batch(x), condensed)
    return found.to(_rdm_reference.output_dtype(x, None)).reshape(*responses.shape[:-2], *found.shape[1:])


def rdm_out(
    responses: Array, out: Array, *, method: str = "correlation", condensed: bool = False, accuracy: str = "float32"
) -> Array:
    """``rdm`` written into memory that is there, without derivative; for correlation, cosine and euclidean.

    Args:
        responses: [..., S, N], as for ``rdm``.
        out: what ``rdm`` would return, contiguous, in memory of its own: not between the first and the last byte of
            the responses. Autograd refuses to use what it held before.
        method: "correlation", "cosine" or "euclidean".
        condensed: as for ``rdm``.
        accuracy: as for ``rdm``.

    Returns:
        ``out``.

    Raises:
        ValueError: an operand does not fit, or asks for a derivative.
    """
    if not isinstance(responses, Tensor) or not isinstance(out, Tensor):
        if isinstance(responses, Tensor) or not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
            raise ValueError(f"out: want what responses are, a tensor or an array, got {type(out).__name__}")
        if not (out.flags.writeable and out.flags.c_contiguous and out.flags.aligned and out.dtype.isnative):
            raise ValueError("out: want a contiguous array that may be written, in the machine's byte order")
        given = _arrays.to_tensor("responses", responses)
        rdm_out(given, torch.from_numpy(out), method=method, condensed=condensed, accuracy=accuracy)
        return out
    _choices.one_of("method", method, _rdm_reference.METHODS)
    if torch.is_grad_enabled() and (responses.requires_grad or out.requires_grad):
        raise ValueError("responses, out: want no gradient, got one that requires grad; use rdm, or torch.no_grad()")
    x, y, kernel = _rdm_methods.operands(responses, method, None, None, None, 1.0, 0.1)
    if not out.is_contiguous():
        raise ValueError("out: want a contiguous tensor")
    batched: tuple[int, ...] = contracts.rdm.output_shape(x.shape[0], x.shape[1], condensed)
    _checks.shape("out", out, "rdm's shape", (*responses.shape[:-2], *batched[1:]))
    target = out.view(batched)
    ops.rdm.rdm_out(x, y, kernel, condensed, accuracy, target)
    return out


def cross_rdm(x: Array, y: Array, *, method: str = "correlation", accuracy: str = "float32") -> Array:
    """The dissimilarities of ``rdm`` between the rows of two sets, such as two runs or a model and a brain.

    Args:
        x: [..., S, N], of any strides.
        y: [..., T, N], with the same leading dimensions.
        method: "correlation", "cosine" or "euclidean".
        accuracy: as for ``rdm``.

    Returns:
        [..., S, T]; float64 where an operand is, else float32. A row that ``rdm`` would make NaN is NaN here.

    Raises:
        ValueError: an operand does not fit; the message names it.

    >>> import numpy as np
    >>> cross_rdm(np.array([[0.0, 1, 2]]), np.array([[0.0, 1, 2], [2, 1, 0]]))
    array([[0., 2.]])
    """
    found: Tensor
    if ops.rdm.small_cross is not None:
        small = ops.rdm.small_cross(x, y, method, accuracy)
        if small is not None:
            return small
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        if isinstance(x, Tensor) or isinstance(y, Tensor):
            raise ValueError(f"y: want what x is, a tensor or an array, got {type(y).__name__}")
        arrays = _arrays.to_tensor("x", x), _arrays.to_tensor("y", y)
        return cross_rdm(*arrays, method=method, accuracy=accuracy).numpy()
    _choices.one_of("method", method, _rdm_reference.METHODS)
    first: Tensor = _rdm_rows.rows("x", x)
    second: Tensor = _rdm_rows.rows("y", y)
    if first.shape[:-2] != second.shape[:-2] or first.shape[-1] != second.shape[-1]:
        want = (*first.shape[:-2], second.shape[-2], first.shape[-1])
        raise ValueError(f"y: want [..., T, N] = {want}, got {tuple(second.shape)}")
    first, second = _rdm_rows.by_batch(first), _rdm_rows.by_batch(second)
    found = ops.rdm.cross_rdm(first, second, method, accuracy)
    return found.reshape(*x.shape[:-2], *found.shape[1:])
