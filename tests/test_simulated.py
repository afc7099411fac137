import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from v1fast import metrics
from v1fast.data import (
    PHOTOGRAPHS,
    Population,
    photograph_crops,
    response_statistics,
    simulate,
    simulate_animals,
    statistics,
)
from v1fast.data import animals as module_animals
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


TINY = {"neurons": 15, "image_shape": SHAPE, "train": 20, "validation": 4, "test": 6, "channels": 8}
STILL = {"gaze": 0, "running": 0, "shared_gain": 0}


@functools.cache
def many_repeats(noise="poisson", still=True):
    """One animal whose repeats tell what it expects; equal repeats, as the formulas of theory want."""
    settings = {"train": 2, "validation": 2, "test": 60, "repeats": (30, 30), "noise": noise}
    return simulate_animals(1, **TINY | settings | (STILL if still else {}), seed=5)[0].test


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [t for part in value for t in tensors(part)]
    if dataclasses.is_dataclass(value):
        return [t for field in dataclasses.fields(value) for t in tensors(getattr(value, field.name))]
    return []


def plane(images, core, gaze=None):
    """Responses of the core by convolution in space, the definition written out."""
    even, odd = (F.conv2d(F.pad(images, 4 * (module_animals.RADIUS,)), core.filters()[:, i, None]) for i in range(2))
    squares = torch.where(core.complex[:, None, None], even**2 + odd**2, even.clamp(min=0) ** 2)
    pool = ndimage.gaussian_filter(squares.mean(1).numpy(), (0, *2 * [module_animals.POOL_SIGMA]), mode="nearest")
    return squares / (core.semisaturation + torch.from_numpy(pool)[:, None])


def test_animals_share_the_core_and_the_test_images_and_nothing_else():
    one, two = simulate_animals(2, **TINY)
    assert one.core is two.core
    assert torch.equal(one.test.images, two.test.images)
    assert not torch.equal(one.train.images, two.train.images)
    assert not torch.equal(one.neurons.position, two.neurons.position)
    assert (one.animal, two.animal) == (0, 1)


def test_an_animal_does_not_depend_on_how_many_there_are():
    alone, first = simulate_animals(1, **TINY)[0], simulate_animals(2, **TINY)[0]
    assert all(torch.equal(a, b) for a, b in zip(tensors(alone), tensors(first), strict=True))


@pytest.mark.parametrize("noise", ["poisson", "gamma"])
def test_the_seed_decides_and_threads_do_not(noise):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = tensors(simulate_animals(1, **TINY, noise=noise, seed=3))
        torch.set_num_threads(4)
        four = tensors(simulate_animals(1, **TINY, noise=noise, seed=3))
    finally:
        torch.set_num_threads(before)
    assert len(one) > 30
    assert all(torch.equal(a, b) for a, b in zip(one, four, strict=True))
    other = tensors(simulate_animals(1, **TINY, noise=noise, seed=4))
    assert not torch.equal(one[-3], other[-3])


def test_shapes_of_trials_and_repeats_that_differ():
    recording = simulate_animals(1, **TINY | {"test": 40}, repeats=(2, 9))[0]
    for tier, images in ((recording.train, 20), (recording.validation, 4), (recording.test, 40)):
        trials = len(tier.image_ids)
        assert tier.images.shape == (images, 1, *SHAPE)
        assert tier.rates_at_rest.shape == (images, 15)
        assert tier.gaze.shape == (trials, 2)
        assert tier.speed.shape == (trials,)
        for name in ("responses", "rates", "gain", "variance"):
            values = getattr(tier, name)
            assert values.shape == (trials, 15)
            assert values.dtype == torch.float32
            assert values.isfinite().all()
    counts = recording.test.image_ids.bincount()
    assert set(counts.tolist()) == set(range(2, 10))
    assert not torch.equal(recording.test.image_ids, recording.test.image_ids.sort().values)
    assert torch.equal(recording.train.image_ids, torch.arange(20))


def test_tiers_of_animals_are_drawn_from_their_own_photographs(monkeypatch):
    asked = []

    def recorded(names, count, image_shape, rng):
        asked.append((count, set(names)))
        return photograph_crops(names, count, image_shape, rng)

    monkeypatch.setattr(module_animals, "photograph_crops", recorded)
    simulate_animals(1, **TINY)
    assert asked[1:] == [(n, set(PHOTOGRAPHS[k])) for n, k in ((6, "test"), (20, "train"), (4, "validation"))]
    assert asked[0][1] == set(PHOTOGRAPHS["train"])  # what the neurons are calibrated with


