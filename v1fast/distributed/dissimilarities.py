"""Dissimilarity matrices whose rows are split over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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
    own, ring = _own_rows("responses", responses)
    options: dict[str, Any] = {"method": method, "accuracy": accuracy}
    diagonal: Tensor = functional.rdm(own, **options)
    rows = diagonal.new_empty(len(own), responses.shape[0])
    rows[:, ring.stimuli(ring.rank)] = diagonal
    for turn in ring.turns(own):
        tile: Tensor | None = functional.cross_rdm(own, turn.block, **options) if turn.computes else None
        if tile is not None:
            rows[:, ring.stimuli(turn.before)] = tile
        mirrored = rows.new_empty(len(own), ring.count(turn.after)) if turn.gets else None
        ring.exchange(None if tile is None else tile.T.contiguous(), turn.before, mirrored, turn.after)
        if mirrored is not None:
            rows[:, ring.stimuli(turn.after)] = mirrored
    shape = torch.Size((responses.shape[0],) * 2)
    mesh = responses.device_mesh
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=(shape[1], 1))


@torch.no_grad()
def rdm_correlation(
    x: DTensor, y: DTensor, method: str = "pearson", *, dissimilarity: str = "correlation", accuracy: str = "float32"
) -> float:
    """The similarity of two matrices from responses that are split over ranks: :func:`v1fast.rsa.rdm_correlation`.

    Neither matrix is stored: each rank adds up the entries of its tiles, and the sums are joined.

    Args:
        x: [S, N], as for :func:`rdm`.
        y: [S, M], of the same stimuli on the same mesh.
        method: "pearson" or "cosine".
        dissimilarity: "correlation", "cosine" or "euclidean".
        accuracy: as for ``functional.rdm``.

    Returns:
        The same on every rank, between -1 and 1. Pairs that are NaN in either matrix are left out. NaN if it is
        undefined.

    Raises:
        ValueError: an operand does not fit; the message names it.
    """
    from v1fast.rsa import similarity  # here, because it imports SciPy
    from v1fast.rsa._defined import Range
    from v1fast.rsa._sums import PairSums

    _choices.one_of("method", method, similarity.STREAMED)
    _choices.one_of("dissimilarity", dissimilarity, METHODS)
    (own_x, ring), (own_y, other) = _own_rows("x", x), _own_rows("y", y)
    if x.shape[0] != y.shape[0] or x.device_mesh != y.device_mesh:
        raise ValueError(f"y: want [S, M] with S = {x.shape[0]}, on the mesh of x, got {tuple(y.shape)}")
    if dissimilarity == "euclidean":
        own_x, own_y = ring.scaled(own_x), ring.scaled(own_y)
    options: dict[str, Any] = {"method": dissimilarity, "accuracy": accuracy}
    sums, ranges = PairSums(1, 1), (Range(), Range())
    side = similarity.SIDE

    def add(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> None:
        entries = (functional.cross_rdm(a, b, **options).flatten() for a, b in zip(rows, columns, strict=True))
        similarity.add_entries(sums, ranges, *entries)

    parts = [tuple(own[first : first + side] for own in (own_x, own_y)) for first in range(0, len(own_x), side)]
    for number, rows in enumerate(parts):
        within = (functional.rdm(own, condensed=True, **options) for own in rows)
        similarity.add_entries(sums, ranges, *within)
        for columns in parts[number + 1 :]:
            add(rows, columns)
    for one, two in zip(ring.turns(own_x), other.turns(own_y), strict=True):
        for first in range(0, len(one.block), side) if one.computes else ():
            for rows in parts:
                add(rows, (one.block[first : first + side], two.block[first : first + side]))
    joined, wholes = PairSums(1, 1), (Range(), Range())
    for their_sums, their_ranges in ring.gathered((sums, ranges)):
        joined.merge(their_sums)
        for found, theirs in zip(wholes, their_ranges, strict=True):
            found.add(theirs.low, theirs.high, theirs.dtype)
    if any(found.is_undefined(method) for found in wholes):
        return float("nan")
    return float((joined.pearson() if method == "pearson" else joined.cosine())[0, 0])


def _own_rows(name: str, responses: DTensor) -> tuple[Tensor, _Ring]:
    """The responses to this rank's stimuli, and the ring."""
    if not isinstance(responses, DTensor) or responses.dim() != 2 or responses.device_mesh.ndim != 1:
        got = f"{type(responses).__name__} {tuple(responses.shape)}"
        raise ValueError(f"{name}: want a DTensor [S, N] on a mesh of one dimension, got {got}")
    own = responses.redistribute(placements=[Shard(0)]).to_local().contiguous()
    return own, _Ring(responses.device_mesh.get_group(), responses.shape[0])


class _Turn(NamedTuple):
    """A block of another rank's responses has come round."""

    block: Tensor
    before: int  # the rank whose block it is
    after: int  # the rank that has this rank's block
    computes: bool  # whether this rank compares itself with the block
    gets: bool  # whether the other one does


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

    def turns(self, own: Tensor) -> Iterator[_Turn]:
        """Pass blocks half-way round. Of each two ranks, one compares itself with the other."""
        block, halfway = own, self.size / 2
        for distance in range(1, self.size // 2 + 1):
            before, after = (self.rank - distance) % self.size, (self.rank + distance) % self.size
            block = self.passed_on(block, of=before)
            # Half-way round, two ranks have the blocks of each other: the lower one computes.
            computes, gets = distance < halfway or self.rank < before, distance < halfway or after < self.rank
            yield _Turn(block, before, after, computes, gets)

    def gathered(self, found: Any) -> list[Any]:
        """What every rank found."""
        everything: list[Any] = [None] * self.size
        dist.all_gather_object(everything, found, group=self.group)
        return everything

    def scaled(self, own: Tensor) -> Tensor:
        """Responses times a power of two, the same on all ranks, if their squares could overflow or underflow."""
        from v1fast.rsa._tiles import largest_magnitude, scale_of

        scale = scale_of(max(self.gathered(largest_magnitude(own))))
        return own if scale is None else own * scale

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
