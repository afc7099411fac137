"""From a configuration and recordings to an encoder that can be fitted."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from v1fast import _choices
from v1fast.data import Preparation, Recording
from v1fast.losses import Loss
from v1fast.models import FiringRateEncoder
from v1fast.models.geometry import lost_frames
from v1fast.readouts import MultiReadoutBase, MultiReadoutSharedParametersBase
from v1fast.runs.configuration import FAMILIES, Configuration, ConfigurationErrors, Part
from v1fast.training import Schedule

SENSORIUM_IMAGES = (144, 256)
SENSORIUM_SCALE = 0.25
VIDEO_CORES = ("Basic3dCore", "Factorized3dCore")
ROWS = 512  # responses read at once


@dataclass(frozen=True, eq=False)
class Session:
    """What an encoder needs to know of a recording.

    Attributes:
        image_shape: (C, H, W) of the prepared images.
        mean_activity: [N], mean prepared response to training images.
        cortex: [N, 2], or None.
        inputs: number of variables of behaviour and of the pupil; 0 where there are none.
        units: [N], ids of the neurons, or None.
    """

    image_shape: tuple[int, int, int]
    mean_activity: Tensor
    cortex: NDArray[Any] | None
    inputs: Mapping[str, int]
    units: NDArray[Any] | None = None

    @classmethod
    def of(cls, recording: Recording, preparation: Preparation, normalization: Mapping[str, Any]) -> Session:
        """That of a recording; reads its training responses.

        Raises:
            ValueError: there are no training trials.
        """
        trials = recording.in_tier("train")
        if not len(trials):
            raise ValueError(f"{recording.source or recording.name}: want trials of the tier train, got {recording!r}")
        total: Any = 0
        count: Any = 0
        for start in range(0, len(trials), ROWS):
            responses = np.asarray(recording.responses[trials[start : start + ROWS]], np.float64)
            total, count = total + np.nansum(responses, 0), count + np.isfinite(responses).sum(0)
        factor = normalization.get("responses", {}).get("factor", 1.0)
        mean = total / np.maximum(count, 1) * np.asarray(factor)
        widths = {name: getattr(recording, name) for name in ("behavior", "pupil_center")}
        return cls(
            image_shape=preparation.image_shape(recording),
            mean_activity=torch.from_numpy(mean.astype(np.float32)),
            cortex=None if recording.cortex is None else np.asarray(recording.cortex)[:, :2],
            inputs={name: 0 if rows is None else int(rows.shape[1]) for name, rows in widths.items()},
            units=None if recording.unit_ids is None else np.asarray(recording.unit_ids),
        )


def preparation_of(configuration: Configuration, recordings: Mapping[str, Recording]) -> Preparation:
    """How trials are prepared.

    Raises:
        ValueError: the recordings lack something that the configuration wants.
    """
    data = configuration.data
    scale = data.scale
    if scale is None:
        sides = {tuple(recording.images.shape[-2:]) for recording in recordings.values()}
        scale = SENSORIUM_SCALE if sides == {SENSORIUM_IMAGES} else 1.0
    wanted = {"behavior": configuration.modulator, "pupil_center": configuration.shifter}
    fields = tuple(name for name, part in wanted.items() if part is not None)
    preparation = Preparation(data.normalize, scale, data.behavior_as_channels, data.pupil_as_channels, fields)
    for name, recording in recordings.items():
        preparation.fields_of(recording)
        core, is_video = configuration.core.name, recording.sequences is not None
        if is_video and core not in VIDEO_CORES:
            raise ValueError(
                f"{name}: want a recording of images for {core}, got a video: core={VIDEO_CORES[-1]} is for it"
            )
        if core in VIDEO_CORES and not is_video:
            raise ValueError(f"{name}: want a recording of videos for {core}, got images")
    return preparation


def adapted(configuration: Configuration, recordings: Mapping[str, Recording]) -> tuple[Configuration, list[str]]:
    """The configuration without what its preset asks for and the recordings lack; and a line for each such change.

    Raises:
        ValueError: the recordings lack what is asked for by name, not by the preset.
    """
    notes: list[str] = []

    def lacks(wanted: Any, key: str, field: str, instead: str) -> bool:
        without = [name for name, recording in recordings.items() if getattr(recording, field) is None]
        if not wanted or not without:
            return False
        if any(name == key or name.startswith(f"{key}.") for name in configuration.given):
            raise ValueError(f"{key}: want {field} in each recording, got none in {', '.join(without)}")
        notes.append(f"no {field} in {', '.join(without)}: {instead}")
        return True

    readout, data, changes = configuration.readout, configuration.data, dict[str, Any]()
    key = "grid_mean_predictor"
    if lacks(readout.options.get(key), f"readout.{key}", "cortex", "each neuron's position is learned by itself"):
        changes["readout"] = Part(readout.name, {**readout.options, key: None})
    if lacks(configuration.shifter, "shifter", "pupil_center", "no shifter"):
        changes["shifter"] = None
    if lacks(configuration.modulator, "modulator", "behavior", "no modulator"):
        changes["modulator"] = None
    if lacks(data.behavior_as_channels, "data.behavior_as_channels", "behavior", "images have no channels of it"):
        data = dataclasses.replace(data, behavior_as_channels=False)
    if lacks(data.pupil_as_channels, "data.pupil_as_channels", "pupil_center", "images have no channels of it"):
        data = dataclasses.replace(data, pupil_as_channels=False)
    return dataclasses.replace(configuration, data=data, **changes), notes


def build(configuration: Configuration, sessions: Mapping[str, Session]) -> FiringRateEncoder:
    """An encoder with fresh parameters, one readout for each session.

    Args:
        configuration: see :func:`v1fast.runs.configure`.
        sessions: by name, at least one.

    Raises:
        ValueError: arguments out of range; kernels that do not fit the images or clips; sessions with different images.
    """
    torch.manual_seed(configuration.seed)
    channels = {session.image_shape[0] for session in sessions.values()}
    if len(channels) != 1:
        got = ", ".join(f"{name} {session.image_shape}" for name, session in sessions.items())
        raise ValueError(f"images: want the same number of channels in all recordings, got {got}")
    core = _made("core", configuration.core, input_channels=channels.pop())
    lost, frames = lost_frames(core), configuration.data.frames
    if lost is not None and frames <= lost:
        raise ConfigurationErrors(
            [f"data.frames: want more than the {lost} that the core's filters take up, got {frames}"]
        )
    clip = () if lost is None else (lost + 1,)
    shapes = {name: _map_shape(core, session.image_shape, clip) for name, session in sessions.items()}
    encoder = configuration.encoder
    return FiringRateEncoder(
        core,
        _readout(configuration.readout, shapes, sessions),
        shifter=_shifter(configuration.shifter, sessions),
        modulator=_modulator(configuration.modulator, sessions),
        elu_offset=encoder.elu_offset,
        nonlinearity_type=encoder.nonlinearity_type,
        nonlinearity_config=encoder.nonlinearity_config,
    )


def _made(family: str, part: Part, *args: Any, **kwargs: Any) -> Any:
    """An object of a part's class; what its constructor refuses is a mistake in the configuration."""
    try:
        return FAMILIES[family][part.name](*args, **kwargs, **part.options)
    except (ValueError, TypeError) as error:
        raise ConfigurationErrors([f"{family}: {part.name}: {error}"]) from error


