"""The raw ops ``torch.ops.v1fast.*``: legal calls, and calls in which some arguments are replaced."""

import dataclasses

import torch
from hypothesis import strategies as st

from v1fast.contracts.trial_sums import BITS, SETS
from v1fast.ops import _define

from .operands import Make, another, made, tensors

SIZES = st.sampled_from([0, 1, 1, 2, 3, 4])
MAP_SIZES = st.sampled_from([1, 1, 2, 3, 5, 8, 17])
NEURONS = st.sampled_from([0, 1, 2, 3, 7, 33, 130])


@dataclasses.dataclass(frozen=True)
class Call:
    op: str
    arguments: tuple

    def made(self, device=None):
        return [made(a, device) for a in self.arguments]


def _optional(strategy):
    return st.one_of(st.none(), strategy)


def _mask(count):
    return st.lists(st.booleans(), min_size=count, max_size=count)


@st.composite
def _maps(draw):
    shape = (draw(SIZES), draw(MAP_SIZES), draw(MAP_SIZES), draw(MAP_SIZES))
    return draw(tensors(shape)), draw(NEURONS)


@st.composite
def _gaussian(draw):
    features, n = draw(_maps())
    b, c = features.shape[:2]
    share, drawn = draw(st.booleans()), draw(st.sampled_from(["nothing", "noise", "seed"]))
    sigma = tensors(draw(st.sampled_from([(n, 2, 2), (n, 2), (n, 1)])))
    return (
        features,
        draw(tensors((n, 2), ("positions",))),
        draw(_optional(sigma) if drawn == "nothing" else sigma),
        draw(tensors((n, c))),
        draw(_optional(tensors((n,)))),
        draw(_optional(tensors((b, 2), ("positions", "normal")))),
        draw(tensors((1 if share else b, n, 2))) if drawn == "noise" else None,
        draw(tensors((1,), ("any integers",), dtype="int64")) if drawn == "seed" else None,
        draw(_optional(tensors((n,), ("any integers",), dtype="int64"))),
        draw(st.integers(0, 5)),
        share,
        draw(st.booleans()),
    )


@st.composite
def _points(draw):
    features, n = draw(_maps())
    b = features.shape[0]
    grid = draw(tensors(draw(st.sampled_from([(n, 2), (b, n, 2)])), ("positions",)))
    return features, grid, draw(_optional(tensors((b, 2)))), draw(st.booleans())


@st.composite
def _pooled(draw):
    features, grid, shift, align_corners = draw(_points())
    (_, c, h, w), n = features.shape, grid.shape[-2]
    kernel, steps = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    while min(h, w) // kernel**steps < 1:
        steps -= 1
    weight, bias = draw(tensors((n, (steps + 1) * c))), draw(_optional(tensors((n,))))
    return features, grid, weight, bias, shift, None, align_corners, kernel, steps


@st.composite
def _pooled_levels(draw):
    features, *_, kernel, steps = draw(_pooled())
    return features, kernel, steps, draw(st.booleans())


@st.composite
def _with_gradient(draw, forward, gradients, output):
    arguments = draw(forward)
    return draw(tensors(output(arguments))), *arguments, draw(_mask(gradients))


FILLS = ("normal", "normal", "tied")


@st.composite
def _rows(draw):
    rows, columns = st.sampled_from([0, 1, 2, 3, 5, 19, 70]), st.sampled_from([1, 2, 3, 17, 300])
    shape = (draw(SIZES), draw(rows), draw(columns))
    method = draw(st.sampled_from(["correlation", "cosine", "euclidean"]))
    accuracy = draw(st.sampled_from(["float32", "high", "bfloat16"]))
    return draw(tensors(shape, FILLS)), shape, method, draw(st.booleans()), accuracy, rows


def _matrix_dtype(*operands):
    return "float64" if any(t is not None and t.dtype == "float64" for t in operands) else "float32"


