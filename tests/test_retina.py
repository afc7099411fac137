"""openretina's layers and the Gaussian masks: constructor, state, quirks and repairs of the peers', meaning."""

from functools import partial

import layer_checks
import pytest
import torch
from assertions import assert_as_accurate
from torch.nn import functional as F

from v1fast import readouts
from v1fast.readouts import (
    DeterministicGaussian2d,
    FactorizedReadout,
    FullGaussian2d,
    GaussianMaskReadout,
    PointGaussianReadout,
)

C, T, H, W, N = 5, 4, 6, 9, 12
VIDEO, IMAGE = (C, T, H, W), (C, H, W)
f32, f64 = torch.float32, torch.float64


def factorized(**options):
    options = {"readout_bias": True, "init_scales": [(0.0, 1.0), (0.0, 1.0)]} | options
    layer = FactorizedReadout(VIDEO, N, 0.3, 0.7, 0.2, (H, W), **options)
    return layer_checks.with_random_bias(layer)


@torch.no_grad()
def gaussian_mask(**options):
    layer = GaussianMaskReadout(VIDEO, N, **options)
    layer.mask_mean.copy_(torch.rand(N, 2) * 1.6 - 0.8)
    layer.mask_log_var.copy_(torch.randn(N) - 1)
    layer.features.copy_(torch.randn(1, C, 1, N))
    return layer_checks.with_random_bias(layer)


@torch.no_grad()
def deterministic(**options):
    layer = DeterministicGaussian2d(IMAGE, N, **{"bias": True, "init_mu_range": 0.8} | options)
    layer.log_var.copy_(torch.randn(N) - 1)
    layer.features.copy_(torch.randn(C, N))
    return layer_checks.with_random_bias(layer)


LAYERS = {"factorized": factorized, "Gaussian mask": gaussian_mask, "deterministic": deterministic}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def videos(batch=2):
    return torch.randn(batch, *VIDEO)


def gaussians(rows, columns, centre, log_var):
    """Written out: exp(-|pixel - centre|^2 / 2 variance), [N, H, W]."""
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
    return torch.exp(-0.5 * ((grid - centre[:, None, None]) ** 2).sum(-1) / log_var.exp()[:, None, None])


def masks_and_weights(layer, dtype):
    """[N, H, W] and [N, C] of any of the three, from their parameters."""
    p = {k: v.to(dtype) for k, v in (*layer.named_parameters(), *layer.named_buffers())}
    if isinstance(layer, FactorizedReadout):
        return p["mask_weights"].t().reshape(N, H, W), p["feature_weights"].t()
    if isinstance(layer, GaussianMaskReadout):
        rows = torch.linspace(-H / W, H / W, H, dtype=dtype)
        columns = torch.linspace(-1, 1, W, dtype=dtype)
        mask = gaussians(
            rows, columns, p["mask_mean"] * layer.gaussian_mean_scale, p["mask_log_var"] * layer.gaussian_var_scale
        ).clamp(min=torch.tensor(-10.0, dtype=dtype).exp())
        weights = p["features"][0, :, 0].t()
    else:
        rows, columns = torch.linspace(-1, 1, H, dtype=dtype), torch.linspace(-1, 1, W, dtype=dtype)
        mask, weights = gaussians(rows, columns, p["mu"], p["log_var"]), p["features"].t()
    return mask / mask.sum((1, 2), keepdim=True), weights


def expected(layer, x, shift=None, dtype=f64):
    """Of videos, one sum."""
    masks, weights = masks_and_weights(layer, dtype)
    images = x.to(dtype).transpose(1, 2).flatten(0, 1)
    images = layer_checks.shifted(images, None if shift is None else shift.to(dtype).flatten(0, 1))
    out = torch.einsum("bchw,nhw,nc->bn", images, masks, weights).view(len(x), -1, N)
    bias = 0 if layer.bias is None else layer.bias.to(dtype)
    if isinstance(layer, GaussianMaskReadout):
        return F.softplus(out * layer.scale_param.to(dtype) + bias)
    if isinstance(layer, FactorizedReadout):
        return F.softplus(out + bias if layer.readout_bias else out)
    return out + bias