@torch.no_grad()
def _map_shape(core: nn.Module, image_shape: tuple[int, int, int], clip: tuple[int, ...]) -> tuple[int, int, int]:
    mode = core.training
    try:
        shape = core.eval()(torch.zeros(1, image_shape[0], *clip, *image_shape[1:])).shape
    except RuntimeError as error:
        sides = " x ".join(map(str, image_shape[1:]))
        raise ConfigurationErrors([f"core: its kernels do not fit images of {sides} pixels: {error}"]) from error
    finally:
        core.train(mode)
    return shape[1], shape[-2], shape[-1]


def _readout(
    part: Part, shapes: Mapping[str, tuple[int, int, int]], sessions: Mapping[str, Session]
) -> MultiReadoutBase:
    cls, options = FAMILIES["readout"][part.name], dict(part.options)
    predicted = options.get("grid_mean_predictor") is not None
    shared = options.pop("share_features", False)
    kind = MultiReadoutSharedParametersBase if predicted or shared else MultiReadoutBase
    if shared:
        options |= {"share_features": True, "shared_match_ids": _matched(sessions)}
    if predicted:
        options["grid_mean_predictor_type"] = "cortex"
        options["source_grids"] = {name: session.cortex for name, session in sessions.items()}
    else:
        options.pop("grid_mean_predictor", None)
        if options.pop("share_transform", False):
            raise ConfigurationErrors(["readout.share_transform: want it beside grid_mean_predictor"])
    neurons = {name: len(session.mean_activity) for name, session in sessions.items()}
    means = {name: session.mean_activity for name, session in sessions.items()}
    try:
        return kind(shapes, neurons, cls, means, **options)
    except (ValueError, TypeError) as error:
        raise ConfigurationErrors([f"readout: {part.name}: {error}"]) from error


