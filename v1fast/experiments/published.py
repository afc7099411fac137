"""Values read off the figures of Lurz et al., "Generalization in data-driven models of primary visual cortex", 2021.

Fraction oracle, read with an error of about .01.
"""

TRANSFER_IMAGES = 4472
TRANSFER = {
    "core of 11 scans": 0.84,
    "core of 4 scans": 0.82,
    "direct": 0.75,
    "core of 1 scan": 0.70,
    "vgg16": 0.63,
    "random vgg16": 0.585,
    "random": 0.44,
}
"""Transfer to another animal at 4472 images. Two kinds of random cores reached .44 and .385."""
CROSSING_IMAGES = 2300
"""The core of one scan falls below direct training near this number of images."""

COMPARISON_IMAGES = 17_596
COMPARISON = {
    ("gaussian, shared features", 3597): 0.885,
    ("gaussian, shared features", 500): 0.87,
    ("gaussian, shared features", 50): 0.815,
    ("gaussian", 500): 0.85,
    ("factorized", 500): 0.825,
    ("factorized, shared features", 500): 0.69,
}
"""Readout and number of neurons -> at 17 596 images."""
