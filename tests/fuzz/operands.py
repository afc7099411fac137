"""Operands by description: small, printed as Python, and the same whenever they are made."""

import dataclasses
import math

import hypothesis
import torch
from hypothesis import strategies as st

FLOATS = ("float32", "float64", "bfloat16", "float16")
DTYPES = (*FLOATS, "int64", "int32", "int8", "uint8", "bool", "complex64")
LAYOUTS = ("plain", "plain", "apart", "reversed", "repeated")
EXTREMES = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 1025, 2**31 - 1, 2**31, 2**33, 2**40, 2**62, 2**63 - 1)
MOST_BYTES = 1 << 24
"""A larger tensor repeats one element."""


@dataclasses.dataclass(frozen=True)
class Make:
    """A tensor: of these sizes, filled and laid out so."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    fill: str = "normal"
    layout: str = "plain"
    device: str = "cpu"
    seed: int = 0

    def tensor(self, device=None):
        device = device or self.device
        dtype = getattr(torch, self.dtype)
        if device == "meta":
            return torch.empty(self.shape, dtype=dtype, device="meta")
        if math.prod(self.shape) * dtype.itemsize > MOST_BYTES:
            return torch.zeros((1,) * len(self.shape), dtype=dtype).expand(self.shape)
        return self._laid_out(self._values().to(dtype))

    def _values(self):
        generator = torch.Generator().manual_seed(self.seed)
        values = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        match self.fill:
            case "tied":
                return values.mul(2).round()
            case "positions":
                strange = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 1.0, -1.0, 0.0])
                which = torch.randint(0, 40, self.shape, generator=generator)
                return torch.where(which < 8, strange[which.clamp(max=7)].double(), values)
            case "indices":
                return torch.randint(0, 7, self.shape, generator=generator)
            case "any integers":
                return torch.randint(-(2**31), 2**31, self.shape, generator=generator)
            case "ones":
                return torch.ones(self.shape)
            case "symmetric" if values.dim() == 3 and values.shape[1] == values.shape[2]:
                return values + values.mT
            case "permutations":
                return values.argsort(-1)
        return values

    def _laid_out(self, values):
        if self.layout == "apart" and values.dim():
            return values.repeat_interleave(2, -1)[..., ::2]
        if self.layout == "reversed":
            backwards = tuple(reversed(range(values.dim())))
            return values.permute(backwards).contiguous().permute(backwards)
        if self.layout == "repeated" and values.dim() and values.shape[0]:
            return values[:1].expand(values.shape)
        return values


def made(value, device=None):
    """Make what a description stands for."""
    return value.tensor(device) if isinstance(value, Make) else value


def example(strategy):
    """Draw one example of a strategy, always the same."""
    found = []

    @hypothesis.seed(0)
    @hypothesis.settings(max_examples=30, database=None, deadline=None, phases=[hypothesis.Phase.generate])
    @hypothesis.given(strategy)
    def keep(value):
        found.append(value)

    keep()
    return found[-1]


@st.composite
def tensors(draw, shape, fills=("normal",), dtypes=FLOATS, dtype=None):
    return Make(
        tuple(shape),
        dtype or draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(fills)),
        draw(st.sampled_from(LAYOUTS)),
        "cpu",
        draw(st.integers(0, 3)),
    )


@st.composite
def _another_shape(draw, shape, huge):
    shape = list(shape)
    kind = draw(st.sampled_from(["size", "size", "drop", "add", "empty"]))
    if kind == "add" or not shape:
        shape.insert(draw(st.integers(0, len(shape))), draw(st.integers(0, 2)))
    elif kind == "drop":
        del shape[draw(st.integers(0, len(shape) - 1))]
    else:
        axis = draw(st.integers(0, len(shape) - 1))
        large = huge and axis < len(shape) - 1  # sums run over the last axis: a huge one takes hours, and no memory
        sizes = (0, 1, 2, 3, 4, 5, 17, *((2**31 - 1, 2**32 + 1, 2**40) if large else ()))
        shape[axis] = 0 if kind == "empty" else draw(st.sampled_from(sizes))
    within = math.prod(size for size in shape if size) < 2**61
    return tuple(shape) if within else (0,)


@st.composite
def another(draw, value, kind, huge):
    """Something else in the place of an argument of this kind, as its schema calls it."""
    if "Tensor" in kind:
        if value is None or ("Optional" in kind and draw(st.integers(0, 3)) == 0):
            return draw(st.one_of(st.none(), tensors(draw(st.sampled_from([(), (1,), (2, 2), (3, 2), (1, 3, 2)])))))
        match draw(st.sampled_from(["shape", "shape", "dtype", "device", "layout", "fill"])):
            case "shape":
                return dataclasses.replace(value, shape=draw(_another_shape(value.shape, huge)))
            case "dtype":
                return dataclasses.replace(value, dtype=draw(st.sampled_from(DTYPES)))
            case "device":
                return dataclasses.replace(value, device="meta")
            case "layout":
                return dataclasses.replace(value, layout=draw(st.sampled_from(LAYOUTS)))
        return dataclasses.replace(value, fill=draw(st.sampled_from(["normal", "tied", "indices", "any integers"])))
    match kind:
        case "bool":
            return draw(st.booleans())
        case "int" | "SymInt":
            return draw(st.sampled_from(EXTREMES))
        case "str":
            return draw(st.sampled_from(["", "correlation", "cosine", "euclidean", "float32", "high", "bfloat16"]))
    return draw(st.lists(st.booleans(), max_size=8))  # List[bool]
