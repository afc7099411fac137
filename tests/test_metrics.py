"""The metrics against their definitions, written out in NumPy for one neuron at a time, and scikit-learn's."""

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import d2_tweedie_score

from v1fast import metrics
from v1fast._build import release
from v1fast.metrics import Bootstrap, functional

N = 6


def session(repeats, seed=0, images=40, spread=0.3):
    """Responses and predictions [T, N], ids [T], in a random order; predictions that differ between trials."""
    draw = np.random.default_rng(seed)
    counts = np.full(images, repeats) if isinstance(repeats, int) else draw.integers(*repeats, images)
    ids = draw.permutation(np.repeat(np.arange(images) * 3 - 20, counts))
    rates = draw.gamma(2, 1.5, (200, N))
    responses = draw.poisson(rates[ids]).astype(float)
    predictions = 0.8 * rates[ids] + 0.3 + spread * draw.uniform(size=responses.shape)
    return responses, predictions, ids


EQUAL, RAGGED = session(7), session((1, 9))
SESSIONS = pytest.mark.parametrize("data", [EQUAL, RAGGED], ids=["equal", "ragged"])


def split(values, ids, least=1):
    return [values[ids == i] for i in np.unique(ids) if (ids == i).sum() >= least]


def assert_same(result, want, tolerance=1e-12):
    np.testing.assert_allclose(result.per_neuron.numpy(), want, rtol=0, atol=tolerance)


def pearson(a, b):
    return [np.corrcoef(a[:, n], b[:, n])[0, 1] for n in range(a.shape[1])]


@SESSIONS
def test_single_trial_correlation(data):
    r, p, ids = data
    assert_same(metrics.single_trial_correlation(r, p), pearson(r, p))
    assert_same(metrics.single_trial_correlation(r, p, ids), pearson(r, p))


@SESSIONS
def test_correlation_to_average(data):
    r, p, ids = data
    a, b = (np.stack([image.mean(0) for image in split(v, ids)]) for v in (r, p))
    assert_same(metrics.correlation_to_average(r, p, ids), pearson(a, b))


@SESSIONS
def test_oracle_correlation(data):
    r, _, ids = data
    images = split(r, ids, least=2)
    others = [np.stack([np.delete(image, t, 0).mean(0) for t in range(len(image))]) for image in images]
    result = metrics.oracle_correlation(r, ids)
    assert_same(result, pearson(np.concatenate(images), np.concatenate(others)))
    assert result.left_out == len(split(r, ids)) - len(images)
    signal = np.stack([image.mean(0) for image in images]).var(0)
    noise = np.stack([image.var(0) for image in images]).mean(0)
    assert_same(metrics.oracle_correlation(r, ids, method="conservative"), np.sqrt(signal / (signal + noise)))


def variances(images):
    """Total and noise variance, images alike; [N] each."""
    weights = np.concatenate([np.full(len(image), 1 / len(image) / len(images)) for image in images])
    trials = np.concatenate(images)
    mean = weights @ trials
    total = weights @ (trials - mean) ** 2 / (1 - (weights**2).sum())
    return total, np.stack([image.var(0, ddof=1) for image in images]).mean(0)


@SESSIONS
def test_explainable_variance_and_feve(data):
    r, p, ids = data
    images, predicted = split(r, ids, least=2), split(p, ids, least=2)
    total, noise = variances(images)
    error = np.stack([((a - b) ** 2).mean(0) for a, b in zip(images, predicted, strict=True)]).mean(0)
    assert_same(metrics.explainable_variance(r, ids), (total - noise) / total)
    assert_same(metrics.feve(r, p, ids, threshold=None), 1 - (error - noise) / (total - noise))
    trials, others = np.concatenate(images), np.concatenate(predicted)
    total, error = trials.var(0, ddof=1), ((trials - others) ** 2).mean(0)
    peers = {"weighting": "neuralpredictors"}
    assert_same(metrics.fev(r, ids, **peers), (total - noise) / total)
    assert_same(metrics.feve(r, p, ids, threshold=None, **peers), 1 - (error - noise) / (total - noise))


