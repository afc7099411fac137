"""Fixtures of the whole suite, and what it costs."""

import collections
import contextlib
import gc
import io
import os
import sys
from pathlib import Path

import new_processes
import pytest
import torch

import v1fast
from v1fast.ops import _gpu_check

# A test of a GPU kernel must not pass on what replaces it. Processes that tests start inherit it.
os.environ["V1FAST_GPU_CHECK"] = "0"
# Nor must processes find the v1fast of the folder that they start in, where the tests are of an installed one.
os.environ["PYTHONSAFEPATH"] = "1"


def pytest_report_header():
    sets = "; ".join(f"{name}: {state}" for name, state in v1fast.ops.loaded.items())
    return [f"v1fast {v1fast.__version__} from {Path(v1fast.__file__).parent}", f"kernels: {sets}"]


def pytest_collection_finish(session):
    """Build the emulator of GPUs, which is no part of the test that needs it first.

    And nothing that exists by now is ever freed: gc.collect() in a test need not search torch's modules, for 0.4 s.
    """
    emulator = sys.modules.get("ptx_emulator")
    if emulator and not session.config.option.collectonly and any("test_gpu" in item.nodeid for item in session.items):
        with contextlib.suppress(emulator.EmulatorError):  # each test says it
            emulator.opcodes()
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    new_processes.stop()


def pytest_unconfigure():
    gc.unfreeze()


# The cost of the run ---------------------------------------------------------------------------------------------

MOST_SECONDS = 10.0
"""CPU seconds of one test. A dearer one is reported, and does not fail: how long it takes is not what a test checks."""

_spent = {}  # test -> CPU seconds of its set-up, call and clean-up


def _cpu_seconds():
    """CPU seconds of this process and its children so far."""
    return sum(os.times()[:4]) + new_processes.cpu_seconds()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    before = _cpu_seconds()
    try:
        return (yield)
    finally:
        _spent[item.nodeid] = _cpu_seconds() - before


def pytest_terminal_summary(terminalreporter, config):
    if not _spent:
        return
    functions = collections.Counter()
    for test, seconds in _spent.items():
        functions[test.partition("[")[0]] += seconds
    terminalreporter.section(f"{_cpu_seconds():.0f} CPU seconds")
    for name, seconds in functions.most_common(10):
        terminalreporter.line(f"{seconds:6.1f}  {name}")
    if "not slow" in config.option.markexpr:
        for test, seconds in _spent.items():
            if seconds > MOST_SECONDS:
                terminalreporter.line(f"{seconds:.1f} CPU seconds, want <= {MOST_SECONDS:.0f} or the mark slow: {test}")


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    """Fresh memory is filled with NaN, in C++ too: an element that a kernel forgot to write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def no_kernel_is_replaced():
    """A GPU kernel that does not compile would run as its fallback, check or no check, and its test would pass."""
    before = dict(_gpu_check.failures)
    yield
    assert _gpu_check.failures == before


@pytest.fixture(autouse=True)
def fresh_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    """For small work: where cores are shared, a second thread is waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def console():
    """Prints into memory."""
    return pytest.importorskip("rich.console").Console(file=io.StringIO(), width=200)


@pytest.fixture
def real_data():
    """Folder of recordings and trained models that others made; see V1FAST_REAL_DATA in CONTRIBUTING."""
    folder = os.environ.get("V1FAST_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("V1FAST_REAL_DATA does not point to the real recordings and trained models")
    return Path(folder)


@pytest.fixture
def on_gpu(request):
    """An emulated GPU: sm_90, or the architecture that the test is parametrised with."""
    from emulated import gpu  # needs Triton, which not all have

    with gpu(getattr(request, "param", 90)):
        yield


@pytest.fixture
def how_features(monkeypatch):
    """Sets how the GPU kernels make d_features, whatever the heuristic says: "gather" or "scatter"."""
    from v1fast.kernels import _launch  # needs Triton

    def choose(way):
        monkeypatch.setattr("v1fast.kernels._features.is_gathered", lambda o: way == "gather")
        _launch.plans.clear()

    yield choose
    _launch.plans.clear()  # they hold for the other way
