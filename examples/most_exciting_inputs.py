"""What excites a model's neurons most, and what they read: against simulated cells, whose filters are known.

    python examples/most_exciting_inputs.py out/insilico

Some minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from v1fast import _files, plots
from v1fast.data import Population, simulate
from v1fast.insilico import most_exciting_inputs, receptive_fields
from v1fast.losses import PoissonLoss
from v1fast.models import FiringRateEncoder, Stacked2dCore, input_positions
from v1fast.readouts import FullGaussian2d
from v1fast.training import OneCycle, fit

SHAPE = (36, 64)


def main() -> None:
    """Simulate, fit, look inside; write pictures and ``summary.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=Path("out/insilico"))
    parser.add_argument("--neurons", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=24)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    data = simulate(options.neurons, SHAPE, train=2000, simple=0.5)
    encoder = fitted(data, options.epochs)
    images = most_exciting_inputs(encoder, SHAPE, norm=12.0, restarts=2, show=True)
    fields = receptive_fields(encoder, data.train.images[:300], components=2, show=True)
    found = compare(data.population, images.images, fields.mean, fields.components)

    positions = input_positions(encoder.core, encoder.readout)
    drawn = torch.cat([data.population.simple.nonzero()[:12, 0], (~data.population.simple).nonzero()[:12, 0]])
    names = [f"{'simple' if data.population.simple[n] else 'complex'} {n}" for n in drawn.tolist()]
    few = most_exciting_inputs(encoder, SHAPE, drawn, norm=12.0, restarts=2)
    few_fields = receptive_fields(encoder, data.train.images[:300], drawn)
    pictures = {
        "images": plots.exciting_inputs(few, names),
        "fields": plots.receptive_fields(few_fields, names),
        "positions": plots.visual_field(positions, SHAPE),
        "retinotopy": plots.retinotopy(data.population.cortex, positions, SHAPE),
        "weights": plots.readout_weights(encoder.readout.features.detach()[0, :, 0].T),
    }
    _files.write_report(options.out, found, pictures)
    print(json.dumps(found, indent=2))


def fitted(data: object, epochs: int) -> FiringRateEncoder:
    """A core of two layers and Gaussian readouts, as in the demo."""
    train, validation = (
        {"cells": {"images": tier.images, "responses": tier.responses[0]}} for tier in (data.train, data.validation)
    )
    torch.manual_seed(0)
    core = Stacked2dCore(1, 16, 9, 3, layers=2, stack=-1, pad_input=False)
    readout = FullGaussian2d(
        (16, 28, 56), data.train.responses.shape[2], bias=True, init_mu_range=0.1, init_sigma=0.2, feature_reg_weight=0,
        mean_activity=data.train.responses[0].mean(0) - 1,  # ELU adds the 1
    )  # fmt: skip
    encoder = FiringRateEncoder(core, readout)
    fit(
        encoder, train, validation, loss=PoissonLoss(bias=1e-8), max_epochs=epochs, batch_size=64, learning_rate=0.02,
        learning_rates={"_mu": 0.06, "sigma": 0.015}, schedule=OneCycle(), scale_loss=False, accelerator="cpu",
    )  # fmt: skip
    return encoder


def compare(cells: Population, images: Tensor, mean: Tensor, components: Tensor) -> dict[str, object]:
    """How well images and gradients of the model show the cells' own filters."""
    pairs = cells.filters().transpose(0, 1)  # [N, 2, H, W]
    simple = cells.simple
    return {
        "simple cells": {
            "number": int(simple.sum()),
            "|r| of most exciting input and filter": quartiles(share(images, pairs[:, :1])[simple]),
            "|r| of mean gradient and filter": quartiles(share(mean, pairs[:, :1])[simple]),
        },
        "complex cells": {
            "number": int((~simple).sum()),
            "share of the most exciting input's norm in the pair's span": quartiles(share(images, pairs)[~simple]),
            "share of the first two components' norm in the pair's span": quartiles(
                torch.stack([share(components[:, k], pairs) for k in (0, 1)]).square().mean(0).sqrt()[~simple]
            ),
            "share of the mean gradient's norm in the pair's span": quartiles(share(mean, pairs)[~simple]),
        },
    }


def share(images: Tensor, directions: Tensor) -> Tensor:
    """[N]: the norm of each image's projection on the span of its directions [N, K, H, W], relative to its own."""
    flat = images.flatten(1).double()
    basis = torch.linalg.qr(directions.flatten(2).double().mT).Q
    return torch.einsum("np,npk->nk", flat, basis).norm(dim=1) / flat.norm(dim=1)


def quartiles(values: Tensor) -> dict[str, float]:
    """Median and quartiles over cells, and how many are undefined."""
    low, middle, high = torch.nanquantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)).tolist()
    return {
        "median": round(middle, 3),
        "lower": round(low, 3),
        "upper": round(high, 3),
        "undefined": int(values.isnan().sum()),
    }


if __name__ == "__main__":
    main()
