"""Layers in plain torch: separable, dense, attention, points between channels. Meaning, and the peers' repairs."""

from functools import partial

import layer_checks
import numpy as np
import pytest
import torch
from assertions import assert_as_accurate
from torch import nn
from torch.nn import functional as F

from v1fast import readouts
from v1fast.readouts import AttentionReadout, DenseReadout, Gaussian3d, SeparableReadout, UltraSparse

SHAPE, N, FRAMES = (5, 6, 9), 12, 3
f32, f64 = torch.float32, torch.float64


@torch.no_grad()
def separable(**options):
    layer = SeparableReadout(SHAPE, N, **{"Wxy_init": 1.0, "Wc_coef": 1.0} | options)
    return layer_checks.with_random_bias(layer)


def dense(**options):
    return layer_checks.with_random_bias(DenseReadout(SHAPE, N, **{"bias": True, "init_noise": 1.0} | options))


def attention(**options):
    layer = AttentionReadout(SHAPE, N, **{"bias": True, "init_noise": 1.0} | options)
    return layer_checks.with_random_bias(layer)


def gaussian3d(**options):
    options = {"bias": True, "init_mu_range": 0.8, "init_sigma_range": 0.3} | options
    return layer_checks.differing(Gaussian3d(SHAPE, N, **options))


def sparse(**options):
    options = {"bias": True, "init_mu_range": 0.8, "init_sigma_range": 0.3, "num_filters": 2} | options
    return layer_checks.differing(UltraSparse(SHAPE, N, **options))