def test_feve_counts_what_is_below_the_threshold():
    r, p, ids = EQUAL
    r = np.concatenate([r, np.random.default_rng(1).poisson(2, (len(r), 3)), np.ones((len(r), 1))], axis=1)
    p = np.concatenate([p, p[:, :4]], axis=1)
    result = metrics.feve(r, p, ids)
    assert (result.below_threshold, result.undefined) == (3, 1)
    assert result.per_neuron.isnan().tolist() == [False] * N + [True] * 4
    assert result.mean == pytest.approx(metrics.feve(r[:, :N], p[:, :N], ids).mean)
    assert "1 of 10 neurons undefined; 3 below the threshold" in str(result)


def test_a_perfect_model_explains_everything_whatever_the_repeats():
    """Right on average; with neuralpredictors' weighting wrong, if noise and number of repeats are related."""
    ours, theirs = [], []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        rates = draw.gamma(2, 2, (60, 1))
        ids = np.repeat(np.arange(60), np.where(rates[:, 0] > 4, 20, 3))
        r = draw.poisson(rates[ids])
        ours.append(metrics.feve(r, rates[ids], ids).mean)
        theirs.append(metrics.feve(r, rates[ids], ids, weighting="neuralpredictors").mean)
    assert abs(np.mean(ours) - 1) < 3 * np.std(ours) / 60**0.5 + 0.01
    assert abs(np.mean(theirs) - 1) > 0.1


def test_ccnorm_is_the_papers():
    r, p, ids = EQUAL
    order = np.argsort(ids, kind="stable")
    by_repeat = r[order].reshape(40, 7, N).transpose(1, 0, 2)
    a, b = by_repeat.mean(0), p[order].reshape(40, 7, N).mean(1)
    power = (by_repeat.sum(0).var(0, ddof=1) - by_repeat.var(1, ddof=1).sum(0)) / (7 * 6)
    cov = ((a - a.mean(0)) * (b - b.mean(0))).sum(0) / 39
    assert_same(metrics.ccnorm(r, p, ids), cov / np.sqrt(power * b.var(0, ddof=1)))


def test_ccnorm_of_the_true_rates_is_one_on_average_with_unequal_repeats():
    values = []
    for seed in range(40):
        draw = np.random.default_rng(seed)
        rates = draw.uniform(0, 6, (80, 10))
        ids = np.repeat(np.arange(80), draw.integers(2, 10, 80))
        values.append(metrics.ccnorm(draw.poisson(rates[ids]), rates[ids], ids).mean)
    assert abs(np.mean(values) - 1) < 3 * np.std(values) / 40**0.5 + 0.002


def test_ccnorm_without_signal_power_is_nan():
    r = np.tile([[0.0], [1.0]], (10, 5))  # the averages are all alike: less than the noise would make them
    result = metrics.ccnorm(r, np.random.default_rng(0).uniform(size=r.shape), np.repeat(np.arange(10), 2))
    assert result.undefined == 5


@SESSIONS
def test_poisson_deviance_explained_is_scikit_learns(data):
    r, p, _ = data
    want = [d2_tweedie_score(r[:, n], p[:, n], power=1) for n in range(N)]
    assert_same(metrics.poisson_deviance_explained(r, p), want)


def test_information_gain_is_the_difference_of_log_likelihoods():
    r, p, _ = EQUAL
    gain = scipy.stats.poisson.logpmf(r, p).sum(0) - scipy.stats.poisson.logpmf(r, r.mean(0)).sum(0)
    assert_same(metrics.information_gain(r, p), gain / r.sum(0) / np.log(2))


def test_likelihoods_at_their_limits():
    r = torch.tensor([[0.0, 2, 1, -1, 0, 1], [1, 0, 1, 2, 0, 3]])
    p = torch.tensor([[0.0, 0, 1, 1, 1, -1], [1, 1, 1, 1, 1, 2]])
    deviance = metrics.poisson_deviance_explained(r, p).per_neuron
    assert deviance[0] == 1
    assert deviance[1] == -torch.inf
    assert deviance[2:].isnan().all()  # no variance, a negative response, no spikes, a negative prediction
    gain = metrics.information_gain(r, p).per_neuron
    assert gain[2] == 0
    assert gain[3:].isnan().all()


