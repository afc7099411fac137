"""Dissimilarity matrices whose rows are split over ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from v1fast import _choices, functional
from v1fast.reference.rdm import METHODS


@torch.no_grad()
def rdm(responses: DTensor, *, method: str = "correlation", accuracy: str = "float32") -> DTensor:
    """The matrix of ``functional.rdm`` of responses that are split over ranks, with its rows split over them.

    Blocks of responses go round the ranks in a ring. Each rank compares its own stimuli with those of half of the
    others, and sends them the result: every tile of the symmetric matrix is computed once, and no rank holds all
    responses or the whole matrix. There is no gradient.

    Correlation and cosine are the numbers of ``functional.rdm``, to the bit with the compiled kernels. For euclidean,
    each tile is centred at its own mean, and the numbers agree to float32's rounding of the largest dissimilarity.

    Args:
        responses: [S, N], on a mesh of one dimension, of which the stimuli are sharded (``Shard(0)``) or the neurons
            (``Shard(1)``: they are exchanged for stimuli first), unevenly too, or neither.
        method: "correlation", "cosine" or "euclidean".
        accuracy: as for ``functional.rdm``.

    Returns:
        [S, S], sharded by rows: float64 if the responses are, else float32. Symmetric in every bit.

    Raises:
        ValueError: an operand does not fit; the message names it.
    """
    _choices.one_of("method", method, METHODS)
    if not isinstance(responses, DTensor) or responses.dim() != 2 or responses.device_mesh.ndim != 1:
        got = f"{type(responses).__name__} {tuple(responses.shape)}"
        raise ValueError(f"responses: want a DTensor [S, N] on a mesh of one dimension, got {got}")
    mesh = responses.device_mesh
    own = responses.redistribute(placements=[Shard(0)]).to_local().contiguous()
    ring = _Ring(mesh.get_group(), responses.shape[0])
    options: dict[str, Any] = {"method": method, "accuracy": accuracy}
    diagonal: Tensor = functional.rdm(own, **options)
    rows = diagonal.new_empty(len(own), responses.shape[0])
    rows[:, ring.stimuli(ring.rank)] = diagonal
    block = own
    for distance in range(1, ring.size // 2 + 1):
        before, after = (ring.rank - distance) % ring.size, (ring.rank + distance) % ring.size
        block = ring.passed_on(block, of=before)
        # Half-way round, two ranks have the blocks of each other: the lower one computes.
        halfway = 2 * distance == ring.size
        computes, gets = not halfway or ring.rank < before, not halfway or after < ring.rank
        tile = functional.cross_rdm(own, block, **options) if computes else None
        if tile is not None:
            rows[:, ring.stimuli(before)] = tile
        mirrored = rows.new_empty(len(own), ring.count(after)) if gets else None
        ring.exchange(None if tile is None else tile.T.contiguous(), before, mirrored, after)
        if mirrored is not None:
            rows[:, ring.stimuli(after)] = mirrored
    shape = torch.Size((responses.shape[0],) * 2)
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=(shape[1], 1))


class _Ring:
    """The ranks of a group, with the stimuli of each as ``torch.chunk`` splits them."""

    def __init__(self, group: dist.ProcessGroup, stimuli: int) -> None:
        self.group, self._stimuli = group, stimuli
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def stimuli(self, rank: int) -> slice:
        most = -(-self._stimuli // self.size)
        return slice(min(rank * most, self._stimuli), min((rank + 1) * most, self._stimuli))

    def count(self, rank: int) -> int:
        places = self.stimuli(rank)
        return int(places.stop - places.start)

    def passed_on(self, block: Tensor, of: int) -> Tensor:
        """Give the block to the next rank, and get that with the stimuli of rank ``of`` from the rank before."""
        received = block.new_empty(self.count(of), block.shape[1])
        self.exchange(block, (self.rank + 1) % self.size, received, (self.rank - 1) % self.size)
        return received

    def exchange(self, sent: Tensor | None, to: int, received: Tensor | None, source: int) -> None:
        """Send a tensor and receive one, where there are any with elements."""
        operations = [
            dist.P2POp(operation, tensor, dist.get_global_rank(self.group, peer), self.group)
            for operation, tensor, peer in ((dist.isend, sent, to), (dist.irecv, received, source))
            if tensor is not None and tensor.numel()
        ]
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
