"""Transfer of a core: trained on some neurons or animals, frozen, and read by others.

The experiment of Lurz et al. (ICLR 2021): fraction oracle of *target* neurons against a number of images n.

``direct``                    core and readout are trained on n images of the target: no transfer
``best-core/diff-readout``    the core on all images of the *source*, frozen; the readout on n images of the target
``diff-core/best-readout``    the core on n images of the source, frozen; the readout on all images of the target
"""

from __future__ import annotations

import dataclasses
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from v1fast import _choices, _files
from v1fast.experiments.jobs import Results, Row, run_jobs, seed_of
from v1fast.experiments.models import (
    Kind,
    ModelSettings,
    Retinotopy,
    Variant,
    calibrate,
    fit_model,
    image_shape,
    judge,
    make_core,
    make_vgg,
    map_shape,
    parameters_per_neuron,
    variants_of,
    with_features,
)
from v1fast.experiments.sessions import Session, Sessions, are_matched, check_images, draw_images, draw_neurons

if TYPE_CHECKING:
    from rich.console import Console

Condition = Literal["direct", "best-core/diff-readout", "diff-core/best-readout"]
CONDITIONS: tuple[Condition, ...] = ("direct", "best-core/diff-readout", "diff-core/best-readout")
UNTRAINED = ("random", "vgg16", "random vgg16")
"""Cores that saw no responses of the source."""


