"""A tiny call of any form, and how far a kernel is from what runs in its place.

The call has the dtypes, options and channels of the form, so it compiles what calls of this form run anyway. Operands
are drawn on the CPU, from a generator of their own. What is right is computed there too, in float64: neither the state
of the GPU nor its settings for products of matrices can spoil it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from v1fast import _eager as eager
from v1fast.fallback import cross_rdm as cross_dissimilarities
from v1fast.fallback import philox_normal as philox
from v1fast.fallback import pooled_readout as pooling
from v1fast.fallback import rdm as dissimilarities
from v1fast.reference.rdm import output_dtype

from ._features import NEURONS_PER_PIXEL
from ._forms import FORMS, MANY_ROWS, describe
from .rdm_rows import BLOCK

__all__ = ["FORMS", "Difference", "Trial", "all_forms", "describe", "differences", "trials"]

Arguments = list[Any]

ROUNDINGS = 64
"""A right kernel errs by at most so many units of the arithmetic's last place, of the largest value of its result.

One unit of the result's own last place, and twice the error of the fallback, are allowed in addition.
The emulated kernels err by at most 5, in all forms of ``all_forms``. The rest is for what a GPU does less exactly than
the emulator: tensor cores truncate, and functions are approximate.
"""

BFLOAT16_PRODUCTS = 2.0**-6
"""The same for products of rows that are rounded to bfloat16; the emulated kernels err by at most 2^-9."""

IMAGES = 3
FIRST_IMAGE = 3  # the second of its Philox block
SEED = 2**63 - 12345  # both words of the key matter
MARGIN = 0.1  # pixels between a point and the borders of its cell, where gradients jump
STEP = 0.5  # pixels: standard deviation of the noise


class _Draw:
    """Numbers of any dtype, on the CPU, the same in every run."""

    def __init__(self) -> None:
        self.generator = torch.Generator(device="cpu").manual_seed(1)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu")

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64, device="cpu")

    def like(self, tensor: Tensor | None, *shape: int) -> Tensor | None:
        """Normals in the dtype of ``tensor``, None for None."""
        return None if tensor is None else self.normal(*shape).to(tensor.dtype)


def _as(tensor: Tensor | None, values: Tensor) -> Tensor | None:
    return None if tensor is None else values.to(tensor.dtype)


class _Maps(NamedTuple):
    """Feature maps and the points that are read in them."""

    height: int
    width: int
    neurons: int
    poolings: int  # by 2
    align_corners: bool

    def pixels(self) -> Tensor:
        """Size of a pixel in units of positions, x first."""
        size = torch.tensor([self.width, self.height], dtype=torch.float64, device="cpu")
        return 2 / ((size - 1) if self.align_corners else size)

    def are_apart(self, points: Tensor) -> Tensor:
        """Which points [..., 2] are twice the margin away from the borders of cells, in every map, and from -1 and 1.

        Some readouts clamp them there. A shift moves them by up to the margin.
        """
        found = ((points.abs() - 1).abs() > 2 * MARGIN * self.pixels()).all(-1)
        for step in range(self.poolings + 1):
            height, width = self.height // 2**step, self.width // 2**step
            away = eager.distance_to_cell_border(points, height, width, self.align_corners)
            found &= (away > 2 * MARGIN).all(-1)
        return found

    def points(self, draw: _Draw, like: Tensor, *shape: int) -> Tensor:
        """Points [*shape, 2] in the dtype of ``like``, some of them outside."""
        found = (draw.uniform(2**14, 2) * 3 - 1.5).to(like.dtype)
        found = found[self.are_apart(found.double())]
        count = math.prod(shape)
        return found.repeat(-(-count // len(found)), 1)[:count].view(*shape, 2)

    def means(self, draw: _Draw, like: Tensor, moved: Tensor) -> Tensor:
        """Points [N, 2] that the steps ``moved`` [images, N, 2] leave where the derivative does not jump."""
        count = moved.shape[1]
        tried = (draw.uniform(2**12, count, 2) * 3 - 1.5).to(like.dtype)
        first = self.are_apart(tried.double()[:, None] + moved).all(1).int().argmax(0)
        return tried[first, torch.arange(count, device="cpu")]


def _maps(poolings: int, align_corners: bool, backward: bool) -> list[_Maps]:
    """Return small maps. A backward pass scatters the gradient of the first; it gathers that of the second.

    Of more than one pooling, the coarsest level is gathered anyway.
    """
    side = 2 * 2**poolings
    found = [_Maps(side + 1, side + 2, 37, poolings, align_corners)]
    if backward and poolings < 2:
        many = NEURONS_PER_PIXEL * side * (side + 1) + 1
        found.append(_Maps(side, side + 1, many, poolings, align_corners))
    return found


def _features(draw: _Draw, like: Tensor, maps: _Maps) -> Tensor:
    values = draw.normal(IMAGES, like.shape[1], maps.height, maps.width)
    return values.to(like.dtype).contiguous(memory_format=torch.channels_last)


def _shift(draw: _Draw, like: Tensor | None, maps: _Maps) -> Tensor | None:
    """Steps of a tenth of the margin to the whole of it, so that clamped points leave the border too."""
    size = MARGIN * (0.1 + 0.9 * draw.uniform(IMAGES, 2))
    return _as(like, torch.where(draw.uniform(IMAGES, 2) < 0.5, -size, size) * maps.pixels())


def _gaussian(call: Sequence[Any], backward: bool) -> Iterator[tuple[Arguments, tuple[int, ...]]]:
    features, mu, sigma, weight, bias, shift, noise, seed, index, _, share_noise, align_corners = call
    for maps in _maps(0, align_corners, backward):
        draw, count = _Draw(), maps.neurons
        kinds = () if sigma is None else sigma.shape[1:]
        spread = _as(sigma, STEP * draw.normal(count, *kinds) * maps.pixels().min())
        neurons = None if index is None else torch.arange(count, device="cpu").flip(0)
        drawn = None if seed is None else torch.tensor([SEED], device="cpu")
        images, first = (1, 0) if share_noise else (IMAGES, FIRST_IMAGE)
        given = draw.like(noise, images, count, 2)
        normals = given if drawn is None else philox.philox_normal(drawn, images, count, neurons, first)
        moved = torch.zeros((1, count, 2), dtype=torch.float64, device="cpu")
        if spread is not None and normals is not None:
            moved = eager.unclamped_positions(moved[0], spread.double(), normals.double())
        operands = (_features(draw, features, maps), maps.means(draw, mu, moved), spread)
        rest = (draw.like(weight, count, features.shape[1]), draw.like(bias, count), _shift(draw, shift, maps))
        yield [*operands, *rest, given, drawn, neurons, FIRST_IMAGE, share_noise, align_corners], (IMAGES, count)


def _pooled(call: Sequence[Any], backward: bool) -> Iterator[tuple[Arguments, tuple[int, ...]]]:
    features, grid, weight, bias, shift, pooled, align_corners, _, steps = call
    for maps in _maps(steps, align_corners, backward):
        draw, count = _Draw(), maps.neurons
        data = _features(draw, features, maps)
        images = (IMAGES,) if grid.dim() == 3 else ()
        points = maps.points(draw, grid, *images, count)
        weights = draw.like(weight, count, (steps + 1) * features.shape[1])
        wide = pooled is not None and pooled.dtype == torch.float64
        stored = None if pooled is None else pooling.pooled_levels(data, 2, steps, wide)
        rest = (draw.like(bias, count), _shift(draw, shift, maps), stored, align_corners, 2, steps)
        yield [data, points, weights, *rest], (IMAGES, count)


def _gather(call: Sequence[Any], backward: bool) -> Iterator[tuple[Arguments, tuple[int, ...]]]:
    features, grid, shift, align_corners = call
    for maps in _maps(0, align_corners, backward):
        draw, count = _Draw(), maps.neurons
        images = (IMAGES,) if grid.dim() == 3 else ()
        points = maps.points(draw, grid, *images, count)
        operands = [_features(draw, features, maps), points, _shift(draw, shift, maps), align_corners]
        yield operands, (IMAGES, count, features.shape[1])


def _readout(draw_call: Callable[..., Any], backward: bool) -> Callable[[Sequence[Any]], Iterator[Arguments]]:
    def calls(call: Sequence[Any]) -> Iterator[Arguments]:
        grad, forward, mask = (call[0], call[1:-1], call[-1]) if backward else (None, call, [])
        for arguments, shape in draw_call(forward, backward and mask[0]):
            yield [_Draw().like(grad, *shape), *arguments, mask] if backward else arguments

    return calls


def _philox_normal(call: Sequence[Any]) -> Iterator[Arguments]:
    index = None if call[3] is None else torch.arange(70, device="cpu").flip(0)
    yield [torch.tensor([SEED], device="cpu"), 5, 70, index, FIRST_IMAGE]


def _rows(draw: _Draw, like: Tensor, rows: int, columns: int, whole: bool) -> Tensor:
    """Rows [2, rows, columns] of normals, or of three values.

    Of the normals, the second row is almost the first, the third is zero, the fourth larger and not centred, and the
    fifth is not finite: two of them have no direction, and one of them no distance.
    """
    if whole:
        return draw.uniform(2, rows, columns).mul(3).floor().mul(1.25).sub(0.5).to(like.dtype)
    x = draw.normal(2, rows, columns)
    x[:, 1] = x[:, 0] + 1e-3 * x[:, 1]
    x[:, 2] = 0
    x[:, 3] = 3 * x[:, 3] + 5
    x[:, 4, -1] = torch.inf
    return x.to(like.dtype)


SHORT, LONG = 40, BLOCK + 300
"""Columns that one program sums at once, and that several share, or read in turn."""


def _sizes(many: bool) -> Iterator[tuple[int, int, bool]]:
    rows = MANY_ROWS + 8 if many else 6
    yield from ((rows, SHORT, False), (rows, LONG, False), (rows, SHORT, True))


def _rdm(call: Sequence[Any]) -> Iterator[Arguments]:
    x, y, *options = call[:5]
    for size in _sizes(x.shape[1] > MANY_ROWS):
        draw = _Draw()
        one = _rows(draw, x, *size)
        yield [one, None if y is None else _rows(draw, y, *size), *options]


def _rdm_out(call: Sequence[Any]) -> Iterator[Arguments]:
    for arguments in _rdm(call):
        yield [*arguments, torch.full_like(dissimilarities.rdm(*arguments), torch.nan)]


def _cross_rdm(call: Sequence[Any]) -> Iterator[Arguments]:
    x, y, *options = call
    for rows, columns, whole in _sizes(x.shape[1] > MANY_ROWS or y.shape[1] > MANY_ROWS):
        draw = _Draw()
        yield [_rows(draw, x, rows, columns, whole), _rows(draw, y, rows + 3, columns, whole), *options]


def _rdm_backward(call: Sequence[Any]) -> Iterator[Arguments]:
    *_, x, y, method, condensed, accuracy, mask = call
    draw = _Draw()
    one, other = (None if t is None else _rows(draw, t, 20, LONG, False) for t in (x, y))
    assert one is not None
    matrix = dissimilarities.rdm(one, other, method, condensed, accuracy)
    grad = draw.normal(*matrix.shape).to(matrix.dtype)
    yield [grad, None if method == "euclidean" else matrix, one, other, method, condensed, accuracy, mask]


def _cross_rdm_backward(call: Sequence[Any]) -> Iterator[Arguments]:
    *_, x, y, method, accuracy, mask = call
    draw = _Draw()
    one, other = _rows(draw, x, 20, LONG, False), _rows(draw, y, 23, LONG, False)
    matrix = cross_dissimilarities.cross_rdm(one, other, method, accuracy)
    grad = draw.normal(*matrix.shape).to(output_dtype(one, other))
    yield [grad, None if method == "euclidean" else matrix, one, other, method, accuracy, mask]


TINY: dict[str, Callable[[Sequence[Any]], Iterator[Arguments]]] = {
    "gaussian_readout": _readout(_gaussian, backward=False),
    "gaussian_readout_backward": _readout(_gaussian, backward=True),
    "philox_normal": _philox_normal,
    "point_gather": _readout(_gather, backward=False),
    "point_gather_backward": _readout(_gather, backward=True),
    "pooled_readout": _readout(_pooled, backward=False),
    "pooled_readout_backward": _readout(_pooled, backward=True),
    "rdm": _rdm,
    "rdm_out": _rdm_out,
    "cross_rdm": _cross_rdm,
    "rdm_backward": _rdm_backward,
    "cross_rdm_backward": _cross_rdm_backward,
}
"""Op name -> function of a call's arguments that yields the arguments of tiny calls of the same form, on the CPU."""