LAYERS = {
    "separable": separable,
    "dense": dense,
    "attention": attention,
    "Gaussian3d": gaussian3d,
    "UltraSparse": sparse,
    "UltraSparse, shared": partial(sparse, shared_mean=True, num_filters=3),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
POINTS = [m for name, m in LAYERS.items() if name.startswith(("Gauss", "Ultra"))]


def features(batch=4):
    return torch.randn(batch, *SHAPE)


def videos(batch=2):
    return torch.randn(batch, SHAPE[0], FRAMES, *SHAPE[1:])


def of_separable(layer, x, shift):
    """Four factors, as minimodel multiplies them."""
    x = layer_checks.shifted(x, shift)
    if not layer.yx_separable:
        out = torch.einsum("nc,icyx,nyx->in", layer.Wc[:, 0], x, layer.Wyx)
    elif layer.rank == 1:
        out = torch.einsum("nrc,nry,icyx,nrx->in", layer.Wc, layer.Wy, x, layer.Wx)
    else:
        out = torch.einsum("nrc,nky,icyx,nkx->irn", layer.Wc, layer.Wy, x, layer.Wx)
    out = {"elu": F.elu, "relu": F.relu}[layer.activation](out + layer.bias)
    return out.sum(1) if layer.rank > 1 else out


def of_dense(layer, x, shift):
    out = torch.einsum("bchw,nchw->bn", layer_checks.shifted(x, shift), layer.weight)
    return out if layer.bias is None else out + layer.bias


def of_attention(layer, x, shift):
    x = layer_checks.shifted(x, shift)
    mask = layer.attention(x).flatten(2).softmax(-1).unflatten(2, SHAPE[1:])
    out = torch.einsum("bchw,bnhw,nc->bn", x, mask, layer.features)
    return out if layer.bias is None else out + layer.bias


def of_points(layer, x, shift):
    """Linear between two channels of what is bilinear in the map."""
    if getattr(layer, "shared_mean", False):
        copies = layer.mu_xy.flatten(0, 3).repeat(layer.num_filters, 1)
        mu = torch.cat([copies, layer.mu_ch.flatten(0, 3)], -1)
    else:
        mu = layer.mu.flatten(0, 3)
    place = mu[:, :2] + (0 if shift is None else shift[:, None])
    columns = F.grid_sample(x, place.expand(len(x), -1, 2)[:, :, None], align_corners=layer.align_corners)[..., 0]
    size = SHAPE[0]
    depth = (mu[:, 2] + 1) / 2 * (size - 1) if layer.align_corners else ((mu[:, 2] + 1) * size - 1) / 2
    hat = (1 - (depth - torch.arange(size, dtype=x.dtype)[:, None]).abs()).relu()  # [C, F N]
    values = (columns * hat).sum(1).view(len(x), layer.num_filters, N)
    out = torch.einsum("bfn,nf->bn", values, layer.features.view(N, layer.num_filters))
    return out if layer.bias is None else out + layer.bias


def expected(layer, x, shift=None):
    meanings = {SeparableReadout: of_separable, DenseReadout: of_dense, AttentionReadout: of_attention}
    return meanings.get(type(layer), of_points)(layer, x, shift)


CASES = {
    "separable": separable,
    "separable, ReLU": partial(separable, activation="relu"),
    "separable, rank 3": partial(separable, rank=3),
    "not separable": partial(separable, yx_separable=False),
    "separable, positive": partial(separable, positive=True, rank=2),
    "dense": dense,
    "dense without bias": partial(dense, bias=False),
    "attention": attention,
    "attention without bias": partial(attention, bias=False, attention_layers=2),
    "attention, wide": partial(attention, attention_layers=3, attention_kernel=5),
    "Gaussian3d": gaussian3d,
    "Gaussian3d, pixel edges": partial(gaussian3d, align_corners=False, bias=False),
    "UltraSparse": sparse,
    "UltraSparse, shared": partial(sparse, shared_mean=True, num_filters=3),
    "UltraSparse, pixel edges": partial(sparse, align_corners=False, num_filters=1),
}


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_forward(case, moved):
    layer, x = CASES[case]().eval(), features()
    shift = torch.randn(4, 2) / 4 if moved else None
    layer.project_()
    got = layer(x, shift=shift)
    own = expected(layer, x, shift).detach()
    exact = expected(layer.double(), x.double(), None if shift is None else shift.double()).detach()
    assert_as_accurate(got.detach(), own, exact)


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    layer = CASES[case]().double().eval()
    x, shift = features().double().requires_grad_(), (torch.randn(4, 2).double() / 4).requires_grad_()
    layer.project_()
    parameters = dict(layer.named_parameters())
    leaves, towards = [x, shift, *parameters.values()], torch.randn(4, N, dtype=f64)
    options = {"allow_unused": True, "materialize_grads": True}  # sigma
    got = torch.autograd.grad(layer(x, shift=shift), leaves, towards, **options)
    want = torch.autograd.grad(expected(layer, x, shift), leaves, towards, **options)
    for name, a, b in zip(("x", "shift", *parameters), got, want, strict=True):
        # a bias before a softmax over the map has no effect
        assert b.abs().sum() > 0 or "sigma" in name or (name.startswith("attention.conv") and name.endswith("bias"))
        torch.testing.assert_close(a, b, msg=name)


@every_layer
def test_frames_choices_and_unknown_arguments(make):
    layer, x = make().eval(), features()
    layer_checks.assert_reads_frames(layer, videos())
    layer_checks.assert_reads_frames(layer, videos().contiguous(memory_format=torch.channels_last_3d))
    layer_checks.assert_chooses_neurons(partial(layer, x, shift=torch.randn(4, 2) / 4), N, exactly=False)
    layer_checks.assert_refuses_out_idx(layer, x)
    assert layer(x, data_key="a", images=x, behavior=None).equal(layer(x))
    with pytest.raises(ValueError, match=r"features: want .* with \(C, H, W\) = \(5, 6, 9\), got \(2, 5, 9, 6\)"):
        layer(torch.randn(2, 5, 9, 6))
    with pytest.raises(ValueError, match=r"shift: want \[B, 2\] = \(4, 2\), got \(3, 2\)"):
        layer(x, shift=torch.zeros(3, 2))


@every_layer
def test_mean_activity_is_copied(make):
    layer_checks.assert_copies_mean_activity(make_without_changes(make))


def make_without_changes(make):
    """The constructor with the same options, its values untouched."""
    kinds = {dense: partial(DenseReadout, SHAPE, N, True), attention: partial(AttentionReadout, SHAPE, N, True)}
    kinds |= {gaussian3d: partial(Gaussian3d, SHAPE, N, True), separable: partial(SeparableReadout, SHAPE, N)}
    shared = isinstance(make, partial)
    return kinds.get(make, partial(UltraSparse, SHAPE, N, True, 0.5, 0.5, num_filters=2, shared_mean=shared))


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_module_cast_as_a_whole(make, dtype):
    layer_checks.assert_casts_as_a_whole(make(), features(), dtype)


@pytest.mark.parametrize("make", [separable, attention, LAYERS["UltraSparse, shared"]])
def test_compiles(make):
    layer_checks.assert_compiles(make().eval(), features())


@every_layer
def test_ensemble_by_vmap(make):
    layer_checks.assert_runs_under_vmap(make, features())


@pytest.mark.parametrize("make", [separable, dense, attention])
def test_second_derivatives(make):
    layer_checks.assert_twice_differentiable(make().double(), features(2).double(), torch.full((2, 2), 0.1))


VIDEO = (SHAPE[0], FRAMES, *SHAPE[1:])
ANY_NUMBER = (
    lambda n: readouts.FullFactorized2d(SHAPE, n, True),
    lambda n: SeparableReadout(SHAPE, n, rank=2),
    lambda n: DenseReadout(SHAPE, n, True),
    lambda n: Gaussian3d(SHAPE, n, True),
    lambda n: UltraSparse(SHAPE, n, True, 0.5, 0.5, num_filters=2, shared_mean=True),
    lambda n: readouts.DeterministicGaussian2d(SHAPE, n, True),
    lambda n: readouts.GaussianMaskReadout(VIDEO, n),
    lambda n: readouts.FactorizedReadout(VIDEO, n, 0, 0, 0, SHAPE[1:], init_scales=[(0, 1), (0, 1)]),
    lambda n: readouts.PointGaussianReadout(VIDEO, n, True),
    lambda n: readouts.GeneralizedFullGaussianReadout2d(SHAPE, n, True, inferred_params_n=2),
    lambda n: readouts.RemappedGaussian2d(SHAPE, n, True),
    lambda n: readouts.PointPooled2d(SHAPE, n, 1, True, 2, 0.3),
)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize(("neurons", "batch"), [(0, 2), (3, 0), (1, 1)])
@pytest.mark.parametrize("make", ANY_NUMBER, ids=lambda make: type(make(1)).__name__)
def test_no_neuron_no_image_or_one_of_each(make, neurons, batch):
    layer = make(neurons)
    for x in (torch.randn(batch, *SHAPE), torch.randn(batch, *VIDEO)):
        y = layer.eval()(x, shift=torch.zeros(batch, 2))
        axes = (batch, FRAMES, neurons) if x.dim() == 5 else (batch, neurons)
        assert y.shape[-len(axes) :] == axes
        y.sum().backward()


@pytest.mark.parametrize("make", ANY_NUMBER, ids=lambda make: type(make(1)).__name__)
def test_everything_is_on_the_layers_device(make):
    """Nothing is made on the CPU for a layer that is elsewhere; a layer can be made without memory."""
    with torch.device("meta"):
        layer = make(N)
    assert all(t.is_meta for t in layer.state_dict().values())
    y = layer(torch.randn(2, *VIDEO, device="meta"), shift=torch.zeros(2, 2, device="meta"), out_idx=[3, 1])
    y.sum().backward()
    assert y.is_meta
    assert layer.regularizer().is_meta


# Keys, initial values, penalties --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "keys"),
    [
        (separable(), {"Wy": (N, 1, 6), "Wx": (N, 1, 9), "Wc": (N, 1, 5), "bias": (N,)}),
        (separable(rank=3), {"Wy": (N, 3, 6), "Wx": (N, 3, 9), "Wc": (N, 3, 5), "bias": (3, N)}),
        (separable(yx_separable=False), {"Wyx": (N, 6, 9), "Wc": (N, 1, 5), "bias": (N,)}),
        (dense(), {"weight": (N, 5, 6, 9), "bias": (N,)}),
        (dense(bias=False), {"weight": (N, 5, 6, 9)}),
        (
            attention(),
            {
                "features": (N, 5),
                "bias": (N,),
                "attention.conv1.weight": (N, 5, 1, 1),
                "attention.conv1.bias": (N,),
            },
        ),
        (
            attention(bias=False, attention_layers=2, attention_kernel=3),
            {
                "features": (N, 5),
                "attention.conv0.weight": (5, 5, 3, 3),
                "attention.conv0.bias": (5,),
                "attention.norm0.weight": (5,),
                "attention.norm0.bias": (5,),
                "attention.norm0.running_mean": (5,),
                "attention.norm0.running_var": (5,),
                "attention.norm0.num_batches_tracked": (),
                "attention.conv2.weight": (N, 5, 3, 3),
                "attention.conv2.bias": (N,),
            },
        ),
        (
            gaussian3d(),
            {"mu": (1, 1, N, 1, 3), "sigma": (1, 1, N, 1, 3), "features": (1, 1, 1, N), "bias": (N,)},
        ),
        (
            sparse(bias=False),
            {"mu": (1, 1, 2 * N, 1, 3), "sigma": (1, 1, 2 * N, 1, 3), "features": (1, 1, N, 2)},
        ),
        (
            sparse(shared_mean=True),
            {
                "mu_xy": (1, 1, N, 1, 2),
                "mu_ch": (1, 1, 2 * N, 1, 1),
                "sigma_xy": (1, 1, N, 1, 2),
                "sigma_ch": (1, 1, 2 * N, 1, 1),
                "features": (1, 1, N, 2),
                "bias": (N,),
            },
        ),
    ],
    ids=lambda v: type(v).__name__,
)
def test_state_dict_keys_and_shapes(layer, keys):
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == keys


