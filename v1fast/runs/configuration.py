"""The configuration of a run: what is fitted, to what, and how. Read from YAML, checked, and written again."""

from __future__ import annotations

import dataclasses
import difflib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from v1fast import _files, losses, models, readouts
from v1fast.runs import _types
from v1fast.training import EarlyStopping, OneCycle

Tree = dict[str, Any]
Device = Literal["auto", "cpu", "cuda", "mps"]


class ConfigurationErrors(ValueError):
    """What is wrong with a configuration, one line for each mistake.

    Attributes:
        problems: the lines.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


# What a configuration consists of


@dataclass(frozen=True)
class Part:
    """A class by name, with arguments of its constructor that differ from their defaults or are written out.

    Attributes:
        name: of the class.
        options: its arguments, without those that follow from the data.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataOptions:
    """How recordings are read and prepared.

    Attributes:
        format: see :func:`v1fast.data.read`; None: by what lies at the path.
        scale: of the sides of the images, (0, 1]; None: 0.25 for images of 144 x 256 pixels, as in the Sensorium
            baselines, else 1.
        normalize: what is normalised, see :class:`v1fast.data.Preparation`.
        behavior_as_channels, pupil_as_channels: append them to the images as constant channels.
        drop_undefined: leave out trials with values that are not finite.
        frames: of a clip; videos are cut into clips for training. Its first frames, which the core's filters take up,
            have no prediction.
    """

    format: str | None = None
    scale: float | None = None
    normalize: tuple[str, ...] = ("images", "responses", "behavior", "pupil_center", "trial_idx")
    behavior_as_channels: bool = False
    pupil_as_channels: bool = False
    drop_undefined: bool = False
    frames: int = 60


@dataclass(frozen=True)
class EncoderOptions:
    """What makes rates of a readout's output, see :class:`v1fast.models.FiringRateEncoder`."""

    nonlinearity_type: str = "elu"
    nonlinearity_config: Mapping[str, Any] | None = None
    elu_offset: float = 0.0


@dataclass(frozen=True)
class TrainingOptions:
    """How the encoder is fitted, see :func:`v1fast.training.fit`.

    Attributes:
        epochs: the most epochs.
        batch_size: of each recording.
        learning_rate: of all parameters, unless ``learning_rates`` names them.
        learning_rates: end of a parameter's name, e.g. "sigma" -> learning rate.
        scale_loss: whether to multiply the loss by sqrt(trials of the recording / trials of the batch).
        gamma_dispersion: factor of a penalty that pulls positions together.
        precision: as in ``lightning.Trainer``.
        check_every: steps after which losses are looked at.
    """

    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 0.009
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    scale_loss: bool = True
    gamma_dispersion: float = 0.0
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "32-true"
    check_every: int = 10


@dataclass(frozen=True)
class MachineOptions:
    """What does not change the model that is fitted, up to rounding: a run may go on with others.

    Attributes:
        device: "auto" is CUDA where there is one, else the CPU.
        devices: of each machine: GPUs, or processes where the device is the CPU. They share each batch.
        num_nodes: machines.
        memory_gb: of prepared trials that are kept on each device; what needs more is read in batches.
        workers: threads that read ahead then.
    """

    device: Device = "auto"
    devices: int = 1
    num_nodes: int = 1
    memory_gb: float = 2.0
    workers: int = 2


@dataclass(frozen=True)
class Configuration:
    """What :func:`v1fast.runs.fit_recordings` does. ``print`` shows it as YAML.

    Attributes:
        preset: the one it started from.
        seed: of initial values, order of the trials and sampled positions.
        data, encoder, training, machine: see their classes.
        core: of :mod:`v1fast.models`; Basic3dCore and Factorized3dCore are for videos.
        readout: of :mod:`v1fast.readouts`, one for each recording. ``grid_mean_predictor`` predicts positions from
            those in cortex, where every recording has them. ``share_features``: neurons of one unit id have the same
            features in all recordings, up to a factor.
        shifter, modulator: of :mod:`v1fast.models`, or None.
        loss: of :mod:`v1fast.losses`.
        optimizer: of ``torch.optim``.
        schedule: of :mod:`v1fast.training`.
        given: dotted names of what does not come from the preset.
    """

    preset: str
    seed: int
    data: DataOptions
    core: Part
    readout: Part
    shifter: Part | None
    modulator: Part | None
    encoder: EncoderOptions
    loss: Part
    optimizer: Part
    schedule: Part
    training: TrainingOptions
    machine: MachineOptions
    given: frozenset[str] = field(default=frozenset(), compare=False)

    def tree(self) -> Tree:
        """Nested dicts, as in a file: the same configuration comes of it."""
        tree: Tree = {}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Part):
                value = {"name": value.name, **value.options}
            elif dataclasses.is_dataclass(value) and not isinstance(value, type):
                value = dataclasses.asdict(value)
            if entry.name != "given":
                tree[entry.name] = _plain(value)
        return tree

    def __str__(self) -> str:
        return write_yaml(self.tree())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value