def test_matched_neurons_are_the_same_in_all_sessions_of_an_animal():
    recordings = simulate_animals(2, **TINY, sessions=3, matched=5)
    assert [(r.animal, r.session) for r in recordings] == [(a, s) for a in range(2) for s in range(3)]
    first, second, third = (r.neurons for r in recordings[:3])
    for a, b in ((first, second), (second, third), (first, third)):
        assert set(a.unit.tolist()) & set(b.unit.tolist()) == set(range(5))
        assert all(torch.equal(x, y) for x, y in zip(tensors(a[:5]), tensors(b[:5]), strict=True))
        assert not torch.equal(a.position[5:], b.position[5:])
    assert torch.allclose(recordings[0].test.rates_at_rest[:, :5], recordings[1].test.rates_at_rest[:, :5])
    assert not torch.equal(recordings[0].test.responses[:, :5].mean(0), recordings[1].test.responses[:, :5].mean(0))


def test_the_core_is_what_its_definition_says():
    core = simulate_animals(1, **TINY)[0].core
    assert core.complex.sum() == 4
    filters = core.filters()
    torch.testing.assert_close(filters.flatten(2).norm(dim=2), torch.ones(8, 2))
    assert filters.sum((2, 3)).abs().max() < 1e-4
    images = torch.randn(3, 1, *SHAPE)
    torch.testing.assert_close(core.responses(images), plane(images, core), atol=1e-4, rtol=1e-4)


def test_normalisation_saturates_with_contrast():
    core = simulate_animals(1, **TINY)[0].core
    images = torch.randn(3, 1, *SHAPE)
    low, high = core.responses(images), core.responses(100 * images)
    assert (core.responses(images / 100).mean() / low.mean()) < 1e-2
    assert high.mean() < 5 * low.mean()
    # Each pixel's channels share their pool, so that its mean response stays near 1 whatever the contrast.
    assert 0.8 < core.responses(1e4 * images).mean() < 1.3


def test_gaze_moves_what_a_cell_sees_x_first():
    core = simulate_animals(1, **TINY)[0].core
    images = torch.randn(2, 1, *SHAPE)
    moved = torch.zeros_like(images)
    moved[:, :, :-2, :-3] = images[:, :, 2:, 3:]  # image(p + gaze) for gaze = (3, 2)
    want = core._squares(moved[:, 0].numpy(), None)
    got = core._squares(images[:, 0].numpy(), np.array([[3.0, 2.0]] * 2, np.float32))
    # Above and to the left, where the moved image was cut, filters that reach beyond its edge see something else.
    inner = (..., slice(module_animals.RADIUS, None), slice(module_animals.RADIUS, None))
    torch.testing.assert_close(*(torch.from_numpy(v[inner]) for v in (got, want)), rtol=1e-4, atol=1e-5)
    half = core.responses(images, torch.tensor([[0.5, 0.0]]).expand(2, 2))
    whole = core.responses(images, torch.tensor([[1.0, 0.0]]).expand(2, 2))
    assert not torch.allclose(half, whole)


def test_a_neuron_sums_its_subfields_and_only_a_part_of_them_are_points():
    recording = simulate_animals(1, **TINY | {"neurons": 60})[0]
    core, neurons = recording.core, recording.neurons
    images = recording.test.images
    at = core.responses(images)
    weights = torch.from_numpy(module_animals._spatial(neurons, SHAPE).toarray()).reshape(60, 3, *SHAPE)
    reads = neurons.strengths[:, :, None] * neurons.features
    drive = torch.einsum("nsk,nshw,bkhw->bn", reads, weights, at)
    torch.testing.assert_close(neurons.drive(core, images), drive, rtol=1e-4, atol=1e-5)
    rates = neurons.scale * (neurons.baseline + (drive - neurons.threshold).clamp(min=0) ** neurons.exponent)
    torch.testing.assert_close(recording.test.rates_at_rest, rates, rtol=1e-3, atol=1e-4)
    subfields = (neurons.strengths > 0).sum(1)
    assert set(subfields.tolist()) == {1, 2, 3}
    assert ((neurons.features > 0).sum(2) == 3).all()


