"""A matrix of dissimilarities in pieces: tiles on and above the diagonal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast import _arrays, _choices, _rdm_rows, functional
from v1fast.reference.rdm import ACCURACIES, METHODS, output_dtype

PART = 1 << 22  # numbers that are processed together
WITHOUT_SCALE = 40  # powers of two: squares of magnitudes from 2^-40 to 2^40 are well within float32


class Tile(NamedTuple):
    """Rows ``i`` and columns ``j``, each as (first, one past the last). A tile on the diagonal has i = j."""

    i: tuple[int, int]
    j: tuple[int, int]

    @property
    def on_diagonal(self) -> bool:
        """Whether rows and columns are the same."""
        return self.i == self.j


def tiles(stimuli: int, side: int) -> Iterator[Tile]:
    """Yield the tiles of the upper triangle, row by row. Those at the end are smaller."""
    parts = [(k, min(k + side, stimuli)) for k in range(0, stimuli, side)]
    for number, rows in enumerate(parts):
        for columns in parts[number:]:
            yield Tile(rows, columns)


class Responses:
    """Responses [S, N] as given. Rows are taken as floating tensors without derivative.

    Data that torch can read is not copied, mapped files included. Other data (integers, other byte orders) is converted
    when its rows are requested.
    """

    def __init__(self, name: str, given: Tensor | NDArray[Any], scale: float | None = None) -> None:
        self.name, self.scale = name, scale
        self.given = given.detach() if isinstance(given, Tensor) else _kept(name, given)
        if self.given.ndim != 2:
            raise ValueError(f"{name}: want [S, N], got {tuple(self.given.shape)}")
        self.shape: tuple[int, int] = (self.given.shape[0], self.given.shape[1])
        some = self.rows(0, 0)
        self.dtype, self.device, self.result_dtype = some.dtype, some.device, output_dtype(some, None)
        if (
            not isinstance(self.given, np.ndarray) or self.given.dtype.kind != "f"
        ):  # check before hours of work, not in the middle
            for part in self.parts():
                del part

    def rows(self, begin: int, end: int) -> Tensor:
        """[end - begin, N]."""
        part = _arrays.to_tensor(self.name, self.given[begin:end])
        found = _rdm_rows.rows(self.name, part)
        return found if self.scale is None else found * self.scale

    def parts(self) -> Iterator[Tensor]:
        """Yield all rows, a few at a time."""
        step = max(1, PART // max(1, self.shape[1]))
        for begin in range(0, self.shape[0], step):
            yield self.rows(begin, begin + step)

    def scaled(self) -> Responses:
        """Return the responses times a power of two if their squares could overflow or underflow."""
        largest = max((largest_magnitude(part) for part in self.parts()), default=0.0)
        scale = scale_of(largest)
        return self if scale is None else Responses(self.name, self.given, scale)


def _kept(name: str, given: Any) -> NDArray[Any]:
    """Return the array itself if it holds numbers, so that its rows are converted one by one."""
    if isinstance(given, np.ndarray) and not isinstance(given, np.ma.MaskedArray) and given.dtype.kind in "fiub":
        return np.asarray(given)
    return _arrays.to_array(name, given)


def scale_of(largest: float) -> float | None:
    """The power of two that brings responses into a range where squares neither overflow nor underflow, if needed."""
    if largest == 0 or 2.0**-WITHOUT_SCALE <= largest <= 2.0**WITHOUT_SCALE:
        return None
    return 2.0 ** -math.frexp(largest)[1]


def largest_magnitude(part: Tensor) -> float:
    """Return the largest finite magnitude."""
    if not part.numel():
        return 0.0
    low, high = torch.aminmax(part)
    largest = float(torch.maximum(-low, high))
    if math.isfinite(largest):
        return largest
    there = part[part.isfinite()]
    return float(there.abs().max()) if there.numel() else 0.0


def check_options(method_name: str, method: str, accuracy: str) -> None:
    """Raise ValueError unless a tile can be computed in this way."""
    _choices.one_of(method_name, method, METHODS)
    _choices.one_of("accuracy", accuracy, ACCURACIES)


def square(x: Responses, tile: Tile, method: str, accuracy: str) -> Tensor:
    """Return the dissimilarities of a tile [rows, columns]. On the diagonal they are symmetric."""
    rows = x.rows(*tile.i)
    with torch.no_grad():
        if tile.on_diagonal:
            return functional.rdm(rows, method=method, accuracy=accuracy)
        return functional.cross_rdm(rows, x.rows(*tile.j), method=method, accuracy=accuracy)


def pairs(x: Responses, tile: Tile, method: str, accuracy: str) -> Tensor:
    """Return the dissimilarities of a tile's pairs, each pair once [pairs]."""
    if tile.on_diagonal:
        with torch.no_grad():
            return functional.rdm(x.rows(*tile.i), method=method, accuracy=accuracy, condensed=True)
    return square(x, tile, method, accuracy).flatten()