def _rdm_shape(shape, condensed):
    b, s = shape[:2]
    return (b, s * (s - 1) // 2) if condensed else (b, s, s)


@st.composite
def _rdm(draw):
    x, shape, method, condensed, accuracy, _ = draw(_rows())
    y = draw(_optional(tensors(shape, FILLS))) if method == "euclidean" else None
    return x, y, method, condensed, accuracy


@st.composite
def _rdm_out(draw):
    x, y, _, condensed, _ = arguments = draw(_rdm())
    return *arguments, Make(_rdm_shape(x.shape, condensed), _matrix_dtype(x, y))


@st.composite
def _rdm_backward(draw):
    x, y, method, condensed, accuracy = draw(_rdm())
    shape, dtype = _rdm_shape(x.shape, condensed), _matrix_dtype(x, y)
    matrix = tensors(shape, ("symmetric",), dtype=dtype)
    given = draw(_optional(matrix) if method == "euclidean" else matrix)
    return draw(tensors(shape, dtype=dtype)), given, x, y, method, condensed, accuracy, draw(_mask(2))


@st.composite
def _cross(draw):
    x, (b, _, k), method, _, accuracy, rows = draw(_rows())
    return x, draw(tensors((b, draw(rows), k), FILLS)), method, accuracy


@st.composite
def _cross_backward(draw):
    x, y, method, accuracy = draw(_cross())
    matrix = tensors((x.shape[0], x.shape[1], y.shape[1]), dtype=_matrix_dtype(x, y))
    given = draw(_optional(matrix) if method == "euclidean" else matrix)
    return draw(matrix), given, x, y, method, accuracy, draw(_mask(2))


@st.composite
def _philox(draw):
    images, neurons = draw(SIZES), draw(NEURONS)
    index = draw(_optional(tensors((neurons,), ("any integers",), dtype="int64")))
    seed = draw(tensors((1,), ("any integers",), dtype="int64"))
    return seed, images, neurons, index, draw(st.integers(0, 5))


@st.composite
def _permutations(draw):
    return draw(tensors((1,), ("any integers",), dtype="int64")), draw(SIZES), draw(NEURONS)


@st.composite
def _products(draw):
    s = draw(NEURONS)
    matrix = tensors((s, s), dtype="float32")
    return draw(matrix), draw(matrix), draw(tensors((draw(SIZES), s), ("permutations", "indices"), dtype="int32"))


WIDE = ("float32", "float64")


@st.composite
def _condensed(draw):
    s = draw(st.sampled_from([0, 1, 2, 3, 9, 40]))
    return draw(tensors((draw(SIZES), s * (s - 1) // 2), dtypes=WIDE)), s


@st.composite
def _two_lists(draw):
    length, dtype = draw(NEURONS), draw(st.sampled_from(WIDE))
    return tuple(draw(tensors((length,), FILLS, dtype=dtype)) for _ in range(2))


@st.composite
def _trial_sums(draw):
    trials, neurons, dtype = draw(SIZES), draw(NEURONS), draw(st.sampled_from(WIDE))
    x, y = (draw(tensors((trials, neurons), dtype=dtype)) for _ in range(2))
    which = sum(BITS[name] for name in draw(st.sampled_from(SETS)))
    indices = (draw(tensors((trials,), (fill,), dtype="int64")) for fill in ("permutations", "ones"))
    return x, y, draw(tensors((2, neurons), dtype="float64")), *indices, which


@st.composite
def _trial_products(draw):
    *operands, which = draw(_trial_sums())
    products, images = draw(SIZES), operands[-1].shape[0]
    factors = draw(tensors((products, 2), ("ones",), dtype="int64"))
    return *operands, factors, draw(tensors((products, images), dtype="float64")), which


LEGAL = {
    "gaussian_readout": _gaussian(),
    "gaussian_readout_backward": _with_gradient(_gaussian(), 6, lambda a: (a[0].shape[0], a[1].shape[0])),
    "point_gather": _points(),
    "point_gather_backward": _with_gradient(_points(), 3, lambda a: (a[0].shape[0], a[1].shape[-2], a[0].shape[1])),
    "pooled_levels": _pooled_levels(),
    "pooled_readout": _pooled(),
    "pooled_readout_backward": _with_gradient(_pooled(), 5, lambda a: (a[0].shape[0], a[1].shape[-2])),
    "rdm": _rdm(),
    "rdm_out": _rdm_out(),
    "rdm_backward": _rdm_backward(),
    "cross_rdm": _cross(),
    "cross_rdm_backward": _cross_backward(),
    "philox_normal": _philox(),
    "random_permutations": _permutations(),
    "permuted_products": _products(),
    "condensed_row_sums": _condensed(),
    "average_ranks": st.tuples(SIZES, NEURONS).flatmap(lambda s: st.tuples(tensors(s, FILLS, WIDE))),
    "rank_sums": _two_lists(),
    "trial_sums": _trial_sums(),
    "trial_products": _trial_products(),
}
"""Op -> its legal calls. ``tests/test_fuzz.py`` checks that there is one for each op."""


@st.composite
def calls(draw, op, huge):
    """Calls of this op. If ``huge``, operands may have more elements than there is memory for."""
    arguments = list(draw(LEGAL[op]))
    kinds = [str(a.type) for a in getattr(torch.ops.v1fast, op).default._schema.arguments]
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3]))):
        i = draw(st.integers(0, len(arguments) - 1))
        arguments[i] = draw(another(arguments[i], kinds[i], huge))
    return Call(op, tuple(arguments))