def test_fraction_oracle():
    r, p, ids = RAGGED
    r = np.concatenate([r, np.full((len(r), 1), 0.1)], axis=1)
    p = np.concatenate([p, p[:, :1]], axis=1)
    kept = np.isin(ids, [i for i in np.unique(ids) if (ids == i).sum() > 1])
    c = metrics.single_trial_correlation(r[kept], p[kept]).per_neuron.numpy()
    o = metrics.oracle_correlation(r, ids).per_neuron.numpy()
    assert np.isnan([c[-1], o[-1]]).all()
    result = metrics.fraction_oracle(r, p, ids, bootstrap=Bootstrap(resamples=200))
    assert result.value == pytest.approx(np.nansum(c * o) / np.nansum(o * o), abs=1e-12)
    assert (result.undefined, result.neurons) == (1, N + 1)
    assert result.value in result.interval
    p[:, 0] = 1.0  # a model that says nothing about a neuron with an oracle
    omit, zero = (metrics.fraction_oracle(r, p, ids, nan=nan) for nan in ("omit", "zero"))
    assert omit.undefined == zero.undefined == 2
    assert omit.value == pytest.approx(np.nansum((c * o)[1:]) / np.nansum((o * o)[1:]), abs=1e-12)
    assert zero.value == pytest.approx(np.nansum((c * o)[1:]) / np.nansum(o * o), abs=1e-12)


def every(r, p, ids, **options):
    """Results of all metrics of single neurons, by name."""
    found = {name: getattr(metrics, name)(r, p, ids, **options) for name in OF_PREDICTIONS}
    found |= {
        name: getattr(metrics, name)(r, ids, **options) for name in ("oracle_correlation", "explainable_variance")
    }
    conservative = metrics.oracle_correlation(r, ids, method="conservative", **options)
    return found | {"oracle_correlation_conservative": conservative}


OF_PREDICTIONS = (
    "single_trial_correlation",
    "correlation_to_average",
    "feve",
    "ccnorm",
    "poisson_deviance_explained",
    "information_gain",
)


@SESSIONS
def test_evaluate_is_all_of_them(data):
    options = {"bootstrap": Bootstrap(resamples=50)}
    found, want = metrics.evaluate(*data, **options), every(*data, **options)
    assert set(found) == set(want)
    for name, result in want.items():
        torch.testing.assert_close(found[name].per_neuron, result.per_neuron, rtol=0, atol=1e-12, msg=name)
        assert (found[name].left_out, found[name].images) == (result.left_out, result.images or 40), name
        assert found[name].interval.low == pytest.approx(result.interval.low, abs=1e-12), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int64], ids=str)
def test_any_dtype_arrays_and_tensors(dtype):
    r, p, ids = RAGGED
    r, p = torch.from_numpy(r).to(dtype), torch.from_numpy(p).to(dtype)
    want = every(r.double(), p.double(), ids)
    names = np.array([f"image {i:04}" for i in ids + 100])
    for name, result in every(r, p, torch.from_numpy(ids)).items():
        torch.testing.assert_close(result.per_neuron, want[name].per_neuron, equal_nan=True, msg=name)
    for name, result in every(r.numpy(), p.numpy(), names).items():
        torch.testing.assert_close(result.per_neuron, want[name].per_neuron, equal_nan=True, msg=name)


def test_blocks_change_nothing(monkeypatch):
    want = metrics.evaluate(*RAGGED, bootstrap=Bootstrap(resamples=20))
    monkeypatch.setattr("v1fast.metrics._sums.FEATURE_BLOCK", 1)
    monkeypatch.setattr("v1fast.metrics._sums.TRIAL_BLOCK", 1)
    monkeypatch.setattr("v1fast.metrics._results.KEPT_FEATURES", 0)
    found = metrics.evaluate(*RAGGED, bootstrap=Bootstrap(resamples=20))
    for name, result in want.items():
        torch.testing.assert_close(found[name].per_neuron, result.per_neuron, rtol=0, atol=1e-12, msg=name)
        assert found[name].interval.high == pytest.approx(result.interval.high, abs=1e-12)


@pytest.mark.parametrize("value", [0.1, 1e8 + 0.3, -7.3])
@pytest.mark.parametrize("what", ["responses", "predictions"])
def test_no_variance_is_nan_and_counted(what, value):
    r, p, ids = (v.copy() for v in EQUAL)
    (r if what == "responses" else p)[:, 2] = value
    for name, result in every(r, p, ids).items():
        undefined = what == "responses" or name in ("single_trial_correlation", "correlation_to_average", "ccnorm")
        if name in ("poisson_deviance_explained", "information_gain"):
            undefined = value < 0 or (what == "responses" and name == "poisson_deviance_explained")
        assert result.per_neuron.isnan().tolist() == [undefined and n == 2 for n in range(N)], name
        assert result.undefined == undefined, name
        assert result.mean == pytest.approx(result.per_neuron[~result.per_neuron.isnan()].mean().item())


