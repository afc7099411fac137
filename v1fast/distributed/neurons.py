"""The neurons of a readout split over ranks."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from v1fast.distributed._sums import summed_over_ranks
from v1fast.readouts._points import PointReadout
from v1fast.readouts.base import FeatureReadout, Readout, Reduction
from v1fast.readouts.multi import ClonedReadout

Module = TypeVar("Module", bound=nn.Module)
Placement = Shard | Replicate


def shard_neurons(readout: Module, mesh: DeviceMesh) -> Module:
    """Split the neurons of a readout over the ranks of a mesh, in place.

    All ranks see the same images and compute the same core; each has a part of the neurons, as even as
    ``torch.chunk`` makes it. ``forward`` returns the outputs of this rank's neurons, the loss is computed of them and
    of their responses, and the loss of the population is the sum over ranks: use losses that are sums. In the backward
    pass the gradients of the features and of a ``shift`` are summed over ranks, each once, so that core and shifter get
    the whole gradient on every rank and stay the same. Nothing of the size of all neurons x images or all neurons x
    channels exists on one rank.

    Parameters become DTensors with the keys and shapes that they had: those of neurons are sharded, those that neurons
    share (a position predictor, matched features) are replicated and their gradients summed. ``state_dict`` is for
    ``torch.distributed.checkpoint``, which loads it into any number of ranks, and into a readout that is not sharded;
    ``load_state_dict`` also takes the whole tensors of one. Give an optimiser the DTensors in a group of parameters of
    their own.

    Ranks with the same seed of torch draw, together, the samples that one process draws; so they start with the same
    values, if the readout was made with the same seed on each rank. Where all neurons do not fit one rank, make it
    under ``torch.device("meta")``: memory is then taken for this rank's neurons alone, and the initial values are those
    that the readout would have had.

    In the readout, ``outdims`` is then the number of this rank's neurons and ``first_neuron`` the index of the first;
    ``out_idx`` counts from it. ``regularizer`` is this rank's share of the penalty.

    Args:
        readout: one that reads points of the features by its channels (FullGaussian2d, Gaussian2d, PointPooled2d,
            PointPyramid2d, their variants), or several in :class:`v1fast.readouts.MultiReadoutBase`.
        mesh: of one dimension. Its device is that of the readout.

    Returns:
        The readout.

    Raises:
        ValueError: the mesh has several dimensions; a readout of another kind, or sharded already; the sampler "torch",
            which would draw for all neurons; a readout on the meta device with a buffer whose values are lost there.

    >>> import torch.distributed as dist
    >>> from torch.distributed.device_mesh import init_device_mesh
    >>> from v1fast.readouts import FullGaussian2d
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> readout = shard_neurons(FullGaussian2d((8, 9, 9), 100, bias=True), init_device_mesh("cpu", (1,)))
    >>> readout.bias.placements
    (Shard(dim=0),)
    >>> dist.destroy_process_group()
    """
    if mesh.ndim != 1:
        raise ValueError(f"mesh: want one dimension, got {mesh.ndim}; choose one, as in mesh['neurons']")
    found = [module for module in readout.modules() if isinstance(module, Readout)]
    for one in found:
        _check(one)
    # Parameters that readouts share stay shared. A later readout keeps the one that it shares alive, with its id.
    made: dict[int, nn.Parameter] = {}
    on_meta = [one for one in found if any(parameter.is_meta for parameter in one.parameters())]
    for one in found:
        _shard(one, mesh, made)
    for one in on_meta:
        _reset_shared(one)
        one.initialize()
    if len(found) > 1:  # a second time, as in the constructor of MultiReadoutBase
        for one in on_meta:
            one.initialize()
    for parameter in readout.parameters():
        detached: Tensor = parameter.detach()
        if isinstance(detached, DTensor) and detached.placements == (Replicate(),):
            group = mesh.get_group()
            dist.broadcast(detached.to_local(), dist.get_global_rank(group, 0), group)
    return readout


def _check(readout: Readout) -> None:
    if isinstance(readout, ShardedReadout):
        raise ValueError(f"readout: want one that is not sharded, got {type(readout).__name__}")
    if not isinstance(readout, PointReadout | ClonedReadout):
        raise ValueError(
            f"readout: want one that reads all channels at points, as FullGaussian2d does, got {type(readout).__name__}"
        )
    if getattr(readout, "sampler", "philox") != "philox":
        raise ValueError('sampler: want "philox", which counts neurons, got "torch"')
    lost = [name for name, buffer in readout.named_buffers() if buffer.is_meta and "norm" not in name]
    if lost:
        raise ValueError(f"{lost[0]}: want values, got a buffer on the meta device; make the readout on another")


@dataclass(frozen=True)
class _Sharding:
    """How the neurons of one readout are split."""

    mesh: DeviceMesh
    neurons: int  # of all ranks
    axes: Mapping[str, int]  # of what is sharded, by name

    @property
    def first(self) -> int:
        return min(self.mesh.get_local_rank() * self._most, self.neurons)

    @property
    def count(self) -> int:
        return min(self._most, self.neurons - self.first)

    @property
    def _most(self) -> int:
        return -(-self.neurons // self.mesh.size())

    def placement(self, name: str) -> Placement:
        return Shard(self.axes[name]) if name in self.axes else Replicate()

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a tensor that all neurons have: a view."""
        return whole.narrow(self.axes[name], self.first, self.count) if name in self.axes else whole

    def joined(self, name: str, part: Tensor, shape: torch.Size) -> DTensor:
        """The DTensor of ``shape`` of which this rank has ``part``."""
        strides = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(part, self.mesh, [self.placement(name)], run_check=False, shape=shape, stride=strides)


