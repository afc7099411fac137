# %% [markdown]
# # Which layer of a model sees orientation?
#
# Gratings, pixels and the layers of a small network, compared by their dissimilarity matrices (RDMs).
#
#     python examples/rsa_orientation.py
#
# The network has oriented filters, as simple cells have, and pools over phase and place, as complex cells do. The
# gratings have random phases: pixels of one orientation have little in common, the pooled layer has little else.

# %%
from pathlib import Path

import numpy as np
import torch
from torch import nn

from v1fast import functional, rsa
from v1fast.rsa import plots

OUT = Path("out/orientation")
OUT.mkdir(parents=True, exist_ok=True)
SIZE, PERIOD, STEP = 48, 8.0, 3  # pixels; pixels; degrees

# %% [markdown]
# ## Stimuli and model


# %%
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


# %%
orientations = np.arange(0, 180, STEP)
images = gratings(orientations)
systems = {"pixels": images.flatten(1)}
systems |= rsa.activations(Network(), images, ["simple", "complex", "pooled"])

# %% [markdown]
# ## Dissimilarity matrices
#
# Each entry is 1 minus the correlation of two patterns of responses. The ideal matrix is that of a system that sees
# orientation and nothing else.

# %%
rdms = {name: functional.rdm(values).numpy() for name, values in systems.items()}
ideal = np.abs(np.sin(np.deg2rad(orientations[:, None] - orientations)))
similar = {name: rsa.compare(rdm, ideal, "spearman") for name, rdm in rdms.items()}
for name, value in similar.items():
    print(f"{name}: Spearman correlation with the ideal {value:.3f}")

# %%
plots.rdm_heatmaps(rdms, axis="stimulus, 3 degrees apart").savefig(OUT / "rdms.png")

# %%
figure = plots.similarity_bars(similar, label="Spearman correlation", title="Similarity to an ideal RDM of orientation")
figure.savefig(OUT / "similarity.png")

# %% [markdown]
# ## Is it more than chance?
#
# Each permutation of the stimuli gives a similarity by chance. Random permutations separate neighbours, which are alike
# in any smooth system: for two measured matrices of a circular axis, `shifts=True` keeps neighbours together. It says
# nothing here, since a shift does not change the ideal matrix.

# %%
for name, rdm in rdms.items():
    print(f"{name}: p = {rsa.permutation_test(rdm, ideal, 'spearman').p:.4f}")

# %% [markdown]
# ## Rows, tuning, maps
#
# A row of the matrix says how far each stimulus is from one of them.

# %%
axis = "orientation (degrees)"
rows = {name: rsa.rows_nearest(rdm, orientations, [0, 45, 90, 135], period=180) for name, rdm in rdms.items()}
plots.rdm_rows(orientations, {name: r for name, (_, r) in rows.items()}, rows["pixels"][0], axis=axis).savefig(
    OUT / "rows.png"
)

# %%
tuning = rsa.tuning_curves(systems["pooled"], orientations, 20, period=180)
plots.tuning_curves(tuning, range(0, 48, 12), axis=axis, title="Pooled energy of four filters").savefig(
    OUT / "tuning.png"
)

# %% [markdown]
# Twenty principal components, then t-SNE: the pooled layer lays the orientations out as a ring.

# %%
plots.low_dimensional_map(
    {name: rsa.tsne(systems[name], perplexity=10) for name in ("pixels", "pooled")},
    orientations,
    period=180,
    label=axis,
    title="t-SNE of 20 principal components",
).savefig(OUT / "maps.png")
