"""Weights in bfloat16 with float32 masters: what a pass computes, what training loses, what a checkpoint holds."""

import copy
import io

import pytest
import torch
from every_layer import IMAGE, LAYERS, VIDEO
from torch import nn

pytest.importorskip("lightning")
pytest.importorskip("torchmetrics")

from v1fast.losses import PoissonLoss
from v1fast.readouts import FullGaussian2d, MultiReadoutBase
from v1fast.readouts._points import PointReadout
from v1fast.training import bfloat16_weights

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, N, B = (8, 9, 11), 40, 16
OF_POINTS = [name for name, make in LAYERS.items() if isinstance(make(), PointReadout) and "shared" not in name]


def rounded(layer):
    """A copy of which the weights are those of bfloat16."""
    layer = copy.deepcopy(layer)
    weights = getattr(layer, layer.stored_features)
    with torch.no_grad():
        weights.copy_(weights.bfloat16())
    return layer


@pytest.mark.parametrize("name", OF_POINTS)
def test_a_pass_computes_with_rounded_weights(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()
    weights = getattr(layer, layer.stored_features)
    with torch.no_grad():
        weights.uniform_(0.5, 1.5)
    x = torch.randn(2, *(VIDEO if len(layer.in_shape) == 4 else IMAGE))
    plain, wanted = layer(x), rounded(layer)(x)
    out = bfloat16_weights(layer)(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-6)
    assert not out.allclose(plain, rtol=1e-6, atol=1e-6)
    out.sum().backward()
    assert weights.dtype == weights.grad.dtype == torch.float32
    assert weights.grad.equal(weights.grad.bfloat16().float())
    assert bfloat16_weights(layer, wanted=False)(x).equal(plain)


def test_several_sessions_and_no_readout_of_points():
    readout = MultiReadoutBase({"a": SHAPE, "b": SHAPE}, {"a": 3, "b": 4}, FullGaussian2d, bias=True)
    assert bfloat16_weights(readout) is readout
    assert {readout[key].weight_dtype for key in "ab"} == {torch.bfloat16}
    with pytest.raises(ValueError, match=r"model: want a readout of points, such as FullGaussian2d, got Linear"):
        bfloat16_weights(nn.Linear(2, 3))


class Task:
    """Responses of a readout with other weights; each step sees new features, the same for any ``model``."""

    def __init__(self, model, rate=1e-3):
        self.model, self.steps = model, 0
        self.optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        self.teacher = task_readout(seed=1).eval()

    def step(self):
        generator = torch.Generator().manual_seed(self.steps)
        x = torch.randn(B, *SHAPE, generator=generator)
        with torch.no_grad():
            target = torch.poisson(nn.functional.elu(self.teacher(x)) + 1, generator=generator)
        self.optimizer.zero_grad()
        loss = PoissonLoss()(nn.functional.elu(self.model(x, seed=self.steps)) + 1, target)
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return loss.item()

    def state(self):
        stored = io.BytesIO()
        torch.save([self.model.state_dict(), self.optimizer.state_dict(), self.steps], stored)
        return stored.getvalue()

    def resume(self, stored):
        model, optimizer, self.steps = torch.load(io.BytesIO(stored))
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        return self


def task_readout(seed=0):
    torch.manual_seed(seed)
    readout = FullGaussian2d(SHAPE, N, bias=True, init_sigma=0.05)
    with torch.no_grad():
        readout._features.normal_(1.0, 0.2)
    return readout


def test_training_follows_that_of_float32():
    plain, half = Task(task_readout()), Task(bfloat16_weights(task_readout()))
    losses = torch.tensor([(plain.step(), half.step()) for _ in range(100)])
    # Weights are off by 2^-9 of themselves at most, each in its own direction.
    assert (losses[:, 0] - losses[:, 1]).abs().max() < 2.0**-9 * losses.abs().mean()
    moved = (plain.model._features - task_readout()._features).abs().mean()
    apart = (plain.model._features - half.model._features).abs().mean()
    assert apart < 0.02 * moved


def test_without_masters_small_updates_are_lost():
    start = task_readout()
    masters = Task(bfloat16_weights(copy.deepcopy(start)), rate=1e-4)
    without = Task(rounded(start), rate=1e-4)
    without.model._features = nn.Parameter(without.model._features.detach().bfloat16())
    without.optimizer = torch.optim.Adam(without.model.parameters(), lr=1e-4)
    before = without.model._features.detach().clone()
    for _ in range(20):
        masters.step()
        without.step()
    large = before.abs() > 0.5  # near these, values of bfloat16 are 1/256 or more apart: 40 updates
    assert without.model._features[large].equal(before[large])
    assert ((masters.model._features - start._features)[large].abs() > 5e-4).float().mean() > 0.5


def test_a_checkpoint_is_that_of_float32_and_goes_on_exactly():
    whole, begun = Task(bfloat16_weights(task_readout())), Task(bfloat16_weights(task_readout()))
    for _ in range(10):
        whole.step()
    for _ in range(5):
        begun.step()
    resumed = Task(bfloat16_weights(task_readout(seed=3))).resume(begun.state())
    for _ in range(5):
        resumed.step()
    for (name, value), wanted in zip(
        resumed.model.state_dict().items(), whole.model.state_dict().values(), strict=True
    ):
        assert value.dtype == torch.float32, name
        assert value.equal(wanted), name
    plain = task_readout(seed=4)
    plain.load_state_dict(resumed.model.state_dict())  # a model that knows nothing of it
    assert plain._features.equal(whole.model._features)


def test_it_compiles_to_the_same():
    readout, x = bfloat16_weights(task_readout()).eval(), torch.randn(B, *SHAPE)
    compiled = torch.compile(readout, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), readout(x))
