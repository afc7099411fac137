"""Fixtures of the whole suite."""

import io
import os
from pathlib import Path

import pytest
import torch

import v1fast


def pytest_report_header():
    sets = "; ".join(f"{name}: {state}" for name, state in v1fast.ops.loaded.items())
    return [f"v1fast {v1fast.__version__} from {Path(v1fast.__file__).parent}", f"kernels: {sets}"]


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    """Fresh memory is filled with NaN, in C++ too: an element that a kernel forgot to write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def fresh_random_numbers():
    torch.manual_seed(0)


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
    return lambda way: monkeypatch.setattr("v1fast.kernels._features.is_gathered", lambda o: way == "gather")
