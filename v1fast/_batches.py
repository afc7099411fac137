"""Batches of trials, in an order that is a function of seed and epoch alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

AHEAD = 2  # batches that each worker holds ready


class _Batches:
    """Permutations of trials by seed, epoch, and the number of the pass within it."""

    def __init__(self, trials: int, batch_size: int, shuffle: bool, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: want at least 1, got {batch_size}")
        self.trials, self.batch_size, self.shuffle, self.seed = trials, batch_size, shuffle, seed
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

    def _chosen(self) -> tuple[Tensor, ...]:
        """Indices of each batch of the next pass."""
        order = torch.arange(self.trials)
        if self.shuffle:
            seed = np.random.SeedSequence([self.seed, self._epoch, self._passes]).generate_state(1, np.uint64)[0]
            order = torch.randperm(self.trials, generator=torch.Generator().manual_seed(int(seed) >> 1))
        self._passes += 1
        return order.split(self.batch_size)


class TensorBatches(_Batches):
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

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for chosen in self._chosen():
            yield {name: values[chosen.to(values.device)] for name, values in self.fields.items()}


class ReadBatches(_Batches):
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

    def _read(self, chosen: Tensor) -> dict[str, Tensor]:
        fields = self.read(chosen.numpy())
        if self.device is None or self.device.type == "cpu":
            return dict(fields)
        pinned = self.device.type == "cuda"
        return {
            name: (values.pin_memory() if pinned else values).to(self.device, non_blocking=pinned)
            for name, values in fields.items()
        }

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        batches = self._chosen()
        if not self.workers:
            yield from map(self._read, batches)
            return
        waiting: deque[Future[dict[str, Tensor]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="v1fast-read")
        try:
            for chosen in batches:
                waiting.append(pool.submit(self._read, chosen))
                if len(waiting) > AHEAD * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also where the caller leaves early
            pool.shutdown(wait=True, cancel_futures=True)
