"""What the guides say of the published packages: their imports exist, and the lines "before" run."""

import re

import numpy as np
import pages
import pytest
import torch

GUIDES = ("from-neuralpredictors", "from-openretina")
IMPORTS = [
    line
    for page in GUIDES
    for line in re.findall(r"^[-+] (from .*)$", (pages.DOCS / f"{page}.md").read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("line", IMPORTS)
def test_imports_exist(line):
    exec(line, {})


def test_before_with_openretina():
    (block,) = pages.blocks("from-openretina", "before")
    names = pages.run(block, {"videos": torch.randn(1, 2, 30, 18, 16)})
    assert names["rates"].shape == (1, 20, 30)


def test_before_with_neuralpredictors(tmp_path, monkeypatch):
    from v1fast.data import simulate_animals, write

    monkeypatch.chdir(tmp_path)
    animal = simulate_animals(1, neurons=20, train=64, validation=8, test=5)[0]
    write(animal.to_recording("animal0"), "recordings/animal0")
    block = next(pages.blocks("from-neuralpredictors", "before"))  # that of recordings; the other is a sketch
    names = pages.run(block, {"np": np})
    images, responses = next(iter(names["train"]))
    assert images.shape == (64, 1, 9, 16)
    assert responses.shape == (64, 20)
