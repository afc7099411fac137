"""Dissimilarity matrices whose rows are split over ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from v1fast import _choices, functional
from v1fast.reference.rdm import METHODS

SIDE = 1728  # rows and columns of a tile, as in v1fast.rsa: two of float32 are 23 MiB


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
            (``Shard(1)``: they are exchanged for stimuli first; torch gathers them all on each rank for that where the
            backend has no all-to-all, as gloo), unevenly too, or neither.
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
    for tile in _tiles((ring, other), (own_x, own_y)):
        similarity.add_entries(sums, ranges, *(tile.pairs(operand, options) for operand in (0, 1)))
    joined, wholes = PairSums(1, 1), (Range(), Range())
    for their_sums, their_ranges in ring.gathered((sums, ranges)):
        joined.merge(their_sums)
        for found, theirs in zip(wholes, their_ranges, strict=True):
            found.add(theirs.low, theirs.high, theirs.dtype)
    if any(found.is_undefined(method) for found in wholes):
        return float("nan")
    return float((joined.pearson() if method == "pearson" else joined.cosine())[0, 0])


@torch.no_grad()
def rdm_to_file(
    responses: DTensor,
    path: str | os.PathLike[str],
    *,
    method: str = "correlation",
    accuracy: str = "float32",
    overwrite: bool = False,
) -> NDArray[Any]:
    """Write the matrix of responses that are split over ranks to one file, its entries above the diagonal, row by row.

    Each rank writes its tiles, of at most 23 MiB, into the same file, which all of them have to see. Until all are
    written it is ``.NAME.partial``; then ``path`` appears at once. A call that was interrupted begins again.
    :func:`v1fast.rsa.rdm_to_file` is for one process, and goes on where it was interrupted.

    Args:
        responses: [S, N], as for :func:`rdm`.
        path: of the ``.npy`` file to write.
        method: "correlation", "cosine" or "euclidean".
        accuracy: as for ``functional.rdm``.
        overwrite: replace an existing file.

    Returns:
        [S (S - 1) / 2], mapped from the file, read-only; on every rank.

    Raises:
        FileExistsError: ``path`` exists.
        ValueError: an operand does not fit; the message names it.
    """
    _choices.one_of("method", method, METHODS)
    own, ring = _own_rows("responses", responses)
    target, partial = Path(path), Path(path).with_name(f".{Path(path).name}.partial")
    exists = any(ring.gathered(target.exists()))
    if exists and not overwrite:
        raise FileExistsError(f"{target}: there is such a file already; overwrite=True replaces it")
    stimuli, dtype = responses.shape[0], torch.promote_types(own.dtype, torch.float32)
    if ring.rank == 0:
        kind = np.dtype(str(dtype).removeprefix("torch."))
        np.lib.format.open_memmap(partial, mode="w+", dtype=kind, shape=(stimuli * (stimuli - 1) // 2,))
    ring.gathered(None)  # the file is there
    entries: Any = np.lib.format.open_memmap(partial, mode="r+") if stimuli > 1 else None
    for tile in _tiles((ring,), (own,)) if entries is not None else ():
        values = tile.pairs(0, {"method": method, "accuracy": accuracy}).cpu().numpy()
        for first, row in tile.places(stimuli, values):
            entries[first : first + len(row)] = row
    if entries is not None:
        entries.flush()
    ring.gathered(None)  # every rank has written
    if ring.rank == 0:
        os.replace(partial, target)
    ring.gathered(None)
    found: NDArray[Any] = np.load(target, mmap_mode="r" if stimuli > 1 else None)
    return found


class _Tile(NamedTuple):
    """Stimuli to compare, of one or several operands; on the diagonal, each two once."""

    row: int  # the first
    column: int
    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]

    def pairs(self, operand: int, options: dict[str, Any]) -> Tensor:
        """The dissimilarities [pairs], row by row."""
        if self.row == self.column:
            within: Tensor = functional.rdm(self.rows[operand], condensed=True, **options)
            return within
        across: Tensor = functional.cross_rdm(self.rows[operand], self.columns[operand], **options)
        return across.flatten()

    def places(self, stimuli: int, values: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
        """Pieces of the pairs' values, with the index of their first in the matrix's entries above the diagonal."""
        height, width = len(self.rows[0]), len(self.columns[0])
        before, after = (self.row, self.column) if self.row <= self.column else (self.column, self.row)
        block = None if before == after else values.reshape(height, width)
        if block is not None and self.row > self.column:
            block = block.T
        done = 0
        for number in range(height if block is None else len(block)):
            i, j = before + number, after + (number + 1 if block is None else 0)
            piece = values[done : done + height - number - 1] if block is None else block[number]
            done += len(piece)
            yield i * stimuli - i * (i + 1) // 2 + j - i - 1, piece


def _tiles(rings: Sequence[_Ring], owns: Sequence[Tensor]) -> Iterator[_Tile]:
    """This rank's tiles: over all ranks, each two stimuli are compared once."""
    begin = rings[0].stimuli(rings[0].rank).start
    parts = [
        (begin + first, tuple(own[first : first + SIDE] for own in owns)) for first in range(0, len(owns[0]), SIDE)
    ]
    for number, (row, rows) in enumerate(parts):
        for column, columns in parts[number:]:
            yield _Tile(row, column, rows, columns)
    for turns in zip(*(ring.turns(own) for ring, own in zip(rings, owns, strict=True)), strict=True):
        start = rings[0].stimuli(turns[0].before).start
        for first in range(0, len(turns[0].block), SIDE) if turns[0].computes else ():
            columns = tuple(turn.block[first : first + SIDE] for turn in turns)
            for row, rows in parts:
                yield _Tile(row, start + first, rows, columns)


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
