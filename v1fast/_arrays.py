"""Conversion of users' numbers to NumPy arrays and tensors: one way for every entry point.

Nothing is guessed or lost. It is an error that names the operand if the values are not plain real numbers, if a mask
hides some of them, or if the arithmetic cannot hold their integers. Memory that torch can see is not copied, even if it
is read-only and mapped from a file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NARROW = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.uint16)
EXACT_FLOAT32, EXACT_FLOAT64 = 1 << 24, 1 << 53  # float32 and float64 represent all integers up to this


def to_array(name: str, given: Any) -> NDArray[Any]:
    """Return real numbers as an array of bool, integers, float16, float32 or float64 in native byte order.

    Args:
        name: of the operand, for errors.
        given: array, tensor on any device (bfloat16 becomes float32), nested lists, data frame, or anything that NumPy
            converts to an array. A dataset of h5py is read. Arrays (also mapped ones) and CPU tensors are not copied,
            unless their bytes are swapped or their values are objects or of extended precision.

    Raises:
        ValueError: values that are not real numbers, lists of unequal shapes, or an array that masks some values.
    """
    if isinstance(given, Tensor):
        return _of_tensor(name, given)
    if isinstance(given, (list, tuple)) and not all(np.isscalar(each) for each in given):
        return _of_list(name, given)
    try:
        array = np.asanyarray(given)
    except Exception as error:  # whatever the __array__ of another library raises
        raise ValueError(f"{name}: want numbers, got {type(given).__name__}: {error}") from error
    if isinstance(array, np.ma.MaskedArray):
        array = _unmasked(name, array)
    array = np.asarray(array)
    if array.dtype.kind == "O" and array.ndim:
        # Converts numbers stored as objects. Anything else becomes objects again, or text.
        array = _of_list(name, array.tolist())
    if array.dtype.kind not in "fiub":
        what = f" ({type(given).__name__})" if array.dtype.kind == "O" else ""
        raise ValueError(f"{name}: want numbers, got {array.dtype}{what}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _of_tensor(name: str, given: Tensor) -> NDArray[Any]:
    if given.layout != torch.strided or given.is_quantized or given.is_meta:
        raise ValueError(f"{name}: want a dense tensor with values, got {given.layout}, {given.dtype}, {given.device}")
    if given.is_complex():
        raise ValueError(f"{name}: want numbers, got {given.dtype}")
    dense = given.detach().resolve_neg().cpu()
    known = not dense.is_floating_point() or dense.dtype in (torch.float16, torch.float32, torch.float64)
    array: NDArray[Any] = (dense if known else dense.float()).numpy()
    return array


def _of_list(name: str, given: list[Any] | tuple[Any, ...]) -> NDArray[Any]:
    if any(each is None or isinstance(each, str) for each in given):
        raise ValueError(f"{name}: want numbers, got None or text among them")
    if all(np.isscalar(each) for each in given):
        array = np.asarray(given)
        if array.dtype.kind == "O":
            kinds = ", ".join(sorted({type(each).__name__ for each in given}))
            raise ValueError(f"{name}: want numbers of at most 64 bits, got {kinds}")
        return to_array(name, array)
    parts = [to_array(name, each) for each in given]
    shapes = dict.fromkeys(part.shape for part in parts)
    if len(shapes) != 1:
        raise ValueError(f"{name}: want parts of one shape, got {', '.join(map(str, list(shapes)[:4]))}")
    return np.stack(parts)


def _unmasked(name: str, array: np.ma.MaskedArray[Any, Any]) -> NDArray[Any]:
    """Return the data of an array that masks nothing. A mask is an error: its owner must say what it stands for."""
    masked = int(np.ma.count_masked(array))
    if masked:
        raise ValueError(
            f"{name}: want an array without a mask, got one that masks {masked} of {array.size} values; "
            f"array.filled(numpy.nan) makes them undefined"
        )
    return np.asarray(array.data)


class _Writable:
    """A read-only array that claims to be writable: torch warns otherwise. Users of the tensor must not write to it."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array  # keeps its memory alive
        self.__array_interface__ = {**array.__array_interface__, "data": (array.__array_interface__["data"][0], False)}


def to_tensor(name: str, given: Any) -> Tensor:
    """Return a tensor of the same memory where possible. Do not write to it: it may be mapped read-only.

    It is a copy if ``to_array`` copies, or if the strides are negative, odd or unaligned.
    """
    if isinstance(given, Tensor):
        return given
    array = to_array(name, given)
    strides = zip(array.strides, array.shape, strict=True)
    if not array.flags.aligned or any(s < 0 or (s % array.itemsize and n > 1) for s, n in strides):
        array = array.copy()
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return torch.from_numpy(array)


def floats(name: str, given: Any) -> NDArray[Any]:
    """Like ``to_array``, in float32 or float64: integers become float64, float16 becomes float32.

    Raises:
        ValueError: as for ``to_array``, or integers beyond 2^53.
    """
    array = to_array(name, given)
    if array.dtype.kind == "f":
        return array if array.dtype != np.float16 else array.astype(np.float32)
    if array.dtype.itemsize == 8 and array.size:
        _check_integers(name, int(array.min()), int(array.max()), EXACT_FLOAT64, "float64")
    return array.astype(np.float64)


def check_exact(name: str, given: Tensor) -> None:
    """Raise ValueError unless float32 can represent all values of an integer tensor.

    The values are only read for dtypes of 32 and 64 bits.
    """
    if given.dtype in NARROW or not given.numel():
        return
    if torch.compiler.is_compiling():
        raise ValueError(f"{name}: want floating values, or integers of 16 bits, in compiled code, got {given.dtype}")
    signed = given.to(torch.int64)  # uint64 values that do not fit become negative
    low, high = (int(value) for value in torch.aminmax(signed))
    if given.dtype == torch.uint64 and low < 0:
        high = max(high, low + (1 << 64))
        low = 0
    _check_integers(name, low, high, EXACT_FLOAT32, "float32")


def _check_integers(name: str, low: int, high: int, most: int, dtype: str) -> None:
    if max(-low, high) > most:
        found = low if -low > high else high
        raise ValueError(
            f"{name}: want integers of at most {most}, which {dtype} holds, got {found}"
            + ("; as float64 they are exact" if dtype == "float32" and max(-low, high) <= EXACT_FLOAT64 else "")
        )


def distinct(name: str, given: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the distinct labels in ascending order, and the index among them of each given label [T].

    Labels may be numbers, text, or objects. Labels that cannot be ordered are kept in the order of first occurrence.

    Raises:
        ValueError: not one axis, a mask, or a number that is NaN.
    """
    labels = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asanyarray(given)
    if isinstance(labels, np.ma.MaskedArray):
        labels = _unmasked(name, labels)
    if labels.ndim != 1:
        raise ValueError(f"{name}: want one label for each row, got {labels.shape}")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError(f"{name}: want a label for each row, got NaN for {np.isnan(labels).sum()} of them")
    try:
        values, places = np.unique(labels, return_inverse=True)
        return values, places.astype(np.int64)
    except TypeError:
        numbers: dict[Any, int] = {}
        places = np.array([numbers.setdefault(label, len(numbers)) for label in labels.tolist()], dtype=np.int64)
        values = np.empty(len(numbers), dtype=object)
        values[:] = list(numbers)
        return values, places
