"""Which layer of a model sees orientation? Gratings, pixels and the layers of a small network, compared by their RDMs.

    python examples/rsa_orientation.py out/orientation

The network has oriented filters, as simple cells have, and pools over phase and place, as complex cells do. The
gratings have random phases: pixels of one orientation have little in common, the pooled layer has little else.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from v1fast import functional, rsa
from v1fast.rsa import plots

SIZE, PERIOD, STEP = 48, 8.0, 3  # pixels; pixels; degrees


def gratings(orientations: np.ndarray, seed: int = 0) -> torch.Tensor:
    """[S, 1, SIZE, SIZE]: one grating of each orientation (degrees), at a random phase."""
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, (len(orientations), 1, 1))
    y, x = np.mgrid[:SIZE, :SIZE]
    angle = np.deg2rad(orientations)[:, None, None]
    waves = np.cos(2 * np.pi / PERIOD * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    return torch.from_numpy(waves.astype(np.float32))[:, None]


class Network(nn.Module):
    """Gabor filters of 12 orientations in quadrature, their energy, and its mean over the image."""

    def __init__(self) -> None:
        super().__init__()
        self.simple = nn.Conv2d(1, 24, 15, stride=3, bias=False)
        self.complex = nn.LPPool3d(2, (2, 1, 1))
        self.pooled = nn.AdaptiveAvgPool2d(2)
        y, x = np.mgrid[-7:8, -7:8]
        angles = np.repeat(np.pi * np.arange(12) / 12, 2)[:, None, None]
        phases = np.tile([0, np.pi / 2], 12)[:, None, None]
        waves = np.cos(2 * np.pi / PERIOD * (x * np.cos(angles) + y * np.sin(angles)) + phases)
        filters = waves * np.exp(-(x**2 + y**2) / (2 * 3.0**2))
        self.simple.weight.data = torch.from_numpy(filters.astype(np.float32))[:, None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[S, 12, 2, 2]."""
        return self.pooled(self.complex(self.simple(images)[:, None]).squeeze(1))


def main(out: Path) -> None:
    """Compute, print and draw."""
    out.mkdir(parents=True, exist_ok=True)
    orientations = np.arange(0, 180, STEP)
    images = gratings(orientations)
    systems = {"pixels": images.flatten(1)}
    systems |= rsa.activations(Network(), images, ["simple", "complex", "pooled"])
    rdms = {name: functional.rdm(values).numpy() for name, values in systems.items()}
    # What a system that sees nothing but orientation would have.
    ideal = np.abs(np.sin(np.deg2rad(orientations[:, None] - orientations)))
    similar = {name: rsa.compare(rdm, ideal, "spearman") for name, rdm in rdms.items()}
    for name, value in similar.items():
        print(f"{name}: Spearman correlation with the ideal {value:.3f}")
    axis = "orientation (degrees)"
    rows = {name: rsa.rows_nearest(rdm, orientations, [0, 45, 90, 135], period=180) for name, rdm in rdms.items()}
    places = rows["pixels"][0]
    tuning = rsa.tuning_curves(systems["pooled"], orientations, 20, period=180)
    figures = {
        "rdms": plots.rdm_heatmaps(rdms, axis="stimulus, 3 degrees apart"),
        "similarity": plots.similarity_bars(
            similar,
            label="Spearman correlation",
            title="Similarity to an ideal RDM of orientation",
        ),
        "rows": plots.rdm_rows(orientations, {name: found for name, (_, found) in rows.items()}, places, axis=axis),
        "tuning": plots.tuning_curves(tuning, range(0, 48, 12), axis=axis, title="Pooled energy of four filters"),
        "maps": plots.low_dimensional_map(
            {name: rsa.tsne(systems[name], perplexity=10) for name in ("pixels", "pooled")},
            orientations,
            period=180,
            label=axis,
            title="t-SNE of 20 principal components",
        ),
    }
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png")
    print(f"Pictures are in {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/orientation"))