@pytest.mark.parametrize(
    ("layer", "keys"),
    [
        (
            factorized(),
            {
                "mask_weights": (H * W, N),
                "feature_weights": (C, N),
                "bias": (N,),
                "_input_weights_regularizer_spatial.laplace.filter": (1, 1, 3, 3),
            },
        ),
        (
            gaussian_mask(),
            {
                "mask_mean": (N, 2),
                "mask_log_var": (N,),
                "features": (1, C, 1, N),
                "bias": (N,),
                "grid": (N, H, W, 2),
                "scale_param": (N,),
            },
        ),
        (
            deterministic(),
            {"mu": (N, 2), "log_var": (N,), "grid": (N, H, W, 2), "features": (C, N), "bias": (N,)},
        ),
        (
            deterministic(bias=False),
            {"mu": (N, 2), "log_var": (N,), "grid": (N, H, W, 2), "features": (C, N)},
        ),
    ],
    ids=lambda v: type(v).__name__,
)
def test_state_dict_keys_and_shapes(layer, keys):
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == keys


def test_what_is_trained():
    def trained(layer):
        return [name for name, p in layer.named_parameters() if p.requires_grad]

    assert trained(factorized(readout_bias=False)) == ["mask_weights", "feature_weights"]
    assert trained(gaussian_mask(bias=False)) == ["mask_mean", "mask_log_var", "features"]
    assert trained(gaussian_mask(scale=True)) == ["mask_mean", "mask_log_var", "features", "scale_param", "bias"]
    assert trained(deterministic()) == ["mu", "log_var", "features", "bias"]


CASES = {
    "factorized": factorized,
    "factorized without bias": partial(factorized, readout_bias=False),
    "factorized, absolute": partial(factorized, weights_constraint="abs", mask_constraint="abs"),
    "factorized, of norm one": partial(factorized, weights_constraint="norm"),
    "factorized, absolute of norm one": partial(factorized, weights_constraint="absnorm"),
    "Gaussian mask": gaussian_mask,
    "Gaussian mask, scaled": partial(gaussian_mask, scale=True, gaussian_mean_scale=2.0, gaussian_var_scale=0.5),
    "Gaussian mask, positive": partial(gaussian_mask, positive=True, bias=False),
    "deterministic": deterministic,
    "deterministic without bias": partial(deterministic, bias=False),
    "deterministic, positive": partial(deterministic, positive=True),
}


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_forward(case, moved):
    layer, x = CASES[case](), videos()
    shift = torch.randn(2, T, 2) / 3 if moved else None
    got = layer(x, shift=shift)  # first: it brings the parameters into their range
    assert got.shape == (2, T, N)
    assert_as_accurate(got, expected(layer, x, shift, f32), expected(layer, x, shift))


@every_layer
def test_gradients(make):
    layer, x = make().double(), videos().double().requires_grad_()
    shift = (torch.randn(2, T, 2, dtype=f64) / 3).requires_grad_()
    parameters = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    towards = torch.randn(2, T, N, dtype=f64)

    want = torch.autograd.grad(expected(layer, x, shift), [x, shift, *parameters.values()], towards)
    got = torch.autograd.grad(layer(x, shift=shift), [x, shift, *parameters.values()], towards)
    for name, a, b in zip(("x", "shift", *parameters), got, want, strict=True):
        assert b.abs().sum() > 0
        torch.testing.assert_close(a, b, msg=name)


@every_layer
def test_images_frames_and_choices(make):
    layer, x = make(), videos()
    layer_checks.assert_reads_frames(layer, x)
    layer_checks.assert_reads_frames(layer, x.contiguous(memory_format=torch.channels_last_3d))
    layer_checks.assert_chooses_neurons(partial(layer, x, shift=torch.randn(2, 2) / 3), N, exactly=False)
    layer_checks.assert_refuses_out_idx(layer, x)
    assert layer(x[:, :, :2], data_key="a", behavior=None).equal(layer(x[:, :, :2]))
    with pytest.raises(ValueError, match=r"features: want .* with \(C, H, W\) = \(5, 6, 9\), got \(2, 5, 4, 9, 6\)"):
        layer(x.mT)


