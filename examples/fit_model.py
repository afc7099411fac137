# %% [markdown]
# # Fit a model of V1, and see whether it is right
#
# Simulated neurons respond to photographs; an encoding model is fitted to their responses. Since they are simulated,
# two questions have answers that no recording gives: how good could a model be, and are the receptive fields where the
# model says?
#
#     python examples/fit_model.py

# %%
from pathlib import Path

import torch

from v1fast import metrics, plots
from v1fast.data import simulate
from v1fast.losses import PoissonLoss
from v1fast.models import FiringRateEncoder, Stacked2dCore, input_positions
from v1fast.readouts import FullGaussian2d
from v1fast.training import OneCycle, fit

OUT = Path("out/fit-example")
OUT.mkdir(parents=True, exist_ok=True)
SHAPE = (24, 36)  # pixels of an image

# %% [markdown]
# ## The recording
#
# 200 complex cells see 1000 training images once, and 100 test images ten times. A recording of yours comes by
# `v1fast.data.read` instead.

# %%
data = simulate(neurons=200, image_shape=SHAPE, train=1000, validation=100, test=100)
train, validation = (
    {"mouse": {"images": tier.images, "responses": tier.responses[0]}} for tier in (data.train, data.validation)
)

# %% [markdown]
# ## The model
#
# The core makes feature maps of an image. The readout gives each neuron a position on these maps and a weight for each
# channel. In training it draws positions from a Gaussian around the learned mean.

# %%
torch.manual_seed(0)
core = Stacked2dCore(1, 16, input_kern=9, hidden_kern=3, layers=2, pad_input=False, stack=-1)
readout = FullGaussian2d((16, 16, 28), 200, bias=True, init_sigma=0.2, feature_reg_weight=0)
readout.initialize(data.train.responses[0].mean(0) - 1)  # the mean activity; the encoder's ELU adds the 1
encoder = FiringRateEncoder(core, readout)

# %% [markdown]
# ## The fit
#
# Positions have a long way to go: their learning rate is higher.

# %%
history = fit(
    encoder,
    train,
    validation,
    loss=PoissonLoss(bias=1e-8),
    max_epochs=20,
    batch_size=64,
    learning_rate=0.02,
    learning_rates={"_mu": 0.06, "sigma": 0.015},
    schedule=OneCycle(),
    scale_loss=False,
    accelerator="cpu",
)

# %% [markdown]
# ## Is it right?
#
# The correlation with the mean of ten repeats, beside that of the true rates: no model can be better than these, but
# by chance.

# %%
with torch.no_grad():
    predicted = encoder(data.test.images)
observed = data.test.responses.mean(0)
of_model = metrics.single_trial_correlation(observed, predicted)
of_truth = metrics.single_trial_correlation(observed, data.test.rates)
print(f"model {of_model.median:.3f}, true rates {of_truth.median:.3f} (median over neurons)")

# %%
plots.example_neurons(predicted, observed, of_model.per_neuron).savefig(OUT / "neurons.png")

# %% [markdown]
# Are the receptive fields where the model says?

# %%
found = input_positions(core, readout)
learned = torch.stack([found.x, found.y], dim=1)
plots.positions(data.population.position, learned.detach(), SHAPE).savefig(OUT / "positions.png")

# %% [markdown]
# The file keeps weights, configuration and versions, without pickle.

# %%
encoder.save(OUT / "model.safetensors")
print(f"Model and pictures are in {OUT}")
