"""Readouts side by side: fraction oracle against the number of images, for few neurons and many.

The main figure of Lurz et al. (ICLR 2021). Core and readout are trained together on n images, for random subsets of the
neurons; with a shifter and a modulator, what eye movements and a gain that follows behaviour add to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from v1fast.experiments.jobs import Results, Row, run_jobs, seed_of
from v1fast.experiments.models import (
    KINDS,
    Kind,
    ModelSettings,
    Retinotopy,
    Variant,
    fit_model,
    image_shape,
    judge,
    make_core,
    map_shape,
    parameters_per_neuron,
    variants_of,
)
from v1fast.experiments.sessions import Session, Sessions, check_images, draw_images, draw_neurons
from v1fast.experiments.transfer import image_grid

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class ComparisonSettings:
    """What a comparison of readouts compares.

    Attributes:
        images: numbers of images n, in training trials of all sessions together; empty: powers of two from 64 up to
            all, and all.
        neurons: numbers of neurons of each session; empty: 50 and 500, as far as there are more, and all.
        subsets: random subsets of neurons and images, from which the bands come.
        readouts: kinds of readouts.
        sharing: whether matched neurons share features; both are compared.
        retinotopy: "none", "predicted", "residual": of the kinds that have positions, see :func:`variants_of`.
        behavior: also fit Gaussian readouts with a shifter, with a modulator and with both, to all images and neurons.
        model: of all models.
        seed: of subsets and fits.

    Raises:
        ValueError: a value out of range.
    """

    images: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    subsets: int = 5
    readouts: tuple[Kind, ...] = KINDS
    sharing: tuple[bool, ...] = (False,)
    retinotopy: tuple[Retinotopy, ...] = ("none",)
    behavior: bool = False
    model: ModelSettings = field(default_factory=ModelSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subsets < 1:
            raise ValueError(f"subsets: want at least 1, got {self.subsets}")
        if self.seed < 0:
            raise ValueError(f"seed: want at least 0, got {self.seed}")
        for name in ("images", "neurons"):
            values = getattr(self, name)
            if any(value < 1 for value in values):
                raise ValueError(f"{name}: want numbers of at least 1, got {min(values)}")

    def variants(self) -> list[Variant]:
        """The readouts to compare."""
        return variants_of(self.readouts, self.sharing, self.retinotopy)


@dataclass(frozen=True)
class ComparisonJob:
    """One fit.

    Attributes:
        readout: see :class:`Variant`.
        neurons: of each session.
        images: n.
        subset: number of the random subset.
    """

    readout: Variant
    neurons: int
    images: int
    subset: int

    def __str__(self) -> str:
        return f"{self.readout}, {self.neurons} neurons, {self.images} images, subset {self.subset}"


class Comparison:
    """The experiment's jobs and how each is done; :func:`compare_readouts` runs it.

    Args:
        sessions: by name.
        settings: see there.

    Raises:
        ValueError: settings and sessions do not fit.
    """

    def __init__(self, sessions: Sessions, settings: ComparisonSettings) -> None:
        if not sessions:
            raise ValueError("sessions: want at least one, got none")
        self.sessions, self.settings = dict(sessions), settings
        for variant in (*settings.variants(), *self._with_behavior()):
            variant.check(sessions)
        with torch.random.fork_rng(devices=[]):
            map_shape(make_core(sessions, settings.model), image_shape(sessions))
        all_images = sum(session.images for session in sessions.values())
        check_images(settings.images, len(sessions), all_images)
        self.images = list(settings.images) or image_grid(all_images)
        fewest = min(session.neurons for session in sessions.values())
        if any(size > fewest for size in settings.neurons):
            raise ValueError(f"neurons: want at most {fewest}, got {max(settings.neurons)}")
        self.sizes = list(settings.neurons) or [*(size for size in (50, 500) if size < fewest), fewest]

    def _with_behavior(self) -> list[Variant]:
        if not self.settings.behavior:
            return []
        pairs = ((False, False), (True, False), (False, True), (True, True))
        return [Variant("gaussian", shifter=shifter, modulator=modulator) for shifter, modulator in pairs]

    def jobs(self) -> list[ComparisonJob]:
        """All jobs."""
        subsets = range(self.settings.subsets)
        made = [
            ComparisonJob(variant, neurons, images, subset)
            for variant in self.settings.variants()
            for neurons in self.sizes
            for images in self.images
            for subset in subsets
        ]
        most = max(self.sizes), max(self.images)
        made += [ComparisonJob(variant, *most, subset) for variant in self._with_behavior() for subset in subsets]
        return list(dict.fromkeys(made))

    def data(self, job: ComparisonJob) -> dict[str, Session]:
        """A job's neurons and images."""
        seed = self.settings.seed
        sessions = draw_neurons(self.sessions, job.neurons, np.random.default_rng([seed, 1, job.subset]))
        return draw_images(sessions, job.images, np.random.default_rng([seed, 2, job.subset]))

    def work(self, job: ComparisonJob) -> dict[str, Any]:
        """Do a job."""
        sessions, seed = self.data(job), seed_of(self.settings.seed, str(job))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            core = make_core(sessions, self.settings.model)
        fitted = fit_model(core, sessions, job.readout, self.settings.model, seed)
        readouts: Any = fitted.encoder.readout
        return {
            **judge(fitted.encoder, sessions),
            "parameters_per_neuron": parameters_per_neuron(readouts),
            "best_epoch": fitted.history.best_epoch,
            "epochs": len(fitted.history.epochs),
            "seconds": round(fitted.seconds, 2),
        }

    def about(self) -> dict[str, Any]:
        """What the results depend on."""
        return {
            "experiment": "readouts",
            "settings": dataclasses.asdict(self.settings),
            "data": {name: one.fingerprint() for name, one in self.sessions.items()},
        }


def compare_readouts(
    sessions: Sessions,
    settings: ComparisonSettings | None = None,
    *,
    out: str | Path | None = None,
    show: bool = True,
    console: Console | None = None,
) -> list[Row]:
    """Compare readouts: fraction oracle against the number of images, for few neurons and many.

    Args:
        sessions: by name; of several, one core is trained on all.
        settings: see :class:`ComparisonSettings`.
        out: folder for results; the same call goes on with what is there. None: nothing is written.
        show: whether to show progress.
        console: of rich, to show it on; default stderr.

    Returns:
        One row for each job: its settings, "fraction_oracle", "correlation", "correlation_to_average", "undefined",
        "parameters_per_neuron" (see :mod:`v1fast.experiments.models`), and what it took.

    Raises:
        ValueError: settings and sessions do not fit; ``out`` holds results of others.
        KeyboardInterrupt: Ctrl-C.
    """
    experiment = Comparison(sessions, settings or ComparisonSettings())
    results = Results(None if out is None else Path(out), experiment.about())
    return run_jobs(experiment.jobs(), experiment.work, results, what="readouts", show=show, console=console)


def compared(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with names for readout and size, as figures and tables take them."""
    named = []
    for row in rows:
        variant = Variant(**row["readout"])
        size = f"{row['neurons']} neurons"
        curve = f"{variant}: {row['parameters_per_neuron']:,g}"
        beside = {"size": size, "curve": curve, "behavior": variant.shifter or variant.modulator}
        named.append({**row, "readout": str(variant), "kind": variant.kind, "arm": variant.arm, **beside})
    return named
