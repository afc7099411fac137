"""Values read off the figures of Lurz et al., "Generalization in data-driven models of primary visual cortex", 2021.

Fraction oracle, read with an error of about .01. Their recordings are others than a user's: values stand beside each
other, they are not a test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TRANSFER_IMAGES = 4472
TRANSFER: dict[str, tuple[float, ...]] = {
    "core of 11 scans": (0.84,),
    "core of 4 scans": (0.82,),
    "direct": (0.75,),
    "core of 1 scan": (0.70,),
    "vgg16": (0.63,),
    "random vgg16": (0.585,),
    "random": (0.44, 0.385),
}
"""Transfer to another animal at 4472 images, with Gaussian readouts. There were two kinds of random cores."""
CROSSING_IMAGES = 2300
"""The core of one scan falls below direct training near this number of images."""

COMPARISON_IMAGES = 17_596
ALL_NEURONS = 3597
COMPARISON: dict[tuple[str, int], float] = {
    ("gaussian, shared features", 3597): 0.885,
    ("gaussian, shared features", 500): 0.87,
    ("gaussian, shared features", 50): 0.815,
    ("gaussian", 500): 0.85,
    ("factorized", 500): 0.825,
    ("factorized, shared features", 500): 0.69,
}
"""Readout and number of neurons -> at 17 596 images."""


def beside_transfer(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The published values of the arms among the rows, as :func:`v1fast.experiments.curves` names them.

    Returns:
        Rows with the names of readout and arm, "images" and "fraction_oracle", for Gaussian readouts.
    """
    names = ("readout", "kind", "variant", "arm")
    shown = dict.fromkeys(tuple(row[name] for name in names) for row in rows if row["kind"] == "gaussian")
    return [
        {**dict(zip(names, found, strict=True)), "images": TRANSFER_IMAGES, "fraction_oracle": value}
        for found in shown
        for value in TRANSFER.get(found[-1], ())
    ]


def beside_comparison(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The published values of the readouts among the rows, as :func:`v1fast.experiments.compared` names them.

    Values of 50 and 500 neurons stand beside subsets of as many; those of all 3597 beside the largest.

    Returns:
        Rows with the names of the readout and of the size, "images" and "fraction_oracle".
    """
    most = max((row["neurons"] for row in rows), default=0)
    names = ("readout", "curve", "size", "kind", "arm")
    found = {}
    for row in rows:
        theirs = row["neurons"] if row["neurons"] in (50, 500) else ALL_NEURONS if row["neurons"] == most else 0
        value = COMPARISON.get((row["readout"], theirs))
        if value is not None:
            kept = {name: row[name] for name in names}
            found[row["curve"], row["size"]] = {**kept, "images": COMPARISON_IMAGES, "fraction_oracle": value}
    return list(found.values())
