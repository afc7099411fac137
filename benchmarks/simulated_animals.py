"""Are simulated animals like real ones? Statistics of repeats, beside those of a recording and published ones.

    V1FAST_REAL_DATA=folder python -m v1fast.benchmarks.simulated_animals docs/simulation.md

prints a table and replaces that between the markers of the page (seconds). Without a page it prints alone; without the
folder of recordings that column stays empty.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from v1fast import _files
from v1fast.data import Statistics, response_statistics, simulate_animals, statistics
from v1fast.data.animals import Noise
from v1fast.data.repeats import summary
from v1fast.rsa.recordings import antolik

START, END = "<!-- statistics -->", "<!-- end of statistics -->"

# What it is called in the table, and what others found, with the source.
ROWS: dict[str, tuple[str, str]] = {
    "noise_correlation": (
        "noise correlation",
        "0.01 to 0.4 in studies of V1 (Ecker et al. 2014, doi:10.1016/j.neuron.2014.02.006); 0.16 anaesthetised, 0.18 "
        "awake, mouse V1 (Denman & Contreras 2014, Cereb. Cortex 24, 2707); virtually none, awake macaque V1 (Ecker et "
        "al. 2010, Science 327, 584); what changes the estimate: Cohen & Kohn 2011, Nat. Neurosci. 14, 811",
    ),
    "signal_correlation": (
        "signal correlation",
        "no common value: it depends on the images, and noise biases it (Pospisil & Bair 2021, J. Neurosci. 41, 5638)",
    ),
    "explainable_variance": (
        "explainable variance",
        "no common value: it depends on the images",
    ),
    "lifetime_sparsity": (
        "lifetime sparsity",
        "it rises with the size of the image: from 0.13 to 0.51 in a neuron of macaque V1 (Vinje & Gallant 2002, J. "
        "Neurosci. 22, 2904)",
    ),
    "zeros": ("responses that are zero", ""),
}


def recorded(folder: Path) -> Statistics:
    """Of mouse V1: 103 neurons, 50 photographs, 10 repeats (Antolik et al. 2016)."""
    responses = torch.from_numpy(antolik(folder)[0])
    repeats, images, _ = responses.shape
    return response_statistics(responses.flatten(0, 1), torch.arange(images).repeat(repeats))


def simulated(noise: Noise) -> Statistics:
    """Of one animal with as many neurons, images and repeats."""
    return statistics(simulate_animals(1, 103, train=1, validation=1, test=50, repeats=(10, 10), noise=noise)[0])


def table(real: Statistics | None) -> Iterator[str]:
    columns = {"simulated, Poisson": simulated("poisson"), "simulated, gamma": simulated("gamma"), "recorded": real}
    yield f"| | {' | '.join(columns)} | published |"
    yield "|---" * (len(columns) + 2) + "|"
    for name, (title, published) in ROWS.items():
        cells = ["" if of is None else summary(getattr(of, name)) for of in columns.values()]
        yield f"| {title} | {' | '.join(cells)} | {published} |"


def main(page: Path | None = None) -> None:
    """Print the table, and write it into the page."""
    torch.set_num_threads(1)
    folder = os.environ.get("V1FAST_REAL_DATA")
    lines = list(table(recorded(Path(folder)) if folder else None))
    print("\n".join(lines))
    if page is not None:
        text = page.read_text()
        before, after = text[: text.index(START)], text[text.index(END) :]
        _files.replace(page, (before + "\n".join([START, "", *lines, "", ""]) + after).encode())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
