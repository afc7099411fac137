"""Most exciting inputs and receptive fields, against cells whose filters are known."""

import pytest
import torch
from torch import nn

from v1fast.data import simulate
from v1fast.insilico import most_exciting_inputs, receptive_fields
from v1fast.models import FiringRateEncoder, MLPModulator, MLPShifter, Stacked2dCore
from v1fast.readouts import FullGaussian2d, MultiReadoutBase

pytest.importorskip("skimage")
SHAPE = (24, 32)


class Cells(nn.Module):
    """The simulated cells themselves as a model."""

    def __init__(self, population):
        super().__init__()
        self.population = population

    def forward(self, images):
        return self.population.rates(images)


@pytest.fixture(scope="module")
def simulation():
    return simulate(12, SHAPE, train=60, validation=1, test=1, repeats=1, simple=0.5)


@pytest.fixture(scope="module")
def exciting(simulation):
    return most_exciting_inputs(Cells(simulation.population), SHAPE, norm=5.0, steps=150)


def encoder(**parts):
    torch.manual_seed(0)
    core = Stacked2dCore(1, 4, 5, 3, layers=2, stack=-1, pad_input=False)
    readout = MultiReadoutBase(
        {"a": (4, 20, 28), "b": (4, 20, 28)}, {"a": 6, "b": 3}, FullGaussian2d, bias=True, init_sigma=0.3
    )
    return FiringRateEncoder(core, readout, **parts)


def along(images, directions):
    """Share of each image's squared norm in the span of its directions [M, K, ...]."""
    images, directions = images.flatten(1).double(), directions.flatten(2).double()
    basis = torch.linalg.qr(directions.mT).Q
    return (torch.einsum("mp,mpk->mk", images, basis).square().sum(1) / images.square().sum(1)).sqrt()


def test_a_simple_cells_image_is_its_filter(simulation, exciting):
    cells = simulation.population
    wanted = cells.filters()[0].flatten(1)
    r = nn.functional.cosine_similarity(exciting.images.flatten(1), wanted)
    assert 3 <= cells.simple.sum() <= 9
    assert (r[cells.simple] > 0.99).all()


def test_a_complex_cells_image_lies_in_the_span_of_its_pair(simulation, exciting):
    cells = simulation.population
    shares = along(exciting.images, cells.filters().transpose(0, 1))
    assert (shares[~cells.simple] > 0.99).all()
    # that is no matter of course: one filter of the pair does not span it
    assert along(exciting.images, cells.filters()[:1].transpose(0, 1))[~cells.simple].min() < 0.9


def test_rates_are_the_models_and_no_photograph_of_that_norm_excites_more(simulation, exciting):
    rates = simulation.population.rates(exciting.images).diagonal()
    assert torch.allclose(exciting.rates, rates, rtol=1e-5)
    photographs = simulation.train.images
    photographs = photographs * (5.0 / photographs.flatten(1).norm(dim=1))[:, None, None, None]
    assert (simulation.population.rates(photographs).amax(0) < rates).all()
    assert torch.equal(exciting.background_rates, torch.zeros(12))
    assert exciting.history.shape == (151, 12)
    assert torch.equal(exciting.history[-1], exciting.rates)


def test_constraints_hold(simulation):
    model = Cells(simulation.population)
    found = most_exciting_inputs(model, SHAPE, [0, 5], norm=8.0, value_range=(-0.3, 0.9), background=0.2, steps=20)
    assert found.images.min() >= -0.3
    assert found.images.max() <= 0.9
    norms = (found.images - 0.2).flatten(1).norm(dim=1)
    assert (norms <= 8.0 * (1 + 1e-5)).all()
    range_only = most_exciting_inputs(model, SHAPE, [0], value_range=(-1.0, 1.0), steps=60)
    assert range_only.images.abs().max() == 1
    assert range_only.rates > most_exciting_inputs(model, SHAPE, [0], norm=2.0, steps=60).rates


def test_neurons_do_not_depend_on_each_other(simulation, exciting):
    alone = most_exciting_inputs(Cells(simulation.population), SHAPE, [7, 2], norm=5.0, steps=150, images_at_once=1)
    assert torch.allclose(alone.images, exciting.images[[7, 2]], atol=1e-3)
    assert alone.neurons.tolist() == [7, 2]


def test_more_restarts_are_never_worse_and_blur_makes_smoother(simulation):
    model = encoder()
    once = most_exciting_inputs(model, SHAPE, data_key="a", norm=5.0, steps=10)
    thrice = most_exciting_inputs(model, SHAPE, data_key="a", norm=5.0, steps=10, restarts=3)
    assert (thrice.rates >= once.rates).all()
    smooth = most_exciting_inputs(model, SHAPE, data_key="a", norm=5.0, steps=100, blur=2.0).images
    rough = most_exciting_inputs(model, SHAPE, data_key="a", norm=5.0, steps=100).images
    assert (smooth.diff(dim=3).norm() < rough.diff(dim=3).norm()).item()


