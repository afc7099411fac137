"""The models that experiments fit: cores and readouts of several kinds, and how they are trained and judged."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from v1fast import _choices, _files
from v1fast.experiments.sessions import Session, Sessions, are_matched
from v1fast.metrics import correlation_to_average, fraction_oracle, single_trial_correlation
from v1fast.models import (
    FiringRateEncoder,
    MLPModulator,
    MLPShifter,
    Stacked2dCore,
    TransferLearningCore,
    vgg16_features,
)
from v1fast.readouts import (
    DenseReadout,
    FullFactorized2d,
    FullGaussian2d,
    FullPointPooled2d,
    MultiReadoutBase,
    MultiReadoutSharedParametersBase,
)
from v1fast.training import EarlyStopping, History, TensorBatches, cache_features, fit, without_core

Kind = Literal["gaussian", "factorized", "pooled", "dense"]
Retinotopy = Literal["none", "predicted", "residual"]

KINDS: tuple[Kind, ...] = ("dense", "factorized", "pooled", "gaussian")
RETINOTOPIES: tuple[Retinotopy, ...] = ("none", "predicted", "residual")
HAS_POSITIONS: tuple[Kind, ...] = ("gaussian", "pooled")
"""Readouts whose positions may be predicted from cortex. The others weight all pixels: a mask is at no one place."""


PLAIN = "own features, learned positions"


@dataclass(frozen=True)
class Variant:
    """A readout, and what it shares or is given.

    Attributes:
        kind: "gaussian" (:class:`FullGaussian2d`), "factorized" (:class:`FullFactorized2d`), "pooled"
            (:class:`FullPointPooled2d`) or "dense" (:class:`DenseReadout`).
        sharing: whether matched neurons of several sessions share a feature vector, up to a factor; in a dense readout
            all weights, and so the place too.
        retinotopy: "predicted": positions are a function of the cortical positions; "residual": that and a penalised
            offset of each neuron; "none".
        shifter: whether the pupil's position shifts all receptive fields.
        modulator: whether behaviour multiplies the responses.

    Raises:
        ValueError: the kind of readout cannot do what is wanted.
    """

    kind: Kind = "gaussian"
    sharing: bool = False
    retinotopy: Retinotopy = "none"
    shifter: bool = False
    modulator: bool = False

    def __post_init__(self) -> None:
        _choices.one_of("readout", self.kind, KINDS)
        _choices.one_of("retinotopy", self.retinotopy, RETINOTOPIES)
        if self.retinotopy != "none" and self.kind not in HAS_POSITIONS:
            raise ValueError(f"retinotopy: want a readout of {', '.join(HAS_POSITIONS)}, got {self.kind}")

    def __str__(self) -> str:
        return self.kind if self.arm == PLAIN else f"{self.kind}, {self.arm}"

    @property
    def arm(self) -> str:
        """What it has beside its kind."""
        words = ["shared features"] if self.sharing else []
        words += {"none": [], "predicted": ["retinotopy"], "residual": ["retinotopy + residual"]}[self.retinotopy]
        words += ["shifter"] if self.shifter else []
        words += ["modulator"] if self.modulator else []
        return ", ".join(words) or PLAIN

    def check(self, sessions: Sessions) -> None:
        """Raise ValueError if the sessions lack what this needs."""
        if self.sharing and not are_matched(sessions):
            raise ValueError("sharing: want several sessions of the same neurons (equal unit_ids), got others")
        for wanted, name in ((self.shifter, "pupil_center"), (self.modulator, "behavior")):
            lacking = [key for key, session in sessions.items() if wanted and name not in session.train]
            if lacking:
                raise ValueError(f"{self}: want {name}, got session {lacking[0]} without it")
        if self.retinotopy != "none":
            lacking = [key for key, session in sessions.items() if session.cortex is None]
            if lacking:
                raise ValueError(f"{self}: want cortical positions, got session {lacking[0]} without them")


def variants_of(
    kinds: Sequence[Kind], sharing: Sequence[bool] = (False,), retinotopy: Sequence[Retinotopy] = ("none",)
) -> list[Variant]:
    """Each kind with each that it can do of what is wanted; without retinotopy where it has no positions.

    Raises:
        ValueError: one of them is empty, or holds an unknown name.

    >>> [str(variant) for variant in variants_of(("dense", "pooled"), retinotopy=("predicted",))]
    ['dense', 'pooled, retinotopy']
    """
    for name, values in (("readouts", kinds), ("sharing", sharing), ("retinotopy", retinotopy)):
        if not values:
            raise ValueError(f"{name}: want at least one, got none")
    for one in retinotopy:
        _choices.one_of("retinotopy", one, RETINOTOPIES)
    made = [
        Variant(kind, shared, "none" if kind not in HAS_POSITIONS else one)
        for kind in kinds
        for shared in sharing
        for one in retinotopy
    ]
    return list(dict.fromkeys(made))


@dataclass(frozen=True)
class ModelSettings:
    """Sizes of the model, and how it is trained; the defaults are those of Lurz et al. (ICLR 2021), where published.

    Attributes:
        channels, layers, input_kern, hidden_kern, depth_separable, gamma_input: of the core, a
            :class:`v1fast.models.Stacked2dCore` without padding of the images.
        init_mu_range, init_sigma: of Gaussian readouts.
        penalties: kind of readout -> factor of its L1 penalty. Published for "gaussian" alone.
        gamma_residual: factor of the penalty on offsets from the retinotopic map.
        pool_steps, pool_kern: of pooled readouts.
        hidden_features: of the network from cortex to positions; one hidden layer, tanh at the end.
        learning_rate, batch_size, max_epochs, patience, lr_decay_steps: see :func:`v1fast.training.fit`.
        dense_learning_rate: of the weights of dense readouts: a step of Adam moves thousands of a neuron's at once.
        least_steps: of an epoch. Few images are gone through several times in one, so that patience is as long for
            all numbers of images.
        vgg_layers: of VGG-16, up to which it is used; 12 ends with the ReLU after the convolution 3_1.
        memory: bytes of cached features that are kept in memory.
        feature_dtype: "float32" or "bfloat16", of cached features.
    """

    channels: int = 64
    layers: int = 4
    input_kern: int = 15
    hidden_kern: int = 13
    depth_separable: bool = True
    gamma_input: float = 1.0
    init_mu_range: float = 0.55
    init_sigma: float = 0.4
    penalties: Mapping[str, float] = field(
        default_factory=lambda: {"gaussian": 2.439, "factorized": 0.1, "pooled": 2.439, "dense": 0.1}
    )
    gamma_residual: float = 1.0
    pool_steps: int = 2
    pool_kern: int = 2
    hidden_features: int = 30
    learning_rate: float = 0.005
    dense_learning_rate: float = 0.0002
    batch_size: int = 64
    max_epochs: int = 200
    patience: int = 5
    lr_decay_steps: int = 3
    least_steps: int = 20
    vgg_layers: int = 12
    memory: int = 2 * 2**30
    feature_dtype: str = "float32"

    def __post_init__(self) -> None:
        _choices.one_of("feature_dtype", self.feature_dtype, ("float32", "bfloat16"))


def make_core(sessions: Sessions, settings: ModelSettings) -> Stacked2dCore:
    """A core with random weights, for the images of these sessions."""
    return Stacked2dCore(
        image_shape(sessions)[0],
        settings.channels,
        settings.input_kern,
        settings.hidden_kern,
        layers=settings.layers,
        gamma_input=settings.gamma_input,
        depth_separable=settings.depth_separable if settings.layers > 1 else False,
        pad_input=False,
        stack=-1,
    )


def make_vgg(sessions: Sessions, settings: ModelSettings, weights: Path | None) -> TransferLearningCore:
    """VGG-16 up to ``vgg_layers``, with weights of a file, or random ones.

    Args:
        sessions: whose images it takes.
        settings: of the experiment.
        weights: a state_dict of torchvision's ``vgg16`` or of its ``features``, by ``torch.save`` or safetensors.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    network = vgg16_features()
    if weights is not None:
        state = _read_state(weights)
        prefix = "features." if any(key.startswith("features.") for key in state) else ""
        wanted = {key: state.get(prefix + key) for key in network.state_dict()}
        missing = [key for key, value in wanted.items() if value is None]
        if missing:
            raise ValueError(f"{weights}: want the weights of VGG-16, got none of {prefix}{missing[0]}")
        with _files.reading(weights):
            network.load_state_dict(wanted)
    return TransferLearningCore(image_shape(sessions)[0], network, layers=settings.vgg_layers, pretrained=False)


