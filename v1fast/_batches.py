"""Batches of trials, in an order that is a function of seed and epoch alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import starmap
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

AHEAD = 2  # batches that each worker holds ready
SHARE = "share_of_batch"
"""Field of a batch that says which part of the whole batch it is; only where several ranks share it."""


class Share(NamedTuple):
    """The part of a batch that a rank has.

    Attributes:
        first: number of its first trial in the whole batch.
        trials: how many it has. 0: a rank for which none was left has one of the others' trials, which does not count.
        whole: trials of the batch over all ranks.
    """

    first: int
    trials: int
    whole: int


class Batches:
    """Permutations of trials by seed, epoch, and the number of the pass within it."""

    def __init__(self, trials: int, batch_size: int, shuffle: bool, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: want at least 1, got {batch_size}")
        self.trials, self.batch_size, self.shuffle, self.seed = trials, batch_size, shuffle, seed
        self._epoch = self._passes = self._rank = 0
        self._ranks = 1

    @property
    def dataset(self) -> range:
        """The trials' indices: ``len(loader.dataset)`` is their number, as in torch's loaders."""
        return range(self.trials)

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutations of an epoch."""
        self._epoch, self._passes = epoch, 0

    def share(self, rank: int, ranks: int) -> None:
        """Give the part of each batch that is the rank's: the batches of all ranks together are those of one process.

        A batch then has the field :data:`SHARE`.

        Raises:
            ValueError: a batch is smaller than the number of ranks.
        """
        if self.batch_size < ranks:
            raise ValueError(f"batch_size: want at least {ranks}, a trial for each rank, got {self.batch_size}")
        self._rank, self._ranks = rank, ranks

    def __len__(self) -> int:
        return -(-self.trials // self.batch_size)

    def _parts(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Of each batch of the next pass, the indices of this rank's trials, and what else is in it."""
        for whole in self._chosen():
            if self._ranks == 1:
                yield whole, {}
                continue
            parts = whole.tensor_split(self._ranks)
            own = parts[self._rank]
            first = sum(map(len, parts[: self._rank]))
            yield own if len(own) else whole[:1], {SHARE: Share(first, len(own), len(whole))}

    def _chosen(self) -> tuple[Tensor, ...]:
        """Indices of each batch of the next pass."""
        order = torch.arange(self.trials)
        if self.shuffle:
            seed = np.random.SeedSequence([self.seed, self._epoch, self._passes]).generate_state(1, np.uint64)[0]
            order = torch.randperm(self.trials, generator=torch.Generator().manual_seed(int(seed) >> 1))
        self._passes += 1
        return order.split(self.batch_size)


class TensorBatches(Batches):
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
        super().__init__(next(iter(lengths.values())), batch_size, shuffle, seed)
        self.fields = dict(fields)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for chosen, others in self._parts():
            yield {name: values[chosen.to(values.device)] for name, values in self.fields.items()} | others


class ReadBatches(Batches):
    """Batches that are read when they are due, or a few ahead of it by threads; in the order of :class:`TensorBatches`.

    Args:
        read: numbers of trials -> name -> tensor [B, ...]; called by several threads at once.
        trials: how many there are.
        batch_size, shuffle, seed: as of :class:`TensorBatches`.
        workers: threads; 0 reads in the caller's.
        device: where batches go; None leaves them in memory.
    """

    def __init__(
        self,
        read: Callable[[Any], Mapping[str, Tensor]],
        trials: int,
        batch_size: int = 64,
        shuffle: bool = True,
        seed: int = 0,
        workers: int = 2,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(trials, batch_size, shuffle, seed)
        self.read, self.workers, self.device = read, workers, device

    def _read(self, chosen: Tensor, others: Mapping[str, Any]) -> dict[str, Any]:
        fields = self.read(chosen.numpy())
        if self.device is None or self.device.type == "cpu":
            return {**fields, **others}
        pinned = self.device.type == "cuda"
        there = {
            name: (values.pin_memory() if pinned else values).to(self.device, non_blocking=pinned)
            for name, values in fields.items()
        }
        return {**there, **others}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        parts = self._parts()
        if not self.workers:
            yield from starmap(self._read, parts)
            return
        waiting: deque[Future[dict[str, Any]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="v1fast-read")
        try:
            for part in parts:
                waiting.append(pool.submit(self._read, *part))
                if len(waiting) > AHEAD * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also where the caller leaves early
            pool.shutdown(wait=True, cancel_futures=True)
