"""Experiments as lists of independent jobs, whose results are kept in a file: a run that was stopped goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from v1fast import _files
from v1fast._progress import progress
from v1fast._version import __version__

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]


def seed_of(*parts: Any) -> int:
    """A seed that is a function of numbers and text alone, in any process."""
    return zlib.crc32(json.dumps(parts, default=str).encode())


class Results:
    """Rows of an experiment's jobs, in memory and, with a folder, in ``results.jsonl``: one line for each job.

    A line is appended by one write and is on the disk before the next job begins. What a kill left of a line is cut off
    when the file is opened again. Several processes may append to one file.

    Args:
        folder: made if it is missing; None keeps results in memory alone.
        about: settings and data, which must be those of the rows that are there; written to ``settings.json``.

    Raises:
        ValueError: the folder holds results of other settings or data; its files cannot be read.
    """

    def __init__(self, folder: Path | None, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.rows: dict[str, Row] = {}
        self.about = json.loads(json.dumps(about, default=str))
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._check_about(folder / "settings.json")
        path = folder / "results.jsonl"
        if path.exists():
            self._read(path)

    def _check_about(self, path: Path) -> None:
        if not path.exists():
            versions = {"v1fast": __version__, "torch": torch.__version__, "python": platform.python_version()}
            _files.replace(path, (json.dumps({**self.about, "versions": versions}, indent=2) + "\n").encode())
            return
        with _files.reading(path):
            found = json.loads(path.read_text())
        for name, wanted in self.about.items():
            where = _first_difference(found.get(name), wanted)
            if where is not None:
                at, theirs, ours = where
                raise ValueError(
                    f"{path.parent}: holds results of another experiment: {name}{at} was {theirs}, now {ours}; "
                    "choose another folder"
                )

    def _read(self, path: Path) -> None:
        with _files.reading(path):
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            rows = [json.loads(line) for line in whole.splitlines()]
            self.rows = {row["job"]: row for row in rows}
        if whole != content:
            _files.replace(path, whole)

    def add(self, row: Row) -> None:
        """Keep a row; its "job" tells rows apart."""
        self.rows[row["job"]] = row
        if self.folder is None:
            return
        line = (json.dumps(row) + "\n").encode()
        path = self.folder / "results.jsonl"
        with _files.naming(path), path.open("ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())


def _first_difference(found: Any, wanted: Any, at: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in {**wanted, **found}:
            difference = _first_difference(found.get(key), wanted.get(key), f"{at}.{key}")
            if difference is not None:
                return difference
        return None
    return None if found == wanted else (at, found, wanted)


def run_jobs(
    jobs: Sequence[Any],
    work: Callable[[Any], Mapping[str, Any]],
    results: Results,
    *,
    what: str,
    show: bool = True,
    console: Console | None = None,
) -> list[Row]:
    """Do the jobs that have no result yet, and return the rows of all, in the order of the jobs.

    Args:
        jobs: dataclasses, whose text names them.
        work: makes a job's results.
        results: where they go.
        what: name of the experiment.
        show: whether to show progress.
        console: of rich, to show it on; default stderr.

    Raises:
        KeyboardInterrupt: Ctrl-C, with a note that says how to go on.
    """
    names = [str(job) for job in jobs]
    done = sum(name in results.rows for name in names)
    try:
        with progress(what, len(jobs), done, show, console) as bar:
            for name, job in zip(names, jobs, strict=True):
                if name in results.rows:
                    continue
                bar.describe(f"{what}: {name}")
                results.add({"job": name, **dataclasses.asdict(job), **work(job)})
                bar.advance()
    except KeyboardInterrupt as interrupt:  # in a job, or when its result is written
        if results.folder is not None:
            kept = f"{len(results.rows)} of {len(jobs)} results are in {results.folder}"
            interrupt.__notes__ = [f"{kept}; the same command goes on"]
        raise
    return [results.rows[name] for name in names]
