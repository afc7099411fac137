"""Side by side with the installed rsatoolbox: Datasets in, RDMs out; and where rsatoolbox 0.3.2 is wrong, that it is.

The tests named "theirs" hold the package to its faults: when one of them fails, the fault has been mended there, and
what ``v1fast.rsa.rsatoolbox`` says about it is out of date.
"""

import warnings

import numpy as np
import pytest
import rdm_data
import torch

from v1fast import rsa
from v1fast.rsa import rsatoolbox as bridge
from v1fast.rsa.similarity import RSATOOLBOX_NAMES

toolbox = pytest.importorskip("rsatoolbox")
calc_rdm = toolbox.rdm.calc_rdm


def dataset(dtype=np.float64, stimuli=7, repeats=4, channels=25, seed=0):
    draw = np.random.default_rng(seed)
    names = [f"image {chr(97 + k)}" for k in draw.permutation(stimuli)]
    order = np.concatenate([draw.permutation(stimuli) for _ in range(repeats)])
    signal = 3 * draw.random((stimuli, channels)) + 1
    return toolbox.data.Dataset(
        (signal[order] + draw.random((stimuli * repeats, channels))).astype(dtype),
        descriptors={"session": seed},
        obs_descriptors={
            "image": [names[k] for k in order],
            "animal": [names[k] < "image d" for k in order],
            "run": np.repeat(np.arange(repeats), stimuli).tolist(),
        },
    )


def precision(channels=25):
    root = np.random.default_rng(9).normal(size=(channels, channels))
    return root @ root.T / channels + np.eye(channels)


