"""Readouts of several sessions: what they share, clones, sessions that come later."""

import copy
import io
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from v1fast.readouts import (
    ClonedReadout,
    FullGaussian2d,
    GeneralizedPointPooled2d,
    MultiReadoutBase,
    MultiReadoutSharedParametersBase,
    PointPooled2d,
    SpatialTransformerPooled3d,
)

SHAPE = (5, 7, 9)
SHAPES = {"a": SHAPE, "b": (5, 6, 8), "c": SHAPE}
NEURONS = {"a": 12, "b": 9, "c": 7}
GAUSSIAN = {"bias": True, "init_mu_range": 0.8, "init_sigma": 0.3}
IDS = {"a": [3, 1, 3, 8, 1, 0, 0, 8, 3, 1, 8, 0], "b": [8, 3, 1, 0, 0, 1, 3, 8, 8], "c": [0, 1, 3, 8, 8, 8, 8]}
CORTEX = {key: np.random.default_rng(0).normal(size=(n, 2)) for key, n in NEURONS.items()}
PREDICTOR = {
    "grid_mean_predictor": {"hidden_layers": 1, "hidden_features": 6},
    "grid_mean_predictor_type": "cortex",
    "source_grids": CORTEX,
}


def multi(cls=MultiReadoutBase, keys="abc", **options):
    options = {"base_readout": FullGaussian2d, **GAUSSIAN} | options
    return cls({key: SHAPES[key] for key in keys}, {key: NEURONS[key] for key in keys}, **options)


def clones(readout=FullGaussian2d, **options):
    """Two sessions of the same neurons, the second a clone with gains and offsets of its own."""
    options = GAUSSIAN | options if readout is FullGaussian2d else options
    layer = MultiReadoutBase(
        {"a": SHAPE, "b": SHAPE}, {"a": 12, "b": 12}, base_readout=readout, clone_readout=True, **options
    )
    with torch.no_grad():
        for parameter in (*layer.parameters(),):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def features(data_key="a", batch=4):
    return torch.randn(batch, *SHAPES[data_key])


def test_one_readout_for_each_session():
    layer = multi()
    assert list(layer) == ["a", "b", "c"]
    keys = [f"{key}.{name}" for key in "abc" for name in ("_mu", "sigma", "_features", "bias")]
    assert list(layer.state_dict()) == keys
    for key in "abc":
        x = features(key)
        torch.manual_seed(1)
        want = layer[key](x, out_idx=[1, 2])
        torch.manual_seed(1)
        assert layer(x, data_key=key, out_idx=[1, 2], images=x).equal(want)
        assert layer.regularizer(key).equal(layer[key].regularizer())
        assert layer.regularizer(data_key=key, reduction="mean").equal(layer[key].regularizer(reduction="mean"))
    with pytest.warns(DeprecationWarning, match="average"):
        assert layer.regularizer("a", average=True).equal(layer["a"].regularizer(reduction="mean"))


def test_the_only_session_needs_no_name():
    layer = multi(keys="a").eval()
    x = features()
    assert layer(x).equal(layer["a"](x))
    assert layer.regularizer().equal(layer["a"].regularizer())


@pytest.mark.parametrize("key", [None, "d"])
def test_an_unknown_session(key):
    layer = multi()
    with pytest.raises(KeyError, match=f"data_key: want one of a, b, c, got {key!r}"):
        layer(features(), data_key=key)
    with pytest.raises(KeyError, match="data_key"):
        layer.regularizer(key)


def test_class_of_the_readouts():
    class Pooled(MultiReadoutBase):
        _base_readout = PointPooled2d

    options = {"bias": True, "pool_steps": 1, "pool_kern": 2, "init_range": 0.5}
    layer = Pooled({"a": SHAPE}, {"a": 3}, base_readout=FullGaussian2d, **options)
    assert type(layer["a"]) is PointPooled2d
    with pytest.raises(ValueError, match="base_readout: want a class of readouts, got None"):
        MultiReadoutBase({"a": SHAPE}, {"a": 3}, bias=True)