OUT_OF_MEMORY = ("memory", "alloc", "overflow", "Overflow", "too large", "too many", "out of range", "aten::new_empty")
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3, torch.bfloat16: 6e-2, torch.float16: 2e-2}


FLOAT32 = {"gaussian_readout", "gaussian_readout_backward", "permuted_products"}
"""Ops whose float64 results are computed from normals or products in float32."""


class Refused(Exception):
    """Refused by an error that a caller may expect."""

    def __init__(self, error):
        super().__init__(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        text = str(error)
        self.by_size = any(word in text for word in OUT_OF_MEMORY)


def _outcome(function, arguments, written):
    """What a call returns or writes, or Refused if it ends in an expected error. Any other exception is a fault."""
    try:
        returned = function(*arguments)
    except (ValueError, RuntimeError) as error:
        return Refused(error)
    if written is not None:
        return (arguments[written],)
    return returned if isinstance(returned, tuple) else (returned,)


def _assert_same(got, want, narrow=False):
    """narrow: as float32, whatever the dtype."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{a.shape}, {a.dtype} and {b.shape}, {b.dtype}"
        if a.is_meta or b.is_meta or not a.dtype.is_floating_point:
            assert a.is_meta or b.is_meta or torch.equal(a, b)
            continue
        finite = b[b.isfinite()]
        relative = max(TOLERANCE[a.dtype], TOLERANCE[torch.float32] if narrow else 0.0)
        absolute = relative * max(1.0, finite.abs().max().item() if finite.numel() else 0.0)
        torch.testing.assert_close(a, b, rtol=relative, atol=absolute, equal_nan=True)


def check(call):
    """The op, its reference and its fake have the same outcome."""
    op, reference = getattr(torch.ops.v1fast, call.op).default, _define.references[call.op]
    written = next(iter(_define._written(op)), None)
    got = _outcome(op, call.made(), written)
    if any(isinstance(a, Make) and a.device == "meta" for a in call.arguments):
        return  # the op has run as its fake, or has refused to mix devices
    want = _outcome(reference, call.made(), written)
    fake = _outcome(op, call.made("meta"), written)
    if any(isinstance(o, Refused) and o.by_size for o in (got, want, fake)):
        return  # they may need different amounts
    assert isinstance(got, Refused) == isinstance(want, Refused), f"the op: {got!r}, the reference: {want!r}"
    if isinstance(fake, Refused) != isinstance(want, Refused):
        # a fake knows neither the values nor their place
        assert not isinstance(fake, Refused), f"the fake: {fake!r}, the reference: {want!r}"
        return
    if not isinstance(want, Refused):
        _assert_same(got, want, narrow=call.op in FLOAT32)
        _assert_same(fake, want)
