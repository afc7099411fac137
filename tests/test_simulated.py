import dataclasses
import math

import numpy as np
import pytest
import torch

from v1fast.data import PHOTOGRAPHS, Population, photograph_crops, simulate
from v1fast.data import simulated as module

pytest.importorskip("skimage")

SHAPE = (24, 32)
SMALL = {"neurons": 12, "image_shape": SHAPE, "train": 30, "validation": 6, "test": 8, "repeats": 3}


def one_cell(x=15.0, y=11.0, orientation=0.6, frequency=0.15, sigma=2.5):
    def column(value):
        return torch.tensor([value])

    return Population(
        image_shape=SHAPE,
        cortex=torch.zeros(1, 2),
        position=torch.tensor([[x, y]]),
        orientation=column(orientation),
        frequency=column(frequency),
        sigma=column(sigma),
        gain=column(1.0),
    )


def gratings(orientation, frequency, phase, window=None):
    """[B, 1, H, W]; window = (x, y, radius) shows the grating in a soft disc only."""
    orientation, frequency, phase = torch.broadcast_tensors(*map(torch.atleast_1d, (orientation, frequency, phase)))
    y, x = torch.meshgrid(torch.arange(SHAPE[0]), torch.arange(SHAPE[1]), indexing="ij")
    along = x * orientation.cos()[:, None, None] + y * orientation.sin()[:, None, None]
    images = (2 * math.pi * frequency[:, None, None] * along + phase[:, None, None]).cos()
    if window is not None:
        cx, cy, radius = (v[:, None, None] for v in window)
        images = images * torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * radius**2))
    return images[:, None]


def test_the_filters_are_quadrature_pairs_blind_to_luminance():
    filters = simulate(**SMALL).population.filters()
    assert filters.shape == (2, 12, *SHAPE)
    torch.testing.assert_close(filters.flatten(2).norm(dim=2), torch.ones(2, 12))
    assert filters.flatten(2).sum(2).abs().max() < 1e-4
    assert (filters[0] * filters[1]).sum((1, 2)).abs().max() < 0.05


def test_a_cell_prefers_its_own_orientation_and_ignores_phase():
    cell = one_cell(orientation=0.6)
    angles = torch.arange(0, math.pi, math.pi / 60)
    phases = torch.arange(0, 2 * math.pi, math.pi / 6)
    energy = torch.stack([cell.energy(gratings(angles, torch.tensor(0.15), phase))[:, 0] for phase in phases])
    best = angles[energy.mean(0).argmax()].item()
    assert abs(best - 0.6) <= math.pi / 60
    across = energy.mean(0)[(angles - (0.6 + math.pi / 2)).abs().argmin()]
    assert across < 0.01 * energy.mean(0).max()
    at_best = energy[:, energy.mean(0).argmax()]
    assert (at_best.max() - at_best.min()) / at_best.mean() < 0.1


def test_a_cell_prefers_its_own_frequency():
    cell = one_cell(frequency=0.15)
    frequencies = torch.arange(0.05, 0.35, 0.01)
    energy = cell.energy(gratings(torch.tensor(0.6), frequencies, torch.tensor(0.3)))[:, 0]
    assert abs(frequencies[energy.argmax()].item() - 0.15) <= 0.0201


@pytest.mark.parametrize("phase", [0.0, 1.0, 2.5])
def test_a_cell_prefers_its_own_position_width_first(phase):
    cell = one_cell(x=20.0, y=9.0)
    y, x = (v.flatten().float() for v in torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij"))
    patches = gratings(torch.tensor([0.6]), torch.tensor(0.15), torch.tensor(phase), (x, y, torch.full_like(x, 2.0)))
    best = cell.energy(patches)[:, 0].argmax()
    assert abs(x[best].item() - 20) <= 1
    assert abs(y[best].item() - 9) <= 1


def test_rates_grow_linearly_with_contrast():
    cell = dataclasses.replace(one_cell(), gain=torch.tensor([3.0]))
    image = torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cell.rates(2 * image), 2 * cell.rates(image))
    torch.testing.assert_close(cell.rates(image), 3 * cell.energy(image).sqrt())


def test_energy_does_not_depend_on_how_many_neurons_are_computed_at_once(monkeypatch):
    simulation = simulate(**SMALL)
    whole = simulation.population.energy(simulation.test.images)
    monkeypatch.setattr(module, "NEURONS_AT_ONCE", 5)
    torch.testing.assert_close(simulation.population.energy(simulation.test.images), whole)


