"""The images of a batch split over ranks: DistributedDataParallel, or parameters sharded by ``fully_shard``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

from v1fast.readouts.base import FeatureReadout

Module = TypeVar("Module", bound=nn.Module)

_IMAGES_APART = 1 << 16
"""More images than a rank has in a batch. The draws' counter, 2**33, ends at 4096 ranks with 32 frames a clip."""


def split_images(model: Module, mesh: DeviceMesh) -> Module:
    """Let the readouts of a model draw different samples on each rank, whatever seed of torch the ranks share.

    Call it on every rank where ranks see different images: under ``DistributedDataParallel`` or ``fully_shard``. Rank r
    then counts its images from 65536 r on; without it, ranks with the same seed draw the same samples for the first
    image of each. Calls with a ``seed`` are not changed: with ``image_offset``, the number of images on the ranks
    before, they give what one process gives for the whole batch. One draw for all images of a batch
    (``batch_sample=False``) remains one.

    Args:
        model: a readout, or a model with readouts; it is changed.
        mesh: of one dimension, the ranks that the images are split over.

    Returns:
        The model.

    Raises:
        ValueError: the mesh has several dimensions, or a readout has the sampler "torch", which does not count images.
    """
    if mesh.ndim != 1:
        raise ValueError(f"mesh: want one dimension, got {mesh.ndim}; choose one, as in mesh['images']")
    for readout in that_count_images(model):
        readout.first_image = mesh.get_local_rank() * _IMAGES_APART
    return model


def that_count_images(model: nn.Module) -> list[FeatureReadout]:
    """The readouts of a model, whose ``first_image`` may be set.

    Raises:
        ValueError: a readout has the sampler "torch", which does not count images.
    """
    readouts = [module for module in model.modules() if isinstance(module, FeatureReadout)]
    for readout in readouts:
        if getattr(readout, "sampler", "philox") != "philox":
            raise ValueError('sampler: want "philox", which counts images, got "torch"')
    return readouts


def placement_for_fsdp(ranks: int) -> Callable[[nn.Parameter], Shard | None]:
    """A ``shard_placement_fn`` for ``torch.distributed.fsdp.fully_shard``: along the longest axis that divides evenly.

    The weights of readouts, (1, C, 1, N), have a first axis of length 1, along which ``fully_shard`` would leave all of
    them to the first rank. It splits axes other than the first only evenly. A parameter without such an axis is left to
    its default. torch has ``fully_shard`` from 2.6 on, for CPUs from 2.7 on.

    Args:
        ranks: number of ranks that parameters are sharded over, >= 1.

    >>> import torch
    >>> placement_for_fsdp(4)(torch.nn.Parameter(torch.zeros(1, 16, 1, 100)))
    Shard(dim=3)
    """

    def placement(parameter: nn.Parameter) -> Shard | None:
        even = [axis for axis, size in enumerate(parameter.shape) if size and size % ranks == 0]
        return Shard(max(even, key=lambda axis: parameter.shape[axis])) if even else None

    return placement