def _read_state(path: Path) -> Mapping[str, Any]:
    with _files.reading(path):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return cast("Mapping[str, Any]", load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping):
            raise ValueError(f"want a state_dict, got {type(state).__name__}")
        return state


@torch.no_grad()
def calibrate(core: nn.Module, sessions: Sessions, images: int = 512) -> nn.Module:
    """Take the statistics of a core's batch norms from training images: a core that nobody trained has none.

    Args:
        core: changed in place, and returned in evaluation mode.
        sessions: whose training images are shown to it, without responses.
        images: of each session, at most.
    """
    norms = [module for module in core.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    core.train()
    encoder = FiringRateEncoder(core, nn.Identity())
    for session in sessions.values():
        shown = torch.arange(min(images, session.images))
        for chosen in shown.split(64):
            encoder.features(session.train["images"][chosen])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return core.eval()


def image_shape(sessions: Sessions) -> tuple[int, int, int]:
    """(C, H, W) of the images, or of the features in their place.

    Raises:
        ValueError: sessions differ in it.
    """
    shapes = {name: tuple(session.train["images"].shape[1:]) for name, session in sessions.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"images: want the same (C, H, W) in all sessions, got {shapes}")
    return cast("tuple[int, int, int]", next(iter(shapes.values())))


@torch.no_grad()
def map_shape(core: nn.Module, images: tuple[int, int, int]) -> tuple[int, int, int]:
    """(C, H, W) of the core's maps of images of shape (c, h, w).

    Raises:
        ValueError: the images are too small for it.
    """
    training = core.training
    try:
        maps = core.eval()(torch.zeros(1, *images))
    except RuntimeError as error:  # of a convolution or a pooling of which nothing would be left
        raise ValueError(
            f"images: want larger ones for the core, got {images[1]} x {images[2]} pixels: {error}"
        ) from error
    finally:
        core.train(training)
    return cast("tuple[int, int, int]", tuple(maps.shape[1:]))


def make_readouts(
    variant: Variant, sessions: Sessions, maps: tuple[int, int, int], settings: ModelSettings
) -> MultiReadoutBase:
    """Readouts of all sessions; their biases start where ``elu + 1`` gives the mean training response."""
    variant.check(sessions)
    means = {name: _before_elu(session.train["responses"].mean(0)) for name, session in sessions.items()}
    classes: dict[str, type[nn.Module]] = {
        "gaussian": FullGaussian2d,
        "factorized": FullFactorized2d,
        "pooled": FullPointPooled2d,
        "dense": DenseReadout,
    }
    penalty = settings.penalties[variant.kind]
    choices: dict[str, dict[str, Any]] = {
        "gaussian": {
            "init_mu_range": settings.init_mu_range,
            "init_sigma": settings.init_sigma,
            "feature_reg_weight": penalty,
        },
        "factorized": {"spatial_and_feature_reg_weight": penalty, "reg_mode": "per_neuron", "init_noise": 1e-2},
        "pooled": {
            "pool_steps": settings.pool_steps,
            "pool_kern": settings.pool_kern,
            "init_range": settings.init_mu_range,
            "feature_reg_weight": penalty,
        },
        "dense": {"feature_reg_weight": penalty},
    }
    options = choices[variant.kind]
    container: type[MultiReadoutBase] = MultiReadoutBase
    if variant.sharing or variant.retinotopy != "none":
        container = MultiReadoutSharedParametersBase
        options |= _shared_options(variant, sessions, settings)
    return container(
        dict.fromkeys(sessions, maps),
        {name: session.neurons for name, session in sessions.items()},
        classes[variant.kind],
        means,
        bias=True,
        **options,
    )


def _shared_options(variant: Variant, sessions: Sessions, settings: ModelSettings) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if variant.sharing:
        options["share_features"] = True
        options["shared_match_ids"] = {name: session.unit_ids for name, session in sessions.items()}
    if variant.retinotopy != "none":
        options["grid_mean_predictor"] = {
            "hidden_layers": 1,
            "hidden_features": settings.hidden_features,
            "final_tanh": True,
            "init_range": settings.init_mu_range,  # else it may begin anywhere, and stay there: docs/evidence.md
        }
        options["grid_mean_predictor_type"] = "cortex"
        options["source_grids"] = {name: session.cortex for name, session in sessions.items()}
    if variant.retinotopy == "residual":
        options["residual_reg_weight"] = settings.gamma_residual
    return options


def _before_elu(mean: Tensor) -> Tensor:
    """x with elu(x) + 1 = mean."""
    return torch.where(mean < 1, mean.clamp(min=1e-3).log(), mean - 1)


def parameters_per_neuron(readouts: MultiReadoutBase) -> float:
    """Parameters for each neuron of each session; biases and the network from cortex to positions are not counted.

    What sessions share counts once.
    """
    every: Any = readouts.values()
    neurons = sum(readout.outdims for readout in every)
    counted = {
        id(parameter): parameter.numel()
        for name, parameter in readouts.named_parameters()
        if not name.endswith("bias") and "mu_transform" not in name
    }
    return sum(counted.values()) / neurons


class _Passes:
    """Batches of at least so many steps: an epoch goes through a small set of trials several times."""

    def __init__(self, batches: TensorBatches, least: int) -> None:
        self.batches, self.dataset = batches, batches.dataset
        self.fields = batches.fields
        self.passes = max(1, math.ceil(least / len(batches)))

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return self.passes * len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.passes):
            yield from self.batches


