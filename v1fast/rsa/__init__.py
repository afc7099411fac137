"""Representational similarity analysis (Kriegeskorte, Mur & Bandettini, Frontiers in Systems Neuroscience 2, 2008).

Dissimilarity matrices themselves are ``v1fast.functional.rdm``; here they are compared, tested, stored out of core and
drawn. Everything takes tensors or arrays and gives arrays; what holds no plain numbers (a mask, text, None) is an
error.

What is undefined is NaN: in the result, in its p, in its interval, never a number that looks like one and never
significant. It is counted where it is left out of a mean or an interval (``Bootstrap.undefined``, ``.left_out``, the
report of ``v1fast rsa``, a RuntimeWarning). A similarity is undefined where no pair of stimuli is left, or one matrix
is constant, for the cosines zero. Constant means equal up to rounding: values whose range is at most 4 units in the
last place, of their dtype, of the largest magnitude (``_defined.CONSTANT``). It is a matter of the values, not of
what sums of them leave; so is a resampling of the bootstrap, on the pairs that it has drawn. Orders of magnitude do not
matter: what squares could lose is first multiplied by a power of two, which is exact.

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
