"""Why a nonlinearity, and why depth: XOR, which no linear network computes, and its repetition on finer boards."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast.decoding.fitting import one_thread
from v1fast.decoding.networks import DeepNet

Floats = NDArray[np.float64]


def board(squares: int = 2, points: int = 12) -> tuple[Tensor, Tensor]:
    """A chessboard: points of the square from -1 to 1, and the colour of each. With 2 squares a side it is XOR.

    Args:
        squares: on a side, >= 1.
        points: on a side of the grid, >= 1.

    Returns:
        [points^2, 2], and [points^2, 1]: 1 or -1.

    >>> board(2, 2)[1].flatten().tolist()
    [-1.0, 1.0, 1.0, -1.0]
    """
    for name, value in (("squares", squares), ("points", points)):
        if value < 1:
            raise ValueError(f"{name}: want >= 1, got {value}")
    middle = (torch.arange(points) + 0.5) / points
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    odd = ((x * squares).long() + (y * squares).long()) % 2
    return 2 * torch.stack([x.flatten(), y.flatten()], 1) - 1, (2.0 * odd - 1).flatten()[:, None]


def learn_board(
    width: int, depth: int, *, squares: int = 2, activation: str = "relu", steps: int = 800, seed: int = 0
) -> tuple[float, DeepNet]:
    """Fit a network to a board by Adam, in full batches.

    Args:
        width, depth, activation: of the :class:`DeepNet`.
        squares: of the board.
        steps: >= 1.
        seed: of the weights.

    Returns:
        The squared error that is left, where 1 is that of an answer of 0 everywhere; and the network.
    """
    places, colours = board(squares)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DeepNet(2, width, depth=depth, activation=activation)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    with one_thread():
        for _ in range(steps):
            loss = torch.nn.functional.mse_loss(network(places), colours)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return torch.nn.functional.mse_loss(network(places), colours).item(), network


def board_losses(
    widths: tuple[int, ...], depths: tuple[int, ...], *, squares: int, seeds: int = 3, steps: int = 800
) -> Floats:
    """The least error over a few seeds, [depths, widths], of networks with rectified units.

    Args:
        widths, depths: of the networks.
        squares: of the board.
        seeds: initial weights that are tried.
        steps: of each fit.
    """
    return np.array(
        [
            [
                min(learn_board(width, depth, squares=squares, seed=seed, steps=steps)[0] for seed in range(seeds))
                for width in widths
            ]
            for depth in depths
        ]
    )
