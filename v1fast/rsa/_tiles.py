"""A matrix of dissimilarities piece by piece: tiles on and above the diagonal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast import _dissimilarities, functional
from v1fast.reference.rdm import ACCURACIES

METHODS = tuple(_dissimilarities.SYMMETRIC_METHODS)


class Tile(NamedTuple):
    """Rows ``i`` and columns ``j``, first and one past the last; a tile on the diagonal has i = j."""

    i: tuple[int, int]
    j: tuple[int, int]

    @property
    def on_diagonal(self) -> bool:
        """Whether rows and columns are the same."""
        return self.i == self.j


def tiles(stimuli: int, side: int) -> Iterator[Tile]:
    """Of the upper triangle, row by row; those at the end are smaller."""
    parts = [(k, min(k + side, stimuli)) for k in range(0, stimuli, side)]
    for number, rows in enumerate(parts):
        for columns in parts[number:]:
            yield Tile(rows, columns)


def responses(name: str, given: Tensor | NDArray[Any]) -> Tensor:
    """[S, N], floating, without derivative."""
    tensor = given if isinstance(given, Tensor) else _dissimilarities.from_numpy(given)
    if tensor.dim() != 2:
        raise ValueError(f"{name}: want [S, N], got {tuple(tensor.shape)}")
    return _dissimilarities.rows(name, tensor.detach())


def check_options(method_name: str, method: str, accuracy: str) -> None:
    """Raise ValueError unless a tile can be computed in this way."""
    _dissimilarities.choice(method_name, method, METHODS)
    _dissimilarities.choice("accuracy", accuracy, ACCURACIES)


def square(x: Tensor, tile: Tile, method: str, accuracy: str) -> Tensor:
    """The dissimilarities of a tile [rows, columns]; on the diagonal symmetric."""
    rows = x[slice(*tile.i)]
    with torch.no_grad():
        if tile.on_diagonal:
            return functional.rdm(rows, method=method, accuracy=accuracy)
        return functional.cross_rdm(rows, x[slice(*tile.j)], method=method, accuracy=accuracy)


def pairs(x: Tensor, tile: Tile, method: str, accuracy: str) -> Tensor:
    """The dissimilarities of a tile's pairs, each pair once [pairs]."""
    if tile.on_diagonal:
        with torch.no_grad():
            return functional.rdm(x[slice(*tile.i)], method=method, accuracy=accuracy, condensed=True)
    return square(x, tile, method, accuracy).flatten()
