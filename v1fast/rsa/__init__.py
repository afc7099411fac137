"""Representational similarity analysis (Kriegeskorte, Mur & Bandettini, Frontiers in Systems Neuroscience 2, 2008).

Dissimilarity matrices themselves are ``v1fast.functional.rdm``; here they are compared, tested, stored out of core and
drawn. Everything takes tensors or arrays and gives arrays.

``rdm_to_file``       a matrix that does not fit into memory
``rdm_correlation``   the similarity of two matrices straight from the responses
``compare``           the similarity of matrices, by eight measures
``permutation_test``  and ``bootstrap``, ``noise_ceiling``, ``split_half``: is it more than chance, how high can it be
``searchlight``       the same for the neighbourhood of each neuron
``activations``       what layers of a model do with the stimuli
``pca``, ``mds``, ``tsne``, ``tuning_curves``, ``rows_nearest``  maps in a few dimensions, and tuning
``v1fast.rsa.rsatoolbox``  Datasets of rsatoolbox in, its RDMs out
``v1fast.rsa.plots``  figures
"""

from v1fast.rsa.embedding import Map, Tuning, mds, pca, rows_nearest, tsne, tuning_curves
from v1fast.rsa.files import rdm_to_file
from v1fast.rsa.inference import (
    Bootstrap,
    PermutationTest,
    average_repeats,
    bootstrap,
    neighbourhoods,
    noise_ceiling,
    permutation_test,
    searchlight,
    searchlight_rdms,
    split_half,
)
from v1fast.rsa.layers import activations, recording
from v1fast.rsa.similarity import compare, rdm_correlation

__all__ = [
    "Bootstrap",
    "Map",
    "PermutationTest",
    "Tuning",
    "activations",
    "average_repeats",
    "bootstrap",
    "compare",
    "mds",
    "neighbourhoods",
    "noise_ceiling",
    "pca",
    "permutation_test",
    "rdm_correlation",
    "rdm_to_file",
    "recording",
    "rows_nearest",
    "searchlight",
    "searchlight_rdms",
    "split_half",
    "tsne",
    "tuning_curves",
]
