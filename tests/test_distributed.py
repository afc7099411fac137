"""Models on several ranks: what every rank has to find is in distributed_checks.py."""

import numpy as np
import pytest
import ranks

import v1fast
from v1fast.rsa._sums import PairSums

NEURONS = [
    "every_point_readout_has_the_gradients_of_one_process",
    "twenty_steps_have_the_losses_of_one_process",
    "no_rank_has_all_neurons",
    "ranks_without_neurons",
    "samples_are_those_of_one_process",
    "a_readout_on_the_meta_device_gets_the_values_it_would_have",
    "whole_state_dicts_load",
    "refuses_what_it_cannot_shard",
    "saves_after_three_steps",
    "one_process_reads_the_checkpoint",
]
IMAGES = [
    "distributed_data_parallel",
    "ranks_draw_their_own_samples",
]
if ranks.SHARDS_ON_CPUS:
    IMAGES += ["fully_sharded_data_parallel", "fully_sharded_training_keeps_means_in_the_map"]
MATRICES = ["matrices_are_those_of_one_process", "correlations_are_those_of_one_process", "one_file_holds_the_matrix"]


def test_ranks_have_the_v1fast_of_the_tests(tmp_path):
    ranks.run(
        "distributed_checks", ["ranks_have_the_v1fast_of_the_tests"], 1, tmp_path, V1FAST_OF_THE_TESTS=v1fast.__file__
    )


def test_two_ranks(tmp_path):
    ranks.run("distributed_checks", [*NEURONS, *IMAGES, *MATRICES], 2, tmp_path)


@pytest.mark.slow
def test_four_ranks(tmp_path):
    ranks.run("distributed_checks", [*NEURONS, *IMAGES, *MATRICES], 4, tmp_path)
    ranks.run("distributed_checks", MATRICES, 3, tmp_path)
    for number in (1, 2, 3):
        ranks.run("distributed_checks", ["goes_on_from_the_checkpoint"], number, tmp_path)


@pytest.mark.slow
def test_lightning(tmp_path):
    ranks.run("distributed_checks", ["lightning_shards_the_model"], 2, tmp_path)


def test_sums_of_parts_are_merged_whatever_was_subtracted():
    """The first part's mean is large beside its deviations and is subtracted, the others' is not, or is another."""
    draw = np.random.default_rng(0)
    parts = [mean + deviation * draw.normal(size=(2, 50)) for mean, deviation in ((1e4, 1), (3, 1), (-1e5, 5))]
    for order in ((0, 1, 2), (1, 0, 2)):
        joined = PairSums(1, 1)
        for number in order:
            part = PairSums(1, 1)
            part.add(parts[number][:1], parts[number][1:])
            joined.merge(part)
            joined.merge(PairSums(1, 1))
        a, b = np.concatenate(parts, axis=1)
        np.testing.assert_allclose(joined.pearson(), np.corrcoef(a, b)[0, 1], rtol=1e-12)
        np.testing.assert_allclose(joined.cosine(), a @ b / np.sqrt(a @ a * (b @ b)), rtol=1e-12)
