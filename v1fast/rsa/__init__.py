"""Representational similarity analysis (Kriegeskorte, Mur & Bandettini, Frontiers in Systems Neuroscience 2, 2008).

``v1fast.functional.rdm`` computes dissimilarity matrices. This package compares, tests, stores (out of core) and draws
them. Everything takes tensors or arrays and returns arrays. Input that is not plain numbers (a mask, text, None) is an
error.

An undefined result is NaN, and so are its p and its interval. It is never a plausible number and never significant. It
is counted where a mean or an interval leaves it out (``Bootstrap.undefined``, ``.left_out``, the report of
``v1fast rsa``, a RuntimeWarning). A similarity is undefined if no pair of stimuli is left, or if one matrix is constant
(for the cosines: zero). Constant means equal up to rounding: the range of the values is at most 4 units in the last
place of the largest magnitude, in their dtype (``_defined.CONSTANT``). The values decide this, not their sums. The same
holds for each resampling of the bootstrap, on the pairs that it has drawn. Orders of magnitude do not matter: values
whose squares could lose digits are first multiplied by a power of two, which is exact.

``rdm_to_file``       a matrix that does not fit into memory
``rdm_correlation``   the similarity of two matrices directly from the responses
``compare``           the similarity of matrices, by eight measures
``permutation_test``  and ``permutation_tests``: is it above chance, for one model or many
``studentized_test``  and ``studentized_tests``: the same, if some stimuli are noisier than others
``bootstrap``         how certain it is, over other stimuli, other subjects, or both
``compare_models``    many models: against zero, the noise ceiling and each other; ``write_table`` writes the result
``noise_ceiling``     how high it can be, from several subjects
``reliability``       and ``split_half``: of one system's matrix, from its repeats, and the ceiling for a true model
``rdm_of_repeats``    dissimilarities that noise does not bias, from repeats; ``noise_covariance``, ``stimulus_noise``
``fit_weights``       and ``crossvalidate``: models with parameters, tested on other stimuli and subjects
``searchlight``       the same for the neighbourhood of each neuron
``activations``       outputs of a model's layers for the stimuli
``pca``, ``mds``, ``tsne``, ``tuning_curves``, ``rows_nearest``  low-dimensional maps and tuning
``v1fast.rsa.rsatoolbox``  from rsatoolbox's Datasets to its RDMs; its Datasets and models, in and out
``v1fast.rsa.plots``  figures
"""

from v1fast.rsa.ceiling import noise_ceiling
from v1fast.rsa.comparisons import ModelComparison, compare_models, write_table
from v1fast.rsa.embedding import Map, Tuning, mds, pca, rows_nearest, tsne, tuning_curves
from v1fast.rsa.files import rdm_to_file
from v1fast.rsa.inference import (
    average_repeats,
    neighbourhoods,
    searchlight,
    searchlight_rdms,
)
from v1fast.rsa.layers import activations, recording
from v1fast.rsa.noise import noise_covariance, noise_precision, rdm_of_repeats, stimulus_noise
from v1fast.rsa.permutation import PermutationTest, PermutationTests, permutation_test, permutation_tests
from v1fast.rsa.repeats import Reliability, reliability, split_half
from v1fast.rsa.resampling import Bootstrap, bootstrap
from v1fast.rsa.similarity import compare, rdm_correlation
from v1fast.rsa.studentized import StudentizedTest, StudentizedTests, studentized_test, studentized_tests
from v1fast.rsa.weighted import CrossValidated, crossvalidate, fit_weights

__all__ = [
    "Bootstrap",
    "CrossValidated",
    "Map",
    "ModelComparison",
    "PermutationTest",
    "PermutationTests",
    "Reliability",
    "StudentizedTest",
    "StudentizedTests",
    "Tuning",
    "activations",
    "average_repeats",
    "bootstrap",
    "compare",
    "compare_models",
    "crossvalidate",
    "fit_weights",
    "mds",
    "neighbourhoods",
    "noise_ceiling",
    "noise_covariance",
    "noise_precision",
    "pca",
    "permutation_test",
    "permutation_tests",
    "rdm_correlation",
    "rdm_of_repeats",
    "rdm_to_file",
    "recording",
    "reliability",
    "rows_nearest",
    "searchlight",
    "searchlight_rdms",
    "split_half",
    "stimulus_noise",
    "studentized_test",
    "studentized_tests",
    "tsne",
    "tuning_curves",
    "write_table",
]
