"""The first use of a GPU kernel: it is compared with what runs in its place, and replaced by it where it fails.

Where the kernels themselves run, they run on an emulated GPU; elsewhere a launcher is a function that is right, or
wrong in one way. A CPU tensor has no CUDA device to ask for its name: the tests make one up.
"""

import itertools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

import ptx_emulator as emulator
from emulated import gpu
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.errors import OutOfResources
from v1fast.kernels import _forms as forms
from v1fast.kernels import _self_test as self_test

from v1fast import kernels
from v1fast.ops import _gpu_check, _gpu_examination
from v1fast.ops import _gpu_records as records
from v1fast.ops._define import defaults

pytestmark = pytest.mark.once

CPU = torch.device("cpu")
MACHINE = {"device": "Some GPU", "capability": "9.0", "driver": "1", "torch": "2", "triton": "3", "kernels": "abc"}
X = torch.randn(1, 4, 8)
CALL = (X, None, "cosine", False, "float32")
FORM = self_test.describe("rdm", self_test.FORMS["rdm"](*CALL))


@pytest.fixture(autouse=True)
def check_is_on(monkeypatch, tmp_path):
    """With an empty cache folder, on a machine that is made up."""
    monkeypatch.delenv("V1FAST_GPU_CHECK")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(records, "machine", lambda index: MACHINE)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(_gpu_check, "failures", {})


def forget():
    """As a new process: what guards know ends with them, but which ops were warned of does not."""
    _gpu_check.failures.clear()


class Launcher:
    """Stands for a launcher of the op rdm: right, or ``broken`` in a way; it counts its calls."""

    def __init__(self, broken=None):
        self.calls, self.broken = 0, broken

    def __call__(self, *arguments):
        self.calls += 1
        if isinstance(self.broken, BaseException):
            raise self.broken
        out = defaults["rdm"](*arguments)
        return out if self.broken is None else self.broken(out)

    def guarded(self):
        return _gpu_check.guarded("rdm", self, self_test)


TRIALS = 3  # tiny calls of the form


def files():
    folder = records.folder()
    return sorted(folder.rglob("*.json")) if folder.exists() else []


def assert_silent(launch, *call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return launch(*call)


# A kernel that is right --------------------------------------------------------------------------------------------


def test_a_right_kernel_is_checked_once_and_used():
    launcher = Launcher()
    launch = launcher.guarded()
    got = assert_silent(launch, *CALL)
    assert launcher.calls == TRIALS + 1
    assert got.equal(defaults["rdm"](*CALL))
    launch(*CALL)
    launch(torch.randn(2, 5, 9), *CALL[1:])  # other sizes of the same form
    assert launcher.calls == TRIALS + 3
    assert [json.loads(path.read_text()) for path in files()] == [
        {"machine": MACHINE, "op": "rdm", "form": FORM, "failure": None}
    ]


def test_a_checked_kernel_is_not_checked_by_the_next_process():
    Launcher().guarded()(*CALL)
    launcher = Launcher()
    launcher.guarded()(*CALL)
    assert launcher.calls == 1


def test_each_form_is_checked():
    launcher = Launcher()
    launch = launcher.guarded()
    calls = [CALL, (X.double(), *CALL[1:]), (X, None, "euclidean", False, "float32"), (X, None, "cosine", True, "high")]
    for count, call in enumerate(calls, 1):
        launch(*call)
        assert launcher.calls == count * (TRIALS + 1)
    assert len(files()) == len(calls)


@pytest.mark.parametrize("what", MACHINE)
def test_other_versions_or_another_device_are_checked_anew(monkeypatch, what):
    Launcher().guarded()(*CALL)
    monkeypatch.setattr(records, "machine", lambda index: MACHINE | {what: "another"})
    launcher = Launcher()
    launcher.guarded()(*CALL)
    assert launcher.calls == TRIALS + 1
    assert len(files()) == 2


def test_the_machine_is_described(monkeypatch):
    monkeypatch.undo()
    found = SimpleNamespace(name="NVIDIA H200", gcnArchName="NVIDIA H200", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    machine = records.machine.__wrapped__(0)
    assert (machine["device"], machine["capability"]) == ("NVIDIA H200", "9.0")
    assert machine["torch"] == torch.__version__
    assert {"driver", "triton", "kernels", "v1fast", "built for"} <= machine.keys()
    json.dumps(machine)


def test_the_hash_is_of_the_sources_of_the_kernels(monkeypatch, tmp_path):
    for name in ("__init__.py", "rdm.py"):
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "__init__.py"))
    hashes = []
    for text in ("1", "2"):
        (tmp_path / "rdm.py").write_text(text)
        hashes.append(records._sources.__wrapped__())
    assert hashes[0] != hashes[1]