SECTIONS: dict[str, type[Any]] = {
    "data": DataOptions,
    "encoder": EncoderOptions,
    "training": TrainingOptions,
    "machine": MachineOptions,
}

_FROM_THE_DATA = {
    *("input_channels", "in_shape", "outdims", "mean_activity", "source_grid", "init_grid", "data_keys", "n_neurons"),
    *("shared_features", "shared_grid", "shared_transform", "frame", "source_frame", "avg", "params"),
    *("per_neuron", "lr", "gamma", "gamma_readout"),
}
_OPTIMIZERS = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop")
_READOUTS_OF_VIDEOS = {
    *("FactorizedReadout", "GaussianMaskReadout", "KlindtReadoutWrapper3D", "PointGaussianReadout"),
    "SpatialTransformerPooled3d",
}
_SET_BY_THE_CLASS = {"LinearNonlinearCore": {"layers", "hidden_kern"}}
"""Arguments of a base class that a class gives it itself."""


def _readouts() -> dict[str, type[Any]]:
    made = {name: getattr(readouts, name) for name in readouts.__all__}
    several = (readouts.MultiReadoutBase, readouts.ClonedReadout)
    return {
        name: cls
        for name, cls in made.items()
        if issubclass(cls, readouts.Readout)
        and cls is not readouts.Readout
        and not issubclass(cls, several)
        and "inferred_params_n" not in _types.arguments_of(cls)  # several outputs for each neuron
        and name not in _READOUTS_OF_VIDEOS
    }


FAMILIES: dict[str, dict[str, type[Any]]] = {
    "core": {
        cls.__name__: cls
        for cls in (
            models.Stacked2dCore,
            models.SE2dCore,
            models.RotationEquivariant2dCore,
            models.LinearNonlinearCore,
            models.TransferLearningCore,
            models.Basic3dCore,
            models.Factorized3dCore,
        )
    },
    "readout": _readouts(),
    "shifter": {cls.__name__: cls for cls in (models.MLPShifter, models.StaticAffine2dShifter)},
    "modulator": {"MLPModulator": models.MLPModulator},
    "loss": {cls.__name__: cls for cls in (losses.PoissonLoss, losses.GaussianLoss)},
    "optimizer": {name: getattr(torch.optim, name) for name in _OPTIMIZERS},
    "schedule": {cls.__name__: cls for cls in (EarlyStopping, OneCycle)},
}
"""Part of a configuration -> the classes that it may name."""

_OPTIONAL = ("shifter", "modulator")
_NESTED = {"grid_mean_predictor": readouts.FullGaussian2d.init_grid_predictor}
"""Options that are sections themselves, and what takes their entries."""


def options_of(family: str, name: str) -> dict[str, tuple[Any, Any]]:
    """Name -> (annotation, default) of what a configuration may say about a class."""
    cls = FAMILIES[family][name]
    left_out = _FROM_THE_DATA | _SET_BY_THE_CLASS.get(name, set())
    arguments = _types.arguments_of(cls)
    found = {key: value for key, value in arguments.items() if key not in left_out}
    if "grid_mean_predictor" in found:
        found["share_transform"] = (bool, False)
    if "shared_features" in arguments:
        found["share_features"] = (bool, False)
    return found


# Presets

