"""The public functions of ``v1fast.functional`` and some of ``v1fast.rsa``: a result, or one line of a ValueError."""

import dataclasses

import numpy as np
import torch
from hypothesis import strategies as st

from v1fast import functional, rsa

from . import raw
from .operands import Make, another, made, tensors


@dataclasses.dataclass(frozen=True)
class PublicCall:
    function: str
    operands: tuple
    options: tuple[tuple[str, object], ...]  # by name


def _split(names, drawn):
    return (), tuple(zip(names, drawn, strict=True))


GAUSSIAN = (
    *("features", "mu", "sigma", "weight", "bias", "shift", "noise", "seed", "neuron_index"),
    *("image_offset", "share_noise", "align_corners"),
)
POOLED = ("features", "grid", "weight", "bias", "shift", "pooled", "align_corners", "pool_kernel", "pool_steps")
RDM = ("x", "y", "method", "condensed", "accuracy")


def _without(options, *names):
    return tuple((k, v) for k, v in options if k not in names)


@st.composite
def _gaussian_readout(draw):
    return (), tuple(zip(GAUSSIAN, draw(raw.LEGAL["gaussian_readout"]), strict=True))


@st.composite
def _pooled_readout(draw):
    options = tuple(zip(POOLED, draw(raw.LEGAL["pooled_readout"]), strict=True))
    return (), _without(options, "pooled")


@st.composite
def _levels(draw):
    features, grid, shift, align_corners = draw(raw.LEGAL["point_gather"])
    levels = [features]
    for _ in range(draw(st.integers(0, 2))):
        sizes = (features.shape[0], *(draw(raw.MAP_SIZES) for _ in range(3)))
        levels.append(draw(tensors(sizes)))
    return levels, grid, shift, align_corners


@st.composite
def _gather_levels(draw):
    levels, grid, shift, align_corners = draw(_levels())
    return (levels, grid, shift), (("align_corners", align_corners),)


@st.composite
def _levels_readout(draw):
    levels, grid, shift, align_corners = draw(_levels())
    weight = draw(tensors((grid.shape[-2], sum(level.shape[1] for level in levels))))
    bias = draw(st.one_of(st.none(), tensors((grid.shape[-2],))))
    return (levels, grid, weight, bias, shift), (("align_corners", align_corners),)


@st.composite
def _pool_levels(draw):
    features, kernel, steps, _ = draw(raw.LEGAL["pooled_levels"])
    stride = draw(st.one_of(st.none(), st.integers(1, 3)))
    return (features,), (("kernel", kernel), ("steps", steps), ("stride", stride))


@st.composite
def _philox_normal(draw):
    seed, images, neurons, index, offset = draw(raw.LEGAL["philox_normal"])
    return (seed, images, neurons), (("neuron_index", index), ("image_offset", offset))


METHODS = ("correlation", "cosine", "euclidean", "mahalanobis", "crossnobis", "poisson")


@st.composite
def _rdm(draw):
    x, _, _, condensed, accuracy = draw(raw.LEGAL["rdm"])
    method, neurons = draw(st.sampled_from(METHODS)), x.shape[-1]
    noise = st.one_of(st.none(), tensors((neurons, neurons)), tensors((neurons,)))
    options = {"method": method, "condensed": condensed, "accuracy": accuracy}
    if method in ("mahalanobis", "crossnobis"):
        options["noise"] = draw(noise)
    if method == "crossnobis":
        options["folds"] = draw(tensors((x.shape[1],), ("indices",), dtype="int64"))
    return (x,), tuple(options.items())


@st.composite
def _rdm_out(draw):
    x, _, _, condensed, accuracy, out = draw(raw.LEGAL["rdm_out"])
    method = draw(st.sampled_from(METHODS[:3]))
    return (x, out), (("method", method), ("condensed", condensed), ("accuracy", accuracy))


@st.composite
def _cross_rdm(draw):
    x, y, _, accuracy = draw(raw.LEGAL["cross_rdm"])
    return (x, y), (("method", draw(st.sampled_from(METHODS[:3]))), ("accuracy", accuracy))