def test_mean_activity():
    means = {key: torch.rand(n) for key, n in NEURONS.items()}
    layer = multi(mean_activity_dict=means)
    assert all(layer[key].bias.equal(means[key]) for key in "abc")
    layer.initialize({key: 2 * mean for key, mean in means.items()})
    assert all(layer[key].bias.equal(2 * means[key]) for key in "abc")


def test_shared_transform():
    own = multi(MultiReadoutSharedParametersBase, **PREDICTOR)
    assert own["a"].mu_transform is not own["b"].mu_transform
    layer = multi(MultiReadoutSharedParametersBase, share_transform=True, **PREDICTOR)
    assert list(layer.state_dict()) == list(own.state_dict()), "the keys of a checkpoint are the same"
    assert layer["a"].mu_transform is layer["b"].mu_transform is layer["c"].mu_transform
    before = layer["a"].mu
    layer(features("b"), data_key="b").sum().backward()
    torch.optim.SGD(layer["b"].parameters(), lr=1.0).step()
    assert not layer["a"].mu.equal(before), "what a session learns of the retinotopy, all do"


def test_shared_features_and_grid():
    layer = multi(MultiReadoutSharedParametersBase, share_grid=True, share_features=True, shared_match_ids=IDS)
    first = layer["a"]
    for other in (layer["b"], layer["c"]):
        assert other._features is first._features
        assert other._mu is first._mu
        assert other.regularizer() == 0
    neuron = {key: IDS[key].index(8) for key in "abc"}
    assert first.features[..., neuron["a"]].equal(layer["b"].features[..., neuron["b"]])
    assert first.mu[:, neuron["a"]].equal(layer["c"].mu[:, neuron["c"]]), "the affine map starts as the identity"
    layer(features("c"), data_key="c").sum().backward()
    assert first._features.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share_grid": True}, "shared_match_ids: want an entry for a, got None"),
        ({"share_features": True, "shared_match_ids": {"a": IDS["a"]}}, r"an entry for b, got \['a'\]"),
        (
            {"share_features": True, "shared_match_ids": IDS | {"b": [9, 3, 1, 0, 0, 1, 3, 9, 9]}},
            "shared_match_ids of b: want the same ids as in a",
        ),
        (PREDICTOR | {"grid_mean_predictor_type": None}, "grid_mean_predictor_type: want one of cortex, got None"),
        (PREDICTOR | {"source_grids": {}}, r"source_grids: want an entry for a, got \[\]"),
    ],
)
def test_bad_sharing(options, message):
    with pytest.raises(ValueError, match=message):
        multi(MultiReadoutSharedParametersBase, **options)


def test_a_checkpoint_whose_sessions_differ_in_what_is_shared():
    """neuralpredictors' share_transform has no effect: one of its transforms would silently be taken for all."""
    own = multi(MultiReadoutSharedParametersBase, **PREDICTOR).state_dict()
    layer = multi(MultiReadoutSharedParametersBase, share_transform=True, **PREDICTOR)
    with pytest.raises(RuntimeError, match=r"b.mu_transform.0.weight: want the values of a.mu_transform.0.weight"):
        layer.load_state_dict(own)
    layer.load_state_dict(layer.state_dict())
    model = nn.Sequential(layer)
    with pytest.raises(RuntimeError, match=r"0.c.mu_transform.2.bias: want the values of 0.a.mu_transform.2.bias"):
        model.load_state_dict({f"0.{key}": value for key, value in own.items()})


@pytest.mark.parametrize("out_idx", [None, [5, 1], torch.arange(12) > 8])
def test_a_clone_is_the_original_with_gains_and_offsets(out_idx):
    layer = clones()
    x, shift = features(), 0.2 * torch.randn(4, 2)
    chosen = slice(None) if out_idx is None else torch.as_tensor(out_idx)
    torch.manual_seed(1)
    want = layer["a"](x, shift=shift) * layer["b"].alpha + layer["b"].beta
    torch.manual_seed(1)
    assert layer(x, data_key="b", shift=shift, out_idx=out_idx, images=x).equal(want[:, chosen])
    assert not layer(x, data_key="b", sample=False).equal(layer(x, data_key="b", sample=True))
    want.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer["b"].parameters())