def test_neurons_of_one_subfield_read_at_their_position():
    neurons = simulate_animals(1, **TINY | {"neurons": 60}, subfields=1)[0].neurons
    assert ((neurons.strengths > 0).sum(1) == 1).all()
    reads = neurons.centres[neurons.strengths > 0]
    torch.testing.assert_close(reads, neurons.position)


def test_no_point_of_the_core_gives_what_a_neuron_sums():
    """The hypothesis of a point readout: weights of the channels at one place, here the best weights at the middle."""
    recording = simulate_animals(1, **TINY | {"neurons": 40, "train": 200})[0]
    neurons, images = recording.neurons, recording.train.images
    at = recording.core.responses(images)
    drive = neurons.drive(recording.core, images)
    explained = []
    for n, (x, y) in enumerate(neurons.position.round().long().tolist()):
        inputs = torch.cat([at[:, :, y, x], torch.ones(200, 1)], 1)
        rest = drive[:, n, None] - inputs @ torch.linalg.lstsq(inputs, drive[:, n, None]).solution
        explained.append(1 - rest.var() / drive[:, n].var())
    assert torch.stack(explained).median() < 0.9
    assert torch.stack(explained).median() > 0.2  # but it is about the right place


@pytest.mark.parametrize("elements", [1, 5 * 8 * 24 * 32])
def test_what_is_computed_at_once_changes_nothing(monkeypatch, elements):
    recording = simulate_animals(1, **TINY)[0]
    trials, core = recording.train, recording.core
    whole = core.responses(trials.images, trials.gaze)
    monkeypatch.setattr(module_animals, "ELEMENTS_AT_ONCE", elements)
    torch.testing.assert_close(core.responses(trials.images, trials.gaze), whole, rtol=1e-4, atol=1e-5)


def test_positions_are_the_middles_of_receptive_fields_on_a_smooth_map_with_scatter():
    neurons = simulate_animals(1, **TINY | {"neurons": 300, "image_shape": (36, 64), "train": 2})[0].neurons
    share = neurons.strengths / neurons.strengths.sum(1, keepdim=True)
    torch.testing.assert_close((share[..., None] * neurons.centres).sum(1), neurons.position)
    fields = neurons.receptive_fields((36, 64))
    y, x = torch.meshgrid(torch.arange(36.0), torch.arange(64.0), indexing="ij")
    inside = fields.sum((1, 2)) > 0.999
    assert inside.sum() > 100
    centre = torch.stack([(fields * x).sum((1, 2)), (fields * y).sum((1, 2))], 1)
    assert (centre - neurons.position)[inside].abs().max() < 0.35  # half a pixel of rounding where weights are cut
    spread = (fields * ((x - centre[:, :1, None]) ** 2 + (y - centre[:, 1:, None]) ** 2)).sum((1, 2)).sqrt()
    assert spread[inside].median() > 2  # pixels: more than a point reads, which is bilinear
    bend = np.column_stack([np.ones(300), neurons.cortex, neurons.cortex**2, neurons.cortex.prod(1)])
    residual = neurons.position.numpy() - bend @ np.linalg.lstsq(bend, neurons.position.numpy())[0]
    assert (abs(residual.std(0) - module_animals.SCATTER) < 0.2).all()
    assert neurons.position.min() > 1
    assert (neurons.position < torch.tensor([62.0, 34.0])).all()


def test_rates_are_gain_times_what_is_seen():
    trials = many_repeats(still=False)
    animal = simulate_animals(1, **TINY | {"train": 2, "validation": 2, "test": 60, "repeats": (30, 30)}, seed=5)[0]
    seen = animal.neurons.rates(animal.core, trials.images[trials.image_ids[:9]], trials.gaze[:9])
    torch.testing.assert_close(trials.rates[:9], trials.gain[:9] * seen)
    assert trials.speed.min() == 0
    assert trials.speed.max() > 5
    running = trials.speed > 5
    assert trials.gain[running].mean() > 1.2 * trials.gain[~running].mean()
    assert trials.gaze.std() == pytest.approx(0.7, abs=0.05)


