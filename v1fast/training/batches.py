"""Batches of one session or of several, in an order that is a function of seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import DistributedSampler

from v1fast._batches import SHARE, Batches
from v1fast._batches import Share as Share
from v1fast._batches import TensorBatches as TensorBatches

Fields = Mapping[str, Any]
INPUTS, RESPONSES = ("images", "inputs", "videos"), ("responses", "targets")
"""Names under which a batch may hold its images or videos, and its responses."""


class Loader(Protocol):
    """What training reads: ``torch.utils.data.DataLoader``, :class:`TensorBatches` and the like."""

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


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


def sessions_in(loader: Any) -> Mapping[str, Any]:
    """The loaders of single sessions in a loader of them all, also in one of Lightning's; empty where it has none."""
    loaders = getattr(loader, "loaders", None) or getattr(loader, "iterables", loader)
    return loaders if isinstance(loaders, Mapping) else {}


def share_batches(loaders: Mapping[str, Any], rank: int, ranks: int) -> None:
    """Let each loader give one rank's part of its batches.

    A ``DataLoader`` with a ``DistributedSampler``, as Lightning makes them, does so already.

    Raises:
        ValueError: a loader cannot be shared; its batches are smaller than the number of ranks.
    """
    for data_key, loader in loaders.items():
        if isinstance(loader, Batches):
            loader.share(rank, ranks)
        elif ranks > 1 and not isinstance(getattr(loader, "sampler", None), DistributedSampler):
            raise ValueError(
                f"session {data_key}: want tensors, a loader of v1fast.data, or a DataLoader with a DistributedSampler "
                f"for {ranks} ranks, got {type(loader).__name__}"
            )


def take_share(fields: dict[str, Any], trials: int, rank: int, ranks: int) -> Share:
    """Take the share out of a batch's fields. A ``DistributedSampler`` gives every rank as many trials, and none."""
    share: Share = fields.pop(SHARE, None) or Share(rank * trials, trials, ranks * trials)
    return share


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
