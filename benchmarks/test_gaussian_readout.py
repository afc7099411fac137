"""v1fast alone, with pytest-benchmark: compare times before and after a change.

pytest benchmarks --benchmark-autosave      on the old code
pytest benchmarks --benchmark-compare       on the new
"""

import importlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

bench = importlib.import_module("v1fast.benchmarks.bench_gaussian_readout")


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(timer=time.process_time, min_rounds=10, max_time=1, warmup=True, warmup_iterations=1)
@pytest.mark.parametrize("case", bench.CASES, ids=lambda case: case.name)
def test_step(benchmark: Any, one_thread: None, case: Any) -> None:
    step = bench.FunctionStep(case, "cpu", case.noise[0])

    def call() -> Any:
        with torch.set_grad_enabled(step.upstream is not None):
            output = step.forward(step.draw())
            return output if step.upstream is None else step.backward(output, step.upstream)

    benchmark(call)
