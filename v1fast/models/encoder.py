"""Encoders: from images to expected responses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self  # torch brings it

from v1fast._layout import channels_last
from v1fast._warnings import warn_caller
from v1fast.models import checkpoints, saving
from v1fast.models._sessions import of_session
from v1fast.models.activations import nonlinearity
from v1fast.readouts.base import Reduction, select_neurons


class FiringRateEncoder(nn.Module):
    """A core, one readout per session, and a nonlinearity that makes rates; a shifter and a modulator if given.

    ``rates = nonlinearity(modulator(readout(core(images), shift=shifter(pupil_center)), behavior))``. Drop-in for
    ``FiringRateEncoder`` of neuralpredictors: same constructor, state_dict keys (``core.``, ``readout.<data_key>.``,
    ``shifter.<data_key>.``, ``modulator.<data_key>.``) and forward arguments. Images are handed to the core in
    channels-last, so that its maps have the layout that the readouts read fastest.

    Args:
        core: images -> feature maps. Its ``regularizer()``, if it has one, is part of the penalty.
        readout: :class:`v1fast.readouts.MultiReadoutBase`, or one readout for all calls.
        shifter: e.g. :class:`v1fast.models.MLPShifter`; needs ``pupil_center`` in forward.
        modulator: e.g. :class:`v1fast.models.MLPModulator`; needs ``behavior`` in forward.
        elu_offset: with the nonlinearity "elu", rates are ``elu(x + elu_offset) + 1``.
        nonlinearity_type: "elu", "exp", "softplus", "identity", or a class of :mod:`v1fast.models.activations` by name
            ("AdaptiveELU", "Elu1", "Exp", "Log1Exp", "SoftThreshold").
        nonlinearity_config: arguments of that class.

    Raises:
        ValueError: an unknown nonlinearity; in forward, ``pupil_center`` or ``behavior`` is missing.

    >>> import torch
    >>> from v1fast.models import FiringRateEncoder, Stacked2dCore
    >>> from v1fast.readouts import FullGaussian2d
    >>> core = Stacked2dCore(input_channels=1, hidden_channels=8, input_kern=5, hidden_kern=3, layers=2, stack=-1)
    >>> encoder = FiringRateEncoder(core, FullGaussian2d((8, 24, 32), outdims=100, bias=True))
    >>> encoder(torch.randn(4, 1, 24, 32)).shape
    torch.Size([4, 100])
    """

    def __init__(
        self,
        core: nn.Module,
        readout: nn.Module,
        *,
        shifter: nn.Module | None = None,
        modulator: nn.Module | None = None,
        elu_offset: float = 0.0,
        nonlinearity_type: str = "elu",
        nonlinearity_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.core, self.readout = core, readout
        self.shifter, self.modulator = shifter, modulator
        self.offset, self.nonlinearity_type = elu_offset, nonlinearity_type
        self.nonlinearity_config = None if nonlinearity_config is None else dict(nonlinearity_config)
        if nonlinearity_type != "elu" and elu_offset:
            warn_caller(f"elu_offset has no effect with nonlinearity_type={nonlinearity_type!r}")
        config = {"xshift": -elu_offset, "yshift": 1.0} if nonlinearity_type == "elu" else nonlinearity_config
        self.nonlinearity_fn = nonlinearity(nonlinearity_type, config)
        self.core_is_frozen = False
        self.inferred: checkpoints.Inferred | None = None
        self.normalization: dict[str, Any] = {}
        self.versions: dict[str, str] = {}

    @classmethod
    def from_checkpoint(
        cls,
        source: str | Path | Mapping[str, Any],
        *,
        image_shape: tuple[int, int] = (36, 64),
        core_options: Mapping[str, Any] | None = None,
        readout_options: Mapping[str, Any] | None = None,
        core: nn.Module | None = None,
        readout: nn.Module | None = None,
        shifter: nn.Module | None = None,
        modulator: nn.Module | None = None,
        elu_offset: float = 0.0,
        nonlinearity_type: str = "elu",
        nonlinearity_config: Mapping[str, Any] | None = None,
        normalization: Mapping[str, Any] | None = None,
    ) -> Self:
        """Build the encoder that a released state_dict was saved from, and load it, strictly.

        Sizes and options are read off keys and shapes: kind of core, layers, channels, kernels, biases; class of
        readouts, sessions, neurons, position predictor, what sessions share; shifter; modulator. Padding, strides,
        nonlinearities and the normalisation of the images are not in a state_dict: they are arguments, with the
        defaults of the Sensorium models. ``print(encoder.inferred)`` shows what was found and what was assumed.

        Args:
            source: a file of ``torch.save`` or safetensors, or a mapping. It is read with ``weights_only=True``.
            image_shape: (H, W) of the images, from which the size of the maps follows.
            core_options: arguments of the core's class in place of what was inferred or assumed, e.g.
                ``{"pad_input": True, "hidden_dilation": 2}``.
            readout_options: arguments of the readouts' class, e.g. ``{"pool_kern": 3}``.
            core, readout, shifter, modulator: modules to load into, where none can be inferred.
            elu_offset, nonlinearity_type, nonlinearity_config: see the class.
            normalization: what the images were normalised by, as in :meth:`save`; kept as ``encoder.normalization``.
                Default: the mean and the standard deviation of the training images, which the user has to know.

        Returns:
            The encoder, in evaluation mode.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: no encoder is in it, or a part is of no known kind.
            RuntimeError: keys or shapes do not fit.
        """
        state = checkpoints.read_state(source)
        inferred = checkpoints.Inferred()
        read = checkpoints.part(state, "readout")
        if core is None:
            made = checkpoints.infer_core(
                checkpoints.part(state, "core"), checkpoints.channels_read(read), core_options or {}, inferred
            )
        else:
            made = core
        if readout is None:
            readout = checkpoints.infer_readout(read, made, image_shape, readout_options or {}, inferred)
        if shifter is None:
            shifter = checkpoints.infer_shifter(checkpoints.part(state, "shifter"), inferred)
        if modulator is None:
            modulator = checkpoints.infer_modulator(checkpoints.part(state, "modulator"), inferred)
        encoder = cls(
            made,
            readout,
            shifter=shifter,
            modulator=modulator,
            elu_offset=elu_offset,
            nonlinearity_type=nonlinearity_type,
            nonlinearity_config=nonlinearity_config,
        )
        inferred.assumed |= {
            "image_shape": image_shape,
            "normalisation of the images": dict(normalization) if normalization else "that of the training data",
            "nonlinearity_type": nonlinearity_type,
            "elu_offset": elu_offset,
        }
        encoder.load_state_dict(state)
        encoder.inferred = inferred
        encoder.normalization = dict(normalization or {})
        return encoder.eval()

    def save(self, path: str | Path, normalization: Mapping[str, Any] | None = None) -> None:
        """Write weights, configuration, data keys and versions into one file of safetensors, without pickle.

        The file is written at once: if it cannot be, a file that was there before stays as it was.

        Args:
            path: of the file.
            normalization: what the images (and pupil, behaviour) were normalised by, e.g.
                ``{"images": {"mean": 113.5, "std": 59.6}}``; numbers, text, lists and arrays. :meth:`load`
                restores it as ``encoder.normalization``.

        Raises:
            ValueError: a part is not of a class of v1fast: its configuration is not known.
            ModuleNotFoundError: safetensors is not installed.
        """
        saving.save(self, path, normalization)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read an encoder that :meth:`save` wrote; in evaluation mode, on ``device``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is cut, of another format, or written by a later version in a way unknown to this one.
        """
        return cast("Self", saving.load(cls, path, device))

    def freeze_core(self, frozen: bool = True) -> Self:
        """Keep the core as it is: no gradients, and evaluation mode even after ``train()``; or end that.

        In evaluation mode batch norms use their running statistics and leave them unchanged, so that the core's
        features stay the same function of the images.
        """
        self.core_is_frozen = frozen
        self.core.requires_grad_(not frozen)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; a frozen core stays in evaluation mode."""
        super().train(mode)
        if getattr(self, "core_is_frozen", False):
            self.core.eval()
        return self

    def features(self, inputs: Tensor) -> Tensor:
        """Return the core's maps [B, C, H', W'] of images [B, c, H, W]; for videos [B, C, T', H', W']."""
        maps: Tensor = self.core(channels_last(inputs))
        return maps

    def forward(
        self,
        inputs: Tensor,
        *args: Any,
        targets: Any = None,
        data_key: str | None = None,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        trial_idx: Tensor | None = None,
        shift: Tensor | None = None,
        detach_core: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """Return expected responses.

        Args:
            inputs: images [B, c, H, W] or videos [B, c, T, H, W].
            *args: accepted and ignored, like every other field of a batch.
            targets: ignored.
            data_key: session; may be None if there is only one.
            behavior: for the modulator, [B, K]; for videos also [B, T, K], whose last T' frames are used.
            pupil_center: for the shifter, [B, 2]; for videos also [B, T, 2], whose last T' frames are used.
            trial_idx: for the shifter, [B, 1].
            shift: [B, 2], if there is no shifter.
            detach_core: let no gradient pass to the core.
            **kwargs: ``sample``, ``out_idx``, ``seed`` and other arguments of the readout. It ignores further fields.

        Returns:
            [B, N] or [B, len(out_idx)]; for videos [B, T', N], where T' is the number of frames of the core's maps.

        Raises:
            KeyError: no such session.
            ValueError: an operand is missing or does not fit; the message names it.
        """
        x = self.features(inputs)
        if detach_core:
            x = x.detach()
        return self.read(x, data_key, behavior, pupil_center, trial_idx, shift, **kwargs)

    def read(
        self,
        features: Tensor,
        data_key: str | None = None,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        trial_idx: Tensor | None = None,
        shift: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return expected responses from the core's maps: :meth:`forward` without the core."""
        frames = features.shape[2] if features.dim() == 5 else None
        if self.shifter is not None:
            if pupil_center is None:
                raise ValueError("pupil_center: want [B, 2] for the shifter, got None")
            shift = of_session(self.shifter, data_key)(_last_frames(pupil_center, frames), trial_idx)
        x: Tensor = self.readout(features, data_key=data_key, shift=shift, **kwargs)
        if self.modulator is not None:
            if behavior is None:
                raise ValueError("behavior: want [B, K] for the modulator, got None")
            x = self._modulated(x, _last_frames(behavior, frames), data_key, kwargs.get("out_idx"))
        rates: Tensor = self.nonlinearity_fn(x)
        return rates

    def _modulated(self, x: Tensor, behavior: Tensor, data_key: str | None, out_idx: Any) -> Tensor:
        modulator = of_session(self.modulator, data_key)
        if out_idx is None:
            modulated: Tensor = modulator(x, behavior=behavior)
            return modulated
        neurons = of_session(self.readout, data_key).outdims
        selected: Tensor = modulator(x, behavior=behavior, out_idx=select_neurons(out_idx, neurons, x.device))
        return selected

    def regularizer(
        self,
        data_key: str | None = None,
        reduction: Reduction = "sum",
        average: bool | None = None,
        detach_core: bool = False,
    ) -> Tensor | float:
        """Return the penalty of session ``data_key``: of the core, its readout, shifter and modulator.

        Args:
            data_key: session; may be None if there is only one.
            reduction: of the readout's penalty, "sum" or "mean".
            average: deprecated form of ``reduction``.
            detach_core: let the core's penalty have no gradient.
        """
        core = _penalty(self.core)
        total = core.detach() if detach_core and isinstance(core, Tensor) else core
        options = {"reduction": reduction, "average": average}
        total = total + _penalty(of_session(self.readout, data_key), **options)
        for part in (self.shifter, self.modulator):
            if part is not None:
                total = total + _penalty(part, data_key)
        return total

    def predict_mean(self, x: Tensor, *args: Any, data_key: str | None = None, **kwargs: Any) -> Tensor:
        """Return the mean of the responses' distribution: the rates."""
        rates: Tensor = self(x, *args, data_key=data_key, **kwargs)
        return rates

    def predict_variance(self, x: Tensor, *args: Any, data_key: str | None = None, **kwargs: Any) -> Tensor:
        """Return the variance of a Poisson distribution: the rates."""
        return self.predict_mean(x, *args, data_key=data_key, **kwargs)


def _last_frames(behavior: Tensor, frames: int | None) -> Tensor:
    """[B, T, K] -> [B, T', K]: convolutions over time without padding lose the first frames."""
    return behavior if frames is None or behavior.dim() != 3 else behavior[:, -frames:]


def _penalty(part: Any, *args: Any, **kwargs: Any) -> Any:
    regularizer = getattr(part, "regularizer", None)
    penalty = 0.0 if regularizer is None else regularizer(*args, **kwargs)
    # neuralpredictors' cores for videos return a spatial and a temporal penalty.
    return sum(penalty) if isinstance(penalty, tuple) else penalty