def test_the_shared_gain_is_one_factor_of_mean_one():
    settings = TINY | {"train": 1500, "neurons": 4, "gaze": 0, "running": 0}
    gain = simulate_animals(1, **settings, shared_gain=0.5)[0].train.gain
    torch.testing.assert_close(torch.corrcoef(gain.log().T), torch.ones(4, 4), rtol=1e-4, atol=0)
    assert ((gain.mean(0) - 1).abs() < 4 * gain.std(0) / math.sqrt(1500)).all()
    assert 0.2 < gain.log().std(0).min() < gain.log().std(0).max() < 0.8


def test_without_movement_and_gains_the_rates_are_those_at_rest():
    trials = many_repeats()
    assert torch.equal(trials.rates, trials.rates_at_rest[trials.image_ids])
    assert (trials.gain == 1).all()
    assert (trials.gaze == 0).all()


@pytest.mark.parametrize("still", [True, False])
@pytest.mark.parametrize("noise", ["poisson", "gamma"])
def test_responses_have_the_rates_for_expectations_and_the_variance_said(noise, still):
    trials = many_repeats(noise, still)
    z = (trials.responses - trials.rates) / trials.variance.sqrt()
    for found, want in ((z, 0), (z**2, 1)):
        assert abs(found.mean() - want) < 4 * found.std() / math.sqrt(found.numel())
    assert 0.1 < (trials.responses == 0).float().mean() < 0.95
    if noise == "poisson":
        assert torch.equal(trials.responses, trials.responses.round())


@pytest.mark.parametrize("noise", ["poisson", "gamma"])
def test_true_rates_reach_what_theory_says_of_each_metric(noise):
    trials = many_repeats(noise)
    found = metrics.evaluate(trials.responses, trials.rates, trials.image_ids)
    n = 30
    signal = trials.rates_at_rest.double().var(0, correction=0)
    noise_power = trials.variance.double().mean(0)
    known = {
        "single_trial_correlation": (signal / (signal + noise_power)).sqrt(),
        "explainable_variance": signal / (signal + noise_power),
        "correlation_to_average": (signal / (signal + noise_power / n)).sqrt(),
        # corr of a trial with the mean of n - 1 others, and with the mean of all n
        "oracle_correlation": signal / ((signal + noise_power) * (signal + noise_power / (n - 1))).sqrt(),
        "oracle_correlation_conservative": (signal + noise_power / n).sqrt() / (signal + noise_power).sqrt(),
        "feve": torch.ones(15),
        "ccnorm": torch.ones(15),
    }
    for name, want in known.items():
        error = found[name].per_neuron - want
        assert abs(error.nanmean()) < 0.02, name
        assert error.nan_to_num().abs().max() < 0.15, name
    slope = metrics.fraction_oracle(trials.responses, trials.rates, trials.image_ids)
    jackknife, single = known["oracle_correlation"], known["single_trial_correlation"]
    assert slope.value == pytest.approx(((jackknife * single).sum() / jackknife.square().sum()).item(), abs=0.02)


def test_rates_of_trials_are_above_what_the_image_alone_allows():
    trials = many_repeats(still=False)
    found = metrics.evaluate(trials.responses, trials.rates, trials.image_ids)
    rates, variance = trials.rates.double(), trials.variance.double()
    spread = rates.var(0, correction=0)
    bound = (spread / (spread + variance.mean(0))).sqrt()
    error = found["single_trial_correlation"].per_neuron - bound
    assert abs(error.mean()) < 0.02
    at_rest = trials.rates_at_rest[trials.image_ids]
    of_images = metrics.single_trial_correlation(trials.responses, at_rest).per_neuron
    assert (found["single_trial_correlation"].per_neuron > of_images).all()
    assert found["oracle_correlation"].mean < found["single_trial_correlation"].mean - 0.05


def test_gains_that_neurons_share_correlate_their_noise():
    still, moved = (response_statistics(t.responses, t.image_ids) for t in map(many_repeats, 2 * ["poisson"], [1, 0]))
    assert abs(still.noise_correlation.mean()) < 0.01
    assert moved.noise_correlation.mean() > 0.03