def test_state_of_a_clone():
    layer = clones()
    assert list(layer["b"].state_dict()) == [
        "alpha",
        "beta",
        "_source._mu",
        "_source.sigma",
        "_source._features",
        "_source.bias",
    ]
    assert layer["b"]._source is layer["a"]
    layer.initialize({"a": torch.ones(12), "b": torch.ones(12)})
    assert (layer["b"].alpha == 1).all()
    assert (layer["b"].beta == 0).all()
    layer = ClonedReadout(layer["a"].double())
    assert layer.alpha.dtype == torch.float64


def test_penalty_of_a_clone():
    layer = clones(feature_reg_weight=0.5)
    features = layer["a"]._features * layer["b"].alpha
    assert layer.regularizer("b").item() == pytest.approx(0.5 * features.abs().sum().item())
    assert layer.regularizer("b", reduction="mean").item() == pytest.approx(0.5 * features.abs().mean().item())
    assert layer["b"].feature_l1().item() == pytest.approx(features.abs().mean().item())
    layer.regularizer("b").backward()
    assert layer["b"].alpha.grad.abs().sum() > 0


def test_clones_of_other_readouts():
    pooling = {"bias": True, "pool_steps": 1, "pool_kern": 2, "init_range": 0.5}
    layer = clones(GeneralizedPointPooled2d, inferred_params_n=2, **pooling)
    assert layer(features(), data_key="b", out_idx=[3]).shape == (2, 4, 1)
    assert layer.regularizer("b").item() > 0
    video = SpatialTransformerPooled3d((5, 3, 7, 9), 12)
    clone = ClonedReadout(video)
    x = torch.randn(2, 5, 3, 7, 9)
    assert clone(x, subs_idx=[1, 2]).equal(video(x, subs_idx=[1, 2]))

    class NeuronsFirst(nn.Module):
        neuron_axis, outdims, feature_reg_weight = 0, 12, 1.0
        features = nn.Parameter(torch.randn(12, 5))

    clone = ClonedReadout(NeuronsFirst())
    with torch.no_grad():
        clone.alpha[3:] = 0
    assert clone.regularizer().item() == pytest.approx(NeuronsFirst.features[:3].abs().sum().item())
    NeuronsFirst.neuron_axis = -1
    with pytest.raises(ValueError, match=r"original_readout: want features of 12 neurons, got shape \(12, 5\)"):
        ClonedReadout(NeuronsFirst())


def test_clones_have_as_many_neurons():
    with pytest.raises(ValueError, match="n_neurons of b: want 12, those of a, got 9"):
        multi(keys="ab", clone_readout=True)


def test_a_session_is_added():
    layer = multi(keys="ab").double().eval()
    before = copy.deepcopy(layer.state_dict())
    mean = torch.rand(7)
    layer.add_session("c", 7, in_shape=(5, 4, 4), mean_activity=mean, gauss_type="isotropic")
    assert list(layer) == ["a", "b", "c"]
    assert all(layer.state_dict()[key].equal(value) for key, value in before.items())
    new = layer["c"]
    assert new.in_shape == (5, 4, 4)
    assert new.gauss_type == "isotropic"
    assert new.init_mu_range == 0.8, "as the constructor was told"
    assert new.bias.equal(mean.double())
    assert all(p.dtype == torch.float64 for p in new.parameters())
    assert not new.training
    assert layer(torch.randn(2, 5, 4, 4).double(), data_key="c").shape == (2, 7)
    layer.add_session("d", 3)
    assert layer["d"].in_shape == SHAPE
    with pytest.raises(ValueError, match="data_key: want a new session beside a, b, c, d, got 'a'"):
        layer.add_session("a", 3)


