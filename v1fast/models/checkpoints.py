"""Building an encoder from a released checkpoint: sizes and options are read off its keys and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from v1fast import _files, readouts
from v1fast._layout import channels_last
from v1fast.models.cores import RotationEquivariant2dCore, SE2dCore, Stacked2dCore
from v1fast.models.modulators import MLPModulator
from v1fast.models.shifters import MLPShifter, StaticAffine2dShifter

State = Mapping[str, Tensor]
_PARTS = ("core", "readout", "shifter", "modulator")


@dataclass
class Inferred:
    """How :meth:`v1fast.models.FiringRateEncoder.from_checkpoint` understood a checkpoint; ``print`` shows it.

    Attributes:
        found: what keys and shapes say.
        assumed: what they do not say: the field's default, or an argument of the call.
    """

    found: dict[str, Any] = field(default_factory=dict)
    assumed: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = []
        for title, entries in (("read off the checkpoint", self.found), ("not in the checkpoint", self.assumed)):
            lines += [f"{title}:", *(f"  {name}: {value}" for name, value in entries.items())]
        return "\n".join(lines)


def read_state(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under keys that begin with core, readout, shifter or modulator.

    Args:
        source: a file written by ``torch.save`` or safetensors, or the mapping itself. Tensors may lie under
            "state_dict", "model_state_dict" or "model", and their keys may have a common prefix ("model.", "module.").

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read without running code that it holds, or has no encoder in it.
    """
    name = "checkpoint" if isinstance(source, Mapping) else str(source)
    loaded = dict(source) if isinstance(source, Mapping) else _load(Path(source))
    for outer in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded.get(outer), Mapping):
            loaded = dict(loaded[outer])
    state = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    prefixes = {match.group(1) for key in state if (match := re.match(r"(|.*?\.)core\.", key))}
    if len(prefixes) != 1:
        seen = sorted({key.split(".")[0] for key in state})
        want = "want one encoder, with keys that begin with core."
        got = f"the prefixes {', '.join(sorted(prefixes))}" if prefixes else f"keys that begin with {', '.join(seen)}"
        raise ValueError(f"{name}: {want}, got {got if seen else 'no tensors'}")
    prefix = prefixes.pop()
    return {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if key.startswith(prefix) and key.removeprefix(prefix).split(".")[0] in _PARTS
    }


def _load(path: Path) -> dict[str, Any]:
    with _files.reading(path):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(loaded, Mapping):
            raise ValueError(f"it holds a {type(loaded).__name__}, no state_dict")
        return dict(loaded)


