"""The GPU kernels compiled ahead of time: no spills, shared memory that fits, and docs/gpu-kernels.md up to date."""

from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton
from v1fast.benchmarks import gpu_table

TABLE = Path(__file__).parent.parent / "docs" / "gpu-kernels.md"
HERE = ("sm_80", "sm_90")
OUTDATED = "docs/gpu-kernels.md is not what the compiler makes now: run `make gpu-table`"


def assert_as_documented(architectures):
    """Register numbers belong to a version of Triton; that nothing is spilled and all fits does not."""
    compiled = gpu_table.compile_table(architectures)
    assert not gpu_table.faults(compiled)
    version, table = gpu_table.read(TABLE.read_text())
    if triton.__version__ == version:
        documented = {name: {a: row[a] for a in architectures} for name, row in table.items()}
        assert compiled == documented, OUTDATED


def test_kernels_fit_and_the_table_says_how():
    assert_as_documented(HERE)


@pytest.mark.slow
def test_kernels_fit_on_the_other_architectures():
    assert_as_documented(tuple(set(gpu_table.ARCHITECTURES) - set(HERE)))


def test_table_is_complete_and_free_of_faults():
    _, table = gpu_table.read(TABLE.read_text())
    assert list(table) == [form.name for form in gpu_table.specialisations()], OUTDATED
    assert all(list(row) == list(gpu_table.ARCHITECTURES) for row in table.values())
    assert not gpu_table.faults(table)


def test_table_survives_the_file():
    table = {"a": {"sm_80": gpu_table.Usage(96, 512, 0)}, "b": {"sm_80": gpu_table.Usage(255, 0, 16)}}
    assert gpu_table.read(gpu_table.write(table)) == (triton.__version__, table)


def test_faults_are_found():
    """A spilled byte, and one byte of shared memory too many."""
    for name, architecture in gpu_table.ARCHITECTURES.items():
        limit = architecture.shared_bytes
        for taken, faulty in (((9, limit, 0), False), ((9, limit + 1, 0), True), ((9, 0, 8), True)):
            assert bool(gpu_table.faults({"k": {name: gpu_table.Usage(*taken)}})) == faulty
