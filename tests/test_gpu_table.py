"""The GPU kernels compiled ahead of time: no spills, shared memory that fits, and docs/gpu-kernels.md up to date."""

from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton
from v1fast.benchmarks import gpu_table

TABLE = Path(__file__).parent.parent / "docs" / "gpu-kernels.md"
OUTDATED = "docs/gpu-kernels.md is not what the compiler makes now: run `make gpu-table`"
FEW = [  # the first of the largest kernels
    (next(form.name for form in gpu_table.specialisations() if form.name.startswith(kernel)), architecture)
    for kernel, architecture in (("forward", "sm_80"), ("backward", "sm_90"), ("rdm tiles", "sm_80"))
]


def assert_as_documented(compiled):
    """Numbers of registers depend on the version of Triton. No version may spill, or need too much memory."""
    assert not gpu_table.faults(compiled)
    version, _, table = gpu_table.read(TABLE.read_text())
    if triton.__version__ == version:
        for name, row in compiled.items():
            assert row == {architecture: table[name][architecture] for architecture in row}, OUTDATED


def test_the_kernels_are_those_of_the_table():
    """So that no other number can have changed: all are compiled when the table is written."""
    assert gpu_table.read(TABLE.read_text())[1] == gpu_table.fingerprint(), OUTDATED


def test_some_kernels_fit_and_the_table_says_how(monkeypatch, tmp_path):
    """Compiled here: for a few, other processes take longer to import Triton."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    assert_as_documented({name: {architecture: gpu_table.usage(name, architecture)} for name, architecture in FEW})


@pytest.mark.slow
def test_all_kernels_fit_on_all_architectures():
    assert_as_documented(gpu_table.compile_table())


def test_table_is_complete_and_free_of_faults():
    *_, table = gpu_table.read(TABLE.read_text())
    assert list(table) == [form.name for form in gpu_table.specialisations()], OUTDATED
    assert all(list(row) == list(gpu_table.ARCHITECTURES) for row in table.values())
    assert not gpu_table.faults(table)


def test_table_survives_the_file():
    table = {"a": {"sm_80": gpu_table.Usage(96, 512, 0)}, "b": {"sm_80": gpu_table.Usage(255, 0, 16)}}
    assert gpu_table.read(gpu_table.write(table)) == (triton.__version__, gpu_table.fingerprint(), table)


def test_faults_are_found():
    """A spilled byte, and one byte of shared memory too many."""
    for name, architecture in gpu_table.ARCHITECTURES.items():
        limit = architecture.shared_bytes
        for taken, faulty in (((9, limit, 0), False), ((9, limit + 1, 0), True), ((9, 0, 8), True)):
            assert bool(gpu_table.faults({"k": {name: gpu_table.Usage(*taken)}})) == faulty
