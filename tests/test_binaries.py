"""The compiled parts run wherever torch runs: what a wheel promises, of the binaries that are here."""

import re
import sys
from pathlib import Path

import pytest

import v1fast

BINARIES = sorted(Path(v1fast.__file__).parent.glob("*.so"))
pytestmark = pytest.mark.skipif(sys.platform != "linux" or not BINARIES, reason="no binaries for Linux here")


@pytest.mark.parametrize("binary", BINARIES, ids=lambda path: path.name)
def test_one_binary_serves_every_python(binary):
    assert binary.name.endswith(".abi3.so")


@pytest.mark.parametrize("binary", BINARIES, ids=lambda path: path.name)
def test_no_library_newer_than_what_torch_needs(binary):
    """manylinux_2_28: the versions of symbols that AlmaLinux 8 has."""
    newest = {b"GLIBC": (2, 28), b"GLIBCXX": (3, 4, 24), b"CXXABI": (1, 3, 11)}
    found = set(re.findall(rb"\b(GLIBC|GLIBCXX|CXXABI)_([0-9.]+)\0", binary.read_bytes()))
    assert found
    for library, version in found:
        assert tuple(int(number) for number in version.split(b".")) <= newest[library], (library, version)
