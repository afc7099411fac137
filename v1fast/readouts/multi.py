"""Readouts for several recording sessions with one core: one readout per session, with or without shared parts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from v1fast import _choices
from v1fast._config import Configured
from v1fast.readouts._arguments import arguments, warn_of_misspelt
from v1fast.readouts.base import Readout, Reduction, select_neurons


class ClonedReadout(Readout):
    """The same neurons in another session: another readout's output times a gain, plus an offset, per neuron.

    Drop-in for ``ClonedReadout`` of neuralpredictors. ``MultiReadoutBase(clone_readout=True)`` makes such readouts.
    Differences from neuralpredictors: docs/layers.md.

    Args:
        original_readout: the readout whose output is used. It is a submodule here too, and both sessions train it.
        **kwargs: accepted and ignored, as neuralpredictors does.

    Raises:
        ValueError: ``original_readout`` has features for another number of neurons than its ``outdims``.

    Shapes of the parameters: ``alpha`` (N), ``beta`` (N); and those of ``_source``.
    """

    _source: Any

    def __init__(self, original_readout: nn.Module, **kwargs: Any) -> None:
        super().__init__()
        self._source = original_readout
        self.outdims: int = self._source.outdims
        got = tuple(self._source.features.shape)
        if got[self._neuron_axis] != self.outdims:
            raise ValueError(f"original_readout: want features of {self.outdims} neurons, got shape {got}")
        like = self._source.features
        self.alpha = nn.Parameter(torch.ones(self.outdims, dtype=like.dtype, device=like.device))
        self.beta = nn.Parameter(torch.zeros(self.outdims, dtype=like.dtype, device=like.device))

    @property
    def _neuron_axis(self) -> int:
        return int(getattr(self._source, "neuron_axis", -1))

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Set gains to 1 and offsets to 0: the output equals the original's. The mean activity is not used."""
        with torch.no_grad():
            self.alpha.fill_(1.0)
            self.beta.zero_()

    def project_(self) -> None:
        """Bring the original's parameters into their ranges, in place; see its ``project_``."""
        self._source.project_()

    def _neuron_axes(self) -> dict[str, int]:
        return {"alpha": 0, "beta": 0}

    @property
    def features(self) -> Tensor:
        """The original's feature weights times the gains."""
        features: Tensor = self._source.features
        sizes = [1] * features.dim()
        sizes[self._neuron_axis] = self.outdims
        return features * self.alpha.view(sizes)

    def feature_l1(self, reduction: Reduction = "mean", average: bool | None = None) -> Tensor:
        """L1 norm of the features, gains included."""
        return self.apply_reduction(self.features.abs(), reduction=reduction, average=average)

    def regularizer(self, reduction: Reduction = "sum", average: bool | None = None) -> Tensor:
        """``feature_l1`` times the original's ``feature_reg_weight``."""
        weight: float = self._source.feature_reg_weight
        return self.feature_l1(reduction=reduction, average=average) * weight

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The original's output for ``x`` and all other arguments, [B, N], times ``alpha``, plus ``beta``.

        ``out_idx`` (``subs_idx`` in the pooled readout of videos) chooses neurons, of ``alpha`` and ``beta`` too.
        """
        alpha: Tensor = self.alpha
        beta: Tensor = self.beta
        for name in ("out_idx", "subs_idx"):
            if kwargs.get(name) is not None:
                index = select_neurons(kwargs[name], self.outdims, alpha.device)
                alpha, beta = alpha[index], beta[index]
        out: Tensor = self._source(x, **kwargs)
        return out * alpha + beta

    def extra_repr(self) -> str:
        """What ``print`` shows of the configuration."""
        return f"{self.outdims} neurons"


class MultiReadoutBase(Configured, nn.ModuleDict):
    """One readout per session, stored under its ``data_key``.

    Drop-in for ``MultiReadoutBase`` of neuralpredictors: same constructor, state_dict keys
    (``<data_key>.<key of the readout>``), forward arguments. Differences from it: docs/layers.md. Sessions can be
    added later: :meth:`add_session`.

    A subclass may set the class of its readouts as ``_base_readout``.

    Args:
        in_shape_dict: (C, H, W) of the features of each session.
        n_neurons_dict: number of neurons of each session, in the order of the sessions.
        base_readout: class of the readouts. ``_base_readout``, where a subclass sets it, takes precedence.
        mean_activity_dict: [N], initial bias of each session.
        clone_readout: all sessions have the same neurons: each session after the first gets a :class:`ClonedReadout`
            of the first.
        **kwargs: arguments of the readouts. Those that no signature names are passed to the constructors but are not
            kept, so that a copy, a pickle or a checkpoint never holds, for example, a data loader.

    Raises:
        ValueError: no class of readouts is given.
        RuntimeError: in ``load_state_dict``, if sessions of the checkpoint have different values for a parameter that
            they share here.
    """

    _base_readout: type[nn.Module] | None = None

    def __init__(
        self,
        in_shape_dict: Mapping[str, Sequence[int]],
        n_neurons_dict: Mapping[str, int],
        base_readout: type[nn.Module] | None = None,
        mean_activity_dict: Mapping[str, Tensor] | None = None,
        clone_readout: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self._base_readout = self._base_readout or base_readout
        if self._base_readout is None:
            raise ValueError("base_readout: want a class of readouts, got None, and the class sets no _base_readout")
        kwargs, self.clone_readout = self._without_misspelt(kwargs), clone_readout
        named = self._named_arguments()
        self._readout_kwargs = {name: value for name, value in kwargs.items() if named is None or name in named}
        for data_key, n_neurons in n_neurons_dict.items():
            mean_activity = None if mean_activity_dict is None else mean_activity_dict[data_key]
            self[data_key] = self._make(data_key, in_shape_dict[data_key], n_neurons, mean_activity, kwargs)
        # A second time, as in neuralpredictors: the same seed then gives the same initial values.
        self.initialize(mean_activity_dict)

    def _readout_class(self) -> tuple[type, ...]:
        """The class of the readouts, also from within a ``functools.partial``; empty if a function makes them."""
        factory: Any = self._base_readout
        while isinstance(factory, functools.partial):
            factory = factory.func
        return (factory,) if isinstance(factory, type) else ()

    def _named_arguments(self) -> frozenset[str] | None:
        """Names of arguments of the readouts and of ``prepare_readout_kwargs``; None if a function makes readouts."""
        cls: Any = type(self)
        prepared = arguments(cls, "prepare_readout_kwargs")
        return next((prepared | arguments(made, "__init__") for made in self._readout_class()), None)

    def _without_misspelt(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        misspelt = warn_of_misspelt((type(self), *self._readout_class()), "__init__", tuple(kwargs))
        return {name: value for name, value in kwargs.items() if name not in misspelt}

    def _make(
        self,
        data_key: str,
        in_shape: Sequence[int],
        n_neurons: int,
        mean_activity: Tensor | None,
        kwargs: Mapping[str, Any],
    ) -> nn.Module:
        first = next(iter(self), data_key)
        options = self.prepare_readout_kwargs(len(self), data_key, first, **kwargs)
        if not (self.clone_readout and len(self)):
            base_readout: Any = self._base_readout
            made: nn.Module = base_readout(in_shape=in_shape, outdims=n_neurons, mean_activity=mean_activity, **options)
            return made
        clone = ClonedReadout(self[first])
        if clone.outdims != n_neurons:
            raise ValueError(f"n_neurons of {data_key}: want {clone.outdims}, those of {first}, got {n_neurons}")
        return clone

    def prepare_readout_kwargs(self, i: int, data_key: str, first_data_key: str, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments for the readout of session ``data_key``, the ``i``-th, given those of the constructor.

        Subclasses may override it.
        """
        return kwargs

    def add_session(
        self,
        data_key: str,
        n_neurons: int,
        in_shape: Sequence[int] | None = None,
        mean_activity: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """Add a readout for one more session. The existing readouts keep their values.

        The new readout has the device, the floating dtype and the mode (training or evaluation) of the first. An
        optimiser made earlier does not hold its parameters: add them by ``optimizer.add_param_group``.

        Args:
            data_key: name of the session.
            n_neurons: number of its neurons.
            in_shape: (C, H, W) of its features; None: as the first session's.
            mean_activity: [N], initial bias.
            **kwargs: constructor arguments that differ for this session. Dicts of sessions (``source_grids``) need only
                the new session's entry.

        Raises:
            ValueError: there is a session of that name.
        """
        if data_key in self:
            raise ValueError(f"data_key: want a new session beside {', '.join(self)}, got {data_key!r}")
        first: Any = next(iter(self.values()), None)
        if in_shape is None and first is None:
            raise ValueError("in_shape: want (C, H, W) for the first session, got None")
        # A clone has no in_shape of its own, but the first session is no clone.
        shape = first.in_shape if in_shape is None else in_shape
        readout = self._make(
            data_key, shape, n_neurons, mean_activity, self._readout_kwargs | self._without_misspelt(kwargs)
        )
        if first is not None:
            like = next(first.parameters())
            readout.to(device=like.device, dtype=like.dtype)
        self[data_key] = readout.train(self.training)
        self._note_call(
            "add_session",
            data_key=data_key,
            n_neurons=n_neurons,
            in_shape=in_shape,
            mean_activity=mean_activity,
            kwargs=kwargs,
        )

    def _session(self, data_key: str | None) -> Any:
        if data_key is None and len(self) == 1:
            return next(iter(self.values()))
        _choices.one_of("data_key", data_key, tuple(self.keys()), KeyError)
        return self[str(data_key)]

    def forward(self, *args: Any, data_key: str | None = None, **kwargs: Any) -> Tensor:
        """Read with the readout of session ``data_key``, which may be left out if there is only one session.

        Raises:
            KeyError: no such session.
        """
        if kwargs:
            warn_of_misspelt((type(self),), "forward", tuple(kwargs))
        out: Tensor = self._session(data_key)(*args, **kwargs)
        return out

    def initialize(self, mean_activity_dict: Mapping[str, Tensor] | None = None) -> None:
        """Initialise all readouts; the bias of each starts at the mean activity of its session."""
        for data_key, readout in self.items():
            mean_activity = None if mean_activity_dict is None else mean_activity_dict[data_key]
            initialize: Any = readout.initialize
            initialize(mean_activity)

    def project_(self) -> None:
        """Bring the parameters of all readouts into their ranges, in place; see their ``project_``."""
        for readout in self.values():
            project: Any = readout.project_
            project()

    def regularizer(
        self, data_key: str | None = None, reduction: Reduction = "sum", average: bool | None = None
    ) -> Tensor | int | float:
        """The penalty of session ``data_key``, or of the only session.

        Raises:
            KeyError: no such session.
        """
        penalty: Tensor | int | float = self._session(data_key).regularizer(reduction=reduction, average=average)
        return penalty

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        first_names: dict[int, str] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            first = first_names.setdefault(id(parameter), name)
            one, other = (state_dict.get(prefix + key) for key in (first, name))
            if isinstance(one, Tensor) and isinstance(other, Tensor) and not _alike(one, other):
                error_msgs.append(f"{prefix}{name}: want the values of {prefix}{first}, which it shares, got others")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class MultiReadoutSharedParametersBase(MultiReadoutBase):
    """:class:`MultiReadoutBase` whose readouts share parameters with the first session's readout.

    For readouts that take the arguments ``grid_mean_predictor``, ``shared_features`` or ``shared_grid``, as
    :class:`v1fast.readouts.FullGaussian2d` does; :class:`v1fast.readouts.FullPointPooled2d` takes the first two,
    :class:`v1fast.readouts.FullFactorized2d` and :class:`v1fast.readouts.DenseReadout` the second. Drop-in for
    ``MultiReadoutSharedParametersBase`` of neuralpredictors. Differences from it: docs/layers.md.

    ``**kwargs`` of the constructor, beside those of the readouts:

    - ``grid_mean_predictor``: arguments of the network that predicts the means from the ``source_grids`` (the readout's
      ``grid_mean_predictor``). It needs ``grid_mean_predictor_type="cortex"``;
    - ``source_grids``: [N, D] of each session, e.g. cortical positions;
    - ``share_transform``: all sessions use one such network;
    - ``share_grid``: matched neurons have the same mean, up to an affine map per session;
    - ``share_features``: matched neurons have the same features, up to a factor per neuron;
    - ``shared_match_ids``: ids [N] of the neurons of each session. All sessions have the same ids.

    Raises:
        ValueError: an argument is missing, sessions have different ids, or the readouts do not take what is shared.
        RuntimeError: in ``load_state_dict``, if the checkpoint has a transform for each session although they share one
            here. neuralpredictors writes such checkpoints; they load without ``share_transform``.
    """

    def prepare_readout_kwargs(
        self,
        i: int,
        data_key: str,
        first_data_key: str,
        grid_mean_predictor: Mapping[str, Any] | None = None,
        grid_mean_predictor_type: str | None = None,
        share_transform: bool = False,
        share_grid: bool = False,
        share_features: bool = False,
        source_grids: Mapping[str, Any] | None = None,
        shared_match_ids: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments for session ``data_key``, with the shared parts of ``first_data_key``."""
        first: Any = None if i == 0 else self[first_data_key]
        wanted = {
            "grid_mean_predictor": grid_mean_predictor,
            "shared_grid": share_grid,
            "shared_features": share_features,
        }
        self._require_arguments([name for name, value in wanted.items() if value])
        if grid_mean_predictor:
            _choices.one_of("grid_mean_predictor_type", grid_mean_predictor_type, ("cortex",))
            kwargs["grid_mean_predictor"] = grid_mean_predictor
            kwargs["source_grid"] = _of_session("source_grids", source_grids, data_key)
            if share_transform and first is not None:
                kwargs["shared_transform"] = first.mu_transform
        elif share_grid:
            ids = self._matched(shared_match_ids, data_key, first_data_key)
            kwargs["shared_grid"] = {"match_ids": ids, "shared_grid": None if first is None else first.shared_grid}
        if share_features:
            ids = self._matched(shared_match_ids, data_key, first_data_key)
            shared = None if first is None else first.shared_features
            kwargs["shared_features"] = {"match_ids": ids, "shared_features": shared}
        return kwargs

    def _require_arguments(self, names: Sequence[str]) -> None:
        """ValueError unless the readouts take these: what they do not take, they would ignore."""
        for made in self._readout_class():
            lacking = [name for name in names if name not in arguments(made, "__init__")]
            if lacking and issubclass(made, Readout):
                raise ValueError(f"base_readout: want a readout that takes {lacking[0]}, got {made.__name__}")

    def _matched(self, given: Mapping[str, Any] | None, data_key: str, first_data_key: str) -> Any:
        """The ids of a session: the same set as in the first, since neurons are matched by the rank of their id."""
        ids = _of_session("shared_match_ids", given, data_key)
        of_first = self._readout_kwargs.get("shared_match_ids", {}).get(first_data_key, ids)
        if not np.array_equal(np.unique(ids), np.unique(of_first)):
            raise ValueError(f"shared_match_ids of {data_key}: want the same ids as in {first_data_key}, got others")
        return ids


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two entries of a checkpoint can be one parameter. Entries without values (``meta``) can."""
    if one is other or one.is_meta or other.is_meta:
        return True
    # Not allclose: DTensors do not have it.
    return one.shape == other.shape and bool(torch.isclose(one, other.to(one), rtol=0, atol=0, equal_nan=True).all())


def _of_session(name: str, given: Mapping[str, Any] | None, data_key: str) -> Any:
    if given is None or data_key not in given:
        raise ValueError(f"{name}: want an entry for {data_key}, got {None if given is None else list(given)}")
    return given[data_key]