def test_initial_values():
    for layer, weights in (
        (DenseReadout((50, 6, 9), 20, True, init_noise=0.1), "weight"),
        (AttentionReadout((50, 6, 9), 100, True, init_noise=0.1), "features"),
    ):
        assert getattr(layer, weights).std().item() == pytest.approx(0.1, rel=0.05)
        assert (layer.bias == 0).all()
    before = layer.attention.conv1.weight.detach().clone()
    assert before.std().item() == pytest.approx((2 / 150) ** 0.5, rel=0.1), "Xavier"
    assert (layer.attention.conv1.bias == 0).all()
    layer.initialize()
    assert not layer.attention.conv1.weight.equal(before)
    many = {"init_mu_range": 0.4, "init_sigma_range": 0.2}
    for layer in (Gaussian3d(SHAPE, 500, True, **many), UltraSparse(SHAPE, 500, True, **many)):
        assert 0.38 < layer.mu.abs().max() <= 0.4
        assert 0.19 < layer.sigma.max() <= 0.2
        assert 0 <= layer.sigma.min() < 0.01
        assert (layer.features == 1 / 5).all()
    shared = UltraSparse(SHAPE, 500, True, **many, shared_mean=True)
    assert 0.38 < shared.mu_xy.abs().max() <= 0.4
    assert 0.98 < shared.mu_ch.abs().max() <= 1
    for kind in (Gaussian3d, UltraSparse, partial(UltraSparse, shared_mean=True)):
        fixed = kind(SHAPE, 5, True, **many, fixed_sigma=True)
        assert all((p == 0.2).all() for name, p in fixed.named_parameters() if name.startswith("sigma"))