# Every form ------------------------------------------------------------------------------------------------------

f64, f32, bf16, f16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu")


class _Neurons(NamedTuple):
    """The operands of one form of a readout; their values do not matter."""

    features: torch.dtype = f32
    weight: torch.dtype = f32
    others: torch.dtype = f32
    channels: int = 64
    sigma: tuple[int, ...] | None = (2, 2)  # of each neuron
    noise: str = "drawn"  # "given", "none"
    bias: bool = True
    shift: bool = False
    indexed: bool = False
    share_noise: bool = False
    align_corners: bool = True
    per_image: bool = False
    steps: int = 0
    pooled: bool = False
    core: bool = True  # whether the gradient of the features is wanted

    def of(self, there: bool, *shape: int) -> Tensor | None:
        return _empty(self.others, *shape) if there else None

    def map(self) -> Tensor:
        side = 2**self.steps
        return _empty(self.features, 1, self.channels, side, side)

    def points(self) -> Tensor:
        return _empty(self.others, 1, 1, 2) if self.per_image else _empty(self.others, 1, 2)

    def gaussian(self) -> Arguments:
        integer = torch.zeros(1, dtype=torch.int64, device="cpu")
        sigma = None if self.sigma is None else _empty(self.others, 1, *self.sigma)
        operands = (self.map(), _empty(self.others, 1, 2), sigma, _empty(self.weight, 1, self.channels))
        noise = (self.of(self.noise == "given", 1, 1, 2), integer if self.noise == "drawn" else None)
        index = integer if self.indexed else None
        rest = (0, self.share_noise, self.align_corners)
        return [*operands, self.of(self.bias, 1), self.of(self.shift, 1, 2), *noise, index, *rest]

    def pooling(self) -> Arguments:
        data, weight = self.map(), _empty(self.weight, 1, (self.steps + 1) * self.channels)
        wide = self.others == f64
        pooled = pooling.pooled_levels(data, 2, self.steps, wide) if self.pooled else None
        rest = (self.of(self.bias, 1), self.of(self.shift, 1, 2), pooled, self.align_corners, 2, self.steps)
        return [data, self.points(), weight, *rest]

    def gather(self) -> Arguments:
        return [self.map(), self.points(), self.of(self.shift, 1, 2), self.align_corners]


