"""Side by side with the published packages that v1fast's layers stand in for.

``make test-peers`` installs them and says where by V1FAST_PEERS; without it these tests are not collected.
"""

import collections.abc
import importlib.util
import os
import sys
import types

import pytest
import torch

folder = os.environ.get("V1FAST_PEERS")
collect_ignore_glob = [] if folder else ["test_*.py"]

if folder:
    sys.path.append(os.path.abspath(folder))  # last, so that nothing in it hides an installed package
    for name in ("Iterable", "Mapping"):  # neuralpredictors 0.3.0 looks for them where Python 3.9 had them
        setattr(collections, name, getattr(collections.abc, name))
    if importlib.util.find_spec("torchvision") is None:
        sys.modules["torchvision"] = types.ModuleType("torchvision")  # needed by a core that is not compared


@pytest.fixture(autouse=True)
def small_work(one_thread):
    """The tensors are so small that more threads would only wait for each other."""


@pytest.fixture(autouse=True)
def one_stream_for_all_precisions(monkeypatch):
    """Make float64 draw the numbers that float32 draws from the same seed."""
    draw = torch.Tensor.normal_
    monkeypatch.setattr(
        torch.Tensor,
        "normal_",
        lambda self, *arguments, **options: self.copy_(draw(torch.empty(self.shape), *arguments, **options)),
    )
