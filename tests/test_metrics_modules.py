"""The torchmetrics classes: any split into batches and processes gives what the function gives."""

import os
from pathlib import Path

import new_processes
import pytest
import torch
import torch.distributed as dist
from torchmetrics import MetricCollection

from v1fast import metrics

T, N = 120, 6
SPLITS = ([T], [1] * T, [1, 2, 7, 50, 60], [0, 100, 20])
CASES = {
    "SingleTrialCorrelation": ("single_trial_correlation", "rp", {}),
    "PoissonDevianceExplained": ("poisson_deviance_explained", "rp", {}),
    "InformationGain": ("information_gain", "rp", {}),
    "CorrelationToAverage": ("correlation_to_average", "rpi", {}),
    "FEVE": ("feve", "rpi", {"threshold": 0.4}),
    "CCNorm": ("ccnorm", "rpi", {}),
    "OracleCorrelation": ("oracle_correlation", "ri", {"method": "conservative"}),
    "ExplainableVariance": ("explainable_variance", "ri", {"weighting": "neuralpredictors"}),
}

WITHOUT_IDS = ("SingleTrialCorrelation", "PoissonDevianceExplained", "InformationGain")


def trials(outlier=0.0):
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(24, N, generator=generator) * 5
    ids = torch.randperm(T, generator=generator) % 24
    responses = torch.poisson(rates[ids], generator)
    responses[0] += outlier
    responses[:, 2] = 3.0  # no variance
    return {"r": responses, "p": rates[ids] * 1.1 + 0.1, "i": ids}


def fed(metric, operands, split, **options):
    for parts in zip(*(o.split(split) for o in operands), *(o.split(split) for o in options.values()), strict=True):
        metric.update(*parts[: len(operands)], **dict(zip(options, parts[len(operands) :], strict=True)))
    return metric


@pytest.mark.parametrize("outlier", [0.0, 1e4], ids=["", "first trial far off"])
@pytest.mark.parametrize("name", CASES)
def test_any_split_gives_the_functions_values(name, outlier):
    function, arguments, options = CASES[name]
    operands = [trials(outlier)[k] for k in arguments]
    want = getattr(metrics, function)(*operands, **options)
    for split in SPLITS:
        metric = fed(getattr(metrics, name)(**options), operands, split)
        assert metric.compute().item() == pytest.approx(want.mean, rel=1e-12, abs=1e-12, nan_ok=True)
        torch.testing.assert_close(metric.result.per_neuron, want.per_neuron, rtol=1e-12, atol=1e-12, equal_nan=True)
        assert (metric.result.undefined, metric.result.left_out) == (want.undefined, want.left_out)
        metric.per_neuron = True
        metric.reset()
        assert metric.result is None
        assert fed(metric, operands, split).compute().shape == (N,)


@pytest.mark.parametrize("name", CASES)
def test_a_trial_counts_once(name):
    function, arguments, options = CASES[name]
    operands = [trials()[k] for k in arguments]
    want = getattr(metrics, function)(*operands, **options).mean
    again = torch.cat([torch.arange(T), torch.tensor([3, 3, 70])])
    metric = fed(getattr(metrics, name)(**options), [o[again] for o in operands], 50, trial_id=again)
    assert metric.compute().item() == pytest.approx(want, rel=1e-12)
    with pytest.raises(ValueError, match="trial_id: want it in every update or in none"):
        metric.update(*operands)


def test_forward_is_the_batch_alone():
    r, p = (trials()[k] for k in "rp")
    metric = metrics.SingleTrialCorrelation()
    for batch in (slice(0, 30), slice(30, T)):
        want = metrics.single_trial_correlation(r[batch], p[batch]).mean
        assert metric(r[batch], p[batch]).item() == pytest.approx(want, rel=1e-12)
    assert metric.compute().item() == pytest.approx(metrics.single_trial_correlation(r, p).mean, rel=1e-12)


def test_a_batch_without_repeats_is_nan():
    metric = metrics.FEVE(threshold=None)
    data = trials()
    assert metric(data["r"][:3], data["p"][:3], torch.arange(3)).isnan()


def test_fraction_oracle_and_intervals():
    r, p, ids = trials().values()
    bootstrap = metrics.Bootstrap(resamples=50)
    want = metrics.fraction_oracle(r, p, ids, bootstrap=bootstrap)
    metric = fed(metrics.FractionOracle(bootstrap=bootstrap), [r, p, ids], 17)
    assert metric.compute().item() == pytest.approx(want.value)
    assert metric.result.interval.low == pytest.approx(want.interval.low)
    assert metric.result.undefined == 1