def _shard(readout: Readout, mesh: DeviceMesh, made: dict[int, nn.Parameter]) -> None:
    tensors = dict(readout.named_parameters(remove_duplicate=False)) | dict(readout.named_buffers())
    axes = {name: axis % tensors[name].dim() for name, axis in readout._neuron_axes().items() if name in tensors}
    sharding = _Sharding(mesh, readout.outdims, axes)
    inner = tuple(f"{name}." for name, child in readout.named_children() if isinstance(child, Readout))
    for name, tensor in tensors.items():
        if name.startswith(inner):
            continue
        owner, attribute = _owner(readout, name)
        if isinstance(tensor, DTensor):
            continue  # of a module that another readout has too
        if isinstance(tensor, nn.Parameter):
            if id(tensor) not in made:
                made[id(tensor)] = _as_parameter(sharding, name, tensor)
            owner._parameters[attribute] = made[id(tensor)]
        elif name in axes:
            owner._buffers[attribute] = sharding.joined(name, _own(sharding, name, tensor), tensor.shape)
    changed: Any = readout
    changed.__class__ = _sharded_class(changed.__class__)
    changed._sharding, changed.outdims = sharding, sharding.count
    if isinstance(readout, FeatureReadout):
        changed.first_neuron = sharding.first
    if hasattr(readout, "grid_shape"):
        changed.grid_shape = (1, sharding.count, 1, 2)


def _as_parameter(sharding: _Sharding, name: str, parameter: nn.Parameter) -> nn.Parameter:
    own = _own(sharding, name, parameter.detach())
    return nn.Parameter(sharding.joined(name, own, parameter.shape), requires_grad=parameter.requires_grad)


def _own(sharding: _Sharding, name: str, whole: Tensor) -> Tensor:
    """This rank's part, in memory of its own."""
    part = sharding.part(name, whole)
    if part.is_meta:
        return torch.empty(part.shape, dtype=part.dtype, device=sharding.mesh.device_type)
    return part.clone(memory_format=torch.contiguous_format)


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def _reset_shared(readout: Readout) -> None:
    """Give the networks that neurons share new values."""
    assert isinstance(readout, ShardedReadout)
    with readout._as_local(), torch.no_grad():
        for child in readout.children():
            for module in child.modules() if not isinstance(child, Readout) else ():
                reset: Any = getattr(module, "reset_parameters", None)
                if reset is not None:
                    reset()


@functools.cache
def _sharded_class(cls: Any) -> type:
    return type(f"Sharded{cls.__name__}", (ShardedReadout, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})