def test_initial_values_of_the_separable_readout():
    rows, columns = np.arange(N) % 6, np.arange(N) % 9
    channels, amounts = np.arange(2 * N).reshape(N, 2) % 5, np.linspace(1, 2, 2 * N).reshape(N, 2)
    plain = {"Wxy_init": 0.0, "Wc_coef": 0.0, "Wxy_gabor_init": 0.25}
    options = {"y_init": rows, "x_init": columns, "c_init": channels, "coef_init": amounts}
    layer = SeparableReadout(SHAPE, N, **options, **plain, rank=2, bias_init=np.ones((2, N)))
    want = torch.zeros(N, 6, 9)
    want[torch.arange(N), rows, columns] = 2 * 0.25**2
    torch.testing.assert_close(layer.masks(), want)
    assert (layer.Wc[:, 1] == 0).all()
    assert layer.Wc[3, 0, channels[3]].tolist() == pytest.approx(amounts[3] / 2)
    assert (layer.Wc[3, 0] != 0).sum() == 2
    assert layer.bias.equal(torch.ones(2, N))
    free = SeparableReadout(SHAPE, N, y_init=rows, x_init=columns, yx_separable=False)
    assert free.Wyx[torch.arange(N), rows, columns].mean().item() == pytest.approx(0.1, abs=0.02)