def _matched(sessions: Mapping[str, Session]) -> dict[str, NDArray[Any]]:
    """Ids of the neurons by session; all sessions have to have the same."""
    found: dict[str, NDArray[Any]] = {}
    for name, session in sessions.items():
        if session.units is None:
            raise ValueError(f"readout.share_features: want unit_ids in each recording, got none in {name}")
        found[name] = session.units
        first = next(iter(found))
        own, others = (set(found[of].tolist()) for of in (name, first))
        if own != others:
            raise ValueError(
                f"readout.share_features: want the same unit_ids in all recordings, got {len(own)} in {name} and "
                f"{len(others)} in {first}, with {len(own & others)} in common"
            )
    return found


def _inputs(what: str, field: str, sessions: Mapping[str, Session]) -> dict[str, int]:
    widths = {name: session.inputs[field] for name, session in sessions.items()}
    without = [name for name, width in widths.items() if not width]
    if without:
        raise ValueError(f"{what}: want {field} in each recording, got none in {', '.join(without)}")
    return widths


def _shifter(part: Part | None, sessions: Mapping[str, Session]) -> nn.Module | None:
    if part is None:
        return None
    _inputs("shifter", "pupil_center", sessions)
    shifter: Any = _made("shifter", part, list(sessions))
    for network in shifter.values():
        _start_still(network)
    return cast("nn.Module", shifter)


@torch.no_grad()
def _start_still(network: nn.Module) -> None:
    """Let a shifter begin by moving nothing.

    With random values it begins with a constant shift of many pixels, and all positions move the other way.
    """
    *_, last = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    last.weight.zero_()
    if last.bias is not None:
        last.bias.zero_()


def _modulator(part: Part | None, sessions: Mapping[str, Session]) -> nn.Module | None:
    if part is None:
        return None
    widths = _inputs("modulator", "behavior", sessions)
    neurons = {name: len(session.mean_activity) for name, session in sessions.items()}
    modulator: nn.Module = _made("modulator", part, neurons, input_channels=widths)
    return modulator


def device_of(name: str) -> str:
    """The device of that name; of "auto", CUDA where there is one, else the CPU.

    Raises:
        ValueError: an unknown name, or a device that is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    _choices.one_of("device", name, ("auto", *there))
    if name == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there[name]:
        raise ValueError(f"device: {name} is not available to this torch, {torch.__version__}")
    return name


def trainer_options(configuration: Configuration) -> dict[str, Any]:
    """Where it is fitted, as arguments of :func:`v1fast.training.fit`.

    Raises:
        ValueError: the device, or so many of them, are not there.
    """
    machine = configuration.machine
    device = device_of(machine.device)
    there = {"cpu": machine.devices, "cuda": torch.cuda.device_count(), "mps": 1}[device]
    if machine.devices > there:
        raise ValueError(f"machine.devices: want at most {there} of {device}, as there are, got {machine.devices}")
    return {"accelerator": device, "devices": machine.devices, "num_nodes": machine.num_nodes}


def loss_of(configuration: Configuration) -> Loss:
    """The loss, summed over trials and neurons."""
    loss: Loss = _made("loss", configuration.loss, avg=False)
    return loss


def schedule_of(configuration: Configuration) -> Schedule:
    """The schedule of the learning rate."""
    schedule: Schedule = _made("schedule", configuration.schedule)
    return schedule


def optimizer_of(configuration: Configuration) -> Callable[..., Optimizer]:
    """What makes the optimiser of groups of parameters."""
    _made("optimizer", configuration.optimizer, [torch.zeros(1, requires_grad=True)])
    cls: Any = FAMILIES["optimizer"][configuration.optimizer.name]
    return functools.partial(cls, **configuration.optimizer.options)
