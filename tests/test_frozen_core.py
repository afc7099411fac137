"""A frozen core's features are computed once: nothing else changes."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("lightning")
pytest.importorskip("torchmetrics")

from v1fast.models import FiringRateEncoder, MLPModulator, MLPShifter, Stacked2dCore
from v1fast.readouts import FullGaussian2d, MultiReadoutBase
from v1fast.training import (
    CachedFeatures,
    TensorBatches,
    TrialRows,
    cache_features,
    fit,
    fit_readouts,
    without_core,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (4, 10, 12)
NEURONS = {"a": 6, "b": 4}


def encoder(beside=False):
    torch.manual_seed(0)
    core = Stacked2dCore(1, 4, 5, 3, layers=2, stack=-1, gamma_input=0.1)
    for _ in range(3):  # statistics of its batch norms
        core(torch.randn(16, 1, *SHAPE[1:]))
    readout = MultiReadoutBase(dict.fromkeys(NEURONS, SHAPE), NEURONS, FullGaussian2d, bias=True, init_sigma=0.2)
    options = {"shifter": MLPShifter(NEURONS), "modulator": MLPModulator(NEURONS, 3)} if beside else {}
    return FiringRateEncoder(core, readout, **options)


def trials(count, neurons, seed=0, beside=False):
    generator = torch.Generator().manual_seed(seed)
    fields = {
        "images": torch.randn(count, 1, *SHAPE[1:], generator=generator),
        "responses": torch.rand(count, neurons, generator=generator),
    }
    if beside:
        fields |= {"pupil_center": torch.randn(count, 2, generator=generator), "behavior": torch.rand(count, 3)}
    return fields


def data(seed=0, **options):
    return {"a": trials(40, 6, seed, **options), "b": trials(24, 4, seed + 1, **options)}


OPTIONS = {"max_epochs": 3, "batch_size": 16, "show": False, "seed": 3, "accelerator": "cpu"}


class Counting(nn.Module):
    """Counts the images that a core is given."""

    def __init__(self, core):
        super().__init__()
        self.core, self.images, self.modes = core, 0, set()

    def forward(self, x):
        self.images += len(x)
        self.modes.add(self.core.training)
        return self.core(x)


@pytest.mark.parametrize("beside", [False, True])
def test_loss_curve_and_readouts_are_those_of_a_core_that_runs_in_every_step(beside):
    plain, cached = encoder(beside), encoder(beside)
    given, validation = data(beside=beside), data(5, beside=beside)
    want = fit(plain.freeze_core(), given, validation, **OPTIONS)
    got = fit_readouts(cached, given, validation, **OPTIONS)
    for one, other in zip(want.epochs, got.epochs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for (name, one), (_, other) in zip(plain.named_parameters(), cached.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)
    x = given["a"]["images"][:8]
    others = {name: given["a"][name][:8] for name in ("pupil_center", "behavior") if beside}
    torch.testing.assert_close(
        plain(x, data_key="a", **others), cached(x, data_key="a", **others), rtol=1e-4, atol=1e-5
    )


def test_the_core_stays_as_it_was_bit_for_bit_and_runs_once_for_each_image():
    model = encoder().train()
    model.core = counting = Counting(model.core)
    before = copy.deepcopy(model.core.state_dict())
    fit_readouts(model, data(), data(5), **OPTIONS)
    assert counting.images == 2 * (40 + 24)
    assert counting.modes == {False}
    for name, value in model.core.state_dict().items():
        assert value.equal(before[name]), name
    assert model.core_is_frozen


def test_modes_of_the_core_are_left_as_they_were():
    model = encoder().train()
    model.core.features[0].eval()
    before = [module.training for module in model.core.modules()]
    norm = copy.deepcopy(model.core.state_dict())
    cache_features(model, trials(8, 6))
    assert [module.training for module in model.core.modules()] == before
    assert all(value.equal(norm[name]) for name, value in model.core.state_dict().items())


def test_no_gradient_of_features_is_asked_for(monkeypatch):
    model = encoder().freeze_core().train()
    rows = cache_features(model, trials(16, 6))["images"]
    features = rows[torch.arange(16)]
    assert not features.requires_grad
    assert features.is_contiguous(memory_format=torch.channels_last)
    asked = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if op == torch.ops.v1fast.gaussian_readout_backward.default:
                asked.append(args[-1])
            return op(*args, **(kwargs or {}))

    with Watch():
        without_core(model).train()(features, data_key="a").sum().backward()
    # Of features, mu, sigma, weight, bias and shift.
    assert asked == [[False, True, True, True, True, False]]
    readout = model.readout["a"]
    assert readout._mu.grad is not None
    assert readout.sigma.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_holds_what_memory_does_and_is_gone_afterwards(tmp_path, dtype):
    model, fields = encoder(), trials(20, 6)
    kept = cache_features(model, fields, dtype=dtype, batch_size=8)["images"]
    mapped = cache_features(model, fields, dtype=dtype, batch_size=8, memory=0, folder=tmp_path / "new")["images"]
    assert (kept.mapped, mapped.mapped) == (False, True)
    chosen = torch.tensor([19, 0, 7, 7])
    assert kept[chosen].equal(mapped[chosen])
    assert kept[chosen].dtype == torch.float32
    assert kept.nbytes == 20 * 4 * 10 * 12 * dtype.itemsize
    assert "in a file" in repr(mapped)
    assert not list((tmp_path / "new").iterdir())
    want = model.eval().features(fields["images"][chosen])
    torch.testing.assert_close(kept[chosen], want, **({} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 1e-3}))


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    import tempfile

    class Full:
        name = str(tmp_path / "v1fast-features-x")

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def write(self, content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **options: Full())
    with pytest.raises(OSError, match=r"No space left on device: '.*v1fast-features-x'"):
        cache_features(encoder(), trials(20, 6), memory=0)


def test_images_shown_in_several_trials_are_run_once():
    model = encoder()
    model.core = counting = Counting(model.core)
    images, index = torch.randn(5, 1, *SHAPE[1:]), torch.tensor([4, 0, 0, 2, 4, 1])
    rows = cache_features(model, {"images": TrialRows(images, index), "responses": torch.rand(6, 6)})["images"]
    assert counting.images == 5
    assert (len(rows), len(rows.values), tuple(rows.shape)) == (6, 5, (6, *SHAPE))
    torch.testing.assert_close(rows[torch.arange(6)], model.eval().features(images[index]))
    some = rows.select(torch.tensor([3, 1]))
    assert isinstance(some, CachedFeatures)
    assert some.values is rows.values
    torch.testing.assert_close(some[torch.arange(2)], model.features(images[[2, 0]]))


def test_a_loader_is_read_once_in_its_order():
    fields = trials(20, 6, beside=True)
    cached = cache_features(encoder(), TensorBatches(fields, 8, shuffle=False))
    assert cached["responses"].equal(fields["responses"])
    assert cached["behavior"].equal(fields["behavior"])
    assert len(cached["images"]) == 20


def test_batches_of_features_have_the_order_of_batches_of_images():
    fields = trials(20, 6)
    one = TensorBatches(fields, 8, seed=5)
    other = TensorBatches(cache_features(encoder(), fields), 8, seed=5)
    for want, got in zip(one, other, strict=True):
        assert want["responses"].equal(got["responses"])


def test_a_core_that_is_trained_is_refused():
    with pytest.raises(ValueError, match="want a frozen core"):
        without_core(encoder())


def test_bad_input_is_named():
    model = encoder()
    with pytest.raises(ValueError, match="data: want images under one of images, inputs, videos, got responses"):
        cache_features(model, {"responses": torch.rand(3, 6)})
    with pytest.raises(ValueError, match="dtype: want one of"):
        cache_features(model, trials(3, 6), dtype=torch.int8)
    with pytest.raises(ValueError, match="index: want rows from 0 to 2, got 0 to 3"):
        TrialRows(torch.zeros(3, 1), torch.tensor([0, 3]))