# A kernel that is not ----------------------------------------------------------------------------------------------


def wrong(out):
    return out + 1e-4


def one_wrong_element(out):
    out.view(-1)[-1] += 0.01
    return out


def undefined(out):
    out.view(-1)[-1] = torch.nan
    return out


BROKEN = {
    "is wrong: result 0 errs by": wrong,
    "is wrong: result 0 errs": one_wrong_element,
    "NaN where a number is right": undefined,
    "want torch.float32": torch.Tensor.double,
    r"want torch.float32 \(": lambda out: out[:, 1:],
    "does not compile: OutOfResources": OutOfResources(300_000, 200_000, "shared memory"),
    "does not run: RuntimeError: Triton Error": RuntimeError("Triton Error [CUDA]: invalid argument"),
    "does not run: TypeError": TypeError("launch() takes 3 arguments"),
}


@pytest.mark.parametrize(("said", "how"), BROKEN.items())
def test_a_broken_kernel_is_replaced_after_one_warning(said, how):
    launcher = Launcher(how)
    launch = launcher.guarded()
    with pytest.warns(RuntimeWarning, match=f"v1fast::rdm runs without a Triton kernel, slower: .*{said}") as warned:
        got = launch(*CALL)
    assert len(warned) == 1
    text = str(warned[0].message)
    for part in (FORM, "doctor --gpu", *itertools.chain(*MACHINE.items())):
        assert part in text
    calls = launcher.calls
    want = defaults["rdm"](*CALL)
    assert got.equal(want)
    assert assert_silent(launch, *CALL).equal(want)
    assert launcher.calls == calls  # not tried again
    # the next process knows, says so once, and does not try
    forget()
    launcher = Launcher(how)
    launch = launcher.guarded()
    with pytest.warns(RuntimeWarning, match=said) as warned:
        assert launch(*CALL).equal(want)
    assert len(warned) == 1
    assert_silent(launch, *CALL)
    assert launcher.calls == 0


def test_one_warning_for_all_forms_of_an_op():
    launch = Launcher(wrong).guarded()
    with pytest.warns(RuntimeWarning):
        launch(*CALL)
    assert_silent(launch, X, None, "euclidean", False, "float32")
    assert list(_gpu_check.failures) == ["rdm"]
    assert len(files()) == 2


def test_a_right_form_is_used_beside_a_broken_one():
    launcher = Launcher(lambda out: out + (out.dtype == torch.float64))
    launch = launcher.guarded()
    with pytest.warns(RuntimeWarning):
        launch(X.double(), *CALL[1:])
    calls = launcher.calls
    assert_silent(launch, *CALL)
    assert launcher.calls == calls + TRIALS + 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_where_there_is_no_room_the_kernel_runs_and_is_checked_later(error):
    launcher = Launcher(error)
    launch = launcher.guarded()
    with pytest.raises(type(error)):  # of the call itself
        assert_silent(launch, *CALL)
    assert not files()
    launcher.broken = None
    launcher.calls = 0
    assert_silent(launch, *CALL)
    assert launcher.calls == TRIALS + 1


def test_an_interrupted_check_is_not_kept():
    launcher = Launcher(KeyboardInterrupt())
    launch = launcher.guarded()
    with pytest.raises(KeyboardInterrupt):
        launch(*CALL)
    assert not files()
    launcher.broken, launcher.calls = None, 0
    launch(*CALL)
    assert launcher.calls == TRIALS + 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("Failed to find C compiler")])
def test_what_the_system_lacks_is_not_kept(error):
    launch = Launcher(error).guarded()
    with pytest.warns(RuntimeWarning, match="does not run"):
        launch(*CALL)
    assert_silent(launch, *CALL)
    assert not files()


