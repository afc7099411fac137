# %% [markdown]
# # Why a sampled point finds its way
#
# A readout of one point has to learn where the point lies. Far from the right place its loss is flat. A point that is
# drawn anew for every image, from a Gaussian that is learned too, feels the right place from afar.
#
#     python examples/readout_gradients.py

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from v1fast.functional import gaussian_readout
from v1fast.readouts import FullGaussian2d, PointPooled2d

OUT = Path("out/readout-gradients")
OUT.mkdir(parents=True, exist_ok=True)
SIZE, SMOOTH = 41, 2.0  # pixels of a map; standard deviation of the filter that makes it smooth
PIXEL = (SIZE - 1) / 2  # pixels in a unit of position: -1 and 1 are the outermost pixels
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"


def smooth_noise(images: int, channels: int, seed: int) -> torch.Tensor:
    """[images, channels, SIZE, SIZE]: white noise through a Gaussian filter, of variance 1."""
    size = SIZE + 16
    noise = torch.randn(images * channels, 1, size, size, generator=torch.Generator().manual_seed(seed))
    kernel = torch.exp(-(torch.arange(-8.0, 9.0) ** 2) / (2 * SMOOTH**2))
    noise = F.conv2d(F.conv2d(noise, kernel.reshape(1, 1, 1, 17)), kernel.reshape(1, 1, 17, 1))
    return (noise / noise.std()).reshape(images, channels, SIZE, SIZE).contiguous(memory_format=torch.channels_last)


# %% [markdown]
# ## The loss along a line
#
# A cell reads a map at one place. A readout with the right weight reads it some pixels away. Its squared error depends
# on that distance only as far as the map is correlated with itself, here a few pixels. If positions are drawn from a
# Gaussian of standard deviation sigma, the expected error is that curve, smoothed by the Gaussian: it is shallower and
# wider.

# %%
features = smooth_noise(2000, 1, seed=0)
distances = torch.arange(0.5, 20, 1.0)  # pixels; between pixels, since at a pixel the interpolation has a kink
lines = torch.linspace(-0.7, 0.7, 15)  # the same along several rows of the map, for less noise
right_places = torch.cartesian_prod(torch.zeros(len(distances)), lines)
one = torch.ones(len(right_places), 1)
target = gaussian_readout(features, right_places, None, one)