@every_layer
def test_mean_activity_is_copied(make):
    mean = torch.rand(N, dtype=f64)
    options = {"init_scales": [(0, 1), (0, 1)]} if make is factorized else {}
    bias = {"readout_bias": True} if make is factorized else {"bias": True}
    kinds = {
        factorized: partial(FactorizedReadout, VIDEO, N, 0, 0, 0, (H, W)),
        gaussian_mask: partial(GaussianMaskReadout, VIDEO, N),
        deterministic: partial(DeterministicGaussian2d, IMAGE, N),
    }
    layer_checks.assert_copies_mean_activity(partial(kinds[make], **options, **bias))
    without = kinds[make](**options, **dict.fromkeys(bias, False), mean_activity=mean)
    without.initialize()
    if make is gaussian_mask:
        assert without.bias.equal(mean.float()), "added all the same"
        assert not without.bias.requires_grad


@every_layer
def test_ensemble_by_vmap(make):
    layer_checks.assert_runs_under_vmap(make, videos())


@every_layer
def test_compiles(make):
    layer_checks.assert_compiles(make(), videos())


@every_layer
def test_second_derivatives(make):
    layer_checks.assert_twice_differentiable(
        make().double(), torch.randn(1, C, 2, H, W).double(), torch.full((1, 2), 0.1)
    )


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_module_cast_as_a_whole(make, dtype):
    layer = make()
    frozen = [p for p in layer.parameters() if not p.requires_grad]
    for p in frozen:
        p.grad = torch.zeros_like(p, dtype=p.dtype)
    layer = layer.to(dtype)
    y = layer(videos().to(dtype))
    assert y.dtype == dtype
    y.sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)


# FactorizedReadout ----------------------------------------------------------------------------------------------------


def test_names():
    assert readouts.KlindtReadoutWrapper3D is FactorizedReadout
    assert [make().number_of_neurons() for make in (factorized, gaussian_mask)] == [N, N]


def test_initial_masks_and_weights():
    masks, weights = torch.randn(N, 1, H + 3, W + 2, dtype=f64), torch.randn(C, N)
    layer = factorized(init_mask=masks, init_weights=weights, init_scales=None)
    assert layer.mask_weights.t().view(N, H, W).equal(masks[:, 0, 1 : 1 + H, 1 : 1 + W].float())
    assert layer.feature_weights.equal(weights)
    with torch.no_grad():
        layer.feature_weights.zero_()
    assert (weights != 0).all(), "copied, not aliased"
    square = FactorizedReadout((300, 1, 10, 10), 50, 0, 0, 0, 10, init_scales=[(1.0, 0.1), (-2.0, 0.2)])
    assert square.mask_size == (10, 10)
    assert square.mask_weights.mean().item() == pytest.approx(1, abs=0.01)
    assert square.mask_weights.std().item() == pytest.approx(0.1, rel=0.1)
    assert square.feature_weights.mean().item() == pytest.approx(-2, abs=0.01)
    assert square.feature_weights.std().item() == pytest.approx(0.2, rel=0.1)


def test_constraints_are_kept_in_place():
    layer = factorized(weights_constraint="absnorm", mask_constraint="abs")
    parameters = {name: (p, p.data_ptr()) for name, p in layer.named_parameters()}
    layer.apply_constraints()
    assert (layer.mask_weights >= 0).all()
    assert (layer.feature_weights >= 0).all()
    torch.testing.assert_close(layer.feature_weights.norm(dim=0), torch.ones(N), rtol=1e-4, atol=1e-4)
    assert all(p is getattr(layer, name) and p.data_ptr() == at for name, (p, at) in parameters.items())