def test_a_lost_device_is_said_and_kept(monkeypatch):
    """As after an access to a wrong address: the next process does not even try."""
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    call = ("rdm", Launcher(error), self_test, CALL, SimpleNamespace(type="cuda"))
    lost = iter([None, error, error])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: raise_(next(lost)))
    monkeypatch.setattr(self_test, "differences", lambda *arguments: raise_(error))
    outcome = _gpu_check.check(*call)
    assert outcome.lost is error
    assert outcome.kept
    with pytest.raises(RuntimeError, match="illegal"):  # lost before: no fault of the kernel
        _gpu_check.check(*call)
    monkeypatch.setattr(_gpu_check, "check", lambda *arguments: outcome)
    launch = Launcher().guarded()
    with (
        pytest.warns(RuntimeWarning, match="does not run: RuntimeError: CUDA error.*start it again"),
        pytest.raises(RuntimeError, match="illegal memory access"),
    ):
        launch(*CALL)
    forget()
    launcher = Launcher()
    with pytest.warns(RuntimeWarning, match="illegal memory access"):
        assert launcher.guarded()(*CALL).equal(defaults["rdm"](*CALL))
    assert launcher.calls == 0


def raise_(error):
    if error is not None:
        raise error


def test_a_kernel_that_later_does_not_compile_is_replaced_too():
    """Of a form that was checked: other sizes may need more of the device."""
    launcher = Launcher()
    launch = launcher.guarded()
    launch(*CALL)
    launcher.broken = OutOfResources(300_000, 200_000, "shared memory")
    with pytest.warns(RuntimeWarning, match="does not compile: OutOfResources"):
        assert launch(*CALL).equal(defaults["rdm"](*CALL))
    assert json.loads(files()[0].read_text())["failure"].startswith("does not compile")


def test_other_errors_of_a_call_are_raised():
    launcher = Launcher()
    launch = launcher.guarded()
    launch(*CALL)
    launcher.broken = RuntimeError("of the call itself")
    with pytest.raises(RuntimeError, match="of the call itself"):
        launch(*CALL)


# Where nothing may be checked --------------------------------------------------------------------------------------


def test_it_can_be_turned_off(monkeypatch):
    with pytest.warns(RuntimeWarning):
        Launcher(wrong).guarded()(*CALL)
    monkeypatch.setenv("V1FAST_GPU_CHECK", "0")
    forget()
    launcher = Launcher(wrong)
    assert not assert_silent(launcher.guarded(), *CALL).equal(defaults["rdm"](*CALL))
    assert launcher.calls == 1
    before = [path.read_text() for path in files()]
    with pytest.warns(RuntimeWarning, match="does not compile"):
        Launcher(OutOfResources(3, 2, "shared memory")).guarded()(*CALL)
    assert [path.read_text() for path in files()] == before


class Tracing:
    """Ways in which a call is recorded or traced rather than made."""

    @staticmethod
    def capture(monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        return X

    @staticmethod
    def compile(monkeypatch):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        return X

    @staticmethod
    def fake(monkeypatch):
        return FakeTensorMode().from_tensor(X)


@pytest.mark.parametrize("way", [Tracing.capture, Tracing.compile, Tracing.fake])
def test_nothing_is_checked_where_a_call_is_captured_or_traced(monkeypatch, way):
    launcher = SimpleNamespace(calls=0)

    def launch_kernel(*arguments):
        launcher.calls += 1
        return "launched"

    launch = _gpu_check.guarded("rdm", launch_kernel, self_test)
    with monkeypatch.context() as there:
        x = way(there)
        assert assert_silent(launch, x, *CALL[1:]) == "launched"
    assert launcher.calls == 1
    assert not files()
    if not isinstance(x, torch._subclasses.FakeTensor):  # later the form is checked all the same
        with pytest.warns(RuntimeWarning):
            launch(*CALL)


@pytest.mark.parametrize("way", [Tracing.capture, Tracing.compile])
def test_there_what_is_known_decides_in_silence(monkeypatch, way):
    with pytest.warns(RuntimeWarning):
        Launcher(wrong).guarded()(*CALL)
    forget()
    launcher = Launcher(wrong)
    launch = launcher.guarded()
    with monkeypatch.context() as there:
        way(there)
        assert assert_silent(launch, *CALL).equal(defaults["rdm"](*CALL))
    assert launcher.calls == 0
    with pytest.warns(RuntimeWarning):
        launch(*CALL)


# The records ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"failure": null}', b"[" * 100_000, b'{"failure": 3}'],
    ids=["empty", "cut", "a list", "null", "no text", "no machine", "deep", "a number"],
)
def test_a_broken_record_is_as_good_as_none(content):
    Launcher().guarded()(*CALL)
    (path,) = files()
    path.write_bytes(content)
    launcher = Launcher()
    assert_silent(launcher.guarded(), *CALL)
    assert launcher.calls == TRIALS + 1
    assert json.loads(path.read_text())["failure"] is None