def test_in_a_collection():
    r, p, ids = trials().values()
    collection = MetricCollection([metrics.SingleTrialCorrelation(), metrics.CCNorm(), metrics.OracleCorrelation()])
    collection.update(responses=r, predictions=p, image_ids=ids)
    assert set(collection.compute()) == {"SingleTrialCorrelation", "CCNorm", "OracleCorrelation"}


def collection():
    return MetricCollection([getattr(metrics, name)(**CASES[name][2], per_neuron=True) for name in CASES])


def fed_collection(data, split, **options):
    """All metrics at once. Those with the same states share them (torchmetrics' compute groups)."""
    made = collection()
    for _ in range(2):  # again after a reset
        made.reset()
        for part in range(0, len(data["r"]), split):
            batch = {name: values[part : part + split] for name, values in options.items()}
            r, p, ids = (data[k][part : part + split] for k in "rpi")
            made.update(responses=r, predictions=p, image_ids=ids, **batch)
    return made


@pytest.mark.parametrize("options", [{}, {"trial_id": torch.arange(T)}], ids=["sums", "trial ids"])
def test_metrics_that_share_their_states(options):
    data = trials()
    made = fed_collection(data, 50, **options)
    found = made.compute()
    groups = {frozenset(group) for group in made.compute_groups.values()}
    assert frozenset({"FEVE", "CCNorm", "CorrelationToAverage"}) in groups
    assert frozenset({"OracleCorrelation", "ExplainableVariance"}) in groups
    assert_functions_values(found, data)


def assert_functions_values(found, data):
    for name, (function, arguments, options) in CASES.items():
        want = getattr(metrics, function)(*(data[k] for k in arguments), **options).per_neuron
        torch.testing.assert_close(found[name], want, rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)


def process(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    data = trials()
    own = (torch.arange(T + 2) % T)[rank::2]  # padded, as a sampler does
    found = {}
    for name, (_, arguments, options) in CASES.items():
        operands = [data[k][own] for k in arguments]
        metric = getattr(metrics, name)(**options, per_neuron=True)
        found[name] = fed(metric, operands, 13, trial_id=own).compute()
    part = [data[k][rank * 40 : 40 + 80 * rank] for k in "rp"]
    for name in WITHOUT_IDS:
        found[f"{name}, sums"] = fed(getattr(metrics, name)(per_neuron=True), part, 7).compute()
    found["collection"] = fed_collection({k: values[own] for k, values in data.items()}, 20, trial_id=own).compute()
    torch.save(found, f"{folder}/results.{rank}")
    dist.destroy_process_group()


def both(folder):
    """The two processes, which share the imports."""
    child = os.fork()
    process(0 if child else 1, folder)
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_two_processes_give_the_same(tmp_path):
    folder = str(tmp_path)
    here = str(Path(__file__).parent)
    new_processes.run([f"import sys; sys.path.append({here!r}); import test_metrics_modules as t; t.both({folder!r})"])
    data = trials()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"results.{rank}")
        assert_functions_values(found, data)
        assert_functions_values(found["collection"], data)
        for name in WITHOUT_IDS:
            want = getattr(metrics, CASES[name][0])(data["r"], data["p"]).per_neuron
            got = found[f"{name}, sums"]
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.SingleTrialCorrelation().update(torch.zeros(3), torch.zeros(3)), r"want \[B, N\] both"),
        (lambda: metrics.CCNorm().update(torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(3)), "want 3 trials, got 2"),
        (lambda: metrics.OracleCorrelation().update(torch.zeros(3), torch.zeros(3)), r"responses: want \[B, N\]"),
    ],
)
def test_bad_updates(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_functions_do_without_torchmetrics():
    code = """
import sys
sys.modules["torchmetrics"] = None
import torch
from v1fast import metrics
metrics.single_trial_correlation(torch.rand(3, 2), torch.rand(3, 2))
assert "scipy.stats" not in sys.modules
try:
    metrics.FEVE
except ModuleNotFoundError as error:
    print(error)
"""
    assert new_processes.run([code]) == ['v1fast.metrics.FEVE is a torchmetrics metric: pip install "v1fast[train]"']
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        metrics.Nothing  # noqa: B018
