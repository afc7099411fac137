"""Side by side with the installed rsatoolbox: Datasets in, RDMs out; and where rsatoolbox 0.3.2 is wrong, that it is.

The tests named "theirs" hold the package to its faults: when one of them fails, the fault has been mended there, and
what ``v1fast.rsa.rsatoolbox`` says about it is out of date.
"""

import warnings
from pathlib import Path

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


# Its own calls ---------------------------------------------------------------------------------------------------


def unequal(seed=0, channels=12, dtype=np.float64):
    """Trials of 5 images in 3 runs, 1 to 4 of each in each, shuffled; every image occurs 8 times."""
    draw = np.random.default_rng(seed)
    counts = np.array([[1, 3, 4], [2, 2, 4], [4, 1, 3], [3, 4, 1], [2, 3, 3]])
    image = np.repeat(np.repeat(np.arange(5), 3), counts.ravel())
    run = np.repeat(np.tile([10, 9, 8], 5), counts.ravel())
    order = draw.permutation(len(image))
    signal = draw.poisson(4, (5, channels))
    values = signal[image[order]] + draw.poisson(3, (len(order), channels))
    names = np.array(["cat", "dog", "ape", "owl", "bee"])
    labels = {"image": names[image[order]].tolist(), "run": [f"run {k}" for k in run[order]]}
    return toolbox.data.Dataset(values.astype(dtype), {"session": seed}, labels)


def precisions(folds, channels=12):
    """One for each fold, as they are estimated: from residuals."""
    residuals = np.random.default_rng(8).normal(size=(folds, 40, channels))
    return toolbox.data.noise.prec_from_residuals([*residuals])


DATASETS = {
    "runs of equal size": lambda: dataset(channels=12),
    "unequal repeats": unequal,
    "float32": lambda: unequal(dtype=np.float32),
    "integers": lambda: unequal(dtype=np.int16),
}
METHODS = ["correlation", "euclidean", "mahalanobis", "crossnobis", "poisson", "poisson_cv"]
GIVEN = {
    "nothing": lambda folds: {},
    "one precision": lambda folds: {"noise": precisions(1)[0]},
    "a list of precisions": lambda folds: {"noise": precisions(folds)},
    "a stack of precisions": lambda folds: {"noise": np.array(precisions(folds))},
    "a dictionary of precisions": lambda folds: {"noise": dict(enumerate(precisions(folds)))},
    "remove_mean": lambda folds: {"remove_mean": True},
    "remove_mean and precisions": lambda folds: {"remove_mean": True, "noise": precisions(folds)},
    "a prior": lambda folds: {"prior_lambda": 2.0, "prior_weight": 0.5},
}


@pytest.mark.filterwarnings("ignore:poisson_cv")
@pytest.mark.parametrize("with_folds", [True, False], ids=["cv_descriptor", "no cv_descriptor"])
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", DATASETS)
def test_every_call_gives_their_numbers(data, method, given, with_folds):
    """A method ignores arguments that it has no use for."""
    data = DATASETS[data]()
    folds = len(set(data.obs_descriptors["run"])) if with_folds else len(data.obs_descriptors["image"]) // 5
    folds = 4 if data.n_obs == 28 else folds if with_folds else 8
    options = {"method": method, "descriptor": "image", **GIVEN[given](folds)}
    if with_folds:
        options["cv_descriptor"] = "run"
    if method == "mahalanobis" and np.ndim(options.get("noise", 0)) != 2 and "noise" in options:
        with pytest.raises(ValueError, match=r"^noise: want"):
            bridge.calc_rdm(data, **options)
        return
    got, want = bridge.calc_rdm(data, **options), calc_rdm(data, **options)
    tolerance = 2e-6 if data.measurements.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(got.dissimilarities, want.dissimilarities, rtol=tolerance, atol=tolerance)
    assert got.dissimilarity_measure == want.dissimilarity_measure
    for key in ("image", "index"):
        assert list(got.pattern_descriptors[key]) == list(want.pattern_descriptors[key])
    assert set(got.pattern_descriptors) == set(want.pattern_descriptors)
    assert list(got.rdm_descriptors["session"]) == list(want.rdm_descriptors["session"])
    assert got.descriptors.get("cv_descriptor") == want.descriptors.get("cv_descriptor")


def test_arguments_come_in_their_order():
    data, noise = dataset(), precision()
    for call in (
        ("crossnobis", "image", noise, "run"),
        ("poisson", "image", None, None, 2.0, 0.5),
        ("euclidean", "image", None, "run", 1, 0.1, True),
    ):
        np.testing.assert_allclose(
            bridge.calc_rdm(data, *call).dissimilarities, calc_rdm(data, *call).dissimilarities, rtol=1e-11, atol=1e-12
        )


@pytest.mark.parametrize("collection", [list, tuple, iter])
def test_several_datasets_in_any_collection_each_with_its_noise(collection):
    several = [unequal(seed) for seed in (1, 2, 3)]
    noises = precisions(3)
    options = {"method": "crossnobis", "descriptor": "image", "cv_descriptor": "run"}
    want = calc_rdm(several, noise=noises, **options)
    for noise in (noises, tuple(noises), np.array(noises), dict(enumerate(noises))):
        got = bridge.calc_rdm(collection(several), noise=noise, **options)
        np.testing.assert_allclose(got.dissimilarities, want.dissimilarities, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(got.rdm_descriptors["noise"], want.rdm_descriptors["noise"])
    # One precision serves all, and is a descriptor of all.
    got = bridge.calc_rdm(collection(several), noise=noises[0], **options)
    want = calc_rdm(several, noise=[noises[0]] * 3, **options)
    np.testing.assert_allclose(got.dissimilarities, want.dissimilarities, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(got.descriptors["noise"], want.descriptors["noise"])


@pytest.mark.parametrize("method", ["crossnobis", "euclidean", "mahalanobis", "poisson"])
@pytest.mark.parametrize("nan", [np.nan, "masked"])
def test_a_missing_measurement_makes_its_pattern_missing(method, nan):
    data = unequal()
    values = data.measurements.copy()
    values[7, 3] = np.nan
    lost = data.obs_descriptors["image"][7]
    holes = toolbox.data.Dataset(values, obs_descriptors=data.obs_descriptors)
    options = {"method": method, "descriptor": "image", "cv_descriptor": "run", "noise": precisions(1)[0]}
    want = calc_rdm(holes, **options)
    assert np.isnan(want.dissimilarities).sum() == 4
    if nan == "masked":
        holes.measurements = np.ma.masked_invalid(values)
        holes.measurements.data[7, 3] = 1e6
    got = bridge.calc_rdm(holes, **options)
    np.testing.assert_allclose(got.dissimilarities, want.dissimilarities, rtol=1e-12, atol=1e-12)
    place = list(got.pattern_descriptors["image"]).index(lost)
    assert np.isnan(np.delete(got.get_matrices()[0, place], place)).all()


def test_searchlights_are_theirs():
    from rsatoolbox.util.searchlight import get_searchlight_RDMs, get_volume_searchlight

    draw = np.random.default_rng(0)
    mask = draw.random((5, 5, 4)) < 0.8
    centers, neighbors = get_volume_searchlight(mask, radius=2, threshold=0.5)
    values, events = draw.random((24, mask.size)) + 1, np.tile([3, 1, 2, 0], 6)
    for method in ("correlation", "euclidean", "mahalanobis", "poisson", "crossnobis"):
        if method == "crossnobis":  # where theirs fails on searchlights of different sizes
            chosen = [k for k, near in enumerate(neighbors) if len(near) == len(neighbors[0])]
            centers, neighbors = centers[chosen], [neighbors[k] for k in chosen]
        want = get_searchlight_RDMs(values, centers, neighbors, events, method, False)
        got = bridge.get_searchlight_RDMs(values, centers, neighbors, events, method, False)
        np.testing.assert_allclose(got.dissimilarities, want.dissimilarities, rtol=1e-11, atol=1e-12)
        np.testing.assert_array_equal(got.rdm_descriptors["voxel_index"], want.rdm_descriptors["voxel_index"])
        assert got.dissimilarity_measure == want.dissimilarity_measure
        assert list(got.pattern_descriptors["events"]) == [0, 1, 2, 3]


def test_searchlights_with_noise_and_unequal_folds():
    """Which their function does not take: by their calc_rdm, on the channels of each searchlight."""
    data = unequal(channels=30)
    draw = np.random.default_rng(1)
    near = [draw.choice(30, size, replace=False) for size in (5, 5, 1, 9, 30)]
    residuals = draw.normal(size=(3, 70, 30))
    covariances = [toolbox.data.noise.cov_from_residuals(each) for each in residuals]
    events, folds = data.obs_descriptors["image"], data.obs_descriptors["run"]

    def want(method, noise_of):
        found = [
            calc_rdm(
                toolbox.data.Dataset(data.measurements[:, c], obs_descriptors=data.obs_descriptors),
                method=method,
                descriptor="image",
                noise=noise_of(c),
                cv_descriptor="run",
            ).dissimilarities[0]
            for c in near
        ]
        return np.array(found)

    def got(method, noise):
        given = {"folds": folds} if method == "crossnobis" else {}
        return bridge.get_searchlight_RDMs(
            data.measurements, np.arange(5), near, events, method, noise=noise, **given
        ).dissimilarities

    def inside(c):
        return np.linalg.inv(covariances[0][np.ix_(c, c)])

    def inside_folds(c):
        return [np.linalg.inv(each[np.ix_(c, c)]) for each in covariances]

    def diagonal(c):
        return np.diag(1 / np.diag(covariances[0])[c])

    same = {"rtol": 1e-9, "atol": 1e-11}
    for method in ("mahalanobis", "crossnobis"):
        np.testing.assert_allclose(got(method, np.linalg.inv(covariances[0])), want(method, inside), **same)
        np.testing.assert_allclose(got(method, [inside(c) for c in near]), want(method, inside), **same)
        np.testing.assert_allclose(got(method, 1 / np.diag(covariances[0])), want(method, diagonal), **same)
    per_fold = np.linalg.inv(np.array(covariances))
    np.testing.assert_allclose(got("crossnobis", per_fold), want("crossnobis", inside_folds), **same)
    listed = [np.array(inside_folds(c)) for c in near]
    as_lists = rsa.searchlight_rdms(
        data.measurements, [c.tolist() for c in near], method="crossnobis", noise=per_fold, folds=folds, stimuli=events
    )
    np.testing.assert_allclose(as_lists, want("crossnobis", inside_folds), **same)
    np.testing.assert_allclose(got("crossnobis", listed), want("crossnobis", inside_folds), **same)
    # Against models, and a neighbourhood of nothing.
    codes = np.unique(events, return_inverse=True)[1]
    given = {"noise": per_fold, "folds": folds, "stimuli": codes}
    near.append(np.array([], dtype=np.int64))
    rdms = rsa.searchlight_rdms(data.measurements, near, method="crossnobis", **given)
    assert np.isnan(rdms[-1]).all()
    similar = rsa.searchlight(data.measurements, near, draw.random((2, 10)), dissimilarity="crossnobis", **given)
    assert similar.shape == (6, 2)
    assert np.isfinite(similar[:-1]).all()
    for message, noise in {
        "noise: want 6, one for each neighbourhood, got 2": [np.eye(5)] * 2,
        r"noise: want \[N\], \[N, N\] or \[F, N, N\] with N = 30": np.eye(29),
        "noise: want a precision matrix that has an inverse": np.zeros((30, 30)),
        r"noise: want \[N\] = \(30,\), none negative": -np.ones(30),
    }.items():
        with pytest.raises(ValueError, match=message):
            rsa.searchlight_rdms(data.measurements, near, method="mahalanobis", noise=noise)


def test_the_page_of_the_documentation_runs():
    page = (Path(__file__).parents[1] / "docs" / "rsatoolbox.md").read_text()
    names = {}
    exec(page.split("```python")[1].split("```")[0], names)
    want = calc_rdm(names["trials"], "crossnobis", "image", cv_descriptor="run")
    np.testing.assert_allclose(names["rdms"].dissimilarities, want.dissimilarities, rtol=1e-12, atol=1e-13)


# What a dataset means --------------------------------------------------------------------------------------------


def of(labels, seed=0, **others):
    values = np.random.default_rng(seed).normal(size=(len(labels), 10))
    return toolbox.data.Dataset(values, {"session": seed}, {"cond": labels, **others})


def test_datasets_with_other_conditions_have_gaps():
    several = [of(list("bcd"), 1), of(list("cbabc"), 2), of(list("dab"), 3), of(["d"], 4)]
    got, want = (calc(several, descriptor="cond") for calc in (bridge.calc_rdm, calc_rdm))
    np.testing.assert_allclose(got.dissimilarities, want.dissimilarities, rtol=1e-12)
    assert list(got.pattern_descriptors["cond"]) == list(want.pattern_descriptors["cond"]) == list("bcda")
    assert np.isnan(got.dissimilarities).sum() == 3 + 3 + 3 + 6
    assert list(got.rdm_descriptors["session"]) == [1, 2, 3, 4]


def test_a_further_descriptor_stays_where_the_datasets_agree():
    several = [
        of(list("ba"), 1, group=["x", "y"], place=[0, 1]),
        of(list("cb"), 2, group=["z", "x"], place=[0, 1]),
    ]
    got = bridge.calc_rdm(several, descriptor="cond")
    assert got.pattern_descriptors["cond"] == list("abc")
    assert got.pattern_descriptors["group"] == ["y", "x", "z"]
    assert "place" not in got.pattern_descriptors  # of b it is 0 in one and 1 in the other


def test_observations_are_put_in_the_order_of_the_first():
    values = np.random.default_rng(0).normal(size=(4, 10))
    order = [2, 0, 3, 1]
    labels = {"cond": np.array(list("abcd")), "half": np.array([0, 0, 1, 1]), "index": np.arange(4)}
    one = toolbox.data.Dataset(values, obs_descriptors=labels)
    other = toolbox.data.Dataset(
        values[order],
        obs_descriptors={"cond": labels["cond"][order], "half": labels["half"][order], "index": np.arange(4)},
    )
    got, want = (calc([one, other, one], "correlation") for calc in (bridge.calc_rdm, calc_rdm))
    np.testing.assert_allclose(got.dissimilarities, want.dissimilarities, rtol=1e-12)
    np.testing.assert_allclose(got.dissimilarities[0], got.dissimilarities[1], rtol=1e-12)
    assert list(got.pattern_descriptors["cond"]) == list("abcd")
    assert list(got.pattern_descriptors["half"]) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("message", "labels"),
    {
        "'cond' differs between": [{"cond": list("abc")}, {"cond": list("bcd")}],
        "'half' differs between": [{"half": list("aab")}, {"half": list("aba")}],
        "'cond' and 'trial' order the observations of dataset.1. differently": [
            {"cond": list("abc"), "trial": [0, 1, 2]},
            {"cond": list("bac"), "trial": [0, 1, 2]},
        ],
        "which there are differs": [{"cond": list("abc")}, {}],
    }.items(),
)
def test_observations_that_nothing_puts_in_order_are_refused(message, labels):
    several = [toolbox.data.Dataset(np.eye(3), obs_descriptors=each) for each in labels]
    with pytest.raises(ValueError, match=f"^descriptor: want one, since.*{message}"):
        bridge.calc_rdm(several)


def test_observations_without_names_come_as_they_are():
    values = np.random.default_rng(0).normal(size=(2, 3, 5))
    for labels in ({}, {"half": [0, 0, 1]}):
        several = [toolbox.data.Dataset(each, obs_descriptors=dict(labels)) for each in values]
        got, want = (calc(several) for calc in (bridge.calc_rdm, calc_rdm))
        np.testing.assert_allclose(got.dissimilarities, want.dissimilarities, rtol=1e-12)
        assert {key: list(value) for key, value in got.pattern_descriptors.items()} == {**labels, "index": [0, 1, 2]}


LABELS = {
    "words": ["x", "y", "x", "z"],
    "words of numpy": np.array(["x", "y", "x", "z"]),
    "words as objects": np.array(["x", "y", "x", "z"], dtype=object),
    "scalars of numpy": [np.str_(each) for each in "xyxz"],
    "bytes": np.array([b"x", b"y", b"x", b"z"]),
    "integers": [2, 10, 2, 1],
    "negative strides": np.array([1, 2, 10, 2])[::-1],
    "big-endian": np.array([2, 10, 2, 1], dtype=">i4"),
    "floats": [0.5, -1.0, 0.5, 3.0],
    "booleans": [True, False, True, True],
    "words and numbers in a list": ["x", 1, "x", 2],
    "days": np.array(["2020-01-02", "2020-01-01", "2020-01-02", "2021-01-01"], dtype="datetime64[D]"),
}
LABELS_OF_OURS = {
    "words and None": ["x", None, "x", "a"],
    "None alone": np.array([None, None, None, None]),
    "floats and NaN": [0.5, np.nan, 0.5, np.nan],
    "words and NaN, of a table": np.array(["x", np.nan, "x", np.nan], dtype=object),
    "words and numbers as objects": np.array(["x", 1, "x", 2.5], dtype=object),
}


@pytest.mark.parametrize("name", [*LABELS, *LABELS_OF_OURS])
def test_labels_of_any_kind(name):
    labels = {**LABELS, **LABELS_OF_OURS}[name]
    plain = [{"None": "~", "nan": "~~"}.get(str(each), str(each)) for each in labels]
    data = of(labels)
    got = bridge.calc_rdm(data, descriptor="cond")
    want = calc_rdm(of(plain), descriptor="cond")  # the same groups, as words
    found = [{"None": "~", "nan": "~~"}.get(str(each), str(each)) for each in got.pattern_descriptors["cond"]]
    assert sorted(found) == list(want.pattern_descriptors["cond"])
    order = np.argsort(found)
    np.testing.assert_allclose(
        got.get_matrices()[0][np.ix_(order, order)], want.get_matrices()[0], rtol=1e-12, atol=1e-13
    )
    if name in LABELS:
        theirs = calc_rdm(data, descriptor="cond")
        np.testing.assert_allclose(got.dissimilarities, theirs.dissimilarities, rtol=1e-12, atol=1e-13)
        assert list(got.pattern_descriptors["cond"]) == list(theirs.pattern_descriptors["cond"])
    # Labels other than those averaged over are kept where they do not vary, and left out where they do.
    carried = bridge.calc_rdm(of([0, 1, 0, 2], other=labels), descriptor="cond").pattern_descriptors
    assert "other" in carried
    assert "other" not in bridge.calc_rdm(of([0, 0, 0, 1], other=labels), descriptor="cond").pattern_descriptors or (
        name == "None alone"
    )


def test_descriptors_of_several_numbers_are_carried():
    places = [[0, 1], [2, 3], [0, 1], [4, 5]]
    for given in (places, np.array(places)):
        got = bridge.calc_rdm(of([0, 1, 0, 2], place=given, ragged=[[1], [2, 3], [1], []]), descriptor="cond")
        assert got.pattern_descriptors["place"] == [[0, 1], [2, 3], [4, 5]]
        assert got.pattern_descriptors["ragged"] == [[1], [2, 3], []]
    got = bridge.calc_rdm(of([0, 1, 0, 2], day=5), descriptor="cond")
    assert got.pattern_descriptors["day"] == [5, 5, 5]


def test_a_table_by_way_of_their_dataset():
    pandas = pytest.importorskip("pandas")
    draw = np.random.default_rng(0)
    table = pandas.DataFrame(draw.random((6, 3)), columns=["v1", "v2", "v3"])
    table["cond"] = pandas.Categorical(["b", "a", "c"] * 2)
    table["kind"] = pandas.array(["x", "z", "y"] * 2, dtype="string")
    table["monkey"] = "M"
    data = toolbox.data.Dataset.from_df(table)
    got, want = bridge.calc_rdm(data, descriptor="cond"), calc_rdm(data, descriptor="cond")
    np.testing.assert_allclose(got.dissimilarities, want.dissimilarities, rtol=1e-12)
    assert got.pattern_descriptors["kind"] == ["z", "x", "y"]
    assert got.rdm_descriptors["monkey"] == ["M"]
    with pytest.raises(ValueError, match=r"dataset: want a Dataset of rsatoolbox, got DataFrame; rsatoolbox.*from_df"):
        bridge.calc_rdm(table, descriptor="cond")


def test_one_condition_has_no_pairs():
    for data, options in ((of([0, 0]), {"descriptor": "cond"}), (of([0]), {})):
        got, want = bridge.calc_rdm(data, **options), calc_rdm(data, **options)
        assert got.dissimilarities.shape == want.dissimilarities.shape == (1, 0)
        assert got.n_cond == 1


def test_datasets_of_times_by_way_of_theirs():
    values = np.random.default_rng(0).random((6, 4, 3))
    times = toolbox.data.dataset.TemporalDataset(values, obs_descriptors={"cond": np.array([0, 1, 2] * 2)})
    with pytest.raises(ValueError, match=r"dataset: want a Dataset, got TemporalDataset; its time_as_channels"):
        bridge.calc_rdm(times, descriptor="cond")
    movie = toolbox.rdm.calc_rdm_movie(times, descriptor="cond")
    got = bridge.calc_rdm([each.time_as_observations() for each in times.split_time("time")], descriptor="cond")
    np.testing.assert_allclose(got.dissimilarities, movie.dissimilarities, rtol=1e-12)


def test_poisson_cv_says_what_it_leaves_out():
    data = unequal()
    with pytest.warns(UserWarning, match="poisson_cv: the last fold alone"):
        last = bridge.calc_rdm(data, "poisson_cv", "image", cv_descriptor="run")
    relabelled = []
    for first in range(3):  # each fold becomes the last in turn
        runs = [(int(each[4:]) + first) % 3 for each in data.obs_descriptors["run"]]
        turned = toolbox.data.Dataset(data.measurements, obs_descriptors={**data.obs_descriptors, "run": runs})
        relabelled.append(calc_rdm(turned, "poisson_cv", "image", cv_descriptor="run").dissimilarities)
    every = bridge.calc_rdm(data, "poisson_cv", "image", cv_descriptor="run", every_fold=True)
    np.testing.assert_allclose(every.dissimilarities, np.mean(relabelled, 0), rtol=1e-12)
    assert np.abs(every.dissimilarities - last.dissimilarities).max() > 0.01


def test_rejects():
    data, folded = dataset(), {"method": "crossnobis", "descriptor": "image", "cv_descriptor": "run"}
    for message, given in {
        "method: want one of correlation, cosine": {"method": "euclid"},
        "descriptor: want one of image, animal, run, got 'size'": {"descriptor": "size"},
        "descriptor: want one beside method 'crossnobis', got None": {"method": "crossnobis"},
        "descriptor: want one beside method 'poisson_cv', got None": {"method": "poisson_cv", "every_fold": True},
        "descriptor: want one label for each observation, got 'cond', values of list": {
            "dataset": of([[1, 2], [3, 4]]),
            "descriptor": "cond",
        },
        "cv_descriptor: want one of image, animal, run, got 'size'": {**folded, "cv_descriptor": "size"},
        "cv_descriptor: want every pattern in each fold, got no 'image a' in fold False": {
            **folded,
            "cv_descriptor": "animal",
        },
        "cv_descriptor: want at least two folds, got 1": {**folded, "dataset": dataset(repeats=1)},
        "cv_descriptor: want one where patterns are repeated unequally, got None beside 1 to 2 repeats": {
            "dataset": of(list("aab")),
            "method": "crossnobis",
            "descriptor": "cond",
        },
        "dataset: want as many observations in all, or a descriptor": {"dataset": [data, dataset(stimuli=6)]},
        "dataset: want at least one, got none": {"dataset": []},
        "dataset: want a Dataset of rsatoolbox, got NoneType": {"dataset": None},
        r"dataset\[1\]: want a Dataset of rsatoolbox, got str": {"dataset": [data, "data.h5"]},
        r"dataset\[1\]: descriptor: want one of cond, got 'image'": {
            "dataset": [data, of(["a"])],
            "descriptor": "image",
        },
        "measurements: want numbers": {"dataset": toolbox.data.Dataset(np.ones((3, 0)))},
        "measurements: want numbers .*complex": {"dataset": toolbox.data.Dataset(np.ones((3, 2)) * 1j)},
        r"noise: want numbers \[N, N\] or \[N\] with N = 25, got float64 \(24, 24\)": {
            "method": "mahalanobis",
            "noise": np.eye(24),
        },
        r"noise: want numbers \[N, N\] or \[N\] with N = 25, got float64 \(2, 25, 25\)": {
            "method": "mahalanobis",
            "noise": [np.eye(25), np.eye(25)],
        },
        "noise: want numbers .* or 4 .N, N., one for each fold, got float64 .3, 25, 25": {
            **folded,
            "noise": [np.eye(25)] * 3,
        },
        r"noise\[1\]: want \[N, N\] = \(25, 25\), got \(24, 24\)": {**folded, "noise": [np.eye(25), np.eye(24)] * 2},
        "noise: want precision matrices that have an inverse": {**folded, "noise": np.zeros((4, 25, 25))},
        "noise: want rows of one length": {"method": "mahalanobis", "noise": [[1.0, 2.0], [3.0]]},
        r"noise: want the keys 0 \.\. 3": {**folded, "noise": dict.fromkeys("abcd", np.eye(25))},
        "noise: want one or 2, one for each dataset, got 1": {**folded, "dataset": [data, data], "noise": [np.eye(25)]},
        r"dataset\[1\]: noise: want": {**folded, "dataset": [data, data], "noise": [np.eye(25), np.eye(24)]},
        'nan: want "propagate" beside': {**folded, "nan": "pairwise"},
    }.items():
        with pytest.raises(ValueError, match=f"^{message}") as caught:
            bridge.calc_rdm(**{"dataset": data, **given})
        assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("labels", [list("abc") * 12, [True, False] * 6], ids=["one letter", "booleans"])
def test_theirs_merges_folds_that_it_makes_itself(labels):
    """Their numbers are written into an array of the labels' own type: "10" becomes "1", and 2 becomes True."""
    data = of(labels)
    occurrence = [labels[:k].count(label) for k, label in enumerate(labels)]
    right = calc_rdm(of(labels, run=occurrence), "crossnobis", "cond", cv_descriptor="run").dissimilarities
    theirs, got = (calc(data, "crossnobis", "cond").dissimilarities for calc in (calc_rdm, bridge.calc_rdm))
    assert np.abs(theirs - right).max() > 1e-3
    np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-13)


def test_theirs_fails_on_precisions_of_folds_of_several_datasets():
    several, noises = [unequal(1), unequal(2)], [precisions(3), precisions(3)[::-1]]
    options = {"method": "crossnobis", "descriptor": "image", "cv_descriptor": "run"}
    with pytest.raises(ValueError, match="truth value"):
        calc_rdm(several, noise=noises, **options)
    got = bridge.calc_rdm(several, noise=noises, **options)
    want = [calc_rdm(d, noise=n, **options).dissimilarities[0] for d, n in zip(several, noises, strict=True)]
    np.testing.assert_allclose(got.dissimilarities, want, rtol=1e-12, atol=1e-12)


def test_theirs_stacks_observations_under_the_names_of_the_first():
    """Without a name of its own for each observation: the second dataset's are in another order."""
    several = [of(list("aabb"), 1), of(list("abab"), 2)]
    assert list(calc_rdm(several).pattern_descriptors["cond"]) == list("aabb")
    with pytest.raises(ValueError, match="'cond' differs between the datasets"):
        bridge.calc_rdm(several)


@pytest.mark.parametrize("name", LABELS_OF_OURS)
def test_theirs_fails_on_missing_and_mixed_labels(name):
    with pytest.raises((TypeError, IndexError)):
        calc_rdm(of(LABELS_OF_OURS[name]), descriptor="cond")


def test_theirs_widens_what_it_averages():
    data = unequal(dtype=np.float32)
    assert calc_rdm(data, descriptor="image").dissimilarities.dtype == np.float64
    assert calc_rdm(data).dissimilarities.dtype == np.float32
    for descriptor in ("image", None):
        assert bridge.calc_rdm(data, descriptor=descriptor).dissimilarities.dtype == np.float32


def test_theirs_fails_on_descriptors_of_several_numbers():
    data = of([0, 1, 0, 2], place=np.array([[0, 1], [2, 3], [0, 1], [4, 5]]))
    with pytest.raises(TypeError, match="unhashable"):
        calc_rdm(data, descriptor="cond")
    assert bridge.calc_rdm(data, descriptor="cond").pattern_descriptors["place"] == [[0, 1], [2, 3], [4, 5]]


def test_theirs_loses_the_descriptors_of_a_list_of_one():
    data = [of([0, 1, 0, 2], seed=5)]
    assert "session" not in calc_rdm(data, descriptor="cond").rdm_descriptors
    assert bridge.calc_rdm(data, descriptor="cond").rdm_descriptors["session"] == [5]


def test_theirs_fails_on_crossnobis_in_searchlights_of_different_sizes():
    from rsatoolbox.util.searchlight import get_searchlight_RDMs

    values, events, near = np.random.default_rng(0).random((6, 9)), [0, 1, 2] * 2, [[0, 1, 2], [2, 3], [4, 5, 6, 7]]
    with pytest.raises(ValueError, match="broadcast"):
        get_searchlight_RDMs(values, [1, 2, 5], near, events, "crossnobis", False)
    got = bridge.get_searchlight_RDMs(values, [1, 2, 5], near, events, "crossnobis", False).dissimilarities
    for c, found in zip(near, got, strict=True):
        part = toolbox.data.Dataset(values[:, c], obs_descriptors={"events": events})
        np.testing.assert_allclose(found, calc_rdm(part, "crossnobis", "events").dissimilarities[0], rtol=1e-11)


def test_theirs_fails_without_saying_on_tables_and_times():
    pandas = pytest.importorskip("pandas")
    times = toolbox.data.dataset.TemporalDataset(np.ones((4, 3, 2)), obs_descriptors={"cond": [0, 1] * 2})
    for given in (pandas.DataFrame({"v": [1.0, 2.0]}), times):
        with pytest.raises((AttributeError, ValueError)) as theirs:
            calc_rdm(given, descriptor="cond")
        assert "want a Dataset" not in str(theirs.value)
        with pytest.raises(ValueError, match="dataset: want a Dataset"):
            bridge.calc_rdm(given, descriptor="cond")


# Models and Datasets, in and out -------------------------------------------------------------------------------------


def test_models_are_accepted():
    from rsatoolbox import model

    vectors = np.random.default_rng(0).random((3, 10))
    data = np.random.default_rng(1).random((4, 10))
    rdms = toolbox.rdm.RDMs(vectors)
    fixed = model.ModelFixed("f", toolbox.rdm.RDMs(vectors[:1]))
    np.testing.assert_array_equal(rsa.compare(data, fixed), rsa.compare(data, vectors[0]))
    for made in (model.ModelWeighted("w", rdms), model.ModelSelect("s", rdms), model.ModelInterpolate("i", rdms)):
        np.testing.assert_array_equal(rsa.compare(data, made), rsa.compare(data, vectors))
        np.testing.assert_array_equal(rsa.fit_weights(data, made), rsa.fit_weights(data, vectors))
        np.testing.assert_array_equal(bridge.from_rdms(made), vectors)
    for fit, kind in {"weighted": "ModelWeighted", "select": "ModelSelect", "interpolate": "ModelInterpolate"}.items():
        made = bridge.to_model(vectors, "ours", fit)
        assert (type(made).__name__, made.name, made.n_rdm) == (kind, "ours", 3)
    one = bridge.to_model(vectors[1])
    assert type(one).__name__ == "ModelFixed"
    np.testing.assert_array_equal(one.predict(), vectors[1])
    with pytest.raises(ValueError, match="fit: want one of weighted, select, interpolate"):
        bridge.to_model(vectors, fit="fixed")
    square = np.zeros((3, 3))
    square[0, 1] = square[1, 0] = 1  # three matrices of three pairs, which look like one matrix
    assert rsa.compare(toolbox.rdm.RDMs(square), np.array([1.0, 2, 3])).shape == (3,)


