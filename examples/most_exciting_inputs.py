# %% [markdown]
# # What excites a model's neurons most, and what do they read?
#
# A model of simulated cells is asked both questions by its gradients. The cells' own filters are known, so the answers
# can be judged.
#
#     python examples/most_exciting_inputs.py out/insilico
#
# Some minutes on one core.

# %%
import json
import sys
from pathlib import Path

import torch

from v1fast import _files, plots
from v1fast.data import simulate
from v1fast.insilico import most_exciting_inputs, receptive_fields
from v1fast.losses import PoissonLoss
from v1fast.models import FiringRateEncoder, Stacked2dCore, input_positions
from v1fast.readouts import FullGaussian2d
from v1fast.training import OneCycle, fit

arguments = [] if "ipykernel" in sys.modules else sys.argv[1:]
OUT = Path(arguments[0] if arguments else "out/insilico")
OUT.mkdir(parents=True, exist_ok=True)
SHAPE = (36, 64)  # pixels of an image
NEURONS, EPOCHS = 100, 24

# %% [markdown]
# ## Cells and a model
#
# Half of the cells are simple: they read one filter. The others are complex: they read the energy of a pair of filters.
# The model is that of the demo, a core of two layers and Gaussian readouts.

# %%
data = simulate(NEURONS, SHAPE, train=2000, simple=0.5)
cells = data.population
train, validation = (
    {"cells": {"images": tier.images, "responses": tier.responses[0]}} for tier in (data.train, data.validation)
)
torch.manual_seed(0)
core = Stacked2dCore(1, 16, 9, 3, layers=2, stack=-1, pad_input=False)
readout = FullGaussian2d(
    (16, 28, 56),
    NEURONS,
    bias=True,
    init_mu_range=0.1,
    init_sigma=0.2,
    feature_reg_weight=0,
    mean_activity=data.train.responses[0].mean(0) - 1,  # ELU adds the 1
)
encoder = FiringRateEncoder(core, readout)
history = fit(
    encoder,
    train,
    validation,
    loss=PoissonLoss(bias=1e-8),
    max_epochs=EPOCHS,
    batch_size=64,
    learning_rate=0.02,
    learning_rates={"_mu": 0.06, "sigma": 0.015},
    schedule=OneCycle(),
    scale_loss=False,
    accelerator="cpu",
)

# %% [markdown]
# ## Most exciting inputs and receptive fields
#
# Of each neuron: the image of a fixed norm that excites it most, found by gradient ascent from noise; and the gradients
# to the image, their mean over images and their first two components.

# %%
images = most_exciting_inputs(encoder, SHAPE, norm=12.0, restarts=2, show=True).images
fields = receptive_fields(encoder, data.train.images[:300], components=2, show=True)

# %% [markdown]
# ## Beside the cells' own filters
#
# A simple cell has one filter: the image and the mean gradient should correlate with it. A complex cell has a pair, and
# the phase is free: what counts is how much of the image's norm lies in the span of both. The mean of its gradients
# cancels; their components do not.


# %%
def share(images: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """[N]: the norm of each image's projection on the span of its directions [N, K, H, W], relative to its own."""
    flat = images.flatten(1).double()
    basis = torch.linalg.qr(directions.flatten(2).double().mT).Q
    return torch.einsum("np,npk->nk", flat, basis).norm(dim=1) / flat.norm(dim=1)


def quartiles(values: torch.Tensor) -> dict[str, float]:
    """Median and quartiles over cells, and how many are undefined."""
    low, middle, high = torch.nanquantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)).tolist()
    found = {"median": middle, "lower": low, "upper": high}
    return {name: round(value, 3) for name, value in found.items()} | {"undefined": int(values.isnan().sum())}


simple, pairs = cells.simple, cells.filters().transpose(0, 1)  # [N, 2, H, W]
components = torch.stack([share(fields.components[:, k], pairs) for k in (0, 1)]).square().mean(0).sqrt()
found = {
    "simple cells": {
        "number": int(simple.sum()),
        "|r| of most exciting input and filter": quartiles(share(images, pairs[:, :1])[simple]),
        "|r| of mean gradient and filter": quartiles(share(fields.mean, pairs[:, :1])[simple]),
    },
    "complex cells": {
        "number": int((~simple).sum()),
        "share of the most exciting input's norm in the pair's span": quartiles(share(images, pairs)[~simple]),
        "share of the first two components' norm in the pair's span": quartiles(components[~simple]),
        "share of the mean gradient's norm in the pair's span": quartiles(share(fields.mean, pairs)[~simple]),
    },
}
print(json.dumps(found, indent=2))

# %% [markdown]
# ## Pictures
#
# Twelve cells of each kind; and where all neurons look, on the image and along the cortex.

# %%
drawn = torch.cat([simple.nonzero()[:12, 0], (~simple).nonzero()[:12, 0]])
names = [f"{'simple' if simple[n] else 'complex'} {n}" for n in drawn.tolist()]
few = most_exciting_inputs(encoder, SHAPE, drawn, norm=12.0, restarts=2)
few_fields = receptive_fields(encoder, data.train.images[:300], drawn)
positions = input_positions(encoder.core, encoder.readout)
pictures = {
    "images": plots.exciting_inputs(few, names),
    "fields": plots.receptive_fields(few_fields, names),
    "positions": plots.visual_field(positions, SHAPE),
    "retinotopy": plots.retinotopy(cells.cortex, positions, SHAPE),
    "weights": plots.readout_weights(encoder.readout.features.detach()[0, :, 0].T),
}
_files.write_report(OUT, found, pictures)
