"""What all readouts share that read the features at one point per neuron."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from v1fast import _choices, functional
from v1fast.ops import gaussian_readout as op
from v1fast.ops import pooled_readout as pooled_op
from v1fast.readouts._frames import fold_frames, unfold_frames
from v1fast.readouts._ranges import Change, at_least_zero, unrecorded, within_map
from v1fast.readouts.base import FeatureReadout, NeuronSelection, select_neurons
from v1fast.reference._common import clamped_to_map

FEW = 2**19  # features of videos that are not copied into the layout in which many are read fastest
Sampler = Literal["philox", "torch"]
Noise = Mapping[str, Any]
"""How a call samples: arguments of ``gaussian_readout`` (noise or seed, share_noise); empty to read the means."""


def check_sampler(sampler: str) -> None:
    """Raise ValueError unless ``sampler`` is "philox" or "torch"."""
    _choices.one_of("sampler", sampler, ("philox", "torch"))


def check_seed(seed: int | Tensor | None, image_offset: int) -> None:
    """Raise ValueError unless seed and offset fit together. The seed itself is checked where it is used."""
    if image_offset < 0:
        raise ValueError(f"image_offset: want at least 0, got {image_offset}")
    if image_offset and seed is None:
        raise ValueError(f"image_offset: want a seed beside it, got image_offset = {image_offset} and no seed")


def draw_seed(device: torch.device) -> Tensor:
    """A new seed [1] from torch's generator."""
    # On the device and without .item(), so that neither a compiled graph nor a CUDA graph makes it a constant.
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)


def rows_of(features: Tensor) -> Tensor:
    """Weights (..., C, 1, N) as the kernels take them, [..., N, C]: a view."""
    # flatten instead of squeeze: the gradient then has the strides of a contiguous parameter, also in axes of length 1.
    return features.flatten(-3, -2).mT


def rows_of_one(features: Tensor) -> Tensor:
    """Weights (1, C, 1, N) as the kernels take them, [N, C]: a view, in as few steps as possible."""
    _, channels, _, neurons = features.shape
    return features.view(channels, neurons).t()


def stacked(weight: Tensor) -> Tensor:
    """Weights [R, N, C] as [R * N, C]: a view if R is 1, else a copy in which neurons stay adjacent in memory."""
    return weight.permute(2, 0, 1).flatten(1).t()


def matrix_shape(sigma: Tensor) -> tuple[int, ...]:
    """The shape that the op takes, [N, 2, 2], [N, 2] or [N, 1], of sigma (1, N, rows, columns)."""
    _, neurons, rows, columns = sigma.shape
    return (neurons, 2, 2) if rows == 2 else (neurons, columns)


def of_neurons(noise: Noise, index: Tensor) -> Noise:
    """The noise of the neurons ``index``. With a seed, the op selects it by ``neuron_index``."""
    return {**noise, "noise": noise["noise"][:, index]} if "noise" in noise else noise


class PointReadout(FeatureReadout):
    """Base class of the layers that read the features at one point per neuron.

    Attributes:
        features: weights of the channels, (..., C, 1, N).
        stored_features: name of the parameter that holds them.
        weight_dtype: what the weights are rounded to for a pass, see :func:`v1fast.training.bfloat16_weights`; None:
            they are read as they are.
    """

    features: Tensor
    stored_features: ClassVar[str] = "features"
    weight_dtype: torch.dtype | None = None  # a class attribute because accelerated layers do not set it

    def _parameter(self, name: str) -> Any:
        """The attribute of this name, in a third of the time that ``torch.nn.Module`` takes for a parameter."""
        own = self.__dict__  # what is there comes before a parameter: a rank's part of it, for one
        found = None if name in own else own["_parameters"].get(name)
        return getattr(self, name) if found is None else found

    def _as_read(self, features: Tensor) -> Tensor:
        """Weights in ``weight_dtype``. Their gradient reaches the parameter in the parameter's dtype."""
        return features if self.weight_dtype is None else features.to(self.weight_dtype)

    def _neuron_axes(self) -> dict[str, int]:
        return {**super()._neuron_axes(), "mask": -1, self.stored_features: -1}