def test_positive_weights_of_rows_and_columns():
    layer, x = separable(positive=True), features()
    storage = layer.Wy.data_ptr()
    layer(x)
    assert (layer.Wy >= 0).all()
    assert (layer.Wx >= 0).all()
    assert (layer.Wc < 0).any()
    assert layer.Wy.data_ptr() == storage


def test_penalties():
    for make in (dense, attention, gaussian3d):
        layer = make(feature_reg_weight=0.5)
        weights = (layer.weight if make is dense else layer.features).detach().abs()
        assert layer.regularizer().item() == pytest.approx(0.5 * weights.sum().item(), rel=1e-5)
        assert layer.regularizer("mean").item() == pytest.approx(0.5 * weights.mean().item(), rel=1e-5)
    layer = sparse(feature_reg_weight=0.5)
    l1, deviation = layer.features.detach().abs(), layer.sigma.detach()
    assert layer.variance_l1().item() == pytest.approx(deviation.sum().item(), rel=1e-6)
    assert layer.regularizer().item() == pytest.approx(0.5 * (l1.sum() + deviation.sum()).item(), rel=1e-6)
    assert layer.regularizer("mean").item() == pytest.approx(0.5 * (l1.mean() + deviation.mean()).item(), rel=1e-6)
    with pytest.raises(ValueError, match="reduction"):
        layer.regularizer(reduction=None)
    for make in (attention, gaussian3d, sparse):
        layer_checks.assert_knows_gamma_readout(make)


@torch.no_grad()
def test_a_neuron_without_weights_uses_no_channel():
    layer = separable(rank=2)
    layer.Wc[3] = 0
    assert layer.hoyer_square()[3] == 0
    assert (layer.hoyer_square()[:3] >= 1).all()


def test_penalties_of_the_separable_readout():
    layer = separable(rank=2, feature_reg_weight=0.5)
    squares = sum(w.detach().square().sum((1, 2)) for w in (layer.Wc, layer.Wy, layer.Wx))
    l1 = layer.Wc.detach().abs().sum((1, 2))
    torch.testing.assert_close(layer.l1_norm(), l1)
    torch.testing.assert_close(layer.l2_norm(), squares)
    torch.testing.assert_close(layer.hoyer_square(), l1.square() / layer.Wc.detach().square().sum((1, 2)))
    assert layer.regularizer().item() == pytest.approx(0.5 * l1.sum().item(), rel=1e-6)
    torch.testing.assert_close(layer.regularizer(reduction=None), 0.5 * l1)


# Points between channels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", POINTS)
def test_evaluation_reads_the_means(make):
    layer, x = make(), features()
    assert not layer(x).equal(layer(x))
    assert not layer(x, sample=True).equal(layer.eval()(x))
    assert layer(x).equal(layer(x))
    assert layer(x).equal(layer.train()(x, sample=False))
    assert layer.grid.shape == (1, 1, N * layer.num_filters, 1, 3)


@pytest.mark.parametrize("make", POINTS)
def test_positions_are_drawn_from_torchs_stream(make):
    """mu + sigma times normals of (B, 1, F N, 1, 3), clamped; without a gradient of sigma at the clamp."""
    layer, x = make(), features()
    torch.manual_seed(1)
    got = layer(x)
    torch.manual_seed(1)
    noise = torch.empty(4, 1, N * layer.num_filters, 1, 3).normal_()
    mu, sigma = layer._clamped()
    grid = (mu + sigma * noise).clamp(-1, 1)
    values = F.grid_sample(x[:, None], grid, align_corners=True).view(4, layer.num_filters, N)
    want = torch.einsum("bfn,nf->bn", values, layer.features.view(N, -1)) + layer.bias
    torch.testing.assert_close(got, want)
    torch.manual_seed(1)
    assert layer.sample_grid(4).equal(grid)
    got.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize("make", POINTS)
