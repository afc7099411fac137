"""Decoding: which direction did the animal see? Networks, linear decoders, errors on a circle, and their figures.

``population_of``     responses of a recording of gratings
``decode``            all decoders on random splits; what ``v1fast decode`` runs
``DeepNet``, ``DeepNetReLU``, ``DeepNetSoftmax``  networks; ``written_gradients``, their gradients by formula
``descend``           gradient descent, on all stimuli or on batches
``ridge``, ``reduced_rank``  linear decoders in closed form
``mean_error``, ``chance_error``, ``circular_difference``  errors, on a line or a circle
``analyse_macaque``   the gratings of 17 sessions of macaque V1, across repeats
``figures``           pictures of all this
"""

from v1fast.decoding.baselines import from_circle, on_circle, reduced_rank, ridge
from v1fast.decoding.depth import board, board_losses, learn_board
from v1fast.decoding.experiment import Decoding, DecodingSettings, Population, decode, population_of
from v1fast.decoding.fitting import Descent, descend, descend_safely, span, within
from v1fast.decoding.macaque import across_repeats, analyse_macaque, nearest_centroid
from v1fast.decoding.networks import DeepNet, DeepNetReLU, DeepNetSoftmax, written_gradients
from v1fast.decoding.scores import chance_error, circular_difference, classes_of, mean_error, split_stimuli

__all__ = [
    "Decoding",
    "DecodingSettings",
    "DeepNet",
    "DeepNetReLU",
    "DeepNetSoftmax",
    "Descent",
    "Population",
    "across_repeats",
    "analyse_macaque",
    "board",
    "board_losses",
    "chance_error",
    "circular_difference",
    "classes_of",
    "decode",
    "descend",
    "descend_safely",
    "from_circle",
    "learn_board",
    "mean_error",
    "nearest_centroid",
    "on_circle",
    "population_of",
    "reduced_rank",
    "ridge",
    "span",
    "split_stimuli",
    "within",
    "written_gradients",
]