def test_statistics_are_what_their_definitions_say():
    recording = simulate_animals(1, **TINY, repeats=(1, 4))[0]
    responses, ids = recording.test.responses.double(), recording.test.image_ids
    kept = [i for i in range(6) if (ids == i).sum() > 1]
    assert 1 < len(kept) < 6
    means = torch.stack([responses[ids == i].mean(0) for i in kept])
    rest = torch.cat([responses[ids == i] - responses[ids == i].mean(0) for i in kept])
    found = statistics(recording)
    pairs = torch.triu_indices(15, 15, 1)
    torch.testing.assert_close(found.noise_correlation, torch.corrcoef(rest.T)[pairs[0], pairs[1]], equal_nan=True)
    torch.testing.assert_close(found.signal_correlation, torch.corrcoef(means.T)[pairs[0], pairs[1]], equal_nan=True)
    sparsity = (1 - means.mean(0) ** 2 / means.square().mean(0)) / (1 - 1 / len(kept))
    torch.testing.assert_close(found.lifetime_sparsity, sparsity, equal_nan=True)
    zeros = (responses[torch.isin(ids, torch.tensor(kept))] == 0).double().mean(0)
    torch.testing.assert_close(found.zeros, zeros)
    explained = metrics.explainable_variance(responses, ids).per_neuron
    torch.testing.assert_close(found.explainable_variance, explained, equal_nan=True)
    assert "noise_correlation: " in str(found)


def test_what_does_not_vary_has_no_correlation():
    responses = torch.tensor([[0, 1, 2.0], [0, 1, 3], [0, 1, 5], [0, 1, 4]])
    found = response_statistics(responses, torch.tensor([0, 0, 1, 1]))
    assert found.noise_correlation.isnan().all()
    assert found.signal_correlation.isnan().all()
    assert found.lifetime_sparsity.isnan().tolist() == [True, False, False]
    assert found.lifetime_sparsity[1] == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count: want >= 1, got 0"),
        ({"neurons": 0}, "neurons: want >= 1, got 0"),
        ({"channels": 2}, "channels: want >= 3, got 2"),
        ({"gaze": -0.1}, "gaze: want >= 0, got -0.1"),
        ({"running": math.nan}, "running: want >= 0, got nan"),
        ({"seed": -1}, "seed: want >= 0, got -1"),
        ({"matched": 16}, "matched: want at most neurons = 15, got 16"),
        ({"subfields": 0}, "subfields: want >= 1, got 0"),
        ({"subfields": 4}, "subfields: want at most 3, got 4"),
        ({"repeats": (3, 2)}, r"repeats: want \(fewest, most\), .* got \(3, 2\)"),
        ({"noise": "normal"}, "noise: want 'poisson' or 'gamma', got 'normal'"),
        ({"image_shape": (12, 64)}, r"image_shape: want \(H, W\), both >= 20, got \(12, 64\)"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        simulate_animals(**{"count": 1} | TINY | wrong)


def test_operands_that_do_not_fit_are_refused():
    core = simulate_animals(1, **TINY)[0].core
    with pytest.raises(ValueError, match=r"images: want \[B, 1, H, W\] = \(B, 1, 24, 32\), got \(2, 1, 24, 31\)"):
        core.responses(torch.zeros(2, 1, 24, 31))
    with pytest.raises(ValueError, match=r"gaze: want \[B, 2\] = \(2, 2\), got \(1, 2\)"):
        core.responses(torch.zeros(2, 1, *SHAPE), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="want an image with several trials"):
        response_statistics(torch.ones(3, 2), torch.arange(3))
    with pytest.raises(ValueError, match="finite"):
        response_statistics(torch.full((3, 2), torch.nan), torch.zeros(3))
    with pytest.raises(ValueError, match=r"want \[T, N\] and \[T\], got \(3, 2\) and \(2,\)"):
        response_statistics(torch.ones(3, 2), torch.zeros(2))


def test_simulated_animals_resemble_recorded_ones(real_data):
    from v1fast.benchmarks import simulated_animals

    real = simulated_animals.recorded(real_data)
    assert real.noise_correlation.mean() == pytest.approx(0.05, abs=0.01)
    for noise in ("poisson", "gamma"):
        made = simulated_animals.simulated(noise)
        for name in ("noise_correlation", "signal_correlation", "explainable_variance", "lifetime_sparsity"):
            a, b = (getattr(of, name).nanmedian() for of in (made, real))
            assert abs(a - b) < 0.15, name