@pytest.mark.parametrize("batch_sample", [True, False])
@pytest.mark.parametrize("frame_sample", [True, False])
def test_clips_and_frames_share_a_draw_or_do_not(make, batch_sample, frame_sample):
    layer = make(batch_sample=batch_sample, frame_sample=frame_sample)
    y = layer(features(1)[:, :, None].expand(4, -1, FRAMES, -1, -1))
    draws = 4 if batch_sample else 1, FRAMES if frame_sample else 1
    assert y.shape == (4, FRAMES, N)
    assert len(y.flatten(0, 1)[:, 0].unique()) == draws[0] * draws[1]
    if draws != (4, FRAMES):
        assert y.equal(y[: draws[0], : draws[1]].expand_as(y))


@pytest.mark.parametrize("make", POINTS)
def test_means_and_deviations_are_clamped_in_place(make):
    layer = make()
    parameters = {name: (p, p.data_ptr()) for name, p in layer.named_parameters() if name.startswith(("mu", "sigma"))}
    with torch.no_grad():
        for p, _ in parameters.values():
            p[0, 0, 0] = -3.0
            p[0, 0, 1] = 3.0
    layer(features()).sum().backward()
    for name, (p, storage) in parameters.items():
        assert getattr(layer, name) is p
        assert p.data_ptr() == storage
        assert p[0, 0, 0].unique().item() == (-1 if name.startswith("mu") else 0)
        assert p[0, 0, 1].unique().item() == (1 if name.startswith("mu") else 3)


def test_a_point_at_a_channel_reads_that_channel():
    layer, x = gaussian3d(bias=False).eval(), features()
    with torch.no_grad():
        layer.mu.copy_(torch.tensor([0.0, 0.2, -0.5]).expand(N, 3).view(1, 1, N, 1, 3))  # channel 1 of 0 ... 4
        layer.features.fill_(1)
    want = F.grid_sample(x[:, 1:2], torch.tensor([0.0, 0.2]).expand(4, 1, 1, 2), align_corners=True).view(4, 1)
    torch.testing.assert_close(layer(x), want.expand(4, N))


# Attention ------------------------------------------------------------------------------------------------------------


def test_the_attention_sums_to_one():
    layer = attention(bias=False)
    with torch.no_grad():
        layer.features.fill_(1 / 5)
    torch.testing.assert_close(layer(torch.full((2, *SHAPE), 3.0)), torch.full((2, N), 3.0))


def test_an_untrained_network_averages():
    layer, x = attention(bias=False), features()
    with torch.no_grad():
        nn.init.zeros_(layer.attention.conv1.weight)
    torch.testing.assert_close(layer(x), x.mean((2, 3)) @ layer.features.t())


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (separable, {"rank": 0}, "rank: want at least 1"),
        (separable, {"rank": 2, "yx_separable": False}, "rank: want .* 1 where the mask is not separable, got 2"),
        (separable, {"activation": "tanh"}, "activation"),
        (separable, {"c_init": [[0]] * N}, "c_init, coef_init: want both or neither, got one"),
        (separable, {"bias_init": np.zeros(3)}, r"mean_activity: want \[N\] = \(12,\), got \(3,\)"),
        (dense, {"mean_activity": torch.zeros(3)}, "mean_activity"),
        (attention, {"attention_layers": 0}, "attention_layers: want at least 1, got 0"),
        (gaussian3d, {"init_mu_range": 1.5}, r"init_mu_range: want a value in \(0, 1\], got 1.5"),
        (gaussian3d, {"init_sigma_range": 0}, "init_sigma_range: want a positive value, got 0"),
        (sparse, {"num_filters": 0}, "num_filters: want at least 1, got 0"),
    ],
)
def test_bad_arguments(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