def test_a_neuron_that_no_image_moves_is_nan_and_counted():
    model = encoder()
    with torch.no_grad():
        model.readout["b"].features[..., 1] = 0
    found = most_exciting_inputs(model, SHAPE, data_key="b", norm=1.0, steps=5)
    assert found.rates.isnan().tolist() == [False, True, False]
    assert found.images[1].isnan().all()
    assert found.undefined == 1
    assert "1 undefined" in repr(found)
    fields = receptive_fields(model, torch.randn(4, 1, *SHAPE), data_key="b", components=2)
    assert fields.components[1].isnan().all()
    assert not fields.components[0].isnan().any()


def test_the_model_is_left_as_it_was():
    model = encoder().train()
    model.core.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = most_exciting_inputs(model, SHAPE, data_key="a", norm=1.0, steps=3)
    receptive_fields(model, torch.randn(3, 1, *SHAPE), data_key="a")
    assert model.training
    assert model.core.training
    assert not any(parameter.requires_grad for parameter in model.core.parameters())
    assert all(parameter.requires_grad for parameter in model.readout.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not found.images.requires_grad


def test_shifter_and_modulator_get_the_animals_state():
    neurons = {"a": 6, "b": 3}
    model = encoder(shifter=MLPShifter(neurons), modulator=MLPModulator(neurons, 2))
    with pytest.raises(ValueError, match="pupil_center"):
        most_exciting_inputs(model, SHAPE, data_key="a", norm=1.0, steps=2)
    with pytest.raises(ValueError, match=r"behavior: want \[K\]"):
        most_exciting_inputs(model, SHAPE, data_key="a", norm=1.0, behavior=torch.zeros(1, 2))
    state = {"pupil_center": torch.tensor([1.0, 0.5]), "behavior": torch.tensor([0.5, 2.0])}
    found = most_exciting_inputs(model, SHAPE, data_key="a", norm=3.0, steps=5, **state)
    batch = {name: value.expand(6, 2) for name, value in state.items()}
    with torch.no_grad():
        rates = model.eval()(found.images, data_key="a", **batch)
    assert torch.allclose(found.rates, rates.diagonal(), rtol=1e-4)


def test_the_mean_gradient_is_a_simple_cells_filter(simulation):
    cells = simulation.population
    fields = receptive_fields(Cells(cells), simulation.train.images, images_at_once=17)
    r = nn.functional.cosine_similarity(fields.mean.flatten(1), cells.filters()[0].flatten(1))
    assert (r[cells.simple] > 0.99).all()
    assert (r[~cells.simple].abs() < 0.9).any()


def test_gradients_of_a_complex_cell_span_its_pair(simulation):
    cells = simulation.population
    fields = receptive_fields(Cells(cells), simulation.train.images, components=2)
    complex_ = ~cells.simple
    pairs = fields.components[complex_, :, 0]
    for direction in (0, 1):
        assert (along(pairs[:, direction], cells.filters().transpose(0, 1)[complex_]) > 0.99).all()
    assert torch.allclose(fields.shares[complex_].sum(1), torch.ones(int(complex_.sum())), atol=1e-3)
    # where it reads, it reads: the root mean square is largest at the centre
    peak = fields.rms[:, 0].flatten(1).argmax(1)
    x, y = peak % SHAPE[1], peak // SHAPE[1]
    assert (torch.stack([x, y], 1) - cells.position).norm(dim=1).max() < 4


def test_gradients_of_an_encoder_are_autograds():
    model, images = encoder().eval(), torch.randn(5, 1, *SHAPE)
    fields = receptive_fields(model, images, [4, 0], data_key="a", images_at_once=2)
    for row, neuron in enumerate((4, 0)):
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf, data_key="a")[:, neuron].sum(), leaf)
        assert torch.allclose(fields.mean[row], gradient.mean(0), atol=1e-6)
        assert torch.allclose(fields.rms[row], gradient.square().mean(0).sqrt(), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "norm, value_range: want at least one"),
        ({"norm": 0.0}, "norm: want > 0, got 0.0"),
        ({"norm": 1.0, "steps": 0}, "steps: want >= 1, got 0"),
        ({"norm": 1.0, "blur": -1.0}, "blur: want pixels >= 0"),
        ({"value_range": (0.5, 1.0)}, r"value_range: want lowest <= background \(0.0\) <= highest"),
    ],
)
def test_bad_constraints_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        most_exciting_inputs(encoder(), SHAPE, data_key="a", **arguments)


def test_bad_images_and_neurons_are_named():
    model = encoder()
    with pytest.raises(ValueError, match=r"images: want \[B, C, H, W\] with B > 0"):
        receptive_fields(model, torch.zeros(0, 1, *SHAPE), data_key="a")
    with pytest.raises(ValueError, match="components: want 0 to"):
        receptive_fields(model, torch.zeros(2, 1, *SHAPE), data_key="a", components=3)
    with pytest.raises(IndexError, match="got 6"):
        most_exciting_inputs(model, SHAPE, [6], data_key="a", norm=1.0)