def test_penalties_of_the_factorized_readout():
    """The Laplacian compares neighbours within one neuron's mask."""
    layer = factorized()
    masks = layer.mask_weights.detach().t().reshape(N, H, W).double()
    inner = (
        4 * masks[:, 1:-1, 1:-1] - masks[:, :-2, 1:-1] - masks[:, 2:, 1:-1] - masks[:, 1:-1, :-2] - masks[:, 1:-1, 2:]
    )
    laplace = 0.2 * inner.square().sum() / (masks.square().sum() + 1e-6)
    l1 = 0.3 * masks.abs().sum((1, 2)).mean() + 0.7 * layer.feature_weights.double().abs().sum(0).mean()
    assert layer.regularizer().item() == pytest.approx((l1 + laplace).item(), rel=1e-5)
    assert layer.regularizer("sum").item() == pytest.approx((l1 + laplace).item(), rel=1e-5)
    assert layer.regularizer("mean").item() == pytest.approx((l1 + laplace / 3).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_scales": None}, "init_mask, init_scales: want one of the two, got neither"),
        ({"init_scales": None, "init_mask": torch.zeros(N, 1, H, W)}, "init_weights, init_scales"),
        ({"init_mask": torch.zeros(N, 1, H - 1, W)}, r"init_mask: want .* at least 6 x 9 pixels, got \(12, 1, 5, 9\)"),
        ({"init_weights": torch.zeros(N, C)}, r"init_weights: want \[C, N\] = \(5, 12\), got \(12, 5\)"),
        ({"weights_constraint": "sum"}, "weights_constraint: want one of abs, norm, absnorm, None, got 'sum'"),
        ({"mask_constraint": "norm"}, "mask_constraint"),
        ({"mean_activity": torch.zeros(3)}, r"mean_activity: want \[N\] = \(12,\), got \(3,\)"),
    ],
)
def test_bad_arguments_of_the_factorized_readout(options, message):
    with pytest.raises(ValueError, match=message):
        factorized(**options)


# Gaussian masks -------------------------------------------------------------------------------------------------------


def test_initial_values_of_the_gaussian_masks():
    layer = GaussianMaskReadout((50, T, H, W), 40, scale=True)
    assert (layer.mask_mean == 0).all()
    assert (layer.mask_log_var == 0).all()
    assert layer.features.mean().item() == pytest.approx(1 / 50, abs=1e-3)
    assert layer.features.std().item() == pytest.approx(0.01, rel=0.1)
    assert layer.scale_param.mean().item() == pytest.approx(1, abs=0.01)
    layer = DeterministicGaussian2d(IMAGE, 200, True, init_mu_range=0.4, init_sigma=0.5)
    assert 0.38 < layer.mu.abs().max() <= 0.4
    torch.testing.assert_close(layer.log_var.exp(), torch.full((200,), 0.25))
    assert (layer.features == 1 / C).all()


def test_the_masks_are_normalised_gaussians():
    for layer in (gaussian_mask(), deterministic()):
        mask = layer.get_mask() if isinstance(layer, GaussianMaskReadout) else layer.mask()
        torch.testing.assert_close(mask.sum((1, 2)), torch.ones(N))
        assert mask.shape == (N, H, W)
    assert gaussian_mask().masks.shape == (H, W, N)
    layer = deterministic()
    with torch.no_grad():
        layer.mu[0] = torch.tensor([1.0, -1.0])
        layer.log_var.fill_(-4)
    assert layer.mask()[0].argmax() == (H - 1) * W, "last row, first column"


def test_deterministic_means_are_clamped_in_place():
    layer = deterministic()
    with torch.no_grad():
        layer.mu[0] = torch.tensor([1.7, -3.0])
    parameter, storage = layer.mu, layer.mu.data_ptr()
    layer(torch.randn(1, *IMAGE)).sum().backward()
    assert layer.mu is parameter
    assert layer.mu.data_ptr() == storage
    assert layer.mu[0].tolist() == [1, -1]


@pytest.mark.parametrize("mode", ["default", "abs", "elu"])
def test_positive_modes(mode):
    layer, x = deterministic(positive=True, constrain_mode=mode, bias=False), torch.randn(3, *IMAGE)
    before = layer.features.detach().clone()
    got = layer(x)
    mask = layer.mask()
    weights = {"default": before.relu(), "abs": before.abs(), "elu": F.elu(before) + 1}[mode]
    mask = F.elu(mask) + 1 if mode == "elu" else mask
    torch.testing.assert_close(got, torch.einsum("bchw,nhw,cn->bn", x, mask, weights))
    assert layer.features.equal(before) == (mode != "default")


