"""Released checkpoints made into encoders that v1fast saves and loads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from v1fast import _files
from v1fast.models import FiringRateEncoder
from v1fast.runs.configuration import FAMILIES, ConfigurationErrors, options_of, setting, unknown

Shape = tuple[int, int, int, int, int]


def read_checkpoint(
    path: Path,
    image_shape: tuple[int, int] = (36, 64),
    core_options: Iterable[str] = (),
    readout_options: Iterable[str] = (),
) -> FiringRateEncoder:
    """The encoder in a checkpoint: of ``FiringRateEncoder.save``, or a state_dict of neuralpredictors or v1fast.

    Args:
        path: of the file.
        image_shape: see :meth:`v1fast.models.FiringRateEncoder.from_checkpoint`.
        core_options, readout_options: "key=value", values as in YAML.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: in one line: no encoder is in it, or options that do not fit it.
    """
    if is_saved_encoder(path):
        return FiringRateEncoder.load(path)
    core, readout = dict(map(_core_option, core_options)), dict(map(_readout_option, readout_options))
    try:
        return FiringRateEncoder.from_checkpoint(
            path, image_shape=image_shape, core_options=core, readout_options=readout
        )
    except (RuntimeError, TypeError) as error:
        first = str(error).strip().splitlines()
        said = " ".join(line.strip() for line in first[:2])
        raise ValueError(f"{path}: does not fit the model that was read off it: {said}") from error
    except ValueError as error:
        if "unsupported global" not in f"{error} {error.__cause__}".lower():
            raise
        raise ValueError(
            f"{path}: is a pickled object, which runs code when it is read: save its state_dict, or call "
            "v1fast.accelerate(model) in the program that has the model"
        ) from error


def is_saved_encoder(path: Path) -> bool:
    """Whether :meth:`v1fast.models.FiringRateEncoder.save` wrote the file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    from safetensors import safe_open

    with _files.reading(path), safe_open(path, framework="pt") as file:
        return "v1fast" in (file.metadata() or {})


def _core_option(text: str) -> tuple[str, Any]:
    return _entry("core", text)


def _readout_option(text: str) -> tuple[str, Any]:
    return _entry("readout", text)


def _entry(family: str, text: str) -> tuple[str, Any]:
    """Name and value of an argument that some class of the family has."""
    name = text.partition("=")[0].strip()
    value = setting(text).get(name)
    known = {key for cls in FAMILIES[family] for key in options_of(family, cls)}
    if name not in known:
        raise ConfigurationErrors([f"--{family} {text}: {unknown(name, known, 'argument', f'a {family}')}"])
    return name, tuple(value) if isinstance(value, list) else value


def described(encoder: FiringRateEncoder) -> dict[str, Any]:
    """What is known of an encoder, as JSON: found in the checkpoint, assumed, sessions and their neurons."""
    readouts: Any = encoder.readout
    sessions = readouts if isinstance(readouts, torch.nn.ModuleDict) else {"": readouts}
    inferred = encoder.inferred
    return {
        "core": type(encoder.core).__name__,
        "readout": type(next(iter(sessions.values()))).__name__,
        "neurons": {name: int(cast("Any", readout).outdims) for name, readout in sessions.items()},
        "shifter": encoder.shifter is not None,
        "modulator": encoder.modulator is not None,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "found": {} if inferred is None else _plain(inferred.found),
        "assumed": {} if inferred is None else _plain(inferred.assumed),
    }


def _plain(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, bool | int | float | list) else str(value) for name, value in entries.items()
    }


def step_shape(encoder: FiringRateEncoder, images: int) -> Shape | None:
    """(B, C, H, W, N) of a training step of the largest Gaussian readout; None where there is none."""
    from v1fast.readouts import FullGaussian2d

    gaussian: list[Any] = [module for module in encoder.readout.modules() if type(module) is FullGaussian2d]
    if not gaussian:
        return None
    largest = max(gaussian, key=lambda readout: readout.outdims)
    channels, height, width = largest.in_shape
    return images, channels, height, width, largest.outdims