def test_a_record_of_something_else_is_as_good_as_none():
    Launcher().guarded()(*CALL)
    (path,) = files()
    for key, value in (("machine", {}), ("op", "cross_rdm"), ("form", "x"), ("failure", 3)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        launcher = Launcher()
        assert_silent(launcher.guarded(), *CALL)
        assert launcher.calls == TRIALS + 1, key


@pytest.mark.parametrize("way", ["a file in its place", "a directory in its place", "a pipe in its place", "no home"])
def test_without_a_folder_each_process_checks_once(monkeypatch, tmp_path, way):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if way == "a file in its place":
        (tmp_path / "v1fast").write_text("")
    elif way == "no home":
        monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
        monkeypatch.setattr(Path, "home", lambda: raise_(RuntimeError("no home")))
    else:
        path = records._path(MACHINE, "rdm", FORM)
        path.parent.mkdir(parents=True)
        os.mkfifo(path) if "pipe" in way else path.mkdir()
    for _ in range(2):
        launcher = Launcher()
        launch = launcher.guarded()
        for _ in range(2):
            assert_silent(launch, *CALL)
        assert launcher.calls == TRIALS + 2


def test_a_folder_that_cannot_be_written(monkeypatch):
    """The tests may run as root, who may write everywhere."""
    monkeypatch.setattr(records._files, "replace", lambda *arguments: raise_(PermissionError(13, "denied")))
    monkeypatch.setattr(Path, "mkdir", lambda *arguments, **options: raise_(PermissionError(13, "denied")))
    launcher = Launcher()
    assert_silent(launcher.guarded(), *CALL)
    assert launcher.calls == TRIALS + 1


def test_the_folder_is_in_the_home_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert records.folder() == tmp_path / ".cache" / "v1fast" / "gpu-check"


def test_a_failure_that_another_rank_has_met_stands():
    records.write(MACHINE, "rdm", FORM, "is wrong")
    records.write(MACHINE, "rdm", FORM, None)
    assert records.read(MACHINE, "rdm", FORM).failure == "is wrong"
    records.write(MACHINE, "rdm", FORM, None, renew=True)  # the doctor's
    assert records.read(MACHINE, "rdm", FORM).failure is None
    records.write(MACHINE, "rdm", FORM, "is wrong")
    assert records.read(MACHINE, "rdm", FORM).failure == "is wrong"


RANK = """
import sys, time, warnings
import torch
from v1fast.kernels import _self_test as self_test
from v1fast.ops import _gpu_check, _gpu_records as records
from v1fast.ops._define import defaults

records.machine = lambda index: {machine}
torch.cuda.is_current_stream_capturing = lambda: False
calls = 0

def launcher(*arguments):
    global calls
    calls += 1
    return defaults["rdm"](*arguments) + {error}

print("ready", flush=True)
sys.stdin.readline()
for method in ("cosine", "correlation", "euclidean"):
    for condensed in (False, True):
        launch = _gpu_check.guarded("rdm", launcher, self_test)
        with warnings.catch_warnings(record=True):
            launch(torch.randn(1, 4, 8), None, method, condensed, "float32")
print(calls)
"""


def test_ranks_that_start_together_do_not_harm_each_other(tmp_path):
    environment = os.environ | {"V1FAST_KERNELS": "fallback", "OMP_NUM_THREADS": "1"}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    codes = [RANK.format(machine=MACHINE, error=error) for error in (0.0, 0.1)]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    ranks = [subprocess.Popen([sys.executable, "-c", code], **options) for code in codes]
    assert [rank.stdout.readline() for rank in ranks] == ["ready\n"] * 2
    for rank in ranks:
        rank.stdin.write("\n")
        rank.stdin.flush()
    said = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    assert len(found) == 6
    assert not list(tmp_path.rglob(".*"))  # nothing is left half-written


# The kernels on an emulated GPU ------------------------------------------------------------------------------------

# Calls of each op; the readouts on sm_90, the products of matrices on what the emulator executes.
DRAWN = self_test._Neurons(channels=20)
EMULATED = [
    ("philox_normal", [torch.zeros(1, dtype=torch.int64), 1, 1, None, 0]),
    *self_test._readouts("gaussian_readout", 6, DRAWN.gaussian(), True),
    *self_test._readouts("pooled_readout", 5, self_test._Neurons(channels=20, steps=1).pooling(), True),
    *self_test._readouts("point_gather", 3, self_test._Neurons(channels=20).gather(), True),
    ("rdm", list(CALL)),
    ("rdm_out", [*CALL, torch.empty(1, 4, 4)]),
    ("cross_rdm", [X, X, "cosine", "float32"]),
    ("rdm_backward", [X, X, X, None, "cosine", False, "float32", [True, False]]),
    ("cross_rdm_backward", [X, X, X, X, "cosine", "float32", [True, True]]),
]


def architecture(op):
    return 80 if "rdm" in op else 90


@pytest.mark.parametrize(("op", "call"), EMULATED, ids=[op for op, _ in EMULATED])
def test_the_kernels_pass_with_room_to_spare(op, call):
    """Tensor cores truncate where the emulator rounds, and approximate functions are less exact on a GPU."""
    assert {op for op, _ in EMULATED} == kernels.CUDA.keys()
    with emulator.active(architecture(op)):
        before = emulator.launches()
        outcome = _gpu_check.check(op, kernels.CUDA[op], self_test, call, CPU)
    assert emulator.launches() > before
    assert outcome.failure is None
    assert outcome.error <= outcome.allowed / 4


def test_a_kernel_of_one_wrong_instruction_is_replaced():
    def subtract(text):
        assert "add.rn.f32" in text
        return text.replace("add.rn.f32", "sub.rn.f32", 1)

    # A form has operands without values.
    call = [torch.rand_like(a) if torch.is_tensor(a) and a.is_floating_point() else a for a in EMULATED[1][1]]
    with emulator.active(90, transform=subtract):
        launch = _gpu_check.guarded("gaussian_readout", kernels.CUDA["gaussian_readout"], self_test)
        with pytest.warns(RuntimeWarning, match="is wrong: result 0"):
            got = launch(*call)
    assert got.equal(defaults["gaussian_readout"](*call))


def test_training_on_an_emulated_gpu_checks_what_it_uses(monkeypatch):
    """Through the dispatcher and autograd. The user's generator of random numbers is left alone."""
    from v1fast.readouts import FullGaussian2d

    guards = {op: _gpu_check.guarded(op, launcher, self_test) for op, launcher in kernels.CUDA.items()}
    monkeypatch.setattr(kernels, "CUDA", guards)
    layer = FullGaussian2d((20, 5, 6), 7, bias=True, mean_activity=torch.zeros(7))
    x = torch.randn(2, 20, 5, 6)
    state = torch.get_rng_state()
    results = []
    with gpu(90):
        for _ in range(2):
            torch.set_rng_state(state)
            layer.zero_grad()
            out = assert_silent(layer, x)
            out.sum().backward()
            results.append((out.detach(), layer.mu.grad.clone(), torch.get_rng_state()))
    for first, second in zip(*results, strict=True):
        assert first.equal(second)
    found = [json.loads(path.read_text()) for path in files()]
    assert {entry["op"] for entry in found} == {"gaussian_readout", "gaussian_readout_backward"}
    assert all(entry["failure"] is None for entry in found)


# The doctor --------------------------------------------------------------------------------------------------------


def some_forms():
    call = [torch.empty(1, 2, 2), None, "cosine", False, "float32"]
    return {("rdm", f"form {number}"): call for number in range(4)}


@pytest.fixture
def one_gpu(monkeypatch):
    """With four forms of one kernel."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # of the same model
    monkeypatch.setattr(self_test, "all_forms", some_forms)


def test_the_examination_checks_all_forms_and_renews_the_records(monkeypatch, one_gpu, capsys):
    outcomes = [None, "is wrong: x", None, None]
    for number in range(4):
        records.write(MACHINE, "rdm", f"form {number}", "of yesterday")

    def check(op, launcher, tests, call, device):
        failure = outcomes[len(seen)]
        seen.append((op, device))
        return _gpu_check.Outcome(failure, error=1e-7, allowed=1e-5)

    seen = []
    monkeypatch.setattr(_gpu_check, "check", check)
    assert _gpu_examination.main(0) == 0
    assert seen == [("rdm", torch.device("cuda", 0))] * 4
    assert [records.read(MACHINE, "rdm", f"form {number}").failure for number in range(4)] == outcomes
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["form"] for entry in said[::2]] == [f"form {number}" for number in range(4)]
    assert [entry["failure"] for entry in said[1::2]] == outcomes


def test_the_examination_ends_where_the_device_is_lost(monkeypatch, one_gpu, capsys):
    lost = _gpu_check.Outcome("does not run: illegal", lost=RuntimeError("illegal"))
    monkeypatch.setattr(_gpu_check, "check", lambda *arguments: lost)
    assert _gpu_examination.main(2) == _gpu_examination.LOST
    assert [json.loads(line).get("number") for line in capsys.readouterr().out.splitlines()] == [2, None]


def test_what_could_not_be_checked_is_not_kept(monkeypatch, one_gpu, capsys):
    monkeypatch.setattr(_gpu_check, "check", lambda *arguments: raise_(torch.OutOfMemoryError("CUDA out of memory")))
    assert _gpu_examination.main(3) == 0
    assert "was not checked: OutOfMemoryError" in capsys.readouterr().out
    assert not files()


# A process that checks six forms: the kernel of the second loses the device, that of the third crashes, and that of
# the fifth never ends.
CHILD = """
import json, os, signal, sys, time
for number in range(int(sys.argv[1]), 6):
    begun = {"number": number, "machine": {"device": "Some GPU"}, "op": "rdm", "form": f"form {number}"}
    print(json.dumps(begun), flush=True)
    if number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 4:
        time.sleep(1000)
    failure = "does not run" if number == 1 else None
    print(json.dumps({"failure": failure, "error": None, "allowed": None, "seconds": 0.1}), flush=True)
    if number == 1:
        sys.exit(3)
"""


def test_a_new_process_goes_on_where_a_kernel_ended_one():
    said = []
    rows = list(_gpu_examination.examine(said.append, [sys.executable, "-c", CHILD], seconds=3))
    assert [row["form"] for row in rows] == [f"form {number}" for number in range(6)]
    right, lost, crashed, *others = (row["failure"] for row in rows)
    assert (right, lost, others[0], others[2]) == (None, "does not run", None, None)
    assert "code -11" in crashed
    assert "code -9, within 3 s" in others[1]
    assert set(said) == {"checking rdm on Some GPU"}
    kept = {json.loads(path.read_text())["form"] for path in files()}
    assert kept == {"form 2", "form 4"}  # the process itself keeps the others


def test_an_examination_that_cannot_begin_is_an_error():
    with pytest.raises(RuntimeError, match="ends with code 7 before it checks anything"):
        list(_gpu_examination.examine(command=[sys.executable, "-c", "raise SystemExit(7)"]))


def test_all_forms_are_legal_and_can_be_checked():
    """With what runs in the place of the kernels. Each is another form, and every op has some."""
    found = self_test.all_forms()
    assert {op for op, _ in found} == kernels.CUDA.keys() == forms.FORMS.keys()
    for (op, _), call in found.items():
        trials = self_test.trials(op, defaults[op], call)
        assert trials
        for trial in trials:  # the tiny call has the form of the call, but for its device
            assert forms.FORMS[op](*trial.arguments) == forms.FORMS[op](*call)
        assert max(difference.share for difference in self_test.differences(op, defaults[op], trials, CPU)) < 1


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(kernels.CUDA))
def test_all_forms_of_the_kernels_pass(op):
    with emulator.active(architecture(op)):
        for (name, form), call in self_test.all_forms().items():
            if name == op:
                outcome = _gpu_check.check(op, kernels.CUDA[op], self_test, call, CPU)
                assert outcome.failure is None, form
                assert outcome.error <= outcome.allowed / 2, form