def test_penalties_of_the_gaussian_masks():
    layer = deterministic(feature_reg_weight=0.5)
    l1, variance = layer.features.abs(), layer.log_var.exp()
    assert layer.regularizer().item() == pytest.approx(0.5 * (l1.sum() + variance.sum()).item(), rel=1e-6)
    assert layer.regularizer("mean").item() == pytest.approx(0.5 * (l1.mean() + variance.mean()).item(), rel=1e-6)
    layer_checks.assert_knows_gamma_readout(deterministic)
    layer = gaussian_mask(mask_l1_reg=0.5, feature_weights_l1_reg=2.0, gaussian_mean_scale=3.0, gaussian_var_scale=0.7)
    variance, square = (0.7 * layer.mask_log_var).exp(), (3 * layer.mask_mean).square()
    l1 = layer.features.abs()
    want = 0.5 * (variance.sum() + square.sum()) + 2 * l1.sum()
    assert layer.regularizer().item() == pytest.approx(want.item(), rel=1e-6)
    want = 0.5 * (variance.mean() + square.mean()) + 2 * l1.mean()
    assert layer.regularizer("mean").item() == pytest.approx(want.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_mu_range": 0}, r"init_mu_range: want a value in \(0, 1\], got 0"),
        ({"init_sigma": 0}, "init_sigma: want a positive value, got 0"),
        ({"constrain_mode": "relu"}, "constrain_mode"),
        ({"mean_activity": torch.zeros(3)}, r"mean_activity: want \[N\] = \(12,\), got \(3,\)"),
    ],
)
def test_bad_arguments_of_the_deterministic_gaussian(options, message):
    with pytest.raises(ValueError, match=message):
        deterministic(**options)


def test_a_mask_that_is_undefined_is_zero():
    layer, x = gaussian_mask(), videos()
    before = layer(x)
    with torch.no_grad():
        layer.mask_mean[0] = torch.nan
    assert (layer.get_mask()[0] == 0).all()
    torch.testing.assert_close(layer(x)[..., 1:], before[..., 1:])
    torch.testing.assert_close(layer(x)[0, 0, 0], F.softplus(layer.bias[0]))


# PointGaussianReadout -------------------------------------------------------------------------------------------------


def point(**options):
    layer = PointGaussianReadout(VIDEO, N, **{"bias": True, "init_mu_range": 0.8, "init_sigma_range": 0.3} | options)
    return layer_checks.differing(layer)


def test_point_readout_is_full_gaussian2d_by_another_constructor():
    layer = point(gamma_readout=0.3)
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {
        "_mu": (1, N, 1, 2),
        "sigma": (1, N, 2, 2),
        "_features": (1, C, 1, N),
        "bias": (N,),
    }
    same = FullGaussian2d(IMAGE, N, bias=True)
    same.load_state_dict(layer.state_dict())
    x = videos()
    for training in (True, False):
        torch.manual_seed(1)
        got = layer.train(training)(x)
        torch.manual_seed(1)
        assert got.equal(same.train(training)(x))
    assert layer(x[:, :, 0]).equal(layer(x)[:, 0])
    assert layer.regularizer().item() == pytest.approx(0.3 * layer._features.abs().sum().item(), rel=1e-6)
    layer.gamma_readout = 0.6
    assert layer.feature_reg_weight == 0.6
    assert PointGaussianReadout(VIDEO, N, True, gauss_type="isotropic").sigma.unique().item() == pytest.approx(0.15)
    assert layer.in_shape == VIDEO
    assert layer.number_of_neurons() == N


def test_initial_grid():
    grid = torch.rand(1, N, 1, 2, dtype=f64) - 0.5
    for given in (grid, grid.numpy(), grid[0, :, 0].tolist()):
        layer = point(init_grid=given)
        assert layer._mu.equal(grid.float())
        with torch.no_grad():
            layer._mu.add_(0.1)
        layer.initialize()
        assert layer._mu.equal(grid.float())
    with pytest.raises(ValueError, match=r"init_grid: want \(1, 12, 1, 2\), got \(3, 2\)"):
        point(init_grid=torch.zeros(3, 2))


def test_clips_share_their_draw():
    layer = point(frame_sample=False)
    y = layer(torch.randn(2, C, 1, H, W).expand(-1, -1, 3, -1, -1))
    assert y.equal(y[:, :1].expand_as(y))


def test_narrow_masks_between_pixels_have_a_sum_of_1():
    """Whose Gaussian is 0 at every pixel, rounded."""
    layer = DeterministicGaussian2d(IMAGE, 3, True, init_sigma=1e-4)
    with torch.no_grad():
        layer.mu.copy_(torch.tensor([[0.01, 0.013], [-0.3, 0.77], [1.0, -1.0]]))
    mask = layer.mask()
    torch.testing.assert_close(mask.sum((1, 2)), torch.ones(3))
    layer(torch.randn(2, *IMAGE)).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
