"""Encoders in one file without pickle: safetensors, with everything else as JSON in its header."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from v1fast import _config, _files
from v1fast._version import __version__

if TYPE_CHECKING:
    from v1fast.models.encoder import FiringRateEncoder

FORMAT = 1
_PARTS = ("core", "readout", "shifter", "modulator")


def _require_safetensors() -> None:
    if find_spec("safetensors") is None:
        raise ModuleNotFoundError(
            'saving and loading encoders needs safetensors: pip install "v1fast[train]"', name="safetensors"
        )


def _distinct(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, each once; and for every other name of one of them, the first."""
    first: dict[tuple[int, torch.Size, torch.dtype], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, value in state.items():
        key = (value.data_ptr() if value.numel() else -len(first) - 1, value.shape, value.dtype)
        if key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            tensors[name] = value.detach().cpu().contiguous()
    return tensors, aliases


def save(encoder: FiringRateEncoder, path: str | Path, normalization: Mapping[str, Any] | None = None) -> None:
    """See :meth:`v1fast.models.FiringRateEncoder.save`."""
    _require_safetensors()
    from safetensors.torch import save as to_bytes

    tensors, aliases = _distinct(encoder.state_dict())
    header = {
        "format": FORMAT,
        "versions": {"v1fast": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "data_keys": list(encoder.readout) if isinstance(encoder.readout, nn.ModuleDict) else [],
        "normalization": dict(normalization or encoder.normalization or {}),
        "encoder": {
            "elu_offset": encoder.offset,
            "nonlinearity_type": encoder.nonlinearity_type,
            "nonlinearity_config": encoder.nonlinearity_config,
        },
        "core_is_frozen": encoder.core_is_frozen,
        "aliases": aliases,
        "source_frames": {
            name: module.source_frame
            for name, module in encoder.named_modules()
            if getattr(module, "source_frame", None) is not None
        },
    }
    for part in _PARTS:
        module = getattr(encoder, part)
        try:
            header[part] = None if module is None else _config.describe(module)
        except ValueError as error:
            raise ValueError(f"{part}: {error}; save its state_dict instead") from None
    text = json.dumps(header, default=_number)
    _files.replace(Path(path), to_bytes(tensors, metadata={"v1fast": text}))


def _number(value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"normalization: want numbers and text, got {type(value).__name__}")


def load(cls: type[FiringRateEncoder], path: str | Path, device: str | torch.device = "cpu") -> FiringRateEncoder:
    """See :meth:`v1fast.models.FiringRateEncoder.load`."""
    _require_safetensors()
    from safetensors import safe_open

    path = Path(path)
    with _files.reading(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if "v1fast" not in metadata:
            raise ValueError("it has no description of an encoder; from_checkpoint reads bare tensors")
        header = json.loads(metadata["v1fast"])
        if header["format"] > FORMAT:
            raise ValueError(f"want format {FORMAT} or less, got {header['format']} of v1fast {header['versions']}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        parts: list[Any] = [None if header[part] is None else _config.make(header[part]) for part in _PARTS]
    core, readout, shifter, modulator = parts
    encoder = cls(core, readout, shifter=shifter, modulator=modulator, **header["encoder"])
    tensors |= {name: tensors[first] for name, first in header["aliases"].items()}
    encoder.load_state_dict(tensors)
    for name, frame in header.get("source_frames", {}).items():
        encoder.get_submodule(name).source_frame = frame
    encoder.normalization = header["normalization"]
    encoder.versions = header["versions"]
    if header["core_is_frozen"]:
        encoder.freeze_core()
    return encoder.to(device).eval()
