"""Batches of one session or of several, in an order that is a function of seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Fields = Mapping[str, Any]
INPUTS, RESPONSES = ("images", "inputs", "videos"), ("responses", "targets")
"""Names under which a batch may hold its images or videos, and its responses."""


class Loader(Protocol):
    """What training reads: ``torch.utils.data.DataLoader``, :class:`TensorBatches` and the like."""

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


class TensorBatches:
    """Batches of tensors that lie in memory, on any device.

    The order is a permutation that depends on ``seed`` and on the epoch, which :meth:`set_epoch` sets: a run that is
    resumed sees the batches that it would have seen. Within an epoch each further pass has an order of its own.

    Args:
        fields: name -> tensor, first axis trials: "images" [T, C, H, W], "responses" [T, N], and what the encoder takes
            beside them ("pupil_center" [T, 2], "behavior" [T, K], ...).
        batch_size: trials of a batch; the last one of a pass may have fewer.
        shuffle: False keeps the order of the trials.
        seed: of the permutations.

    Raises:
        ValueError: there are no trials, or fields differ in their number.

    >>> import torch
    >>> batches = TensorBatches({"images": torch.zeros(10, 1, 4, 4), "responses": torch.zeros(10, 3)}, batch_size=4)
    >>> [len(batch["responses"]) for batch in batches]
    [4, 4, 2]
    """

    def __init__(self, fields: Mapping[str, Tensor], batch_size: int = 64, shuffle: bool = True, seed: int = 0) -> None:
        lengths = {name: len(values) for name, values in fields.items()}
        if len(set(lengths.values())) != 1 or not all(lengths.values()):
            said = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"fields: want the same number of trials in each, at least 1, got {said or 'no fields'}")
        if batch_size < 1:
            raise ValueError(f"batch_size: want at least 1, got {batch_size}")
        self.fields, self.batch_size, self.shuffle, self.seed = dict(fields), batch_size, shuffle, seed
        self.trials = next(iter(lengths.values()))
        self._epoch = self._passes = 0

    @property
    def dataset(self) -> range:
        """The trials' indices: ``len(loader.dataset)`` is their number, as in torch's loaders."""
        return range(self.trials)

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutations of an epoch."""
        self._epoch, self._passes = epoch, 0

    def __len__(self) -> int:
        return -(-self.trials // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = torch.arange(self.trials)
        if self.shuffle:
            seed = np.random.SeedSequence([self.seed, self._epoch, self._passes]).generate_state(1, np.uint64)[0]
            order = torch.randperm(self.trials, generator=torch.Generator().manual_seed(int(seed) >> 1))
        self._passes += 1
        for chosen in order.split(self.batch_size):
            yield {name: values[chosen.to(values.device)] for name, values in self.fields.items()}


class SessionCycle:
    """Batches of several sessions at once: ``{data_key: batch}``, as many as the longest session has.

    A shorter session starts again when it has ended, as in neuralpredictors' ``LongCycler``.

    Args:
        loaders: name of each session -> its loader.
    """

    def __init__(self, loaders: Mapping[str, Loader]) -> None:
        self.loaders = dict(loaders)

    @property
    def sampler(self) -> SessionCycle:
        """This object: Lightning looks here for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Tell the loaders or their samplers which epoch begins."""
        for loader in self.loaders.values():
            batch_sampler = getattr(loader, "batch_sampler", None)
            parts: tuple[Any, ...] = (loader, getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None))
            for part in parts:
                if hasattr(part, "set_epoch"):
                    part.set_epoch(epoch)

    def __len__(self) -> int:
        return max(len(loader) for loader in self.loaders.values())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        iterators = {data_key: _forever(loader) for data_key, loader in self.loaders.items()}
        for _ in range(len(self)):
            yield {data_key: next(iterator) for data_key, iterator in iterators.items()}


class SessionSequence:
    """Batches of one session after the other, ``{data_key: batch}``, each trial once: for validation.

    Args:
        loaders: name of each session -> its loader.
    """

    def __init__(self, loaders: Mapping[str, Loader]) -> None:
        self.loaders = dict(loaders)

    def __len__(self) -> int:
        return sum(len(loader) for loader in self.loaders.values())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for data_key, loader in self.loaders.items():
            for batch in loader:
                yield {data_key: batch}


def _forever(loader: Loader) -> Iterator[Any]:
    while True:
        yield from loader


def as_fields(batch: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return (inputs, responses, other fields) of a batch: a mapping, a named tuple, or a plain (inputs, responses).

    Raises:
        ValueError: no inputs or no responses are in it.
    """
    if isinstance(batch, Mapping):
        fields = dict(batch)
    elif hasattr(batch, "_asdict"):
        fields = batch._asdict()
    else:
        fields = dict(zip((INPUTS[0], RESPONSES[0]), batch, strict=False))
    return _take("images", fields, INPUTS), _take("responses", fields, RESPONSES), fields


def _take(what: str, fields: dict[str, Any], names: Iterable[str]) -> Tensor:
    for name in names:
        if name in fields:
            taken: Tensor = fields.pop(name)
            return taken
    raise ValueError(f"batch: want {what} under one of {', '.join(names)}, got {', '.join(fields)}")