_SENSORIUM: Tree = {
    "seed": 0,
    "core": {
        "name": "Stacked2dCore",
        "layers": 4,
        "hidden_channels": 64,
        "input_kern": 9,
        "hidden_kern": 7,
        "depth_separable": True,
        "pad_input": False,
        "stack": -1,
        "gamma_input": 6.3831,
        "input_regularizer": "LaplaceL2norm",
        "laplace_padding": None,
        "use_avg_reg": False,
        "momentum": 0.9,
        "bias": True,
        "conv_bias": False,
    },
    "readout": {
        "name": "FullGaussian2d",
        "bias": True,
        "gauss_type": "full",
        "init_mu_range": 0.3,
        "init_sigma": 0.1,
        "feature_reg_weight": 0.0076,
        # As published it starts anywhere, and may stay there: see docs/evidence.md.
        "grid_mean_predictor": {"hidden_layers": 1, "hidden_features": 30, "final_tanh": True, "init_range": 0.1},
    },
    "shifter": None,
    "modulator": None,
    "loss": {"name": "PoissonLoss"},
    "optimizer": {"name": "Adam"},
    "schedule": {"name": "EarlyStopping", "patience": 5, "lr_decay_steps": 4, "factor": 0.3, "min_lr": 1e-4},
    "training": {"epochs": 200, "batch_size": 128, "learning_rate": 0.009},
}
_SENSORIUM_PLUS: Tree = {
    "data": {"behavior_as_channels": True},
    "shifter": {"name": "MLPShifter", "hidden_channels_shifter": 5, "shift_layers": 3},
}
_LURZ_2020: Tree = {
    "data": {"normalize": ["responses", "behavior", "pupil_center", "trial_idx"]},
    "core": {"input_kern": 15, "hidden_kern": 13, "gamma_input": 1.0},
    "readout": {
        "init_mu_range": 0.55,
        "init_sigma": 0.4,
        "feature_reg_weight": 2.439,
        "grid_mean_predictor": {"hidden_layers": 0, "hidden_features": 30, "final_tanh": False},
    },
    "schedule": {"lr_decay_steps": 3},
    "training": {"batch_size": 64, "learning_rate": 0.005},
}
_SMALL: Tree = {
    "core": {"layers": 2, "hidden_channels": 16, "hidden_kern": 3, "depth_separable": False, "gamma_input": 1.0},
    "readout": {"init_mu_range": 0.1, "init_sigma": 0.2},
    "schedule": {"name": "OneCycle"},
    "training": {"epochs": 24, "batch_size": 64, "learning_rate": 0.02},
}