def part(state: State, name: str) -> dict[str, Tensor]:
    """Return the entries of one part, without the part's name."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _names(state: State) -> list[str]:
    """The first components of the keys, in order."""
    return list(dict.fromkeys(key.split(".")[0] for key in state))


# cores


def infer_core(state: State, features: int | None, options: Mapping[str, Any], inferred: Inferred) -> nn.Module:
    """Return a core that fits ``state``; 2-d cores of :mod:`v1fast.models.cores`.

    Args:
        state: keys that begin with ``features.``.
        features: channels that the readout reads, from which ``stack`` follows.
        options: constructor arguments that replace inferred or assumed ones.
        inferred: is written to.

    Raises:
        ValueError: the layers are of no kind that is known.
    """
    layers = [part(state, f"features.{name}") for name in _names(part(state, "features"))]
    if not layers:
        raise ValueError("core: want keys core.features.layer0..., got none; pass core=, a module that they fit")
    found = _layer_options(layers)
    kind: type[Stacked2dCore] = Stacked2dCore
    if any("hermite_conv.coeffs" in layer for layer in layers):
        kind = RotationEquivariant2dCore
    elif any("seg_ex_block.se.1.weight" in layer for layer in layers):
        kind = SE2dCore
    found["stack"] = _stack(found["hidden_channels"], found.get("num_rotations", 1), features)
    assumed = {
        "pad_input": False,
        "hidden_padding": None,
        "stride": 1,
        "hidden_dilation": 1,
        "linear": False,
        "final_nonlinearity": True,
        "elu_shift": (0, 0),
        "input_regularizer": "LaplaceL2norm",
        "gamma_input": 0.0,
        "gamma_hidden": 0,
        "momentum": 0.1,
    }
    arguments = {**assumed, **found, **options}
    inferred.found["core"] = kind.__name__
    inferred.found.update({f"core {name}": arguments[name] for name in found})
    inferred.assumed.update({f"core {name}": arguments[name] for name in arguments if name not in found})
    return kind(**arguments)


# The weight that tells the numbers of channels, by kind of convolution.
_CONVOLUTIONS = {
    "conv": "conv.weight",
    "depth_separable": "ds_conv.in_depth_conv.weight",
    "attention_conv": "attention_conv.key_conv.weight",
    "rotation": "hermite_conv.coeffs",
}


def _layer_options(layers: list[dict[str, Tensor]]) -> dict[str, Any]:
    shapes = [_convolution(i, layer) for i, layer in enumerate(layers)]
    found: dict[str, Any] = {
        "layers": len(layers),
        "input_channels": shapes[0]["inputs"],
        "hidden_channels": [shape["outputs"] for shape in shapes],
        "input_kern": shapes[0]["kernel"],
        "hidden_kern": [shape["kernel"] for shape in shapes[1:]],
        "batch_norm": [_has(layer, "norm.running_mean") for layer in layers],
        "batch_norm_scale": [_has(layer, "norm.weight", "scale.scale") for layer in layers],
        "bias": [_has(layer, "norm.weight", "bias.bias") for layer in layers],
    }
    rotations = {shape["rotations"] for shape in shapes}
    if rotations != {1}:
        found["num_rotations"] = rotations.pop()
        found["upsampling"] = shapes[0]["upsampling"]
        found["rot_eq_batch_norm"] = any("norm.batch_norm.running_mean" in layer for layer in layers)
        return found
    found["conv_bias"] = [shape["bias"] for shape in shapes]
    for name in ("depth_separable", "attention_conv"):
        if any(shape["kind"] == name for shape in shapes):
            found[name] = True
    skip = _skip(shapes)
    if skip:
        found["skip"] = skip
    blocks = [i for i, layer in enumerate(layers) if "seg_ex_block.se.1.weight" in layer]
    if blocks:
        hidden, channels = layers[blocks[0]]["seg_ex_block.se.1.weight"].shape
        found.update(n_se_blocks=len(layers) - blocks[0], se_reduction=channels // hidden)
    return found


def _has(layer: State, *names: str) -> bool:
    # A rotation-equivariant norm is one level deeper.
    return any(name in layer or name.replace("norm.", "norm.batch_norm.") in layer for name in names)


def _convolution(index: int, layer: State) -> dict[str, Any]:
    """Sizes of a layer's convolution, whatever its kind."""
    kind = next((name for name, key in _CONVOLUTIONS.items() if key in layer and layer[key].dim() != 5), None)
    if kind is None:
        raise ValueError(
            f"core.features.layer{index}: want a convolution of a 2-d core (conv, ds_conv, attention_conv or "
            f"hermite_conv), got {', '.join(_names(layer))}; pass core=, a module that the keys fit"
        )
    weight = layer[_CONVOLUTIONS[kind]]
    shape: dict[str, Any] = {"kind": kind, "rotations": 1, "outputs": weight.shape[0], "inputs": weight.shape[1]}
    shape["bias"] = _CONVOLUTIONS[kind].replace("weight", "bias") in layer
    if kind == "conv":
        shape["kernel"] = _size(weight.shape[2:])
    elif kind == "depth_separable":
        shape["kernel"] = _size(layer["ds_conv.spatial_conv.weight"].shape[2:])
    elif kind == "attention_conv":
        shape["kernel"] = layer["attention_conv.rel_h"].shape[3]
    else:
        coefficients, shape["inputs"], shape["outputs"] = weight.shape
        size = int((2 * coefficients) ** 0.5)  # coefficients = size (size + 1) / 2
        shape.update(kernel=size, upsampling=layer["hermite_conv.rotate_hermite.H"].shape[-1] // size)
        shape["rotations"] = sum(name.startswith("hermite_conv.rotate_hermite.Rs.") for name in layer)
    return shape


def _size(kernel: Iterable[int]) -> Any:
    height, width = kernel
    return height if height == width else (height, width)


def _skip(shapes: list[dict[str, Any]]) -> int:
    """How many previous layers a layer reads, if more than one."""
    most = 0
    for index in range(1, len(shapes)):
        channels, count = 0, 0
        while channels < shapes[index]["inputs"] and count < index:
            count += 1
            channels += shapes[index - count]["outputs"]
        most = max(most, count)
    return most if most > 1 else 0


def _stack(hidden: list[int], rotations: int, features: int | None) -> int | None:
    """Which layers' maps the readout reads: the last ones whose channels sum to ``features``."""
    if features is None:
        return -1
    total = 0
    for count in range(1, len(hidden) + 1):
        total += hidden[-count] * rotations
        if total == features:
            return None if count == len(hidden) and count > 1 else -count
    raise ValueError(
        f"core: want the last layers to have the {features} channels that the readout weights, got layers of {hidden}; "
        "pass core_options with stack"
    )


# readouts

_LEAVES = {"sigma", "_features", "features", "bias", "grid", "mu", "_mu", "spatial", "mu_transform", "source_grid"}


def channels_read(state: State) -> int | None:
    """Return the channels that the first readout weights; None if it reads several maps of each channel."""
    if any(key.split(".")[-1] == "grid" for key in state):  # poolings or pyramid levels
        return None
    for key, value in state.items():
        leaf = key.split(".")[-1]
        if leaf in ("_features", "features") and value.dim() >= 4:
            return value.shape[-3]
        if leaf == "_features" and value.dim() == 2:
            return value.shape[-1]
    return None


def infer_readout(
    state: State, core: nn.Module, image_shape: tuple[int, int], options: Mapping[str, Any], inferred: Inferred
) -> nn.Module:
    """Return a readout per session that fits ``state``.

    Args:
        state: keys ``<data_key>.<key of the readout>``, or those of one readout.
        core: makes the features.
        image_shape: (H, W) of the images.
        options: constructor arguments that replace inferred or assumed ones.
        inferred: is written to.

    Raises:
        ValueError: a readout of no known class, or one that does not fit the core's maps.
    """
    single = bool(_LEAVES & set(_names(state)))
    sessions = {"": dict(state)} if single else {name: part(state, name) for name in _names(state)}
    shape = _map_shape(core, image_shape)
    kinds = {name: _readout_class(name, session) for name, session in sessions.items()}
    if len(set(kinds.values())) > 1:
        got = ", ".join(sorted(c.__name__ for c in set(kinds.values())))
        raise ValueError(f"readout: want one class for all sessions, got {got}")
    kind = next(iter(kinds.values()))
    neurons = {name: _neurons(kind, session) for name, session in sessions.items()}
    arguments, assumed = _readout_options(kind, next(iter(sessions.values())), shape)
    inferred.found.update({"readout": kind.__name__, "features [C, H, W]": shape, "neurons": dict(neurons)})
    assumed |= options
    for name, value in arguments.items():
        if name == "grid_mean_predictor" and name not in options:  # a tanh has no keys
            value = dict(value)
            inferred.assumed[f"readout {name} final_tanh"] = value.pop("final_tanh")
        inferred.found[f"readout {name}"] = value
    inferred.assumed.update({f"readout {name}": value for name, value in assumed.items()})
    arguments = {**arguments, **assumed}
    if single:
        if "grid_mean_predictor" in arguments:
            arguments["source_grid"] = sessions[""]["source_grid"].numpy()
        return kind(in_shape=shape, outdims=neurons[""], **arguments)
    shared = _shared(sessions, arguments)
    return readouts.MultiReadoutSharedParametersBase(
        dict.fromkeys(neurons, shape), neurons, kind, **{**arguments, **shared}
    )


@torch.no_grad()
def _map_shape(core: nn.Module, image_shape: tuple[int, int]) -> tuple[int, int, int]:
    mode = core.training
    core.eval()
    images = torch.zeros(1, int(getattr(core, "input_channels", 1)), *image_shape)
    try:
        channels, height, width = core(channels_last(images)).shape[1:]
    except RuntimeError as error:
        raise ValueError(f"image_shape: want images that the core can read, got {image_shape}: {error}") from None
    finally:
        core.train(mode)
    return channels, height, width


def _readout_class(name: str, state: State) -> type[Any]:
    def shape(key: str) -> tuple[int, ...]:
        return tuple(state[key].shape) if key in state else ()

    if len(shape("sigma")) == 4 and "_features" in state:
        generalised = len(shape("_features")) == 5
        return readouts.GeneralizedFullGaussianReadout2d if generalised else readouts.FullGaussian2d
    if len(shape("sigma")) == 4 and "mu" in state:
        return readouts.Gaussian2d
    if "gauss_pyramid.filter" in state:
        return readouts.PointPyramid2d
    if "grid" in state and len(shape("features")) == 4:
        return readouts.PointPooled2d
    if "grid" in state and len(shape("features")) == 5:
        return readouts.GeneralizedPointPooled2d
    if "spatial" in state:
        return readouts.FullFactorized2d
    raise ValueError(
        f"readout.{name}: want the keys of a Gaussian, pooled, pyramid or factorised readout, got "
        f"{', '.join(_names(state))}; pass readout=, a module that the keys fit"
    )


def _neurons(kind: type[Any], state: State) -> int:
    if "spatial" in state:
        return state["spatial"].shape[0]
    return state["sigma"].shape[1] if "sigma" in state else state["grid"].shape[1]


def _readout_options(
    kind: type[Any], state: State, shape: tuple[int, int, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constructor arguments that the keys say, and those that they do not say."""
    found: dict[str, Any] = {"bias": "bias" in state}
    assumed: dict[str, Any] = {}
    channels = state["_features" if "_features" in state else "features"].shape[-3 if "spatial" not in state else -1]
    if kind is not readouts.FullFactorized2d:
        assumed["align_corners"] = True
    if issubclass(kind, readouts.FullGaussian2d):
        found["gauss_type"] = {4: "full", 2: "uncorrelated", 1: "isotropic"}[state["sigma"][0, 0].numel()]
        if "source_grid" in state:
            layers = [v for k, v in state.items() if re.fullmatch(r"mu_transform\.\d+\.weight", k)]
            hidden = len(layers) - 1
            # A tanh has no keys. Published models with a hidden layer have one (Sensorium), linear maps do not (Lurz).
            found["grid_mean_predictor"] = {
                "hidden_layers": hidden,
                "hidden_features": layers[0].shape[0] if hidden else 20,
                "final_tanh": hidden > 0,
            }
        if len(state["_features"].shape) == 5:
            found["inferred_params_n"] = state["_features"].shape[0]
    elif "grid" in state and channels % shape[0]:
        raise ValueError(
            f"readout.features: want a multiple of {shape[0]}, the core's channels, got {channels}; pass core_options "
            "with stack"
        )
    elif kind is readouts.PointPyramid2d:
        found["type"] = _pyramid_type(state["gauss_pyramid.filter"])
        found["scale_n"] = channels // shape[0] - 1
        assumed.update(positive=False, downsample=True, init_range=0.1)
    elif issubclass(kind, readouts.PointPooled2d):
        found["pool_steps"] = channels // shape[0] - 1
        assumed.update(pool_kern=2, init_range=0.1)
        if len(state["features"].shape) == 5:
            found["inferred_params_n"] = state["features"].shape[0]
    elif kind is readouts.FullFactorized2d:
        assumed.update(normalize=True)
        if tuple(state["spatial"].shape[1:]) != shape[1:]:
            raise ValueError(
                f"readout.spatial: want masks of {shape[1:]}, the core's maps of these images, got "
                f"{tuple(state['spatial'].shape[1:])}: give another image_shape or core_options (padding, stride)"
            )
    return found, assumed


def _pyramid_type(weights: Tensor) -> str:
    if weights.shape[-1] == 3:
        return "gauss3x3"
    return "laplace5x5" if torch.isclose(weights[2, 2].float(), torch.tensor(36 / 256)) else "gauss5x5"


def _shared(sessions: Mapping[str, State], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a multi-session readout: positions of neurons, and what sessions share."""
    shared: dict[str, Any] = {}
    if "grid_mean_predictor" in arguments:
        shared["grid_mean_predictor_type"] = "cortex"
        shared["source_grids"] = {name: session["source_grid"].numpy() for name, session in sessions.items()}
    for key, option in (("feature_sharing_index", "share_features"), ("grid_sharing_index", "share_grid")):
        if all(key in session for session in sessions.values()):
            shared[option] = True
            shared["shared_match_ids"] = {name: session[key].numpy() for name, session in sessions.items()}
    return shared


# shifters and modulators


def infer_shifter(state: State, inferred: Inferred) -> nn.Module | None:
    """Return a shifter that fits ``state`` (keys ``<data_key>.mlp...`` or ``<data_key>.weight``), or None."""
    if not state:
        return None
    sessions = _names(state)
    first = part(state, sessions[0])
    if "weight" in first:
        outputs, inputs = first["weight"].shape
        inferred.found["shifter"] = f"StaticAffine2dShifter of {inputs} inputs"
        return StaticAffine2dShifter(sessions, inputs, outputs, bias="bias" in first)
    weights = [value for key, value in first.items() if re.fullmatch(r"mlp\.\d+\.weight", key)]
    if not weights:
        raise ValueError(f"shifter: want keys mlp.0.weight or weight, got {', '.join(first)}; pass shifter=")
    inputs = weights[0].shape[1]
    inferred.found["shifter"] = f"MLPShifter of {inputs} inputs, {len(weights)} layers"
    hidden = weights[0].shape[0] if len(weights) > 1 else 2
    return MLPShifter(sessions, inputs, hidden, len(weights), bias="mlp.0.bias" in first)


def infer_modulator(state: State, inferred: Inferred) -> nn.Module | None:
    """Return a modulator that fits ``state`` (keys ``<data_key>.modulator_networks...``), or None."""
    if not state:
        return None
    networks = {name: part(part(state, name), "modulator_networks") for name in _names(state)}
    first = part(next(iter(networks.values())), "0")
    weights = [value for key, value in first.items() if key.endswith(".weight")]
    if not weights:
        raise ValueError(f"modulator: want keys modulator_networks.0.0.weight, got {', '.join(state)}; pass modulator=")
    neurons = {name: [v for k, v in n.items() if k.endswith(".weight")][-1].shape[0] for name, n in networks.items()}
    inputs, hidden = weights[0].shape[1], weights[0].shape[0]
    inferred.found["modulator"] = f"MLPModulator of {inputs} inputs, {len(weights)} layers"
    outputs = len(_names(next(iter(networks.values()))))
    return MLPModulator(neurons, inputs, hidden, len(weights), bias="0.bias" in first, n_parameters_to_modulate=outputs)