@dataclass(frozen=True)
class TransferSettings:
    """What a transfer experiment compares.

    Attributes:
        images: the numbers n, in training trials of all sessions of a group together; empty: powers of two from 64 up
            to all, and all.
        subsets: random subsets of the target's neurons and images, from which the bands come.
        neurons: of the target, in a subset; None: all of them.
        conditions: see the module.
        scans: numbers of source sessions from which cores are trained; empty: all of them.
        untrained: further cores: "random", "vgg16" (with ``vgg_weights``), "random vgg16".
        readouts: kinds of readouts, side by side.
        retinotopy: "none", "predicted", "residual": of the kinds that have positions, see :func:`variants_of`.
        sharing: whether matched neurons share features, where source or target are several sessions of the same
            neurons; both are compared.
        vgg_weights: file with the weights of VGG-16.
        core_seeds: so many cores are trained on all images, from different seeds; subsets take turns with them.
        model: of all models.
        seed: of subsets and fits.

    Raises:
        ValueError: a value out of range.
    """

    images: tuple[int, ...] = ()
    subsets: int = 5
    neurons: int | None = None
    conditions: tuple[Condition, ...] = CONDITIONS
    scans: tuple[int, ...] = ()
    untrained: tuple[str, ...] = ("random",)
    readouts: tuple[Kind, ...] = ("gaussian", "factorized")
    retinotopy: tuple[Retinotopy, ...] = ("none",)
    sharing: tuple[bool, ...] = (False,)
    vgg_weights: str | None = None
    core_seeds: int = 1
    model: ModelSettings = field(default_factory=ModelSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("subsets", "core_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: want at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed: want at least 0, got {self.seed}")
        if not self.conditions:
            raise ValueError(f"conditions: want some of {', '.join(CONDITIONS)}, got none")
        for condition in self.conditions:
            _choices.one_of("conditions", condition, CONDITIONS)
        for core in self.untrained:
            _choices.one_of("untrained", core, UNTRAINED)
        if "vgg16" in self.untrained and self.vgg_weights is None:
            raise ValueError("vgg_weights: want a file with the weights of VGG-16, got None")
        if any(count < 1 for count in self.images):
            raise ValueError(f"images: want numbers of at least 1, got {min(self.images)}")

    def variants(self) -> list[Variant]:
        """The readouts to compare."""
        return variants_of(self.readouts, self.sharing, self.retinotopy)


@dataclass(frozen=True)
class TransferJob:
    """One fit of readouts, or of a core and readouts.

    Attributes:
        condition: see the module.
        core: "own" (of direct training), "3 scans" or "random", "vgg16", "random vgg16".
        scans: number of source sessions that the core was trained on; 0 for the others.
        readout: see :class:`Variant`.
        images: n.
        subset: number of the random subset.
    """

    condition: Condition
    core: str
    scans: int
    readout: Variant
    images: int
    subset: int

    def __str__(self) -> str:
        return f"{self.condition}, {self.core}, {self.readout}, {self.images} images, subset {self.subset}"


def split_neurons(sessions: Sessions, seed: int = 0) -> tuple[dict[str, Session], dict[str, Session]]:
    """Half of each session's neurons as the source, the others as the target: transfer within an animal.

    A neuron that several sessions have is on the same side in all of them.

    Raises:
        ValueError: a session has too few neurons for two halves.
    """
    source, target = {}, {}
    sides: dict[Any, bool] = {}
    for name, session in sessions.items():
        units, rng = session.unit_ids.tolist(), np.random.default_rng([seed, 71])
        new = [unit for unit in dict.fromkeys(units[k] for k in rng.permutation(len(units))) if unit not in sides]
        # The half that is smaller so far gets the larger part of the new ones.
        wanted = session.neurons // 2 - sum(not sides[unit] for unit in units if unit in sides)
        sides |= {unit: number >= wanted for number, unit in enumerate(new)}
        of_source = np.array([sides[unit] for unit in units])
        if of_source.all() or not of_source.any():
            raise ValueError(f"{name}: want neurons for two halves, got {session.neurons}")
        source[name], target[name] = (session.of_neurons(np.flatnonzero(half)) for half in (of_source, ~of_source))
    return source, target


def image_grid(most: int) -> list[int]:
    """Powers of two from 64 on, and ``most``."""
    return [*(2**k for k in range(6, 64) if 2**k < most), most]


class Transfer:
    """The experiment's jobs and how each is done; :func:`transfer` runs it.

    Args:
        source, target: sessions by name.
        settings: see there.
        out: folder in which trained cores are kept; None: in memory.

    Raises:
        ValueError: settings and sessions do not fit.
    """

    def __init__(self, source: Sessions, target: Sessions, settings: TransferSettings, out: Path | None = None) -> None:
        self.source, self.target, self.settings, self.out = dict(source), dict(target), settings, out
        for name, group in (("source", source), ("target", target)):
            if not group:
                raise ValueError(f"{name}: want at least one session, got none")
        self.within = bool(set(source) & set(target))
        shape = image_shape({f"source {name}": one for name, one in source.items()} | dict(target))
        for core in self._examples():
            map_shape(core, shape)
        self.all_images = sum(session.images for session in target.values())
        self.source_images = sum(session.images for session in source.values())
        self.scans = settings.scans or (len(source),)
        for count in self.scans:
            if not 1 <= count <= len(source):
                raise ValueError(f"scans: want 1 to {len(source)}, the number of source sessions, got {count}")
        self._check_subsets()
        self._check_readouts()
        self._cores: dict[str, nn.Module] = {}
        self._features: tuple[str, dict[str, Session]] = ("", {})

    def _check_subsets(self) -> None:
        settings = self.settings
        draw_neurons(self.target, settings.neurons, np.random.default_rng(0))
        at_once = max(self.scans) if "diff-core/best-readout" in settings.conditions else 1
        check_images(settings.images, max(len(self.target), at_once), max(self.all_images, self.source_images))

    def _check_readouts(self) -> None:
        variants, conditions = self.settings.variants(), self.settings.conditions
        groups = [self.target, *([self.source] if set(conditions) - {"direct"} else [])]
        for variant in variants:
            for group in groups:
                self._variant_for(group, variant).check(group)
        if any(variant.sharing for variant in variants) and not any(job.readout.sharing for job in self.jobs()):
            raise ValueError("sharing: want source or target to be several sessions of the same neurons, got others")

    def _examples(self) -> Iterator[nn.Module]:
        """A core of each kind, untrained: what cannot be made is said before anything is fitted."""
        with torch.random.fork_rng(devices=[]):
            yield make_core(self.target, self.settings.model)
            if set(self.settings.untrained) - {"random"}:
                weights = self.settings.vgg_weights if "vgg16" in self.settings.untrained else None
                yield make_vgg(self.target, self.settings.model, None if weights is None else Path(weights))

    def _of_scans(self, count: int) -> dict[str, Session]:
        """So many of the source's sessions."""
        return dict(list(self.source.items())[:count])

    def grid(self) -> list[int]:
        """The numbers of images."""
        return list(self.settings.images) or image_grid(self.all_images)

    def jobs(self) -> list[TransferJob]:
        """All jobs; those that read one core's features are together.

        A condition goes as far as there are images, and shared features are left out where no neurons are matched.
        """
        settings, made = self.settings, []
        most = f"{max(self.scans)} scans"
        cores = [(f"{count} scans", count) for count in self.scans] + [(name, 0) for name in settings.untrained]
        for variant in settings.variants():
            for condition in settings.conditions:
                if condition == "direct":
                    chosen = [("own", 0)]
                elif condition == "best-core/diff-readout":
                    chosen = cores
                else:
                    chosen = [(most, max(self.scans))]
                for core, scans in chosen:
                    if variant.sharing and not (are_matched(self.target) or are_matched(self._of_scans(scans))):
                        continue
                    made += [
                        TransferJob(condition, core, scans, variant, images, subset)
                        for subset in range(settings.subsets)
                        for images in self.grid()
                        if images <= (self.source_images if condition == "diff-core/best-readout" else self.all_images)
                    ]
        return made

    def subset(self, job: TransferJob) -> dict[str, Session]:
        """The target's neurons of a job's subset, with all images."""
        rng = np.random.default_rng([self.settings.seed, 1, job.subset])
        return draw_neurons(self.target, self.settings.neurons, rng)

    def work(self, job: TransferJob) -> dict[str, Any]:
        """Do a job."""
        settings = self.settings
        seed = seed_of(settings.seed, str(job))
        sessions = self.subset(job)
        variant = self._variant_for(sessions, job.readout)
        if job.condition == "direct":
            shown = draw_images(sessions, job.images, self._images_rng(job))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                core: nn.Module = make_core(shown, settings.model)
            fitted = fit_model(core, shown, variant, settings.model, seed)
        else:
            core = self.core(job)
            read = self._with_features(job, core, sessions)
            count = job.images if job.condition == "best-core/diff-readout" else None
            shown = draw_images(read, count, self._images_rng(job))
            fitted = fit_model(core, shown, variant, settings.model, seed, frozen=True)
        history = fitted.history
        return {
            "within_animal": self.within,
            "neurons": sum(session.neurons for session in sessions.values()),
            **judge(fitted.encoder, shown),
            "best_epoch": history.best_epoch,
            "epochs": len(history.epochs),
            "parameters_per_neuron": parameters_per_neuron(fitted.encoder.readout),  # type: ignore[arg-type]
            "seconds": round(fitted.seconds, 2),
        }

    def _images_rng(self, job: TransferJob) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, 2, job.subset])

    def _with_features(self, job: TransferJob, core: nn.Module, sessions: Sessions) -> dict[str, Session]:
        """The job's neurons with the core's features; those of the last core are kept for the jobs that follow."""
        key = self.core_key(job)
        if self._features[0] != key:
            self._features = ("", {})  # frees the others first
            model = self.settings.model
            made = {name: with_features(core, one, model, self.out) for name, one in self.target.items()}
            self._features = (key, made)
        rows = self._features[1]
        return {name: one.with_images_of(rows[name]) for name, one in sessions.items()}

    # cores

    def core_key(self, job: TransferJob) -> str:
        """Name of the core that a job reads: one for all jobs whose core is trained in the same way."""
        seed = job.subset % self.settings.core_seeds
        if job.core in UNTRAINED:
            return job.core if job.core == "vgg16" else f"{job.core}, subset {job.subset}"
        readout = self._variant_for(self._of_scans(job.scans), job.readout)
        if job.condition == "diff-core/best-readout":
            return f"{job.core}, {readout}, {job.images} images, subset {job.subset}"
        return f"{job.core}, {readout}, all images, seed {seed}"

    def core(self, job: TransferJob) -> nn.Module:
        """The frozen core that a job reads, in evaluation mode; trained if it was not yet."""
        key = self.core_key(job)
        if key not in self._cores:
            core = self._untrained(job) if job.core in UNTRAINED else self._trained(job, key)
            # Of cores for one number of images there are many, and each is read by one job.
            self._cores = {name: kept for name, kept in self._cores.items() if "all images" in name} | {
                key: core.requires_grad_(False).eval()
            }
        return self._cores[key]

    def _untrained(self, job: TransferJob) -> nn.Module:
        model, seed = self.settings.model, seed_of(self.settings.seed, self.core_key(job))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if job.core == "random":
                return calibrate(make_core(self.source, model), self.source)
            weights = self.settings.vgg_weights if job.core == "vgg16" else None
            return calibrate(make_vgg(self.source, model, None if weights is None else Path(weights)), self.source)

    def _trained(self, job: TransferJob, key: str) -> nn.Module:
        seed = seed_of(self.settings.seed, key)
        sessions = self._of_scans(job.scans)
        everything = job.condition != "diff-core/best-readout"
        if not everything:
            sessions = draw_images(sessions, job.images, self._images_rng(job))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            core = make_core(sessions, self.settings.model)
        kept = self.out / "cores" / f"{key}.pt" if self.out is not None and everything else None
        if kept is not None and kept.exists():
            with _files.reading(kept):
                core.load_state_dict(torch.load(kept, weights_only=True))
            return core
        unfinished = None if kept is None else kept.with_suffix("")
        variant = self._variant_for(sessions, job.readout)
        fit_model(core, sessions, variant, self.settings.model, seed, out=unfinished)
        if kept is not None and unfinished is not None:
            content = io.BytesIO()
            torch.save(core.state_dict(), content)
            _files.replace(kept, content.getvalue())
            shutil.rmtree(unfinished, ignore_errors=True)
        return core

    @staticmethod
    def _variant_for(sessions: Sessions, variant: Variant) -> Variant:
        """The variant, with sharing where there are matched sessions to share between."""
        return dataclasses.replace(variant, sharing=variant.sharing and are_matched(sessions))

    def about(self) -> dict[str, Any]:
        """What the results depend on."""
        groups = {"source": self.source, "target": self.target}
        return {
            "experiment": "transfer",
            "settings": dataclasses.asdict(self.settings),
            "data": {
                group: {name: one.fingerprint() for name, one in sessions.items()} for group, sessions in groups.items()
            },
        }