@dataclass(frozen=True)
class Fitted:
    """A model that was fitted.

    Attributes:
        encoder: in evaluation mode; of a frozen core without it, see :func:`v1fast.training.without_core`.
        history: see :func:`v1fast.training.fit`.
        seconds: of fitting.
    """

    encoder: FiringRateEncoder
    history: History
    seconds: float


def fit_model(
    core: nn.Module,
    sessions: Sessions,
    variant: Variant,
    settings: ModelSettings,
    seed: int,
    *,
    frozen: bool = False,
    out: Path | None = None,
) -> Fitted:
    """Fit readouts, and the core unless it is frozen; the caller's stream of random numbers stays as it was.

    Args:
        core: changed in place unless ``frozen``.
        sessions: of ``frozen`` cores with features in place of images, see :func:`with_features`.
        variant: of the readouts.
        settings: of model and training.
        seed: of all that is random.
        frozen: whether only readouts, shifter and modulator are trained.
        out: folder from which a fit that was stopped goes on.

    Raises:
        KeyboardInterrupt: Ctrl-C: a fit that was not finished is no result.
    """
    start = time.perf_counter()
    shape = image_shape(sessions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        maps = shape if frozen else map_shape(core, shape)
        encoder = FiringRateEncoder(
            core,
            make_readouts(variant, sessions, maps, settings),
            shifter=MLPShifter(sessions, hidden_channels_shifter=5, shift_layers=3) if variant.shifter else None,
            modulator=_modulator(sessions) if variant.modulator else None,
        )
        if frozen:
            encoder = without_core(encoder.freeze_core())
        history = fit(
            encoder,
            {name: _batches(session, settings, seed) for name, session in sessions.items()},
            {name: cast("Any", session.validation) for name, session in sessions.items()},
            out=out,
            max_epochs=settings.max_epochs,
            batch_size=256 if frozen else 64,
            seed=seed,
            accelerator="cpu",
            show=False,
            learning_rate=settings.learning_rate,
            learning_rates=_learning_rates(variant, sessions, settings),
            schedule=EarlyStopping(settings.patience, settings.lr_decay_steps),
        )
    if history.interrupted:
        raise KeyboardInterrupt
    return Fitted(encoder, history, time.perf_counter() - start)


def _learning_rates(variant: Variant, sessions: Sessions, settings: ModelSettings) -> dict[str, float] | None:
    if variant.kind != "dense":
        return None
    owners = list(sessions)[: 1 if variant.sharing else None]
    return {f"readout.{name}.weight": settings.dense_learning_rate for name in owners}


def _batches(session: Session, settings: ModelSettings, seed: int) -> Any:
    batch = min(settings.batch_size, session.images)
    return _Passes(TensorBatches(session.train, batch, True, seed), settings.least_steps)


def _modulator(sessions: Sessions) -> MLPModulator:
    variables = {name: session.train["behavior"].shape[1] for name, session in sessions.items()}
    return MLPModulator({name: session.neurons for name, session in sessions.items()}, variables)


def with_features(core: nn.Module, session: Session, settings: ModelSettings, folder: Path | None = None) -> Session:
    """The session with a frozen core's features in place of its images, each computed once.

    Args:
        core: frozen.
        session: with images.
        settings: how many bytes of features may lie in memory, and of which type they are.
        folder: for the mapped file of what is more than that; None: the system's folder for temporary files.
    """
    encoder = FiringRateEncoder(core, nn.Identity())
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.feature_dtype]

    def cached(fields: Mapping[str, Any]) -> dict[str, Any]:
        return cache_features(encoder, fields, memory=settings.memory, folder=folder, dtype=dtype)

    return replace(
        session, train=cached(session.train), validation=cached(session.validation), test=cached(session.test)
    )