GAUSSIANS = (
    _Neurons(),
    _Neurons(bf16, bf16),
    _Neurons(f16, f16),
    _Neurons(bf16, f32),
    _Neurons(f64, f64, f64),
    _Neurons(channels=1),
    _Neurons(channels=20),
    _Neurons(channels=256),
    _Neurons(core=False),
    _Neurons(sigma=None, noise="none", shift=True),
    _Neurons(sigma=(2,), noise="given", shift=True),
    _Neurons(sigma=(1,), share_noise=True, indexed=True, bias=False, align_corners=False),
)
POOLINGS = (
    _Neurons(),
    _Neurons(steps=1, shift=True),
    _Neurons(steps=2),
    _Neurons(bf16, bf16, steps=2),
    _Neurons(steps=2, pooled=True, core=False),
    _Neurons(steps=1, per_image=True, bias=False, align_corners=False),
    _Neurons(f64, f64, f64, steps=1),
)
GATHERS = (
    _Neurons(),
    _Neurons(bf16),
    _Neurons(f64, others=f64),
    _Neurons(shift=True, per_image=True, align_corners=False),
)


def _readouts(name: str, outputs: int, call: Arguments, core: bool) -> Iterator[tuple[str, Arguments]]:
    yield name, call
    yield f"{name}_backward", [_empty(call[0].dtype, 1), *call, [core, *(True,) * (outputs - 1)]]