def test_nan_and_infinity_stay_in_their_neuron():
    r, p, ids = (v.copy() for v in EQUAL)
    r[3, 1], p[5, 4] = np.nan, np.inf
    for name, result in every(r, p, ids).items():
        of_responses = name.startswith(("oracle", "explainable"))
        bad = result.per_neuron.isnan() | result.per_neuron.isinf()
        assert bad.tolist() == [n == 1 or (n == 4 and not of_responses) for n in range(N)], name


def test_large_values_lose_nothing():
    r, p, ids = EQUAL
    for name in ("single_trial_correlation", "correlation_to_average", "feve", "ccnorm"):
        want = getattr(metrics, name)(r, p, ids).per_neuron
        torch.testing.assert_close(getattr(metrics, name)(r + 1e6, p + 1e6, ids).per_neuron, want, rtol=0, atol=1e-8)


def test_without_repeats_all_is_undefined():
    r, p, _ = EQUAL
    ids = np.arange(len(r))
    for result in (metrics.feve(r, p, ids), metrics.oracle_correlation(r, ids, bootstrap=Bootstrap())):
        assert result.undefined == N
        assert result.left_out == len(r)
        assert np.isnan(result.mean)
    assert np.isnan(metrics.fraction_oracle(r, p, ids).value)


def test_no_neurons():
    r = torch.zeros(4, 0)
    for result in every(r, r, [0, 0, 1, 1], bootstrap=Bootstrap(resamples=5)).values():
        assert result.per_neuron.shape == (0,)
        assert np.isnan(result.mean)
        assert np.isnan(result.median)


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_the_interval_is_scipys_over_images(method):
    r, p, ids = session((2, 6), images=15)
    bootstrap = Bootstrap(method=method, resamples=99, seed=3)
    images = [(r[ids == i], p[ids == i]) for i in np.unique(ids)]

    def mean_of(drawn):
        chosen = [images[i] for i in drawn]
        return np.mean(pearson(*(np.concatenate(part) for part in zip(*chosen, strict=True))))

    generator = "rng" if release(scipy.__version__) >= (1, 15) else "random_state"
    options = {"n_resamples": 99, "method": method, "vectorized": False, generator: np.random.default_rng(3)}
    want = scipy.stats.bootstrap((np.arange(15),), mean_of, **options).confidence_interval
    got = metrics.single_trial_correlation(r, p, ids, bootstrap=bootstrap).interval
    assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=1e-12)
    assert (got.low + got.high) / 2 in got


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, p, i: metrics.feve(r, p[:3], i), r"predictions: want \[T, N\] = \(280, 6\), got \(3, 6\)"),
        (lambda r, p, i: metrics.feve(r[0], p, i), r"responses: want \[T, N\] with at least one trial, got \(6,\)"),
        (lambda r, p, i: metrics.ccnorm(r, p, i[:2]), r"image_ids: want \[T\] = \(280,\), got \(2,\)"),
        (lambda r, p, i: metrics.single_trial_correlation(r, p, i[:2]), r"image_ids: want \[T\] = \(280,\)"),
        (lambda r, p, i: metrics.ccnorm(r, p, None), r"image_ids: want \[T\], got None"),
        (
            lambda r, p, i: metrics.feve(r, p, i, weighting="x"),
            "weighting: want one of image, neuralpredictors, got 'x'",
        ),
        (lambda r, p, i: metrics.oracle_correlation(r, i, method="x"), "method: want one of jackknife, conservative"),
        (lambda r, p, i: metrics.fraction_oracle(r, p, i, nan="x"), "nan: want one of omit, zero, got 'x'"),
        (lambda r, p, i: Bootstrap(confidence=95), "confidence: want a number between 0 and 1, got 95"),
        (lambda r, p, i: Bootstrap(method="bca"), "method: want one of BCa, percentile, got 'bca'"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(*EQUAL)


def test_everything_is_exported():
    assert set(functional.__all__) <= set(metrics.__all__)
    assert all(hasattr(metrics, name) for name in metrics.__all__)