@torch.no_grad()
def judge(encoder: FiringRateEncoder, sessions: Sessions) -> dict[str, float]:
    """How well test responses are predicted; of several sessions the mean over neurons.

    Returns:
        "fraction_oracle", "correlation" (with single responses), "correlation_to_average", "undefined" (neurons for
        which the fraction oracle's correlations are not defined).
    """
    encoder.eval()
    sums: dict[str, float] = {}
    total = 0
    for name, session in sessions.items():
        rates = predict(encoder, session.test, name)
        responses, ids = session.test["responses"], session.test_images
        oracle = fraction_oracle(responses, rates, ids)
        values = {
            "fraction_oracle": oracle.value,
            "correlation": single_trial_correlation(responses, rates).mean,
            "correlation_to_average": correlation_to_average(responses, rates, ids).mean,
        }
        for key, value in values.items():
            sums[key] = sums.get(key, 0.0) + value * session.neurons
        sums["undefined"] = sums.get("undefined", 0.0) + oracle.undefined
        total += session.neurons
    return {key: value if key == "undefined" else value / total for key, value in sums.items()}


@torch.no_grad()
def predict(encoder: FiringRateEncoder, fields: Mapping[str, Any], data_key: str) -> Tensor:
    """Expected responses [T, N] to all trials of a tier."""
    others = [name for name in fields if name not in ("images", "responses")]
    rates = []
    for chosen in torch.arange(len(fields["images"])).split(256):
        given = {name: fields[name][chosen] for name in others}
        rates.append(encoder(fields["images"][chosen], data_key=data_key, **given))
    return torch.cat(rates)