MEASURES = ("pearson", "cosine", "spearman", "rho-a", "kendall", "tau-a", "whitened-pearson", "whitened-cosine")


@st.composite
def _two_vectors(draw, more=()):
    pairs = draw(st.sampled_from([0, 1, 3, 6, 6, 15]))
    shape = draw(st.sampled_from([(pairs,), (pairs,), (2, pairs)]))
    dtype = draw(st.sampled_from(raw.WIDE))
    vectors = tuple(draw(tensors(shape, (*raw.FILLS, "positions"), dtype=dtype)) for _ in range(2))
    return vectors, (("method", draw(st.sampled_from(MEASURES))), *more)


@st.composite
def _one_stack(draw):
    vectors, options = draw(_two_vectors())
    return vectors[:1], options


@dataclasses.dataclass(frozen=True)
class Function:
    function: object
    legal: st.SearchStrategy
    arrays: bool = False  # of numpy


FUNCTIONS = {
    "gaussian_readout": Function(functional.gaussian_readout, _gaussian_readout()),
    "pooled_readout": Function(functional.pooled_readout, _pooled_readout()),
    "levels_readout": Function(functional.levels_readout, _levels_readout()),
    "gather_levels": Function(functional.gather_levels, _gather_levels()),
    "pool_levels": Function(functional.pool_levels, _pool_levels()),
    "philox_normal": Function(functional.philox_normal, _philox_normal()),
    "rdm": Function(functional.rdm, _rdm()),
    "rdm_out": Function(functional.rdm_out, _rdm_out()),
    "cross_rdm": Function(functional.cross_rdm, _cross_rdm()),
    "rsa.compare": Function(rsa.compare, _two_vectors(), True),
    "rsa.permutation_test": Function(rsa.permutation_test, _two_vectors((("permutations", 19),)), True),
    "rsa.bootstrap": Function(rsa.bootstrap, _two_vectors((("samples", 19),)), True),
    "rsa.noise_ceiling": Function(rsa.noise_ceiling, _one_stack(), True),
}
"""Name -> what is called, and how. Those of ``functional`` are all of its ``__all__``."""

KINDS = {bool: "bool", int: "int", str: "str", Make: "Tensor", type(None): "Optional[Tensor]"}


@st.composite
def calls(draw, name, huge):
    operands, options = draw(FUNCTIONS[name].legal)
    names = [k for k, _ in options]
    slots = [*operands, *(value for _, value in options)]
    for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
        i = draw(st.integers(0, len(slots) - 1))
        if slots[i] is None and names[i - len(operands) :] == ["stride"]:
            continue  # None, but no tensor
        if isinstance(slots[i], list):
            level = draw(st.integers(0, len(slots[i]) - 1))
            slots[i][level] = draw(another(slots[i][level], "Tensor", huge))
        else:
            slots[i] = draw(another(slots[i], KINDS[type(slots[i])], huge))
    return PublicCall(name, tuple(slots[: len(operands)]), tuple(zip(names, slots[len(operands) :], strict=True)))


def _made(value, arrays):
    if isinstance(value, list):
        return [_made(v, arrays) for v in value]
    value = made(value)
    return value.float().numpy() if arrays and isinstance(value, torch.Tensor) else value


def _can_be_array(value):
    return not isinstance(value, Make) or (value.device == "cpu" and value.dtype in ("float32", "float64", "int64"))


def check(call):
    """A result, or a ValueError of one line; torch and NumPy may also raise for lack of memory."""
    called = FUNCTIONS[call.function]
    values = [*call.operands, *(v for _, v in call.options)]
    if called.arrays and not all(map(_can_be_array, values)):
        return
    operands = [_made(v, called.arrays) for v in call.operands]
    options = {k: _made(v, called.arrays) for k, v in call.options}
    with np.errstate(all="ignore"):
        try:
            called.function(*operands, **options)
            return
        except MemoryError:
            return
        except (ValueError, RuntimeError) as error:
            found = error
    if not raw.Refused(found).by_size:
        assert isinstance(found, ValueError), f"want a ValueError, got {found!r}"
        assert len(str(found).splitlines()) == 1, f"want one line, got {found!r}"
