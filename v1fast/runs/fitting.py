"""From recordings to a run's folder: fit, judge, report."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v1fast.data import Preparation, Recording, loaders, normalization
from v1fast.data.loaders import stretches
from v1fast.data.recording import TIERS
from v1fast.metrics import write_table
from v1fast.models import FiringRateEncoder
from v1fast.models.geometry import lost_frames
from v1fast.runs import building
from v1fast.runs.configuration import Configuration
from v1fast.runs.evaluation import Judgement, joined, judge, overall
from v1fast.runs.folder import RunFolder, now
from v1fast.training import History, fit
from v1fast.training.fitting import how_to_go_on
from v1fast.training.ranks import Rank, prepared_by_first, this_rank

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, eq=False)
class Outcome:
    """What :func:`fit_recordings` did.

    Attributes:
        folder: of the run.
        state: "finished"; "interrupted" by Ctrl-C, with the best weights so far in the folder; or "unchanged": the run
            had been finished before.
        metrics: what ``metrics.json`` holds; empty after an interruption.
        notes: lines about what the recordings lack.
    """

    folder: RunFolder
    state: str
    metrics: Mapping[str, Any]
    notes: Sequence[str] = ()


def fit_recordings(
    recordings: Mapping[str, Recording],
    configuration: Configuration,
    out: str | Path,
    *,
    command: Sequence[str] = (),
    show: bool = True,
    console: Console | None = None,
) -> Outcome:
    """Fit one core and a readout for each recording; judge it on test trials; write all into a folder.

    The same call goes on where it was stopped, with the result that it would have had.

    Where ``configuration.machine`` has several devices, each is a process of its own, which runs the same script; see
    :func:`v1fast.training.fit`. Rank 0 writes and judges; every rank returns the outcome.

    Args:
        recordings: by name, at least one.
        configuration: see :func:`v1fast.runs.configure`.
        out: the run's folder, made where it is missing.
        command: for the record.
        show: whether to show progress.
        console: of rich, to print on; default stderr.

    Raises:
        ValueError: recordings and configuration do not fit together; another run is in the folder.
        BlockingIOError: another process fits in the folder.
        RankEndedError: another rank ended; the same call goes on, with any number of ranks.
        KeyboardInterrupt: Ctrl-C before the first epoch was done, or while the fit was judged.
    """
    folder, rank = RunFolder(Path(out)), rank_of(configuration)
    with folder.alone() if rank.number == 0 else nullcontext():
        return _fit_in(folder, rank, recordings, configuration, command, show, console)


def rank_of(configuration: Configuration) -> Rank:
    """Which of the processes that fit together this one is, or will be.

    Raises:
        ValueError: there are not so many devices; ``torchrun`` or SLURM started another number of processes.
    """
    return this_rank(building.trainer_options(configuration))


def _fit_in(
    folder: RunFolder,
    rank: Rank,
    recordings: Mapping[str, Recording],
    configuration: Configuration,
    command: Sequence[str],
    show: bool,
    console: Console | None,
) -> Outcome:
    start = time.perf_counter()
    configuration, notes = building.adapted(configuration, recordings)
    preparation = building.preparation_of(configuration, recordings)
    normalizations = {name: normalization(recording, preparation) for name, recording in recordings.items()}
    sessions = {
        name: building.Session.of(recording, preparation, normalizations[name])
        for name, recording in recordings.items()
    }
    described = {name: _description(recordings[name], sessions[name]) for name in recordings}
    folder.check(configuration, described)
    encoder = building.build(configuration, sessions)
    if folder.is_finished():
        return Outcome(folder, "unchanged", folder.read_json("metrics.json"), notes)
    run = folder.begin(configuration, described, command) if rank.number == 0 else {}
    history = _fit(encoder, rank, recordings, configuration, preparation, normalizations, folder, show, console)

    run |= {"notes": notes, "preparation": dataclasses.asdict(preparation), "parameters": _parameters(encoder)}
    run |= {"device": building.device_of(configuration.machine.device)}
    run |= {"epochs": len(history.epochs), "best_epoch": history.best_epoch}

    def finish() -> Outcome:
        encoder.normalization = normalizations
        encoder.cpu().save(folder.model)
        if history.interrupted:
            folder.write(run | {"state": "interrupted"})
            return Outcome(folder, "interrupted", {}, notes)
        judgements = judge_all(encoder, recordings, preparation)
        seconds = run.get("seconds", 0) + time.perf_counter() - start
        ended = run | {"state": "finished", "finished": now(), "seconds": round(seconds, 1)}
        return Outcome(folder, "finished", _write(folder, ended, configuration, history, judgements), notes)

    if history.interrupted:  # the other ranks have ended
        return finish()
    return prepared_by_first(rank, finish, lambda: how_to_go_on(folder.checkpoint))


def _write(
    folder: RunFolder,
    run: Mapping[str, Any],
    configuration: Configuration,
    history: History,
    judgements: Mapping[str, Judgement],
) -> Mapping[str, Any]:
    """Write metrics, table and report of a run, and then that it is finished; the metrics."""
    from v1fast.runs.report import write_report

    metrics = summary(judgements)
    folder.write_json("metrics.json", metrics)
    write_table(folder.path / "neurons.csv", joined(judgements))
    write_report(folder.path / "report.html", run, configuration, history.epochs, judgements, metrics)
    folder.write(run)
    return metrics


def _fit(
    encoder: FiringRateEncoder,
    rank: Rank,
    recordings: Mapping[str, Recording],
    configuration: Configuration,
    preparation: Preparation,
    normalizations: Mapping[str, Any],
    folder: RunFolder,
    show: bool,
    console: Console | None,
) -> History:
    training, machine = configuration.training, configuration.machine
    lost = lost_frames(encoder.core)
    frames = None if lost is None else configuration.data.frames
    if frames is not None:
        _check_clips(recordings, frames)
    made = loaders(
        recordings,
        training.batch_size,
        configuration.seed,
        [tier for tier in ("train", "validation") if any(len(r.in_tier(tier)) for r in recordings.values())],
        device=rank.device or building.device_of(machine.device),
        preparation=preparation,
        normalizations=normalizations,
        memory=int(machine.memory_gb * 2**30),
        workers=machine.workers,
        drop_undefined=configuration.data.drop_undefined,
        frames=frames,
        skip_frames=lost or 0,
    )
    return fit(
        encoder,
        made["train"],
        made.get("validation"),
        out=folder.path,
        loss=building.loss_of(configuration),
        max_epochs=training.epochs,
        batch_size=training.batch_size,
        seed=configuration.seed,
        precision=training.precision,
        show=show,
        console=console,
        learning_rate=training.learning_rate,
        learning_rates=training.learning_rates,
        optimizer=building.optimizer_of(configuration),
        schedule=building.schedule_of(configuration),
        gamma_dispersion=training.gamma_dispersion,
        scale_loss=training.scale_loss,
        check_every=training.check_every,
        **building.trainer_options(configuration),
    )


def _check_clips(recordings: Mapping[str, Recording], frames: int) -> None:
    for name, recording in recordings.items():
        longest = max(map(len, stretches(recording, recording.in_tier("train"))))
        if frames > longest:
            want = f"want at most {longest}, as the longest training video of {name}"
            raise ValueError(f"data.frames: {want}, got {frames}")


def _parameters(encoder: FiringRateEncoder) -> dict[str, int]:
    parts = {name: getattr(encoder, name) for name in ("core", "readout", "shifter", "modulator")}
    return {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in parts.items()
        if part is not None
    }


def _description(recording: Recording, session: building.Session) -> dict[str, Any]:
    """What is known of a recording; the same run is of recordings with the same."""
    names = [tier for tier in TIERS if len(recording.in_tier(tier))]
    names += sorted(set(recording.tiers.tolist()) - set(TIERS))
    tiers = {tier: len(recording.in_tier(tier)) for tier in names}
    responses = hashlib.sha256(session.mean_activity.numpy().tobytes()).hexdigest()[:16]
    return {
        "source": str(Path(recording.source).absolute()) if recording.source else "",
        "trials": tiers,
        "neurons": len(session.mean_activity),
        "image_shape": list(session.image_shape),
        "responses": f"sha256 {responses}",  # of their training means
    }


def judge_all(
    encoder: FiringRateEncoder,
    recordings: Mapping[str, Recording],
    preparation: Preparation,
    tier: str | None = None,
    session: str | None = None,
    **options: Any,
) -> dict[str, Judgement]:
    """Judge a model on each recording.

    Args:
        encoder, recordings, preparation: see :func:`v1fast.runs.judge`.
        tier: of the trials. None: "test", in a recording without that "validation", else all that it has.
        session: of the model, for a single recording of another name.
        **options: of :func:`v1fast.runs.judge`.
    """
    found = {}
    sessions: Any = encoder.readout
    for name, recording in recordings.items():
        there = [one for one in ("test", "validation") if len(recording.in_tier(one))]
        chosen = tier or (there[0] if there else str(recording.tiers[0]))
        of = session or (name if name in sessions else None)
        found[name] = judge(encoder, recording, preparation, session=of, tier=chosen, **options)
    return found


def summary(judgements: Mapping[str, Judgement]) -> dict[str, Any]:
    """What ``metrics.json`` holds: means over all neurons, and each recording by name."""
    return {
        "all": overall(judgements),
        "sessions": {name: judgement.summary() for name, judgement in judgements.items()},
    }