def test_the_same_seed_gives_the_same_simulation_and_another_one_does_not():
    first, second, other = simulate(**SMALL, seed=3), simulate(**SMALL, seed=3), simulate(**SMALL, seed=4)
    for tier in ("train", "validation", "test"):
        for field in ("images", "rates", "responses"):
            assert torch.equal(getattr(getattr(first, tier), field), getattr(getattr(second, tier), field))
    assert torch.equal(first.population.position, second.population.position)
    assert not torch.equal(first.population.position, other.population.position)
    assert not torch.equal(first.train.images, other.train.images)


def test_shapes_and_value_ranges():
    simulation = simulate(**SMALL)
    for tier, count, repeats in ((simulation.train, 30, 1), (simulation.validation, 6, 1), (simulation.test, 8, 3)):
        assert tier.images.shape == (count, 1, *SHAPE)
        assert tier.rates.shape == (count, 12)
        assert tier.responses.shape == (repeats, count, 12)
        assert tier.images.dtype == tier.rates.dtype == tier.responses.dtype == torch.float32
        assert tier.rates.min() >= 0
        assert torch.equal(tier.responses, tier.responses.round())
    means = simulation.train.rates.mean(0)
    assert ((means >= 0.99) & (means <= 2.01)).all()


def test_responses_are_poisson_counts_of_the_rates():
    tier = simulate(**SMALL | {"test": 20, "repeats": 400}).test
    z = (tier.responses.mean(0) - tier.rates) / (tier.rates / 400).sqrt()
    assert z.abs().max() < 5
    assert abs(z.std() - 1) < 0.2
    fano = tier.responses.var(0) / tier.rates
    assert abs(fano.mean() - 1) < 0.05


def test_receptive_fields_lie_in_the_image_and_follow_the_cortical_map():
    population = simulate(**SMALL | {"neurons": 300, "image_shape": (36, 64), "train": 2}).population
    edge = module.MARGIN - 3 * module.SCATTER
    for place, size in zip(population.position.T, (64, 36), strict=True):
        assert place.min() >= edge
        assert place.max() <= size - 1 - edge
        assert place.max() - place.min() > size - 1 - 2 * module.MARGIN - 2
    r = np.corrcoef(population.cortex.T, population.position.T)
    assert r[0, 2] > 0.9  # cortical x gives x,
    assert r[1, 3] < -0.6  # cortical y gives y, mirrored
    bend = np.column_stack([np.ones(300), population.cortex, population.cortex**2, population.cortex.prod(1)])
    residual = population.position.numpy() - bend @ np.linalg.lstsq(bend, population.position.numpy())[0]
    assert (abs(residual.std(0) - module.SCATTER) < 0.15).all()


def test_no_photograph_is_in_two_tiers():
    names = [name for tier in PHOTOGRAPHS.values() for name in tier]
    assert len(names) == len(set(names))
    shown = {name: module._photograph(name) for name in names}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert shown[a].shape != shown[b].shape or not torch.equal(shown[a], shown[b])


def test_every_tier_is_drawn_from_its_own_photographs(monkeypatch):
    asked = {}

    def recorded(names, count, image_shape, rng):
        asked[count] = set(names)
        return photograph_crops(names, count, image_shape, rng)

    monkeypatch.setattr(module, "photograph_crops", recorded)
    simulate(**SMALL)
    assert asked == {30: set(PHOTOGRAPHS["train"]), 6: set(PHOTOGRAPHS["validation"]), 8: set(PHOTOGRAPHS["test"])}


def test_crops_are_z_scored_and_show_something():
    crops = photograph_crops(PHOTOGRAPHS["test"], 50, SHAPE, np.random.default_rng(0))
    torch.testing.assert_close(crops.mean((1, 2, 3)), torch.zeros(50), atol=1e-5, rtol=0)
    torch.testing.assert_close(crops.std((1, 2, 3), correction=0), torch.ones(50))
    # Grain on an even sky would be uncorrelated between neighbouring pixels.
    neighbours = (crops[..., 1:] * crops[..., :-1]).mean((1, 2, 3))
    assert neighbours.min() > 0.3


@pytest.mark.parametrize("name", ["neurons", "train", "validation", "test", "repeats"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: want >= 1, got 0"):
        simulate(**SMALL | {name: 0})


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"image_shape: want \(H, W\), both >= 20, got \(12, 64\)"):
        simulate(**SMALL | {"image_shape": (12, 64)})
    with pytest.raises(ValueError, match=r"images: want .* got \(2, 1, 24, 31\)"):
        one_cell().energy(torch.zeros(2, 1, 24, 31))
    with pytest.raises(ValueError, match=r"images: want .* got \(2, 24, 32\)"):
        one_cell().rates(torch.zeros(2, 24, 32))


def test_a_cell_outside_of_the_image_does_not_respond():
    cell = one_cell(x=500.0, y=-500.0, sigma=1.0)
    rates = cell.rates(torch.randn(3, 1, *cell.image_shape))
    assert (rates == 0).all()