def _merged(*trees: Mapping[str, Any]) -> Tree:
    """Later ones on top of earlier ones, section by section."""
    whole: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            below = whole.get(key)
            whole[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return whole


PRESETS: dict[str, Tree] = {
    "sensorium": _SENSORIUM,
    "sensorium+": _merged(_SENSORIUM, _SENSORIUM_PLUS),
    "lurz2020": _merged(_SENSORIUM, _LURZ_2020),
    "small": _merged(_SENSORIUM, _SMALL),
}
"""``sensorium`` and ``sensorium+``: the convolutional baselines of the Sensorium competition (Willeke et al.,
arXiv:2206.08666), without and with behaviour and eye position. ``lurz2020``: the model of Lurz et al., ICLR 2021.
``small``: minutes on a CPU."""


_USUAL: dict[str, Tree] = {
    "PointPooled2d": {"pool_steps": 2, "pool_kern": 3, "init_range": 0.2},
    "PointPyramid2d": {"scale_n": 3, "positive": False, "init_range": 0.2, "downsample": True, "type": "gauss5x5"},
    "UltraSparse": {"init_sigma_range": 0.1},
    "Basic3dCore": {"input_kernel": (11, 11, 11), "hidden_kernel": (5, 5, 5)},
    "Factorized3dCore": {
        "spatial_input_kernel": 11,
        "temporal_input_kernel": 11,
        "spatial_hidden_kernel": 5,
        "temporal_hidden_kernel": 5,
        "final_nonlin": True,
    },
}
"""Arguments without a default: those of the pooled readout as Lurz et al. 2021 had them, the others by choice."""
_USUAL |= {
    "FullPointPooled2d": _USUAL["PointPooled2d"],
    "SpatialTransformerPooled2d": _USUAL["PointPooled2d"],
    "SpatialTransformerPyramid2d": _USUAL["PointPyramid2d"],
}
_INSTEAD: dict[str, Tree] = {"RotationEquivariant2dCore": {"depth_separable": False}}
"""What a class needs in place of what a preset says for another."""


# Reading


def configure(
    preset: str | None = None,
    file: str | Path | None = None,
    settings: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Configuration:
    """Put a configuration together: a preset, on it a file, on it single settings.

    A part whose ``name`` changes keeps those of the preset's options that the new class has, too.

    Args:
        preset: one of :data:`PRESETS`; None: the one that the file names, else "sensorium".
        file: of YAML, with sections as :class:`Configuration` has attributes.
        settings: "core.layers=3", values as in YAML; "shifter=MLPShifter" is short for its name.
        overrides: dotted name -> value.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigurationErrors: one line for each unknown key, with the nearest known one, and each value of another type.

    >>> configure("small", settings=["core.layers=3"]).core.options["layers"]
    3
    """
    layers: list[tuple[str, Tree]] = []
    if file is not None:
        layers.append((str(file), read_yaml(Path(file))))
    layers += [(f"--set {text}", setting(text)) for text in settings]
    layers += [(name, _nested(name, value)) for name, value in (overrides or {}).items() if value is not None]
    return _Reading(preset, layers).configuration()


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, and a key that stands twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_yaml(path: Path) -> Tree:
    """Read a file of YAML.

    Raises:
        FileNotFoundError: there is none.
        ValueError: in one line: it is no YAML, or holds something else than keys and values.
    """
    with _files.reading(path):
        loaded = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if loaded is None:
            return {}
        if not isinstance(loaded, dict):
            raise ValueError(f"want keys and values, got {type(loaded).__name__}")
        return loaded


def write_yaml(tree: Mapping[str, Any]) -> str:
    """The text of a file."""
    text = io.StringIO()
    yaml.safe_dump(dict(tree), text, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return text.getvalue()


def setting(text: str) -> Tree:
    """The nested dict of "a.b=value"; ConfigurationErrors where it is none."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigurationErrors([f"{text}: want key=value, such as core.layers=3"])
    try:
        return _nested(name.strip(), yaml.load(value, _Loader))
    except yaml.YAMLError as error:
        said = " ".join(str(getattr(error, "problem", error)).split())
        raise ConfigurationErrors([f"{text}: want a value of YAML: {said}"]) from None


def _nested(name: str, value: Any) -> Tree:
    for key in reversed(name.split(".")):
        value = {key: value}
    tree: Tree = value
    return tree


class _Reading:
    """One call of :func:`configure`: what is given, from where, and what is wrong with it."""

    def __init__(self, preset: str | None, layers: list[tuple[str, Tree]]) -> None:
        self.problems: list[str] = []
        self.source: dict[str, str] = {}
        given: Tree = {}
        for source, tree in layers:
            tree = {key: self._long_form(key, value) for key, value in tree.items()}
            for name in _leaves(tree):
                self.source[name] = source
            given = _merged(given, tree)
        if preset is None:
            preset = given.get("preset", "sensorium")
        elif "preset" in given and given["preset"] != preset:
            self._problem("preset", f"is {given['preset']!r}, and {preset!r} is asked for")
        given.pop("preset", None)
        if preset not in PRESETS:
            raise ConfigurationErrors([self._line("preset", unknown(str(preset), PRESETS, "preset"))])
        self.preset, self.given, self.base = preset, given, PRESETS[preset]

    @staticmethod
    def _long_form(key: str, value: Any) -> Any:
        return {"name": value} if key in FAMILIES and isinstance(value, str) else value

    def _problem(self, name: str, said: str) -> None:
        self.problems.append(self._line(name, said))

    def _line(self, name: str, said: str) -> str:
        source = next((self.source[known] for known in self.source if f"{known}.".startswith(f"{name}.")), None)
        if source is None or source == name:
            return f"{name}: {said}"
        return f"{source}: {said}" if source.startswith("--set") else f"{source}: {name}: {said}"

    def configuration(self) -> Configuration:
        """The configuration, if nothing is wrong."""
        known = {entry.name for entry in dataclasses.fields(Configuration)} - {"given"}
        for key in self.given:
            if key not in known:
                self._problem(str(key), unknown(str(key), known, "key"))
        seed = self._value("seed", self.given.get("seed", self.base["seed"]), int)
        parts: dict[str, Any] = {family: self._part(family) for family in FAMILIES}
        sections: dict[str, Any] = {name: self._section(name, cls) for name, cls in SECTIONS.items()}
        if not self.problems:
            self._check_ranges(seed, sections)
        if self.problems:
            raise ConfigurationErrors(self.problems)
        return Configuration(preset=self.preset, seed=seed, given=frozenset(self.source), **parts, **sections)

    def _mapping(self, name: str, value: Any) -> Tree:
        if isinstance(value, dict):
            return value
        self._problem(name, f"want a section of keys and values, got {value!r}")
        return {}

    def _section(self, name: str, cls: type[Any]) -> Any:
        given = self._mapping(name, self.given.get(name, {}))
        hints = _types.arguments_of(cls)
        values = {
            key: self._option(f"{name}.{key}", value, hints)
            for key, value in {**self.base.get(name, {}), **given}.items()
        }
        return cls(**values) if not self.problems else None

    def _part(self, family: str) -> Part | None:
        base, classes = self.base[family], FAMILIES[family]
        given = self.given.get(family, {})
        if family in self.given and given is None:
            if family not in _OPTIONAL:
                self._problem(family, f"want one of {', '.join(classes)}, got null")
            return None
        given = self._mapping(family, given)
        if base is None and not given:
            return None
        name = given.get("name", base["name"] if base else next(iter(classes)))
        if name not in classes:
            self._problem(f"{family}.name", unknown(str(name), classes, family))
            return None
        known = options_of(family, name)
        kept = {key: value for key, value in (base or {}).items() if key in known}
        kept = {**_USUAL.get(name, {}), **kept, **_INSTEAD.get(name, {})}
        options = {
            key: self._option(f"{family}.{key}", value, known, name)
            for key, value in _merged(kept, given).items()
            if key != "name"
        }
        missing = [key for key, (_, default) in known.items() if default is _types.NOTHING and key not in options]
        for key in missing:
            self._problem(f"{family}.{key}", f"{name} needs it: want {_types.words(known[key][0])}")
        return Part(name, options)

    def _option(self, name: str, value: Any, known: Mapping[str, tuple[Any, Any]], of: str = "") -> Any:
        key = name.rpartition(".")[2]
        if key not in known:
            self._problem(name, unknown(key, known, "argument", of) if of else unknown(key, known, "key"))
            return None
        if key in _NESTED and isinstance(value, dict):
            inner = {k: v for k, v in _types.arguments_of(_NESTED[key]).items() if k not in _FROM_THE_DATA}
            return {entry: self._option(f"{name}.{entry}", given, inner, key) for entry, given in value.items()}
        return self._value(name, value, known[key][0])

    def _value(self, name: str, value: Any, hint: Any) -> Any:
        try:
            return _types.fit(value, hint)
        except _types.Unfit as error:
            self._problem(name, str(error))
            return None

    def _check_ranges(self, seed: int, sections: Mapping[str, Any]) -> None:
        data, training, machine = sections["data"], sections["training"], sections["machine"]
        fields = ("images", "responses", "behavior", "pupil_center", "trial_idx")
        for entry in data.normalize:
            if entry not in fields:
                self._problem("data.normalize", unknown(entry, fields, "field"))
        checks: list[tuple[str, Any, Callable[[Any], bool], str]] = [
            ("seed", seed, lambda v: v >= 0, "at least 0"),
            ("data.scale", data.scale, lambda v: v is None or 0 < v <= 1, "a number in (0, 1]"),
            ("data.frames", data.frames, lambda v: v >= 1, "at least 1"),
            ("training.epochs", training.epochs, lambda v: v >= 1, "at least 1"),
            ("training.batch_size", training.batch_size, lambda v: v >= 2, "at least 2"),
            ("training.learning_rate", training.learning_rate, lambda v: v > 0, "a number above 0"),
            ("training.check_every", training.check_every, lambda v: v >= 1, "at least 1"),
            ("machine.devices", machine.devices, lambda v: v >= 1, "at least 1"),
            ("machine.num_nodes", machine.num_nodes, lambda v: v >= 1, "at least 1"),
            ("machine.memory_gb", machine.memory_gb, lambda v: v >= 0, "at least 0"),
            ("machine.workers", machine.workers, lambda v: v >= 0, "at least 0"),
        ]
        for name, value, holds, want in checks:
            if not holds(value):
                self._problem(name, f"want {want}, got {value}")
        ranks = machine.devices * machine.num_nodes
        if training.batch_size < ranks:
            want = f"want at least {ranks}, a trial for each of the {machine.devices} x {machine.num_nodes} ranks"
            self._problem("training.batch_size", f"{want}, got {training.batch_size}")


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def unknown(name: str, known: Iterable[str], what: str, of: str = "") -> str:
    """The message for a name that is none of those known, with the nearest of them."""
    names = sorted(known)
    lower = {known_name.lower(): known_name for known_name in names}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    hint = f"the nearest is {lower[near[0]]}" if near else f"there are {', '.join(names)}"
    return f"{of} has no {what} {name!r}; {hint}" if of else f"there is no {what} {name!r}; {hint}"


def difference(one: Configuration, other: Configuration) -> tuple[str, Any, Any] | None:
    """The first dotted name under which two configurations differ, and both values; ``machine`` does not count."""
    trees = []
    for configuration in (one, other):
        tree = configuration.tree()
        tree.pop("machine")
        tree.pop("preset")
        trees.append(_flat(tree))
    for name in dict.fromkeys((*trees[0], *trees[1])):
        first, second = (tree.get(name) for tree in trees)
        if first != second:
            return name, first, second
    return None


def _flat(tree: Mapping[str, Any], above: str = "") -> Tree:
    flat: Tree = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat
