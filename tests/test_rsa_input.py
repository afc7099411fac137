"""What numbers come in, and what a matrix means: understood, or named in an error; nothing mapped is copied."""

import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, squareform

from v1fast import _arrays, functional, ops, rsa

STIMULI, NEURONS = 8, 6
DRAW = np.random.default_rng(0)


def rdm_out(x):
    return functional.rdm_out(x, np.empty((STIMULI, STIMULI)))


# Each as a function of responses [S, N].
ENTRIES = {
    "rdm": functional.rdm,
    "rdm condensed": lambda x: functional.rdm(x, method="euclidean", condensed=True),
    "rdm pairwise": lambda x: functional.rdm(x, nan="pairwise"),
    "cross_rdm": lambda x: functional.cross_rdm(x, x),
    "rdm_out": rdm_out,
    "rdm_correlation": lambda x: rsa.rdm_correlation(x, np.arange(STIMULI * 3.0).reshape(STIMULI, 3) ** 2),
    "average_repeats": lambda x: rsa.average_repeats(x, np.arange(STIMULI) // 2)[0],
    "rdm_of_repeats": lambda x: rsa.rdm_of_repeats(x, stimuli=np.arange(STIMULI) // 2),
    "noise_covariance": lambda x: rsa.noise_covariance(x, np.arange(STIMULI) // 2, shrinkage="none"),
    "stimulus_noise": lambda x: rsa.stimulus_noise(x, np.arange(STIMULI) // 2),
    "searchlight_rdms": lambda x: rsa.searchlight_rdms(x, [[0, 1, 2], [3, 4]]),
    "searchlight": lambda x: rsa.searchlight(x, [[0, 1, 2]], np.arange(28.0)),
    "pca": lambda x: rsa.pca(x, 2).scores,
    "tuning_curves": lambda x: rsa.tuning_curves(x, np.arange(STIMULI)).mean,
    "activations": lambda x: rsa.activations(torch.nn.Identity(), x, [""])[""].numpy(),
}
EXACT = [name for name in ENTRIES if name not in ("rdm_out",)]  # of any dtype


def memmap(x):
    import tempfile

    path = Path(tempfile.mkdtemp()) / "x.npy"
    np.save(path, x)
    return np.load(path, mmap_mode="r")


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def odd_strides(x):
    """A field of records: its strides are no multiple of its size."""
    records = np.zeros(x.shape, dtype=[("name", "S3"), ("value", x.dtype)])
    records["value"] = x
    return records["value"]


class Zarr:
    """An object that has ``__array__`` alone."""

    def __init__(self, x):
        self.x = x

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.x, dtype=dtype)


def h5py_dataset(x):
    h5py = pytest.importorskip("h5py")
    return h5py.File("memory.h5", "w", driver="core", backing_store=False).create_dataset("x", data=x)


def data_frame(x):
    return pytest.importorskip("pandas").DataFrame(x)


# Values that float32 holds, so that every form is of the same numbers.
FORMS = {
    "list": lambda x: x.tolist(),
    "list of arrays": list,
    "tuple of tensors": lambda x: tuple(torch.from_numpy(row.copy()) for row in x),
    "objects": lambda x: x.astype(object),
    "objects of integers and floats": lambda x: np.array(
        [[int(v) if v == int(v) else v for v in r] for r in x], object
    ),
    "data frame": data_frame,
    "h5py": h5py_dataset,
    "__array__": Zarr,
    "memmap": memmap,
    "read-only": read_only,
    "read-only, negative strides": lambda x: read_only(x[::-1])[::-1],
    "big-endian": lambda x: x.astype(">f8"),
    "big-endian memmap": lambda x: memmap(x.astype(">f8")),
    "negative strides": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "Fortran order": np.asfortranarray,
    "Fortran order memmap": lambda x: memmap(np.asfortranarray(x)),
    "odd strides": odd_strides,
    "float32": lambda x: x.astype(np.float32),
    "float16": lambda x: x.astype(np.float16),
    "long double": lambda x: x.astype(np.longdouble),
    "bfloat16 tensor": lambda x: torch.from_numpy(x).bfloat16(),
    "masks nothing": lambda x: np.ma.array(x, mask=np.zeros(x.shape, bool)),
    "matrix": np.matrix,
    "int32": lambda x: (4 * x).astype(np.int32),
    "uint64": lambda x: (4 * x).astype(np.uint64),
    "uint16": lambda x: (4 * x).astype(np.uint16),
    "int8 memmap": lambda x: memmap((4 * x).astype(np.int8)),
    "int64 big-endian": lambda x: (4 * x).astype(">i8"),
}


@pytest.mark.parametrize("entry", EXACT)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("error", "ignore::PendingDeprecationWarning")
def test_forms_of_responses(entry, form):
    x = DRAW.integers(0, 31, size=(STIMULI, NEURONS)) / 4
    given = FORMS[form](x)
    if isinstance(given, torch.Tensor) and entry in ("cross_rdm", "rdm", "rdm condensed", "rdm pairwise"):
        got = ENTRIES[entry](given).numpy()  # tensor for tensor
    else:
        got = ENTRIES[entry](given)
    factor = 4 if "int" in form and "integers" not in form else 1
    np.testing.assert_allclose(got, ENTRIES[entry](factor * x), rtol=2e-6, atol=2e-5)


@pytest.mark.filterwarnings("error", "ignore::PendingDeprecationWarning")
def test_rdm_out_and_rdm_to_file(tmp_path):
    x = DRAW.integers(0, 31, size=(STIMULI, NEURONS)) / 4
    want = functional.rdm(x)
    for number, (form, make) in enumerate(FORMS.items()):
        factor = 1  # correlation knows none
        given = make(factor * x)
        np.testing.assert_allclose(
            rsa.rdm_to_file(given, tmp_path / f"{number}.npy", False, progress=False), want, atol=1e-6
        )
        if not isinstance(given, torch.Tensor):
            out = np.empty((STIMULI, STIMULI), want.dtype if functional.rdm(given).dtype == np.float64 else np.float32)
            np.testing.assert_allclose(functional.rdm_out(given, out), want, atol=1e-6, err_msg=form)
    for out in (want.tolist(), np.ma.array(want), np.asfortranarray(want[:, ::2]), want.astype(">f8")):
        with pytest.raises(ValueError, match="out: want"):
            functional.rdm_out(x, out)


def masked(x):
    x = np.ma.array(x, mask=np.zeros(x.shape, bool))
    x[0, 1] = np.ma.masked
    return x


REFUSED = {
    "masked": (masked, "masks 1 of 48 values"),
    "list of masked": (lambda x: list(masked(x)), "masks 1 of 6 values"),
    "list with masked": (lambda x: [*x[:-1], [*x[-1, :-1], np.ma.masked]], "masks 1 of 1 values"),
    "text": (lambda x: x.astype(str), "want numbers, got <U"),
    "objects of text": (lambda x: x.astype(str).astype(object), "want numbers"),
    "None": (lambda x: [[None, *row[1:]] for row in x.tolist()], "None"),
    "objects with None": (lambda x: np.where(x == x[0, 0], None, x), "None"),
    "fractions": (lambda x: [[Fraction(1, 3)] * NEURONS] * STIMULI, "got Fraction"),
    "complex": (lambda x: x + 1j, "want numbers, got complex128"),
    "complex tensor": (lambda x: torch.from_numpy(x + 1j), "complex"),
    "ragged": (lambda x: [*x[:-1].tolist(), [1.0]], "want parts of one shape, got (6,), (1,)"),
    "time": (lambda x: x.astype("m8[s]"), "want numbers, got timedelta64[s]"),
    "records": (lambda x: x.astype([("a", float)]), "want numbers, got [('a', '<f8')]"),
    "dictionary": (lambda x: {"x": x}, "want numbers, got object (dict)"),
    "nothing": (lambda x: None, "want numbers, got object (NoneType)"),
    "sparse": (lambda x: __import__("scipy.sparse").sparse.csr_matrix(x), "want numbers, got object (csr_matrix)"),
    "number": (lambda x: np.float64(3), "got ()"),
}


@pytest.mark.parametrize("entry", [name for name in ENTRIES if name != "activations"])
@pytest.mark.parametrize("form", REFUSED)
def test_what_holds_no_numbers_is_named(entry, form, tmp_path):
    if (entry, form) == ("rdm_out", "complex tensor"):
        pytest.skip("wants two tensors or two arrays first of all")
    make, said = REFUSED[form]
    x = DRAW.normal(size=(STIMULI, NEURONS))
    calls = [ENTRIES[entry]]
    if entry == "rdm":
        calls.append(lambda given: rsa.rdm_to_file(given, tmp_path / "rdm.npy", progress=False))
    for call in calls:
        with pytest.raises(ValueError, match=r"^(responses|x|stimuli: .* for responses)\b") as caught:
            call(make(x))
        assert "\n" not in str(caught.value)
        assert said in str(caught.value) or isinstance(make(x), torch.Tensor) or form == "number"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64])
def test_integers_are_exact_or_refused(dtype, tmp_path):
    exact, far = (np.array([[0, 1, most], [1, 2, 0], [5, 0, 3]], dtype) for most in (1 << 24, (1 << 24) + 1))
    tensors = [torch.from_numpy(far)] if dtype in (np.int32, np.int64, np.uint64) else []
    for name, call in {
        "responses": functional.rdm,
        "x": lambda x: functional.cross_rdm(x, x),
        "responses ": lambda x: rsa.rdm_to_file(x, tmp_path / "rdm.npy", progress=False),
        "x ": lambda x: rsa.rdm_correlation(x, x),
    }.items():
        for given in (far, *tensors):
            with pytest.raises(ValueError, match=f"^{name.strip()}: want integers of at most 16777216"):
                call(given)
        call(exact)
    assert [path.name for path in tmp_path.iterdir()] == ["rdm.npy"]
    np.testing.assert_allclose(functional.rdm(far.astype(np.float64)), functional.rdm(exact), atol=1e-6)
    if np.dtype(dtype).itemsize == 8:
        large = np.array([1, 1 << 53, 3], dtype)
        assert np.isfinite(rsa.compare(large, [1, 2, 3]))
        large[1] += 1
        with pytest.raises(ValueError, match="rdm1: want integers of at most 9007199254740992, which float64 holds"):
            rsa.compare(large, [1, 2, 3])
    if dtype == np.uint64:
        far[0, 2] = (1 << 63) + 5
        with pytest.raises(ValueError, match=f"got {(1 << 63) + 5}"):
            functional.rdm(far)


@pytest.mark.parametrize(
    "folds",
    [
        list("aabb"),
        np.array(["run 1", "run 1", "run 2", "run 2"]),
        np.array(["x", "x", 1, 1], dtype=object),
        np.array([None, None, "b", "b"], dtype=object),
        (7, 7, 3, 3),
        np.array([0.5, 0.5, 2.5, 2.5]),
        np.array([1, 1, 2, 2], ">i4"),
    ],
    ids=str,
)
def test_folds_are_names(folds):
    x = DRAW.normal(size=(4, 5))
    want = functional.rdm(x, method="crossnobis", folds=np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(functional.rdm(x, method="crossnobis", folds=folds), want)
    got = functional.rdm(torch.from_numpy(x), method="crossnobis", folds=folds)
    np.testing.assert_allclose(got.numpy(), want)


def test_folds_and_noise_that_do_not_say_it():
    x = DRAW.normal(size=(4, 5))
    for folds, said in {
        (0.0, 0.0, np.nan, np.nan): "folds: want a label for each row, got NaN",
        ((0, 1), (0, 1)): "folds: want one label for each row",
    }.items():
        with pytest.raises(ValueError, match=re.escape(said)):
            functional.rdm(x, method="crossnobis", folds=folds)
    with pytest.raises(ValueError, match="folds: want an array without a mask"):
        functional.rdm(x, method="crossnobis", folds=np.ma.array([0, 0, 1, 1], mask=[0, 0, 0, 1]))
    with pytest.raises(ValueError, match="noise: want an array without a mask"):
        functional.rdm(x, method="mahalanobis", noise=np.ma.array(np.ones(5), mask=[0, 0, 0, 0, 1]))
    want = functional.rdm(x, method="mahalanobis", noise=np.arange(1.0, 6))
    for noise in ([1, 2, 3, 4, 5], torch.arange(1.0, 6), np.arange(1, 6, dtype=">i2")):
        np.testing.assert_allclose(functional.rdm(x, method="mahalanobis", noise=noise), want)


def test_labels_of_trials():
    x = DRAW.normal(size=(4, 3))
    for labels in (list("abab"), np.array([None, 1, None, 1], object), torch.tensor([0, 1, 0, 1])):
        means, names = rsa.average_repeats(x, labels)
        np.testing.assert_allclose(means, [x[::2].mean(0), x[1::2].mean(0)])
        assert len(names) == 2
    for labels in ([0, 1, np.nan, 1], np.ma.array([0, 1, 0, 1], mask=[0, 0, 1, 0])):
        with pytest.raises(ValueError, match="stimuli: want"):
            rsa.average_repeats(x, labels)


def test_compiled_code_does_not_guess_about_integers():
    x = torch.arange(12).reshape(3, 4)
    call = torch.compile(functional.rdm, backend="eager", fullgraph=True)
    assert call(x.float()).shape == call(x.to(torch.int16)).shape == (3, 3)
    with pytest.raises(Exception, match="want floating values, or integers of 16 bits, in compiled code"):
        call(x)


def test_neighbours_are_indices():
    x = DRAW.normal(size=(STIMULI, NEURONS))
    for bad in ([-1, 2], [0, NEURONS], [0.5, 1], [[0, 1]], [True, False]):
        with pytest.raises(ValueError, match=r"neighbours\[1\]: want"):
            rsa.searchlight_rdms(x, [[0, 1], bad])


# What a matrix means ---------------------------------------------------------------------------------------------


def responses_of(stimuli):
    return DRAW.normal(size=(stimuli, 50))


MATRICES = {
    "cdist": lambda x: cdist(x, x, "correlation"),
    "1 - corrcoef": lambda x: 1 - np.corrcoef(x),
    "1 - corrcoef in float32": lambda x: (1 - np.corrcoef(x.astype(np.float32), dtype=np.float32)).astype(np.float32),
    "1 - cosine by hand": lambda x: 1 - (x @ x.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(x, axis=1),
    "asymmetric rounding": lambda x: functional.rdm(x) * (1 + 1e-15 * DRAW.normal(size=(len(x), len(x)))),
    "with gaps": lambda x: np.where(
        np.add.outer(np.arange(len(x)) == 2, np.arange(len(x)) == 2), np.nan, functional.rdm(x)
    ),
    "1e160": lambda x: 1e160 * cdist(x, x, "correlation"),
    "1e-200": lambda x: 1e-200 * (1 - np.corrcoef(x)),
}


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("stimuli", [2, 3, 6, 10, 12, 36, 92, 300])
def test_a_square_with_rounding_on_its_diagonal_is_one_matrix(kind, stimuli):
    if stimuli == 2 and kind == "with gaps":
        pytest.skip("no stimulus to leave out")
    x, other = responses_of(stimuli), functional.rdm(responses_of(stimuli))
    matrix = MATRICES[kind](x)
    got = rsa.compare(matrix, other, "cosine")
    assert np.shape(got) == ()
    vector = matrix[np.triu_indices(stimuli, 1)]
    assert got == pytest.approx(rsa.compare(vector, other, "cosine"), abs=1e-12, nan_ok=True)
    with pytest.raises(ValueError, match="rdms: want a set of at least 2 matrices, got 1"):
        rsa.noise_ceiling(matrix)
    assert rsa.compare(np.stack([matrix, matrix]), other).shape == (2,)
    if stimuli > 2:
        assert rsa.permutation_test(matrix, other, permutations=9).p > 0 or (stimuli == 3 and kind == "with gaps")


@pytest.mark.parametrize("stimuli", [3, 6, 10, 36])
def test_rows_stay_rows(stimuli):
    """As many matrices as each has pairs."""
    draw = np.random.default_rng(0)
    for rows in (draw.random((stimuli, stimuli)), draw.integers(0, 2, (stimuli, stimuli)), np.arange(stimuli**2.0)):
        rows = rows.reshape(stimuli, stimuli)
        assert rsa.compare(rows, rows[0], "cosine").shape == (stimuli,)
    gaps = draw.random((stimuli, stimuli))
    gaps[0, 1] = np.nan
    assert rsa.compare(gaps, gaps[1]).shape == (stimuli,)


def test_what_may_be_either_is_an_error_that_says_how_to_be_plain():
    x = responses_of(36)
    similar = np.corrcoef(x)
    nearly = functional.rdm(x)
    np.fill_diagonal(nearly, 1e-3)
    for matrix in (similar, nearly, np.ones((3, 3)), np.eye(6)):
        size = len(matrix)
        with pytest.raises(
            ValueError, match=rf"rdm1: \({size}, {size}\) may be one matrix or {size} rows of"
        ) as caught:
            rsa.compare(matrix, np.arange(630.0))
        assert "give one matrix as matrix[numpy.triu_indices(" in str(caught.value)
        assert "\n" not in str(caught.value)
    plain = rsa.compare(nearly[np.triu_indices(36, 1)], np.arange(630.0))
    np.fill_diagonal(nearly, 0)
    assert rsa.compare(nearly, np.arange(630.0)) == plain
    # There are no rows of 35 pairs: it is a matrix, and none of dissimilarities.
    for matrix in (similar[:35, :35], DRAW.random((35, 35))):
        with pytest.raises(ValueError, match="rdm1: want a symmetric matrix with an empty diagonal"):
            rsa.compare(matrix, np.arange(595.0))


def test_each_matrix_of_a_stack_is_looked_at():
    matrices = np.stack([squareform(np.arange(1.0, 11)), squareform(np.arange(10.0, 0, -1))])
    assert rsa.compare(matrices, matrices[0]).shape == (2,)
    for place, value in (((1, 0, 0), 3.0), ((1, 0, 2), 7.0)):
        wrong = matrices.copy()
        wrong[place] = value
        for call in (rsa.noise_ceiling, lambda m: rsa.compare(m, m), lambda m: rsa.bootstrap(m, m, samples=2)):
            with pytest.raises(ValueError, match=r"(rdms|rdm1)\[1\]: want a symmetric matrix with an empty diagonal"):
                call(wrong)


def test_an_empty_stack_has_square_matrices():
    for wrong in (np.zeros((0, 2, 6)), np.zeros((0, 6, 2))):
        for call in (rsa.noise_ceiling, lambda m: rsa.compare(m, m), lambda m: rsa.bootstrap(m, m, samples=2)):
            with pytest.raises(ValueError, match=r"(rdms|rdm1): want \[M, S, S\], got \(0, "):
                call(wrong)


MATRIX_ENTRIES = {
    "compare": lambda m: rsa.compare(m, np.arange(28.0)),
    "compare second": lambda m: rsa.compare(np.arange(28.0), m),
    "permutation_test": lambda m: rsa.permutation_test(m, np.arange(28.0), permutations=9).null,
    "studentized_test": lambda m: rsa.studentized_test(m, np.arange(28.0), permutations=9).null,
    "fit_weights": lambda m: rsa.fit_weights(m, np.arange(56.0).reshape(2, 28) ** 2),
    "bootstrap": lambda m: rsa.bootstrap(m, np.arange(28.0), samples=5).samples,
    "mds": lambda m: rsa.mds(m).scores,
    "rows_nearest": lambda m: rsa.rows_nearest(m, np.arange(8), [3])[1],
}


@pytest.mark.parametrize("entry", MATRIX_ENTRIES)
@pytest.mark.parametrize("form", [name for name in FORMS if name not in ("list of arrays", "tuple of tensors")])
@pytest.mark.filterwarnings("error", "ignore::PendingDeprecationWarning")
def test_forms_of_matrices(entry, form):
    matrix = squareform(DRAW.integers(1, 31, size=28) / 4)
    given = FORMS[form](matrix)
    factor = 4 if "int" in form and "integers" not in form else 1
    want = MATRIX_ENTRIES[entry](factor * matrix)
    np.testing.assert_allclose(MATRIX_ENTRIES[entry](given), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("entry", MATRIX_ENTRIES)
def test_matrices_with_a_mask_are_refused(entry):
    matrix = np.ma.array(squareform(np.arange(28.0)))
    matrix[0, 1] = matrix[1, 0] = np.ma.masked
    with pytest.raises(ValueError, match=r"rdm.*: want an array without a mask, got one that masks 2 of 64"):
        MATRIX_ENTRIES[entry](matrix)


# Nothing mapped is copied ----------------------------------------------------------------------------------------


def test_read_only_memory_is_shared_and_left_as_it_is():
    x = read_only(DRAW.normal(size=(5, 4)).astype(np.float32))
    tensor = _arrays.to_tensor("x", x)
    assert tensor.data_ptr() == x.__array_interface__["data"][0]
    assert not x.flags.writeable
    strided = x[::2, 1:]
    assert torch.equal(_arrays.to_tensor("x", strided), torch.from_numpy(strided.copy()))
    address = _arrays.to_tensor("x", memmap(x)).clone()  # its memory outlives the array that it came from
    assert torch.equal(address, torch.from_numpy(x.copy()))


def test_layers_in_place_do_not_write_into_the_stimuli():
    model = torch.nn.Sequential(torch.nn.ReLU(inplace=True))
    for make in (memmap, torch.from_numpy):
        x = DRAW.normal(size=(6, 4)).astype(np.float32)
        given = make(x.copy())
        found = rsa.activations(model, given, ["0"], batch=4)["0"]
        np.testing.assert_array_equal(found, np.maximum(x, 0))
        np.testing.assert_array_equal(given, x)


PROGRAM = """
import json, os, sys, tempfile, threading, time
import numpy as np, torch
from v1fast import functional, rsa
torch.set_num_threads(1)
folder = tempfile.mkdtemp()
path = os.path.join(folder, "x.npy")
x = np.random.default_rng(0).random((400, 50_000), dtype=np.float32)  # 76 MiB
np.save(path, x)
np.save(os.path.join(folder, "i.npy"), (100 * x).astype(np.int16).reshape(10_000, 2000))
np.save(os.path.join(folder, "r.npy"), x.reshape(80, 5, 50_000))
del x

def anonymous():
    with open("/proc/self/status") as lines:
        return next(int(l.split()[1]) for l in lines if l.startswith("RssAnon")) / 1024

mapped = np.load(path, mmap_mode="r")
counts = np.load(os.path.join(folder, "i.npy"), mmap_mode="r")
repeats = np.load(os.path.join(folder, "r.npy"), mmap_mode="r")
model = torch.nn.Sequential(torch.nn.Linear(50_000, 3))
calls = {
    "rdm": lambda: functional.rdm(mapped),
    "cosine": lambda: functional.rdm(mapped, method="cosine"),
    "euclidean": lambda: functional.rdm(mapped, method="euclidean"),
    "cross_rdm": lambda: functional.cross_rdm(mapped[:200], mapped[200:]),
    "rdm_out": lambda: functional.rdm_out(mapped, np.empty((400, 400), np.float32)),
    "rdm_to_file": lambda: rsa.rdm_to_file(mapped, os.path.join(folder, "o.npy"), progress=False),
    "rdm_correlation": lambda: rsa.rdm_correlation(mapped, mapped, dissimilarity="euclidean"),
    "counts": lambda: rsa.rdm_correlation(counts, counts),
    "activations": lambda: rsa.activations(model, mapped, ["0"], batch=20),
    "searchlight": lambda: rsa.searchlight_rdms(mapped[:20], [np.arange(5), np.arange(7)]),
    "average_repeats": lambda: rsa.average_repeats(repeats),
    "split_half": lambda: rsa.split_half(repeats, splits=2),
    "pca": lambda: rsa.pca(mapped, 2),
}
found = {}
for name, call in calls.items():
    functional.rdm(torch.ones(4, 4))
    before, most, running = anonymous(), 0, True
    def watch():
        global most
        while running:
            most = max(most, anonymous())
            time.sleep(0.001)
    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    running = False
    watcher.join()
    found[name] = most - before
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is looked up in /proc")
@pytest.mark.skipif(ops.loaded["native"] != "loaded", reason="the reference takes memory of its own")
def test_nothing_mapped_is_copied():
    # Freed memory goes back to the system at once: the rest is in use.
    options = {"env": os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], **options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print({name: f"{size:.0f} MiB" for name, size in found.items()})
    # 76 MiB of responses; of 10,000 stimuli there are two tiles of 11 MiB, and the rows that they are made of.
    allowed = {"counts": 110.0}
    assert {name: size for name, size in found.items() if size > allowed.get(name, 38)} == {}
