"""Files are replaced whole or not at all."""

import os

import numpy as np
import pytest

from v1fast import _files


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    _files.replace(path, b"old")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        _files.replace(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("content", [b"no array", np.array([None, 1])], ids=["another format", "objects"])
def test_nobody_is_told_to_unpickle(tmp_path, content):
    path = tmp_path / "responses.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with (
        pytest.raises(ValueError, match=r"responses\.npy: cannot be read: it holds no plain array"),
        _files.reading(path),
    ):
        np.load(path)