def test_sessions_that_are_added_share():
    def both(**options):
        return multi(MultiReadoutSharedParametersBase, keys="ab", **options)

    layer = both(share_transform=True, **PREDICTOR | {"source_grids": {k: CORTEX[k] for k in "ab"}})
    layer.add_session("c", 7, source_grids={"c": CORTEX["c"]})
    assert layer["c"].mu_transform is layer["a"].mu_transform
    layer = both(share_features=True, shared_match_ids={k: IDS[k] for k in "ab"})
    with torch.no_grad():
        layer["a"]._features.add_(1)
    layer.add_session("c", 7, shared_match_ids={"c": IDS["c"]})
    assert layer["c"]._features is layer["a"]._features
    assert (layer["a"]._features == 1 + 1 / 5).all()
    with pytest.raises(ValueError, match="shared_match_ids of d: want the same ids as in a"):
        layer.add_session("d", 3, shared_match_ids={"d": [1, 2, 3]})
    layer = clones()
    layer.add_session("c", 12)
    assert layer["c"]._source is layer["a"]


def test_sessions_may_all_come_later():
    layer = multi(keys="")
    with pytest.raises(ValueError, match=r"in_shape: want \(C, H, W\) for the first session, got None"):
        layer.add_session("a", 12)
    layer.add_session("a", 12, in_shape=SHAPE)
    assert layer.eval()(features()).shape == (4, 12)


def test_copies():
    layer = multi(MultiReadoutSharedParametersBase, share_transform=True, **PREDICTOR).eval()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other["b"].mu_transform is other["a"].mu_transform
        x = features("b")
        assert other(x, data_key="b").equal(layer(x, data_key="b"))


def test_compiles():
    torch.compiler.reset()
    layer = multi(keys="ab").eval()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for key in "ab":
        x = features(key)
        torch.testing.assert_close(compiled(x, data_key=key), layer(x, data_key=key))


class Preparing(MultiReadoutBase):
    def prepare_readout_kwargs(self, i, data_key, first_data_key, table=None, **kwargs):
        return kwargs | {"init_sigma": table[data_key]}


def of_many_options(in_shape, outdims, **options):
    return FullGaussian2d(in_shape, outdims, **options)


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "torch.save"])
@pytest.mark.parametrize("cls", [MultiReadoutBase, MultiReadoutSharedParametersBase])
def test_what_came_along_is_not_kept(cls, how):
    """Trainers hand their data loaders to every readout; a lambda cannot be pickled."""
    loader = {"transform": lambda x: x, "data": torch.zeros(1000, 100)}
    layer = multi(cls, loader=loader, dataloaders=[loader], frozen=open(__file__))  # noqa: SIM115
    if how == "deepcopy":
        other = copy.deepcopy(layer)
    else:
        buffer = io.BytesIO()
        (pickle.dump if how == "pickle" else torch.save)(layer, buffer)
        assert buffer.tell() < 50_000
        buffer.seek(0)
        other = pickle.load(buffer) if how == "pickle" else torch.load(buffer, weights_only=False)
    assert other._readout_kwargs == GAUSSIAN
    other.add_session("d", 3)
    assert other["d"].init_mu_range == 0.8


def test_what_is_named_is_kept():
    layer = Preparing({"a": SHAPE}, {"a": 12}, FullGaussian2d, table={"a": 0.1, "b": 0.2}, loader=print, bias=True)
    layer.add_session("b", 9)
    assert (layer["a"].init_sigma, layer["b"].init_sigma) == (0.1, 0.2)
    assert set(layer._readout_kwargs) == {"table", "bias"}
    layer = multi(keys="a", base_readout=partial(FullGaussian2d, init_sigma=0.7), init_mu_range=0.4, loader=print)
    layer.add_session("d", 3)
    assert layer["d"].init_mu_range == 0.4
    assert "loader" not in layer._readout_kwargs
    layer = multi(keys="a", base_readout=of_many_options)  # which does not tell what it needs
    layer.add_session("d", 3)
    assert layer["d"].init_mu_range == 0.8


class TakesAll(FullGaussian2d):
    def __init__(self, *args, **kwargs):
        self.table = kwargs.pop("my_table")
        super().__init__(*args, **kwargs)


def test_arguments_that_no_signature_names_reach_the_constructor():
    layer = multi(keys="a", base_readout=TakesAll, my_table=3)
    assert layer["a"].table == 3
    layer.add_session("d", 3, my_table=4)
    assert layer["d"].table == 4