def _matrices() -> Iterator[tuple[str, Arguments]]:
    few, many = (3, MANY_ROWS + 1)
    methods = ("correlation", "cosine", "euclidean")
    plain = [(f32, few, method, False, accuracy) for method in methods for accuracy in ("float32", "high", "bfloat16")]
    plain += [(f32, few, method, True, "float32") for method in methods]
    plain += [(f32, many, method, False, "float32") for method in methods]
    plain += [(f64, few, method, False, "float32") for method in methods]
    plain += [(bf16, few, "correlation", False, "float32")]
    for dtype, rows, *options in plain:
        x = _empty(dtype, 1, rows, 2)
        yield "rdm", [x, None, *options]
        if options[-1] == "float32":
            method, condensed, accuracy = options
            if not condensed:
                yield "cross_rdm", [x, x, method, accuracy]
            if rows == few:
                yield "rdm_backward", [x, x, x, None, *options, [True, False]]
            if rows == few and not condensed:
                yield "cross_rdm_backward", [x, x, x, x, method, accuracy, [True, True]]
    x = _empty(f32, 1, few, 2)
    paired = ["euclidean", False, "float32"]
    yield from (("rdm", [x, x, *paired]), ("rdm_backward", [x, None, x, x, *paired, [True, True]]))
    yield from (("rdm_out", [x, None, method, False, "float32", x]) for method in ("correlation", "euclidean"))


def _calls() -> Iterator[tuple[str, Arguments]]:
    integer = torch.zeros(1, dtype=torch.int64, device="cpu")
    yield from (("philox_normal", [integer, 1, 1, index, 0]) for index in (None, integer))
    for form in GAUSSIANS:
        yield from _readouts("gaussian_readout", 6, form.gaussian(), form.core)
    for form in POOLINGS:
        yield from _readouts("pooled_readout", 5, form.pooling(), form.core)
    for form in GATHERS:
        yield from _readouts("point_gather", 3, form.gather(), form.core)
    yield from _matrices()


