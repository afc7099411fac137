"""The folder of a run: what it holds, and whether the same run goes on in it."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from v1fast import _files
from v1fast._version import __version__
from v1fast.data import Preparation
from v1fast.models import FiringRateEncoder
from v1fast.runs.configuration import Configuration, configure, difference, write_yaml

FORMAT = 1
PACKAGES = ("torch", "numpy", "scipy", "lightning", "torchmetrics", "safetensors")

Tree = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """A run's folder.

    ``config.yaml`` what was asked for, resolved; ``run.json`` state, versions, seed, git, command, recordings;
    ``last.ckpt``, ``metrics.csv`` of training; ``model.safetensors`` the encoder; ``metrics.json``, ``neurons.csv`` how
    good it is; ``report.html`` all of it to look at.

    Args:
        path: of the folder.
    """

    path: Path

    @property
    def model(self) -> Path:
        """The encoder's file."""
        return self.path / "model.safetensors"

    @property
    def checkpoint(self) -> Path:
        """From which training goes on."""
        return self.path / "last.ckpt"

    def read(self) -> Tree:
        """What ``run.json`` holds.

        Raises:
            FileNotFoundError: there is no run in the folder.
            ValueError: the file is damaged, or of a later version.
        """
        run = self.read_json("run.json")
        where = self.path / "run.json"
        if not isinstance(run.get("format"), int) or "state" not in run:
            raise ValueError(f"{where}: it is no file of v1fast fit")
        if run["format"] > FORMAT:
            raise ValueError(f"{where}: want format {FORMAT} or less, got {run['format']}")
        return run

    def read_json(self, name: str) -> Tree:
        """What a file of JSON in the folder holds."""
        path = self.path / name
        with _files.reading(path):
            content = json.loads(path.read_text())
            if not isinstance(content, dict):
                raise ValueError(f"want keys and values, got {type(content).__name__}")
            return content

    def write(self, run: Mapping[str, Any]) -> None:
        """Replace ``run.json``."""
        self.write_json("run.json", run)

    def write_json(self, name: str, content: Any) -> None:
        """Write a file of JSON at once; what is undefined is null in it."""
        _files.replace(self.path / name, (as_json(content) + "\n").encode())

    def configuration(self) -> Configuration:
        """That of the run.

        Raises:
            FileNotFoundError: there is none.
            ConfigurationErrors: the file was changed into something else.
        """
        return configure(file=self.path / "config.yaml")

    def encoder(self, device: str = "cpu") -> FiringRateEncoder:
        """The fitted encoder.

        Raises:
            FileNotFoundError: training has not come so far.
        """
        if not self.model.exists():
            raise FileNotFoundError(2, "no model yet: the same command of v1fast fit goes on", str(self.model))
        return FiringRateEncoder.load(self.model, device)

    def preparation(self) -> Preparation:
        """How the run's trials were prepared."""
        kept = self.read().get("preparation")
        if kept is None:
            raise FileNotFoundError(2, "no model yet: the same command of v1fast fit goes on", str(self.model))
        options: Tree = {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}
        return Preparation(**options)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it no other process fits in the folder, which is made where it is missing.

        Raises:
            BlockingIOError: one does.
        """
        there = self.path.exists()
        if there and not self.path.is_dir():
            raise ValueError(f"{self.path}: want a folder, got a file")
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / ".lock"
        try:
            file = _files.open_alone(lock)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "another process fits in this folder", str(self.path)) from error
        try:
            with file:
                yield
                lock.unlink(missing_ok=True)
        except BaseException:
            lock.unlink(missing_ok=True)
            if not there and not any(self.path.iterdir()):  # nothing came of it
                self.path.rmdir()
            raise

    def check(self, configuration: Configuration, sessions: Mapping[str, Any]) -> None:
        """Whether a run may begin in the folder, or go on.

        Raises:
            ValueError: another run is in it; the message names the first key that differs.
        """
        if (self.path / "run.json").exists():
            self._compare(configuration, sessions, self.read())
            return
        for name in (self.checkpoint.name, self.model.name):
            if (self.path / name).exists():
                raise ValueError(f"{self.path}: holds {name} that v1fast fit did not write: choose another folder")

    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return (self.path / "run.json").exists() and self.read()["state"] == "finished" and self.model.exists()

    def begin(self, configuration: Configuration, sessions: Mapping[str, Any], command: Sequence[str]) -> Tree:
        """Begin a run in the folder, or go on with the one that is there, after :meth:`check`.

        Args:
            configuration: of the run.
            sessions: what is known of each recording, by name, as JSON.
            command: for the record.

        Returns:
            What ``run.json`` holds.
        """
        if (self.path / "run.json").exists():
            run = self.read()
            run |= {"state": "running", "commands": [*run["commands"], list(command)], "versions": versions()}
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            run = {
                "format": FORMAT,
                "state": "running",
                "started": now(),
                "commands": [list(command)],
                "seed": configuration.seed,
                "versions": versions(),
                "git": git_state(),
                "sessions": sessions,
            }
            _files.replace(self.path / "config.yaml", write_yaml(configuration.tree()).encode())
        self.write(run)
        return run

    def _compare(self, configuration: Configuration, sessions: Mapping[str, Any], run: Tree) -> None:
        differs = difference(self.configuration(), configuration)
        if differs is not None:
            name, was, is_now = differs
            raise ValueError(
                f"{self.path}: this run has {name} = {_short(was)}, and {_short(is_now)} is asked for: "
                "choose another folder by --out"
            )
        if list(run["sessions"]) != list(sessions):
            was, is_now = (", ".join(names) for names in (run["sessions"], sessions))
            raise ValueError(f"{self.path}: this run is of {was}, got {is_now}: choose another folder by --out")
        for name, known in run["sessions"].items():
            for key, value in known.items():
                if key != "source" and sessions[name][key] != value:
                    raise ValueError(
                        f"{self.path}: {name} had {key} {value} when this run began, now {sessions[name][key]}: "
                        "choose another folder by --out"
                    )


def _short(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)


def as_json(content: Any) -> str:
    """Text of JSON; what is undefined is null."""
    return json.dumps(_defined(content), indent=2, allow_nan=False)


def _defined(content: Any) -> Any:
    """Without NaN and infinities, which JSON does not know."""
    if isinstance(content, Mapping):
        return {key: _defined(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_defined(value) for value in content]
    if isinstance(content, float) and content - content != 0:
        return None
    return content


def now() -> str:
    """Date and time, with the zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Of v1fast, Python and the packages that a fit depends on."""
    found = {"v1fast": __version__, "python": platform.python_version(), "machine": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """Commit of the working directory, and whether files differ from it; None outside a repository or without git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def command_line() -> list[str]:
    """The command that runs, as it was given."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
