"""A linear-nonlinear model whose filters are shared by all cells of a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from v1fast import functional
from v1fast.readouts._arguments import ChecksArguments
from v1fast.readouts.base import NeuronSelection, require_finite, select_neurons


class MultitaskLN(ChecksArguments):
    r"""Cells of a class share one filter, separable in space and time; each has its place, gain and offset.

    .. math::
        p_{btn} = \mathrm{sigmoid}\Big(\mathrm{offset}_n + \mathrm{gain}_n
            \sum_{\tau} \mathrm{temporal}_{k_n \tau} \sum_{cyx} \mathrm{spatial}_{k_n c y x}\,
            \mathrm{video}_{b, c, t - \tau, y_n + y, x_n + x}\Big)

    with :math:`k_n` the class of cell n: the multitask LN model of Batty et al., "Multilayer recurrent network models
    of primate retinal ganglion cell responses", ICLR 2017. The filter of each class runs over the frames once; its map
    is read at the places of the cells (:func:`v1fast.functional.levels_readout`), between pixels by bilinear
    interpolation, and the traces are filtered in time.

    Args:
        in_shape: (C, H, W) of the video's frames.
        outdims: number of cells N.
        cell_class: [N], the class of each cell, of any kind that sorts: an int or a name.
        positions: [N, 2], centre of each cell's receptive field, (x, y), where the frame reaches from -1 to 1.
        kernel: (height, width) of the spatial filter, odd, in pixels.
        history: length L of the temporal filter, in frames.
        mean_activity: [N], mean probability of a spike, in (0, 1), that the offsets start at; default 1/2.
        learn_positions: whether the positions are trained.
        init_noise: standard deviation of the initial spatial filters; the temporal ones start as a mean.

    Raises:
        ValueError: an argument does not fit; in forward, a video that does not fit.

    Shapes of the parameters: ``spatial`` (K, C, height, width) and ``temporal`` (K, L), of the classes in sorted order,
    ``temporal[:, 0]`` for the frame at hand; ``gain`` and ``offset`` (N). ``positions`` (N, 2) is a parameter or a
    buffer; buffer ``class_index`` (N).
    """

    class_index: Tensor
    positions: Tensor

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        cell_class: ArrayLike,
        positions: ArrayLike,
        kernel: tuple[int, int],
        history: int,
        mean_activity: Tensor | None = None,
        learn_positions: bool = False,
        init_noise: float = 0.01,
    ) -> None:
        super().__init__()
        classes = np.asarray(cell_class)
        if classes.shape != (outdims,):
            raise ValueError(f"cell_class: want [N] = ({outdims},), got {classes.shape}")
        places = torch.as_tensor(np.asarray(positions), dtype=torch.get_default_dtype())
        if tuple(places.shape) != (outdims, 2):
            raise ValueError(f"positions: want [N, 2] = ({outdims}, 2), got {tuple(places.shape)}")
        require_finite("positions", places)
        if any(size < 1 or size % 2 == 0 for size in kernel):
            raise ValueError(f"kernel: want two odd sizes, got {kernel}")
        if history < 1:
            raise ValueError(f"history: want at least 1, got {history}")
        self.in_shape, self.outdims, self.history = in_shape, outdims, history
        self.init_noise, self.mean_activity = init_noise, mean_activity
        self.classes, index = np.unique(classes, return_inverse=True)
        self.register_buffer("class_index", torch.from_numpy(index.astype(np.int64)))
        self.spatial = nn.Parameter(torch.empty(len(self.classes), in_shape[0], *kernel))
        self.temporal = nn.Parameter(torch.empty(len(self.classes), history))
        self.gain = nn.Parameter(torch.empty(outdims))
        self.offset = nn.Parameter(torch.empty(outdims))
        if learn_positions:
            self.positions = nn.Parameter(places.clone())
        else:
            self.register_buffer("positions", places.clone())
        self.initialize(mean_activity)

    @torch.no_grad()
    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Draw new spatial filters; set temporal filters, gains (1) and offsets. The positions stay."""
        self.spatial.normal_(0, self.init_noise)
        self.temporal.fill_(1 / self.history)
        self.gain.fill_(1.0)
        mean = self.mean_activity if mean_activity is None else mean_activity
        if mean is None:
            self.offset.zero_()
            return
        if tuple(mean.shape) != (self.outdims,) or not ((mean > 0) & (mean < 1)).all():
            raise ValueError(f"mean_activity: want [N] = ({self.outdims},) in (0, 1), got {tuple(mean.shape)}")
        self.offset.copy_(torch.logit(mean))

    def logits(self, x: Tensor, out_idx: NeuronSelection | None = None) -> Tensor:
        """What forward takes the sigmoid of, for ``binary_cross_entropy_with_logits``."""
        channels, height, width = self.in_shape
        if x.dim() != 5 or (x.shape[1], *x.shape[3:]) != (channels, height, width) or x.shape[2] < self.history:
            want = f"[B, C, T, H, W] with (C, H, W) = {(channels, height, width)} and T >= {self.history}"
            raise ValueError(f"x: want {want}, got {tuple(x.shape)}")
        index = torch.arange(self.outdims, device=x.device)
        index = index if out_idx is None else select_neurons(out_idx, self.outdims, x.device)
        kinds = self.class_index[index]
        # Each frame once, by the filters of all classes; each cell reads the map of its class.
        maps = F.conv2d(x.transpose(1, 2).flatten(0, 1), self.spatial, padding="same")  # [B T, K, H, W]
        own = F.one_hot(kinds, len(self.spatial)).to(maps.dtype)
        traces = functional.levels_readout([maps], self.positions[index], own).unflatten(0, (len(x), -1))
        if len(index) == 0:  # convolutions refuse zero channels
            return traces[:, self.history - 1 :]
        filters = self.temporal.flip(1)[kinds].unsqueeze(1)  # [N, 1, L]
        drive = F.conv1d(traces.transpose(1, 2), filters, groups=len(index)).transpose(1, 2)
        return self.gain[index] * drive + self.offset[index]

    def forward(self, x: Tensor, out_idx: NeuronSelection | None = None, **kwargs: Any) -> Tensor:
        """Probability of a spike, or a rate between 0 and 1.

        Args:
            x: video [B, C, T, H, W]; beyond its border it is zero.
            out_idx: cells to compute, as integer indices or a boolean mask (array, list or tensor).
            **kwargs: accepted and ignored.

        Returns:
            [B, T - L + 1, N] or [B, T - L + 1, len(out_idx)]: one value per frame with L - 1 frames before it.

        Raises:
            ValueError: the video does not fit.
        """
        return self.logits(x, out_idx).sigmoid()

    def extra_repr(self) -> str:
        """What ``print`` shows of the configuration."""
        height, width = self.spatial.shape[2:]
        shape = " x ".join(map(str, self.in_shape))
        return (
            f"{shape} -> {self.outdims}, {len(self.spatial)} classes, {height} x {width} pixels, {self.history} frames"
        )