def all_forms() -> dict[tuple[str, str], Arguments]:
    """Return (op name, its form in words) -> a call of it, for forms in common use. The values do not matter."""
    return {(name, describe(name, FORMS[name](*call))): call for name, call in _calls()}


# Comparison ------------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """How far a result is from what it should be."""

    output: int
    error: float | None  # the largest, of the result's largest value; None where something else is wrong
    allowed: float
    what: str = ""  # is wrong, where it is no error of a number

    @property
    def share(self) -> float:
        """The error as a share of what is allowed."""
        if self.error is None:
            return math.inf
        return self.error / self.allowed if self.error else 0.0

    def __str__(self) -> str:
        result = f"result {self.output}"
        if self.error is None:
            return f"{result}: {self.what}"
        return f"{result} errs by {self.error:.2g} of its largest value, allowed {self.allowed:.2g}"


def _widened(arguments: Arguments) -> Arguments:
    return [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]


def _allowed(name: str, arguments: Arguments, dtype: torch.dtype) -> float:
    """Return what a result of this dtype may err by, of its largest value."""
    dtypes = {a.dtype for a in arguments if isinstance(a, Tensor)}
    drawn = torch.int64 in dtypes  # a seed: normals are float32
    wide = (torch.float64 in dtypes or "high" in arguments) and not drawn
    units = ROUNDINGS * torch.finfo(torch.float64 if wide else torch.float32).eps
    products = BFLOAT16_PRODUCTS if "bfloat16" in arguments and "backward" not in name else 0
    return units + products + torch.finfo(dtype).eps


def _difference(number: int, got: Tensor, want: Tensor, own: Tensor, allowed: float) -> Difference:
    """How far ``got`` is from ``want``, in float64; twice the error of ``own``, the fallback's, is allowed too."""
    if got.shape != want.shape or got.dtype != own.dtype:
        wanted = f"want {own.dtype} {tuple(want.shape)}, got {got.dtype} {tuple(got.shape)}"
        return Difference(number, None, allowed, wanted)
    got = got.double()
    undefined = want.isnan()
    if (got.isnan() & ~undefined).any():
        return Difference(number, None, allowed, "NaN where a number is right")
    if (undefined & ~got.isnan()).any():
        return Difference(number, None, allowed, "a number where NaN is right")
    if undefined.all():  # or there is none
        return Difference(number, 0.0, allowed)
    differences = (want, got - want, own.double() - want)
    largest, error, own_error = (values[~undefined].abs().amax().item() for values in differences)
    if not largest or not math.isfinite(error):
        what = f"it is off by {error:.2g}, and its largest value is {largest:.2g}"
        return Difference(number, None if error else 0.0, allowed, what)
    return Difference(number, error / largest, allowed + 2 * own_error / largest)


def _results(function: Callable[..., Any], arguments: Arguments) -> list[Tensor]:
    found = function(*arguments)
    if found is None:  # written into the last argument
        return [arguments[-1]]
    return [found] if isinstance(found, Tensor) else list(found)


def _on(device: torch.device, arguments: Arguments) -> Arguments:
    return [a.to(device, copy=True) if isinstance(a, Tensor) else a for a in arguments]


class Trial(NamedTuple):
    """A tiny call, and its results by what runs in the kernel's place: in float64, and in the call's own dtypes."""

    arguments: Arguments
    exact: list[Tensor]
    own: list[Tensor]


def trials(name: str, default: Callable[..., Any], call: Sequence[Any]) -> list[Trial]:
    """Return tiny calls of the form of ``call``, a legal call of the op, and their results by ``default``."""
    cpu = torch.device("cpu")
    with torch.no_grad(), torch.autocast("cpu", enabled=False), cpu:
        return [
            Trial(arguments, _results(default, _widened(arguments)), _results(default, _on(cpu, arguments)))
            for arguments in TINY[name](call)
        ]


def differences(
    name: str, launcher: Callable[..., Any], found: list[Trial], device: torch.device
) -> Iterator[Difference]:
    """Run ``launcher`` on the device, and yield how far each result of each trial is from the right one."""
    for arguments, exact, own in found:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            results = [r.cpu() for r in _results(launcher, _on(device, arguments))]
        if len(results) != len(exact):
            yield Difference(0, None, 0.0, f"want {len(exact)} results, got {len(results)}")
            continue
        for number, (got, want, mine) in enumerate(zip(results, exact, own, strict=True)):
            yield _difference(number, got, want, mine, _allowed(name, arguments, mine.dtype))