def loss_and_step(sigma: float, draws: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """At each distance: mean squared error, and by autograd how much it falls for a step towards the right place."""
    mu = right_places - F.pad(distances.repeat_interleave(len(lines))[:, None] / PIXEL, (0, 1))
    mu.requires_grad_()
    losses = []
    for seed in range(draws if sigma else 1):
        options = {"sigma": sigma * one, "seed": seed} if sigma else {"sigma": None}
        losses.append((gaussian_readout(features, mu, weight=one, **options) - target).square().mean(0))
    loss = torch.stack(losses).mean(0)
    loss.sum().backward()
    return loss.detach().reshape(-1, len(lines)).mean(1), -mu.grad[:, 0].reshape(-1, len(lines)).mean(1)


def expected(sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from the map's covariance exp(-d^2 / 4 SMOOTH^2), smoothed by the Gaussian; without borders."""
    width = 4 * SMOOTH**2 + 2 * (sigma * PIXEL) ** 2
    similar = 2 * 4 * SMOOTH**2 / width * torch.exp(-(distances**2) / width)
    return 2 - similar, similar * 2 * distances / width * PIXEL


figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for sigma, colour in ((0.0, RED), (0.15, ORANGE), (0.4, BLUE)):
    name = f"drawn, sigma = {sigma * PIXEL:.0f} px" if sigma else "a point"
    for axes, measured, theory in zip((left, right), loss_and_step(sigma), expected(sigma), strict=True):
        axes.plot(distances, measured, "o", ms=5, color=colour, label=name)
        axes.plot(distances, theory, color=colour, lw=1.5)
left.set(ylabel="expected squared error", title="Sampling makes the basin wider")
right.set(yscale="log", ylim=(1e-3, 30), ylabel="gradient towards the right place")
right.set_title("From afar only a sampled point has a gradient")
for axes in (left, right):
    axes.set(xlabel="distance from the right place (px)", xlim=(0, 20))
    axes.spines[["top", "right"]].set_visible(False)
left.legend(frameon=False, loc="lower right", title="dots: autograd; lines: theory")
figure.savefig(OUT / "basin.png", dpi=110)

# %% [markdown]
# ## Two ways to differentiate a random point
#
# The gradient is wanted of an expectation over draws. Written as position = mu + sigma * noise, a draw is a smooth
# function of mu and sigma, and its own derivative is an unbiased estimate: the *reparameterised*, or pathwise,
# gradient. The score function needs no derivative of the map: it weighs the loss of each draw by how far the draw lies
# from mu. Its noise grows as sigma shrinks, and that of the pathwise gradient does not.

# %%
COUNT = 1000
draw = torch.Generator().manual_seed(1)
middle = torch.zeros(COUNT, 2)
for sigma in (0.4, 0.15, 0.05):
    pathwise, score = [], []
    for image in range(200):
        mu, noise = middle.clone().requires_grad_(), torch.randn(1, COUNT, 2, generator=draw)
        spread, weight = torch.full((COUNT, 1), sigma), torch.ones(COUNT, 1)
        wanted = gaussian_readout(features[image : image + 1], torch.tensor([[0.3, 0.0]]), None, weight[:1])
        loss = (gaussian_readout(features[image : image + 1], mu, spread, weight, noise=noise)[0] - wanted[0]).square()
        pathwise.append(torch.autograd.grad(loss.sum(), mu)[0][:, 0])
        score.append(loss.detach() * noise[0, :, 0] / sigma)
    # A thousand estimates from a batch of 200 images, with one draw for each image.
    of_batches = {"pathwise": torch.stack(pathwise).mean(0), "score": torch.stack(score).mean(0)}
    text = ", ".join(f"{name} {each.mean():+.2f} +- {each.std():.2f}" for name, each in of_batches.items())
    print(f"sigma {sigma * PIXEL:.0f} px: {text}")

# %% [markdown]
# ## Learning where to look
#
# Cells read 8 channels at one place each. Three readouts learn places and weights from the same images: a point; a
# point on the map and its poolings (Sinz et al. 2018), whose coarse levels reach farther; a sampled point (Lurz et al.
# 2021). All start near the middle.

# %%
CELLS, CHANNELS, STEPS, BATCH = 200, 8, 800, 64
maps = smooth_noise(2000, CHANNELS, seed=2)
draw = torch.Generator().manual_seed(3)
true = torch.rand(CELLS, 2, generator=draw) * 1.6 - 0.8
weights = torch.randn(CELLS, CHANNELS, generator=draw)
responses = gaussian_readout(maps, true, None, weights)
responses += 0.5 * torch.randn(responses.shape, generator=draw)


def learned(readout: torch.nn.Module, sample: bool) -> tuple[torch.Tensor, list[float], list[float]]:
    """Distances to the true places after training, and after each step their median and that of sigma, in pixels."""
    order, errors, spreads = torch.Generator().manual_seed(4), [], []
    optimiser = torch.optim.Adam(readout.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(maps), (BATCH,), generator=order)
        rates = readout(maps[batch], sample=sample)
        optimiser.zero_grad()
        (rates - responses[batch]).square().mean(0).sum().backward()
        optimiser.step()
        schedule.step()
        distance = (readout.grid.detach().reshape(CELLS, 2) - true).norm(dim=1) * PIXEL
        errors.append(distance.median().item())
        spreads.append(readout.sigma.detach().abs().median().item() * PIXEL if sample else 0.0)
    return distance, errors, spreads


torch.manual_seed(0)
shape = (CHANNELS, SIZE, SIZE)
gaussian = {"bias": True, "init_mu_range": 0.1, "gauss_type": "isotropic"}
readouts = {
    "point": (FullGaussian2d(shape, CELLS, **gaussian), False, RED),
    "pooled, 3 poolings": (PointPooled2d(shape, CELLS, 3, True, 2, 0.1), False, GREEN),
    "sampled point": (FullGaussian2d(shape, CELLS, init_sigma=0.4, **gaussian), True, BLUE),
}

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for name, (readout, sample, colour) in readouts.items():
    distance, errors, spreads = learned(readout, sample)
    near = (distance < 1).float().mean()
    print(f"{name}: {near:.0%} of cells within 1 pixel of their place, median distance {distance.median():.2f} px")
    left.ecdf(distance, color=colour, lw=2, label=f"{name}: {near:.0%} within 1 px")
    right.plot(errors, color=colour, lw=2, label=f"{name}: distance")
    if sample:
        right.plot(spreads, color=colour, lw=2, ls="--", label=f"{name}: sigma")
left.set(xscale="log", xlabel="distance from the right place (px)", ylabel="fraction of cells", title="After training")
right.set(yscale="log", xlabel="step", ylabel="median over cells (px)", title="sigma shrinks as places are found")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
figure.savefig(OUT / "learning.png", dpi=110)