CALLS = {
    "correlation": {},
    "euclidean": {},
    "mahalanobis": {"noise": precision()},
    "crossnobis": {"noise": precision(), "cv_descriptor": "run"},
    "crossnobis without noise": {"cv_descriptor": "run"},
    "crossnobis without runs": {},
    "poisson": {},
    "poisson with a prior": {"prior_lambda": 2, "prior_weight": 0.5},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_calc_rdm_is_theirs(call, dtype):
    method, data = call.partition(" ")[0], dataset(dtype)
    want = calc_rdm(data, method=method, descriptor="image", **CALLS[call])
    got = bridge.calc_rdm(data, method, "image", **CALLS[call])
    assert isinstance(got, toolbox.rdm.RDMs)
    assert got.dissimilarities.dtype == dtype
    tolerance = 2e-6 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(got.dissimilarities, want.dissimilarities, rtol=tolerance, atol=tolerance)
    assert got.dissimilarity_measure == want.dissimilarity_measure
    # In the order of the sorted names, whatever order they came in.
    assert list(got.pattern_descriptors["image"]) == list(want.pattern_descriptors["image"])
    assert list(got.pattern_descriptors["image"]) == sorted(set(data.obs_descriptors["image"]))
    assert list(got.pattern_descriptors["animal"]) == [True] * 3 + [False] * 4
    assert "run" not in got.pattern_descriptors
    np.testing.assert_array_equal(got.pattern_descriptors["index"], want.pattern_descriptors["index"])
    np.testing.assert_allclose(got.get_matrices(), want.get_matrices(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", ["correlation", "euclidean", "poisson"])
def test_without_a_descriptor_every_observation_stands_for_itself(method):
    data = dataset()
    got, want = bridge.calc_rdm(data, method), calc_rdm(data, method=method)
    np.testing.assert_allclose(got.dissimilarities, want.dissimilarities, rtol=1e-12, atol=1e-12)
    assert list(got.pattern_descriptors["image"]) == list(want.pattern_descriptors["image"])


def test_several_datasets_are_several_matrices():
    several = [dataset(seed=s) for s in (1, 2, 3)]
    got, want = (calc(several, "correlation", "image") for calc in (bridge.calc_rdm, calc_rdm))
    np.testing.assert_allclose(got.dissimilarities, want.dissimilarities, rtol=1e-12, atol=1e-12)
    assert list(got.rdm_descriptors["session"]) == list(want.rdm_descriptors["session"]) == [1, 2, 3]
    noises = [precision(), np.eye(25), 2 * np.eye(25)]
    got = bridge.calc_rdm(several, "mahalanobis", "image", noise=noises)
    want = calc_rdm(several, method="mahalanobis", descriptor="image", noise=noises)
    np.testing.assert_allclose(got.dissimilarities, want.dissimilarities, rtol=1e-12, atol=1e-12)


def test_hdf5_and_back(tmp_path):
    got = bridge.calc_rdm(dataset(np.float32), "correlation", "image")
    got.save(str(tmp_path / "rdm.hdf5"), file_type="hdf5")
    back = toolbox.rdm.load_rdm(str(tmp_path / "rdm.hdf5"))
    np.testing.assert_array_equal(back.dissimilarities, got.dissimilarities)
    assert back.dissimilarity_measure == "correlation"
    assert list(back.pattern_descriptors["image"]) == list(got.pattern_descriptors["image"])
    np.testing.assert_array_equal(bridge.from_rdms(back), got.dissimilarities)
    again = bridge.to_rdms(bridge.from_rdms(back)[0], "correlation", {"image": list(back.pattern_descriptors["image"])})
    assert again == toolbox.rdm.RDMs(got.dissimilarities, "correlation", pattern_descriptors=again.pattern_descriptors)
    square = torch.from_numpy(back.get_matrices())
    np.testing.assert_array_equal(bridge.to_rdms(square).dissimilarities, got.dissimilarities)


@pytest.mark.parametrize("method", [*RSATOOLBOX_NAMES, "cosine", "spearman", "rho-a", "tau-a"])
@pytest.mark.parametrize("ties", [False, True])
def test_compare_is_theirs(method, ties):
    first = [bridge.calc_rdm(dataset(seed=s, stimuli=9), "euclidean", "image") for s in (1, 2, 3)]
    a, b = toolbox.rdm.concat(first), bridge.calc_rdm(dataset(seed=4, stimuli=9), "euclidean", "image")
    if ties:
        a, b = (toolbox.rdm.RDMs(np.round(r.dissimilarities, 1)) for r in (a, b))
    want = toolbox.rdm.compare(a, b, method)
    np.testing.assert_allclose(rsa.compare(a, b, method), want, rtol=1e-11, atol=1e-12)
    if not method.startswith(("tau", "kendall")):
        gaps = [r.dissimilarities.copy() for r in (a, b)]
        for each in gaps:
            each[:, [2, 11]] = np.nan
        want = toolbox.rdm.compare(*(toolbox.rdm.RDMs(each) for each in gaps), method)
        np.testing.assert_allclose(rsa.compare(*gaps, method), want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", ["corr", "cosine", "spearman", "cosine_cov"])
def test_noise_ceiling_is_theirs(method):
    rdms = toolbox.rdm.concat([bridge.calc_rdm(dataset(seed=s), "euclidean", "image") for s in range(5)])
    want = toolbox.inference.boot_noise_ceiling(rdms, method)
    np.testing.assert_allclose(rsa.noise_ceiling(rdms, method), want, rtol=1e-10)


def test_rejects():
    data = dataset()
    for message, given in {
        "method: want one of correlation, cosine": {"method": "poisson_cv"},
        "descriptor: want one of image, animal, run, got 'size'": {"descriptor": "size"},
        "descriptor: want one beside method 'crossnobis', got None": {"method": "crossnobis"},
        "cv_descriptor: want None beside method 'euclidean'": {"method": "euclidean", "cv_descriptor": "run"},
        "cv_descriptor: want every value of 'image' in each fold": {
            "method": "crossnobis",
            "descriptor": "image",
            "cv_descriptor": "animal",
        },
        "dataset: want the same stimuli in all": {"dataset": [data, dataset(stimuli=6)], "descriptor": "image"},
        "noise: want one or 1": {"method": "mahalanobis", "noise": [np.eye(25), np.eye(25)]},
    }.items():
        with pytest.raises(ValueError, match=message):
            bridge.calc_rdm(**{"dataset": data, **given})


# Where rsatoolbox 0.3.2 is wrong ---------------------------------------------------------------------------------


def test_theirs_is_outside_the_range_and_ours_is_not():
    x = rdm_data.make("near-identical, 1e-10", rows=60, columns=2000).numpy()
    data = toolbox.data.Dataset(x)
    assert calc_rdm(data, "correlation").dissimilarities.min() < 0
    assert bridge.calc_rdm(data, "correlation", accuracy="high").dissimilarities.min() > 0


def test_theirs_takes_a_constant_pattern_for_one_of_its_own():
    x = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    x[2] = 1.81
    got, theirs = (
        calc(toolbox.data.Dataset(x), "correlation").get_matrices()[0] for calc in (bridge.calc_rdm, calc_rdm)
    )
    assert not np.isnan(theirs).any()
    assert np.isnan(got[2, [0, 1, 3, 4]]).all()
    assert not np.isnan(np.delete(np.delete(got, 2, 0), 2, 1)).any()


def test_theirs_loses_distances_far_from_the_origin():
    x = (1e4 + np.random.default_rng(0).normal(size=(6, 500))).astype(np.float32)
    want = rdm_data.exact(torch.from_numpy(x), "euclidean")[np.triu_indices(6, 1)].numpy()
    got, theirs = (
        calc(toolbox.data.Dataset(x), method="euclidean").dissimilarities[0] for calc in (bridge.calc_rdm, calc_rdm)
    )
    assert np.abs(theirs - want).max() > 1
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_theirs_divides_by_channels_that_are_not_there():
    draw = np.random.default_rng(0)
    x = 2 + draw.normal(size=(4, 50))
    x[0, 0] = np.nan
    data = toolbox.data.Dataset(x, obs_descriptors={"index": np.arange(4)})
    want = 1 - np.corrcoef(x[0, 1:], x[1, 1:])[0, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = toolbox.rdm.calc_rdm_unbalanced(data, method="correlation", descriptor="index").dissimilarities[0, 0]
    assert abs(theirs - want) > 0.01
    assert bridge.calc_rdm(data, "correlation", nan="pairwise").dissimilarities[0, 0] == pytest.approx(want, abs=1e-12)


def test_theirs_returns_the_last_fold_alone():
    data = dataset()
    data.measurements = np.random.default_rng(0).poisson(4 * data.measurements).astype(float)
    found = calc_rdm(data, method="poisson_cv", descriptor="image", cv_descriptor="run").dissimilarities[0]
    runs = np.array(data.obs_descriptors["run"])
    relabelled = toolbox.data.Dataset(
        data.measurements, obs_descriptors={**data.obs_descriptors, "run": ((runs + 1) % 4).tolist()}
    )
    other = calc_rdm(relabelled, method="poisson_cv", descriptor="image", cv_descriptor="run").dissimilarities[0]
    # A mean over folds would not depend on what the folds are called.
    assert np.abs(found - other).max() > 0.01


def test_theirs_refuses_gaps_that_differ_and_fails_on_many_stimuli_with_gaps():
    a, b = np.random.default_rng(0).random((2, 1, 5050))
    a[0, 7] = np.nan
    with pytest.raises(ValueError, match="different nan positions"):
        toolbox.rdm.compare(toolbox.rdm.RDMs(a), toolbox.rdm.RDMs(b), "corr")
    assert abs(rsa.compare(a, b)[0, 0]) < 0.1
    with_gap = b.copy()
    with_gap[0, 7] = np.nan
    with pytest.raises(TypeError):
        toolbox.rdm.compare(toolbox.rdm.RDMs(a), toolbox.rdm.RDMs(with_gap), "cosine_cov")
    assert np.isfinite(rsa.compare(a, with_gap, "cosine_cov")).all()
