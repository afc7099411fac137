"""The benchmark of host time on the GPU path runs, and counts launches."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
def test_it_runs_without_a_gpu():
    command = [sys.executable, "-m", "v1fast.benchmarks.host_time", "--json"]
    environment = {**os.environ, "V1FAST_KERNELS": "triton,fallback"}
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(printed.splitlines()[-1])
    assert all(row["us"] > 0 for row in found.values())
    assert found["gaussian_readout, forward"]["triton"] == 1
    assert found["gaussian_readout, forward and backward"]["triton"] == 3
    assert found["chain, forward"]["triton"] == 0
    assert found["chain, forward"]["torch"] > 3