class ShardedReadout(Readout):
    """What :func:`shard_neurons` puts before a readout's class: its passes compute with this rank's tensors."""

    _sharding: _Sharding
    _is_local: bool = False

    def _inner(self) -> list[ShardedReadout]:
        """Readouts that this one contains: it computes with their results, and they with their own tensors."""
        return [child for child in self.children() if isinstance(child, ShardedReadout)]

    def _locals(self) -> dict[str, Tensor]:
        """This rank's tensors by name. Gradients that reach them become those of the DTensors."""
        inner = tuple(f"{name}." for name, child in self.named_children() if isinstance(child, Readout))
        named = dict(self.named_parameters(remove_duplicate=False)) | dict(self.named_buffers())
        # A view of what to_local returns, because that counts as a parameter, which a pass in training would change.
        return {
            name: (local := tensor.to_local(grad_placements=[self._sharding.placement(name)])).view(local.shape)
            for name, tensor in named.items()
            if isinstance(tensor, DTensor) and not name.startswith(inner)
        }

    @contextmanager
    def _as_local(self, *inputs: Tensor) -> Iterator[list[Tensor]]:
        """Let all that computes here find this rank's tensors in place of the DTensors.

        Args:
            *inputs: what neurons share; the context returns them, with gradients that are summed over ranks.
        """
        tensors = self._locals()
        shared = [name for name in tensors if name not in self._sharding.axes]
        together = [*(tensors[name] for name in shared), *inputs]
        summed = summed_over_ranks(together, self._sharding.mesh.get_group())
        tensors |= dict(zip(shared, summed, strict=False))
        # Attributes of the object come before a module's parameters, which stay registered.
        places = [(*_owner(self, name), tensor) for name, tensor in tensors.items()]
        before = [(owner, attribute, owner.__dict__.get(attribute)) for owner, attribute, _ in places]
        for owner, attribute, tensor in places:
            owner.__dict__[attribute] = tensor
        outer, self._is_local = self._is_local, True
        try:
            yield summed[len(shared) :]
        finally:
            self._is_local = outer
            for owner, attribute, outer_tensor in before:
                if outer_tensor is None:
                    del owner.__dict__[attribute]
                else:
                    owner.__dict__[attribute] = outer_tensor

    @contextmanager
    def _all_local(self) -> Iterator[None]:
        """``_as_local``, of the readouts within this one too."""
        with self._as_local():
            inner = self._inner()
            if inner:
                with inner[0]._all_local():
                    yield
            else:
                yield

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Read the features, as the readout that was sharded does, for this rank's neurons."""
        if self._inner():
            with self._as_local():
                read: Tensor = super().forward(x, *args, **kwargs)
            return read
        if self.training and torch.is_grad_enabled():
            self.project_()
        given = (x, *args, *kwargs.values())
        places = [place for place, value in enumerate(given) if isinstance(value, Tensor) and value.requires_grad]
        with self._as_local(*(given[place] for place in places)) as summed:
            used = dict(enumerate(given)) | dict(zip(places, summed, strict=True))
            values = list(used.values())
            positional, named = values[: len(args) + 1], values[len(args) + 1 :]
            out: Tensor = super().forward(*positional, **dict(zip(kwargs, named, strict=True)))
        return out

    def project_(self) -> None:
        """Bring this rank's parameters into their range, in place."""
        with torch.no_grad(), self._as_local():
            super().project_()

    def _share(self, penalty: str, reduction: Reduction, average: bool | None) -> Any:
        """This rank's share of a penalty: what ranks have adds up to that of all neurons."""
        reduction = self.resolve_reduction_method(reduction, average)
        compute: Any = getattr(super(), penalty)
        if self._is_local:  # called for another penalty
            return compute(reduction=reduction)
        with self._all_local():
            if reduction != "mean":
                return compute(reduction=reduction)
            # A mean over no neurons is undefined; their sum is zero.
            share = self._sharding.count / max(1, self._sharding.neurons)
            return compute(reduction="mean") * share if share else compute(reduction="sum")

    def feature_l1(self, reduction: Reduction = "sum", average: bool | None = None) -> Any:
        """This rank's share of the L1 norm of the features; the mean is over those of all ranks."""
        return self._share("feature_l1", reduction, average)

    def regularizer(self, reduction: Reduction = "sum", average: bool | None = None) -> Any:
        """This rank's share of the penalty."""
        return self._share("regularizer", reduction, average)

    @property
    def mu_dispersion(self) -> Tensor:
        """Of all neurons alone: it is no sum over ranks."""
        raise ValueError("mu_dispersion: want all neurons on one rank, got a part of them")

    def sample_grid(self, *args: Any, **kwargs: Any) -> Tensor:
        """Positions of this rank's neurons."""
        with self._as_local():
            positions: Tensor = super().sample_grid(*args, **kwargs)  # type: ignore[misc]
        return positions

    def place(self, *args: Any, **kwargs: Any) -> Tensor:
        """See :meth:`v1fast.readouts.FullGaussian2d.place`."""
        with self._as_local():
            placed: Tensor = super().place(*args, **kwargs)  # type: ignore[misc]
        return placed

    @torch.no_grad()
    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Draw the initial values that the readout of all neurons would have from the same seed.

        What is drawn, a few numbers for each neuron, is drawn for all; weights of channels are set for this rank alone.
        """
        sharding, whole = self._sharding, {}
        with self._as_local():
            for name in sharding.axes:
                parameter = self._parameters.get(name)
                if parameter is not None and name != getattr(self, "stored_features", None):
                    local = self.__dict__[name]
                    whole[name] = local, local.new_empty(parameter.shape)
                    self.__dict__[name] = whole[name][1]
            self.outdims = sharding.neurons
            try:
                super().initialize(*args, **kwargs)
            finally:
                self.outdims = sharding.count
            for name, (local, drawn) in whole.items():
                local.copy_(sharding.part(name, drawn))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        own = dict(self.named_parameters(remove_duplicate=False)) | dict(self.named_buffers())
        for name, tensor in own.items():
            given = state_dict.get(prefix + name)
            is_whole = isinstance(given, Tensor) and not isinstance(given, DTensor)
            if is_whole and isinstance(tensor, DTensor) and given.shape == tensor.shape:
                state_dict[prefix + name] = self._sharding.joined(name, self._sharding.part(name, given), given.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """What ``print`` shows of the configuration."""
        first, last = self._sharding.first, self._sharding.first + self._sharding.count
        return f"{super().extra_repr()}, neurons {first}:{last} of {self._sharding.neurons}"
