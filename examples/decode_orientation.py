# %% [markdown]
# # Which direction did the mouse see?
#
# 23,589 neurons of V1 respond to gratings that drift in 360 directions. Can the direction be read off the responses?
#
#     python examples/decode_orientation.py out/decode [W3D4_stringer_oribinned1.npz]
#
# Without a recording, a simulated population of the same size is decoded.

# %%
import sys
from pathlib import Path

import torch

from v1fast.data import read, simulate_gratings
from v1fast.decoding import DecodingSettings, DeepNetReLU, board_losses, decode, figures, population_of

arguments = [] if "ipykernel" in sys.modules else sys.argv[1:]
out = Path(arguments[0] if arguments else "out/decode")
out.mkdir(parents=True, exist_ok=True)

recording = read(arguments[1]) if len(arguments) > 1 else simulate_gratings()
population = population_of(recording)
print(f"{population.responses.shape[1]:,} neurons, {len(population.degrees)} directions")

# %% [markdown]
# ## The data
#
# Neurons are sorted by their preferred direction for every other stimulus; the picture shows the rest. Many neurons
# prefer one direction to its opposite, so 0 to 360 degrees can be told apart, not only 0 to 180.

# %%
figures.data_matrix(population).savefig(out / "data.png")
figures.tuning(population).savefig(out / "tuning.png")

# %% [markdown]
# ## A network that decodes
#
# Responses, 200 rectified units, one output: the direction in degrees. Before training it knows nothing.

# %%
torch.manual_seed(1)
network = DeepNetReLU(population.responses.shape[1], 200)
with torch.no_grad():
    guess = network(torch.from_numpy(population.responses[139:140])).item()
print(f"Untrained, the network calls {population.degrees[139]:.0f} degrees {guess:.2f}")

# %% [markdown]
# ## Training and testing
#
# Random splits: 60 % of the stimuli are for training. Networks are fitted by gradient descent on all of them, or on
# random batches (SGD). Ridge regression and reduced-rank regression are linear decoders in closed form.

# %%
found = decode(population, DecodingSettings(splits=3))
figures.losses(found.first).savefig(out / "losses.png")
figures.decoded_against_true(found.first, found.rows, 20).savefig(out / "decoded.png")
figures.errors(found.rows, found.class_rows).savefig(out / "errors.png")
for name, one in found.first.items():
    row = one.row(0)
    print(f"{name}: {row['circular_error']:.1f} degrees off on the circle, {row['plain_error']:.1f} on the line")

# %% [markdown]
# A network with one output has to jump from 360 to 0, and its errors lie there. Two outputs, cosine and sine, have no
# such place.
#
# ## Classes
#
# A softmax network chooses one of 20 classes. Penalties of its weights (L1, L2) leave those that matter: each class
# reads the neurons that prefer it.

# %%
print(f"Right class: {found.class_rows[0]['accuracy']:.0%}, chance {found.class_rows[0]['chance']:.0%}")
figures.class_weights(found.classified, population).savefig(out / "weights.png")

# %% [markdown]
# ## Width, depth, and why a network is not linear
#
# No linear network computes XOR, however deep it is. With rectified units, depth replaces width.

# %%
figures.sizes(found.sizes).savefig(out / "sizes.png")
widths, depths = (4, 8, 16, 32), (1, 2, 3)
figures.boards(widths, depths, board_losses(widths, depths, squares=4)).savefig(out / "xor.png")

# %% [markdown]
# The formulas of backpropagation, written out, and autograd give the same gradients:

# %%
print(f"Largest relative difference: {found.gradient_difference:.0e}")
print(f"Pictures are in {out}")
