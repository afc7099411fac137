# %% [markdown]
# # Which task makes a network like V1?
#
# A small convolutional network learns whether a grating is tilted to the left or to the right. Do its layers then
# represent orientation as mouse V1 does? Representational similarity analysis compares them without matching units to
# neurons: two systems are similar if the same stimuli are similar in both.
#
#     python examples/normative_rsa.py out/normative [W3D4_stringer_oribinned1.npz]
#
# Without a recording, V1 is a simulated population of the same size.

# %%
import sys
from pathlib import Path

from v1fast import functional, rsa
from v1fast.data import gratings, read, simulate_gratings
from v1fast.decoding import population_of
from v1fast.normative import NormativeSettings, compare_with_v1, figures, train_on_tilt

arguments = [] if "ipykernel" in sys.modules else sys.argv[1:]
out = Path(arguments[0] if arguments else "out/normative")
out.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The task
#
# Orientations of -90 to 90 degrees; negative ones are tilted to the left.

# %%
figures.stimuli().savefig(out / "stimuli.png")

# %% [markdown]
# ## The network
#
# 6 filters of 7 x 7 pixels, two of them with a centre and a surround, four oriented; max-pooling over 8 x 8 pixels; 10
# hidden units; one output. Stochastic gradient descent with momentum, on 1000 gratings.

# %%
trained = train_on_tilt(seed=12)
print("Loss after 5, 10, .. 25 epochs:", " ".join(f"{loss:.2e}" for loss in trained.losses[4::5]))
print(f"{trained.test_accuracy:.1%} of new gratings are judged right")
figures.filters(trained, 6, 7).savefig(out / "filters.png")

# %% [markdown]
# ## Dissimilarity matrices
#
# 1 minus the correlation of the activations for two orientations: of the pixels, of the layer after pooling, and of the
# hidden units.

# %%
orientations = list(range(-90, 91))
images = gratings(orientations)
systems = {"pixels": images.flatten(1)} | rsa.activations(trained.network, images, ["pool", "fc"])
matrices = {name: functional.rdm(values).numpy() for name, values in systems.items()}
for one, other in (("pool", "fc"), ("pixels", "pool"), ("pixels", "fc")):
    print(f"{one} and {other}: similarity {rsa.compare(matrices[one], matrices[other]):.3f}")

# %% [markdown]
# ## V1, other networks and other tasks
#
# The same network learns other tasks, and an encoding model is fitted to some of the neurons directly. All are compared
# with the neurons that it was not fitted to.

# %%
recording = read(arguments[1]) if len(arguments) > 1 else simulate_gratings()
found = compare_with_v1(population_of(recording), NormativeSettings(seeds=2))
for row in found.rows:
    print(f"{row['system']}, {row['layer']}: {row['similarity']:.3f}; {row['solved']}")

# %%
figures.losses(found.trained).savefig(out / "losses.png")
figures.rdms(found).savefig(out / "rdms.png")
figures.rows(found).savefig(out / "rows.png")
figures.tuning(found).savefig(out / "tuning.png")
figures.maps(found).savefig(out / "maps.png")
figures.layers(found).savefig(out / "layers.png")

# %% [markdown]
# ## Which task?
#
# Noise makes single stimuli more different than they are. On the right, V1's matrix is cross-validated over
# neighbouring stimuli, which takes this away.

# %%
figures.tasks(found.rows, found.v1.ceiling).savefig(out / "tasks.png")
print(f"Pictures are in {out}")