def transfer(
    source: Sessions | None,
    target: Sessions,
    settings: TransferSettings | None = None,
    *,
    out: str | Path | None = None,
    show: bool = True,
    console: Console | None = None,
) -> list[Row]:
    """Run the experiment.

    Args:
        source: sessions on which cores are trained. None: half of the neurons of each target session, the other half
            being the target: transfer within an animal.
        target: sessions whose neurons are predicted.
        settings: see :class:`TransferSettings`.
        out: folder for results and trained cores; the same call goes on with what is there. None: nothing is written.
        show: whether to show progress.
        console: of rich, to show it on; default stderr.

    Returns:
        One row for each job: its settings, "fraction_oracle", "correlation", "correlation_to_average" and "undefined"
        (see :func:`v1fast.experiments.models.judge`), and what it took.

    Raises:
        ValueError: settings and sessions do not fit; ``out`` holds results of others.
        KeyboardInterrupt: Ctrl-C.
    """
    settings = settings or TransferSettings()
    if source is None:
        source, target = split_neurons(target, settings.seed)
    elif set(source) & set(target):
        twice = ", ".join(sorted(set(source) & set(target)))
        raise ValueError(f"source, target: want different sessions, got {twice} in both; without a source, its neurons "
                         "are split")  # fmt: skip
    folder = None if out is None else Path(out)
    experiment = Transfer(source, target, settings, folder)
    results = Results(folder, experiment.about())
    return run_jobs(experiment.jobs(), experiment.work, results, what="transfer", show=show, console=console)


def curves(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with names of their own for readout and arm, as figures and tables take them."""
    named = []
    for row in rows:
        variant = Variant(**row["readout"])
        readout = {"readout": str(variant), "kind": variant.kind, "variant": variant.arm}
        named.append({**row, **readout, "arm": arm(row)})
    return named


def arm(row: Mapping[str, Any]) -> str:
    """Name of a curve."""
    if row["condition"] == "direct":
        return "direct"
    core = f"core of {row['scans']} scan{'s' if row['scans'] > 1 else ''}" if row["scans"] else row["core"]
    return core if row["condition"] == "best-core/diff-readout" else f"{core}, n images for the core"