def test_datasets_there_and_back():
    trials = dataset()
    found = bridge.from_dataset(trials, "image", "run")
    want = calc_rdm(trials, "crossnobis", "image", cv_descriptor="run").get_vectors()[0]
    got = rsa.rdm_of_repeats(found.responses, stimuli=found.stimuli, folds=found.folds)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    assert found.labels == sorted(set(trials.obs_descriptors["image"]))
    again = bridge.to_dataset(found.responses, np.array(found.labels)[found.stimuli], found.folds, descriptor="image")
    assert again.obs_descriptors["image"] == trials.obs_descriptors["image"]
    assert again.obs_descriptors["fold"] == trials.obs_descriptors["run"]
    np.testing.assert_array_equal(again.measurements, trials.measurements)
    assert bridge.from_dataset(trials, "image").folds is None
    repeats = np.random.default_rng(0).normal(size=(3, 4, 5))
    theirs = calc_rdm(bridge.to_dataset(repeats), "crossnobis", "stimulus", cv_descriptor="fold").get_vectors()[0]
    np.testing.assert_allclose(rsa.rdm_of_repeats(repeats), theirs, rtol=1e-9)
    named = bridge.to_dataset(repeats, list("abcd"))
    assert named.obs_descriptors["stimulus"] == list("abcd") * 3
    for message, call in {
        "descriptor: want one of": lambda: bridge.from_dataset(trials, "pictures"),
        "dataset: want a Dataset of rsatoolbox, got ndarray": lambda: bridge.from_dataset(repeats, "image"),
        r"stimuli: want \[4\], one for each row": lambda: bridge.to_dataset(repeats, list("abc")),
        "folds: want None beside responses": lambda: bridge.to_dataset(repeats, folds=[0] * 12),
        r"folds: want \[4\], one for each row": lambda: bridge.to_dataset(repeats[0], folds=[0]),
        "responses: want": lambda: bridge.to_dataset(np.ones(3)),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
