"""Several processes: the neurons of a readout split over ranks, the images of a batch, or the rows of an RDM.

Everything here is ``torch.distributed``: a ``DeviceMesh``, parameters that are DTensors, collectives of the backend
that the process group has. Programs are started by ``torchrun`` or by Lightning. docs/scale.md compares the two ways.
"""

from v1fast.distributed.dissimilarities import rdm, rdm_correlation, rdm_to_file
from v1fast.distributed.images import placement_for_fsdp, split_images
from v1fast.distributed.neurons import shard_neurons

__all__ = ["placement_for_fsdp", "rdm", "rdm_correlation", "rdm_to_file", "shard_neurons", "split_images"]