class SeveralOutputs(PointReadout):
    """Mixin of the layers with several outputs per neuron: the parameters of its response distribution.

    Attributes:
        inferred_params_n: number of outputs P, >= 1. Set it before calling the constructor of the one-output layer.
    """

    inferred_params_n: int

    def _set_outputs(self, inferred_params_n: int) -> None:
        if inferred_params_n < 1:
            raise ValueError(f"inferred_params_n: want at least 1, got {inferred_params_n}")
        self.inferred_params_n = inferred_params_n

    @property
    def _bias_shape(self) -> tuple[int, ...]:
        return self.inferred_params_n, self.outdims

    def initialize_bias(self, mean_activity: Tensor | None = None) -> None:
        """Set the bias to a copy of ``mean_activity``, [N] for all outputs or [P, N], or to zero."""
        if mean_activity is not None and mean_activity.dim() == 1:
            mean_activity = mean_activity.expand(self.inferred_params_n, -1)
        super().initialize_bias(mean_activity)


class GridReadout(PointReadout):
    """Base class of the layers that learn one position for each neuron.

    Attributes:
        grid: positions, (1, N, 1, 2), (x, y) in [-1, 1].
    """

    grid: Tensor

    def _ranges(self) -> Mapping[str, Change]:
        return {"grid": within_map}

    def _points(self) -> Tensor:
        """Positions [N, 2] for one pass."""
        return self._in_range("grid", True, (self.outdims, 2))

    def _neuron_axes(self) -> dict[str, int]:
        return {**super()._neuron_axes(), "grid": 1}

    def _neurons(
        self, features: Tensor, out_idx: NeuronSelection | None, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Positions [N, 2], weights and biases [..., N] of all or the chosen neurons, for one pass.

        The weights are [N, C] of features (1, C, 1, N), and [..., N, C] of those of several outputs.
        """
        grid = self._points()
        bias: Tensor | None = self.bias
        if out_idx is not None:
            index = select_neurons(out_idx, self.outdims, device)
            grid, features, bias = grid[index], features[..., index], self._bias_of(index)
        features = self._as_read(features)
        return grid, rows_of_one(features) if features.dim() == 4 else rows_of(features), bias

    def _reads_as_stored(self, x: Tensor) -> bool:
        """Whether the fallback reads these features as they lie, because they are few."""
        return pooled_op.of_levels is not None and x.is_cpu and x.numel() <= FEW and not torch.compiler.is_compiling()

    def _read_levels(
        self,
        levels: Sequence[Tensor],
        features: Tensor,
        out_idx: NeuronSelection | None,
        shift: Tensor | None,
        align_corners: bool,
    ) -> Tensor:
        """Responses [B, N] to levels [B, C, H, W], with weights (1, K, 1, N) for their K channels."""
        small = pooled_op.of_levels
        if small is not None and out_idx is None and levels[0].is_cpu and not torch.compiler.is_compiling():
            bias, grid = self._parameter("bias"), self._parameter("grid")
            found: Tensor | None = small(
                levels, grid, self._as_read(features), bias, shift, align_corners, self.training
            )
            if found is not None:
                return found
        grid, weight, bias = self._neurons(features, out_idx, levels[0].device)
        return functional.levels_readout(levels, grid, weight, bias, shift, align_corners=align_corners)


class GaussianPointReadout(PointReadout, ABC):
    """Base class of the layers that hand :func:`v1fast.functional.gaussian_readout` the parameters they keep.

    Attributes:
        frame_sample: whether positions are sampled for each frame of a video, or once for all frames.
    """

    sigma: Tensor
    frame_sample: bool = True  # a class attribute because accelerated layers of other libraries do not set it

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        *,
        init_mu_range: float,
        batch_sample: bool,
        frame_sample: bool,
        align_corners: bool,
        mean_activity: Tensor | None,
        sampler: Sampler,
    ) -> None:
        super().__init__(in_shape, outdims, mean_activity)
        if not 0 < init_mu_range <= 1:
            raise ValueError(f"init_mu_range: want a value in (0, 1], got {init_mu_range}")
        check_sampler(sampler)
        self.grid_shape, self.init_mu_range = (1, outdims, 1, 2), init_mu_range
        self.batch_sample, self.frame_sample = batch_sample, frame_sample
        self.align_corners, self.sampler = align_corners, sampler

    def _neuron_axes(self) -> dict[str, int]:
        return {**super()._neuron_axes(), "mu": 1, "sigma": 1}

    @abstractmethod
    def _check_features(self, x: Tensor) -> None:
        """Warn or raise if the features do not have ``in_shape``."""

    @abstractmethod
    def _gaussian(self, write: bool = False) -> tuple[Tensor, Tensor]:
        """mu [N, 2] and sigma [N, 2, 2], [N, 2] or [N, 1] for this pass, in range; ``write``: see ``_in_range``.

        neuralpredictors also clamps in every pass: its checkpoints hold clamped values.
        """

    def _stored_gaussian(self) -> tuple[str, str] | None:
        """Names of the parameters that hold mu and sigma; None where mu is computed from others."""
        return None

    def _draw_noise(self, images: int, like: Tensor) -> Tensor:
        """Standard normals [images, N, 2], drawn from torch's generator in the order of neuralpredictors."""
        return like.new_empty(images, self.outdims, 2).normal_()

    def _counters(self, index: Tensor | None, device: torch.device) -> Tensor | None:
        """What the draws of the neurons ``index``, or of all, are counted by; None: 0, 1, ..., N - 1."""
        if not self.first_neuron:
            return index
        local = torch.arange(self.outdims, device=device) if index is None else index
        return local + self.first_neuron

    def _normals(self, seed: int | Tensor, images: int, image_offset: int, like: Tensor) -> Tensor:
        """The draws of all neurons from a seed, [images, N, 2], of the dtype and the device of ``like``."""
        key, counters = functional.seed_tensor(seed, like.device), self._counters(None, like.device)
        drawn = functional.philox_normal(key, images, self.outdims, neuron_index=counters, image_offset=image_offset)
        return drawn.to(like.dtype)

    def _positions(self, mu: Tensor, sigma: Tensor, noise: Noise, images: int) -> Tensor:
        """The positions that a call with ``noise`` reads, [images, N, 2], without the shift."""
        if not noise:
            return clamped_to_map(mu).expand(images, -1, -1)
        eps = noise.get("noise")
        if eps is None:
            drawn, first = (1, 0) if noise["share_noise"] else (images, noise["image_offset"])
            eps = self._normals(noise["seed"], drawn, first, like=mu)
        eps = eps.to(mu.dtype)
        z = (sigma * eps.unsqueeze(-2)).sum(-1) if sigma.dim() == 3 else sigma * eps
        return clamped_to_map(mu + z).expand(images, -1, -1)

    def sample_grid(self, batch_size: int, sample: bool | None = None) -> Tensor:
        """Positions (batch_size, N, 1, 2), sampled if ``sample`` (None: in training mode), else the means."""
        mu, sigma = self._gaussian()
        noise: Noise = {}
        if self.training if sample is None else sample:
            torchs = self.sampler == "torch"
            if torchs:
                noise = {"noise": self._draw_noise(batch_size, mu)}
            else:
                noise = {"seed": draw_seed(mu.device), "share_noise": False, "image_offset": 0}
        return self._positions(mu, sigma, noise, batch_size).unsqueeze(2)

    @property
    def grid(self) -> Tensor:
        """Positions read in evaluation, (1, N, 1, 2)."""
        return self.sample_grid(batch_size=1, sample=False)

    def _noise(
        self, x: Tensor, like: Tensor, sample: bool | None, seed: int | Tensor | None, image_offset: int
    ) -> Noise:
        """The noise of a call: one sample per image, or shared by the images of a batch, a video's frames, or both."""
        if image_offset or seed is not None:
            check_seed(seed, image_offset)
            if seed is not None and self.sampler == "torch":
                raise ValueError('seed: want sampler="philox", which draws from a seed, got sampler="torch"')
        if not (self.training if sample is None else sample):
            return {}
        clips, frames = x.shape[0], x.shape[2] if x.dim() == 5 else 1
        drawn = clips if self.batch_sample else 1, frames if self.frame_sample else 1
        each = drawn == (clips, frames)
        share_noise = drawn == (1, 1) and not each
        if self.sampler == "torch":
            noise = self._draw_noise(drawn[0] * drawn[1], like)
        else:
            drawn_seed = draw_seed(x.device) if seed is None else seed
            first_image = self.first_image if seed is None else image_offset
            first = first_image * drawn[1] if self.batch_sample else 0
            if each or (share_noise and not first):  # the op shares the noise of image 0
                return {"seed": drawn_seed, "share_noise": share_noise, "image_offset": first}
            noise = self._normals(drawn_seed, drawn[0] * drawn[1], first, like)
        if not (share_noise or each):
            noise = noise.unflatten(0, drawn).expand(clips, frames, -1, -1).flatten(0, 1)
        return {"noise": noise, "share_noise": share_noise}

    def forward(
        self,
        x: Tensor,
        sample: bool | None = None,
        shift: Tensor | None = None,
        out_idx: NeuronSelection | None = None,
        *,
        seed: int | Tensor | None = None,
        image_offset: int = 0,
        **kwargs: Any,
    ) -> Tensor:
        """Read the features.

        Args:
            x: features [B, C, H, W], fastest in channels-last; or features of videos [B, C, T, H, W], fastest in
                ``torch.channels_last_3d``.
            sample: sample the positions (True) or read the means (False); None: sample in training mode only.
            shift: added to the positions after the clamp, e.g. from an eye-movement shifter: [B, 2], for videos also
                [B, T, 2]; B and T may be 1.
            out_idx: neurons to compute, as integer indices or a boolean mask (array, list or tensor). The sample of a
                neuron does not depend on which others are computed.
            seed: of the samples, a signed 64-bit int or an int64 tensor [1]; None: a new one from torch's generator.
                It has no effect when the means are read.
            image_offset: index of the first image, or clip, of ``x`` in a larger batch, >= 0. Parts of a batch that are
                read with the same seed and with their offsets get the samples that the whole batch gets.
            **kwargs: accepted and ignored.

        Returns:
            [B, N] or [B, len(out_idx)]; for videos [B, T, N] or [B, T, len(out_idx)].

        Raises:
            ValueError: an operand does not fit (the message names it), a seed is given although ``sampler`` is "torch",
                or an ``image_offset`` without a seed.
        """
        self._check_features(x)
        stored = self._stored() if out_idx is None and x.dim() == 4 else None
        if stored is not None and x.is_cpu and op.of_parameters is not None and seed is None and not image_offset:
            small = self._read_small(op.of_parameters, stored, x, shift, sample)
            if small is not None:
                return small
        if stored is not None and functional.suits_stored(x, *stored, self._parameter("bias"), shift):
            noise = self._noise(x, stored[0], sample, seed, image_offset)
            return self._read_stored(stored, x, shift, noise)
        mu, sigma = self._gaussian(write=True)
        noise = self._noise(x, mu, sample, seed, image_offset)
        index = None if out_idx is None else select_neurons(out_idx, self.outdims, x.device)
        if x.dim() != 5:
            return self._read(x, mu, sigma, shift, index, noise)
        images, shift = fold_frames(x, shift)
        return unfold_frames(self._read(images, mu, sigma, shift, index, noise), x, self._result_axis)

    def _stored(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """The tensors that hold mu, sigma and features, where a pass computes with them as they are, but for ranges."""
        names = self._stored_gaussian()
        if names is None or type(self)._read is not GaussianPointReadout._read or torch.compiler.is_compiling():
            return None
        return self._parameter(names[0]), self._parameter(names[1]), self._as_read(self._parameter("features"))

    def _ranges_of_stored(self) -> tuple[Change | None, Change | None]:
        names, ranges = self._stored_gaussian(), self._ranges()
        return (None, None) if names is None else (ranges.get(names[0]), ranges.get(names[1]))

    def _read_stored(
        self, stored: tuple[Tensor, Tensor, Tensor], x: Tensor, shift: Tensor | None, noise: Noise
    ) -> Tensor:
        """Responses [B, N] by one step of autograd's, not one more for each view: see ``suits_stored``."""
        range_of_mu, range_of_sigma = self._ranges_of_stored()
        shape = matrix_shape(stored[1])
        operands = functional.gaussian_operands(
            x,
            unrecorded(stored[0], range_of_mu, self.training, (shape[0], 2)),
            unrecorded(stored[1], range_of_sigma, self.training, shape),
            rows_of_one(stored[2].detach()),
            self._parameter("bias"),
            shift,
            neuron_index=self._counters(None, x.device),
            align_corners=self.align_corners,
            **noise,
        )
        responses: Tensor = op.of_stored(stored, *operands)
        return responses

    def _read_small(
        self,
        small: Callable[..., Tensor | None],
        stored: tuple[Tensor, Tensor, Tensor],
        x: Tensor,
        shift: Tensor | None,
        sample: bool | None,
    ) -> Tensor | None:
        """The same in the fewest operations of torch; None where the call is not small."""
        range_of_mu, range_of_sigma = self._ranges_of_stored()
        if range_of_mu is not within_map or range_of_sigma not in (None, at_least_zero):
            return None
        draw = partial(self._draws, x, sample)
        positive = range_of_sigma is not None
        return small(x, *stored, self._parameter("bias"), shift, draw, self.align_corners, self.training, positive)

    def _draws(self, x: Tensor, sample: bool | None) -> Tensor | tuple[Any, ...] | None:
        """The noise of a call, [B or 1, N, 1, 2], or seed, neuron_index, image_offset and share_noise of the op."""
        if self.sampler == "torch" and (self.training if sample is None else sample):
            return self._draw_noise(x.shape[0] if self.batch_sample else 1, x).unsqueeze(2)
        noise = self._noise(x, x, sample, None, 0)
        if not noise:
            return None
        counters = self._counters(None, x.device) if self.first_neuron else None
        return noise["seed"], counters, noise["image_offset"], noise["share_noise"]

    @property
    def _result_axis(self) -> int:
        """The axis of the images in what ``_read`` returns."""
        return -2

    def _read(
        self,
        images: Tensor,  # [B, C, H, W]
        mu: Tensor,  # [N, 2]
        sigma: Tensor,
        shift: Tensor | None,  # [B, 2]
        index: Tensor | None,
        noise: Noise,
    ) -> Tensor:
        """Responses [B, N] of the neurons ``index``, or of all."""
        features = self.features
        bias: Tensor | None = self.bias
        if index is not None:
            mu, sigma, features, bias = mu[index], sigma[index], features[..., index], self._bias_of(index)
            noise = of_neurons(noise, index)
        return functional.gaussian_readout(
            images,
            mu,
            sigma,
            rows_of_one(self._as_read(features)),
            bias,
            shift,
            neuron_index=self._counters(index, images.device),
            align_corners=self.align_corners,
            **noise,
        )
