"""Make an existing model faster: readouts of neuralpredictors and openretina compute with v1fast's kernels.

A readout stays the same object. Its class becomes a subclass of the library's class whose ``forward`` is that of
v1fast's layer. So references to the module, its parameters, buffers, hooks and name stay valid, and everything but
``forward`` stays the library's.
"""

from __future__ import annotations

import copyreg
import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import getattr_static
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from v1fast import readouts
from v1fast._layout import channels_last
from v1fast.readouts._points import Sampler, check_sampler
from v1fast.readouts._ranges import Change, at_least_zero

LIBRARIES = ("neuralpredictors", "openretina")


class _PointPooled2d(readouts.PointPooled2d):
    return_weighted_features = False  # release 0.3.0 does not have the attribute


class _GeneralizedPointPooled2d(readouts.GeneralizedPointPooled2d):
    def forward(self, x: Tensor, shift: Tensor | None = None, out_idx: Any = None, **kwargs: Any) -> Tensor:
        # neuralpredictors' encoders rely on axes of length 1 (one image, one neuron) being dropped.
        return super().forward(x, shift=shift, out_idx=out_idx).squeeze()


class _PointPyramid2d(readouts.PointPyramid2d):
    # neuralpredictors' takes no out_idx: it returns all neurons.
    def forward(self, x: Tensor, shift: Tensor | None = None, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return super().forward(x, shift=shift)


class _SpatialTransformerPooled3d(readouts.SpatialTransformerPooled3d):
    avg: nn.AvgPool2d
    kernel_size = property(lambda self: self.avg.kernel_size)
    stride = property(lambda self: self.avg.stride)


class _GeneralizedFullGaussianReadout2d(readouts.GeneralizedFullGaussianReadout2d):
    def forward(
        self,
        x: Tensor,
        sample: bool | None = None,
        shift: Tensor | None = None,
        out_idx: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        out = super().forward(x, sample=sample, shift=shift, out_idx=out_idx, **kwargs)
        return out if self.return_weighted_features else out.squeeze()  # as GeneralizedPointPooled2d


class _FullFactorized2d(readouts.FullFactorized2d):
    positive_spatial = False  # which release 0.3.0 does not know

    # neuralpredictors' takes no out_idx: it returns all neurons.
    def forward(self, x: Tensor, shift: Tensor | None = None, **kwargs: Any) -> Tensor:  # type: ignore[override]
        if shift is not None:
            raise NotImplementedError("shift: neuralpredictors' FullFactorized2d takes none; v1fast.readouts' does")
        return super().forward(x)

    def _ranges(self) -> Mapping[str, Change]:
        # neuralpredictors clamps a copy where features are shared, and for positive_weights none that forward reads.
        names = ["_features"] if self.constrain_pos and not self._shared_features else []
        names += ["spatial"] if self.constrain_pos and not self.normalize else []
        return dict.fromkeys(names, at_least_zero)

    def _features_of(self, index: Tensor | None, write: bool = False) -> Tensor:
        return self.features if self._shared_features else self._in_range("_features", write)


class _AttentionReadout(readouts.AttentionReadout):
    # neuralpredictors' ignores shift and reads maps of any size.
    def forward(self, x: Tensor, shift: Any = None) -> Tensor:  # type: ignore[override]
        return self._responses(x, None, None)


class _FactorizedReadout(readouts.FactorizedReadout):
    # openretina's ignores shift and out_idx.
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return super().forward(x)

    def _constrained(self) -> tuple[Tensor, Tensor]:
        if _library(type(self).apply_constraints) == "openretina":
            return super()._constrained()
        self.apply_constraints()  # that of a subclass
        return self.mask_weights.clone(), self.feature_weights.clone()


class _GaussianMaskReadout(readouts.GaussianMaskReadout):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


_GAUSSIAN, _POOLED = "neuralpredictors.layers.readouts.gaussian", "neuralpredictors.layers.readouts.point_pooled"
_RETINA = "openretina.modules.readout"
REPLACEABLE: dict[str, type[readouts.Readout]] = {
    f"{_GAUSSIAN}.FullGaussian2d": readouts.FullGaussian2d,
    f"{_GAUSSIAN}.GeneralizedFullGaussianReadout2d": _GeneralizedFullGaussianReadout2d,
    f"{_GAUSSIAN}.Gaussian2d": readouts.Gaussian2d,
    f"{_POOLED}.PointPooled2d": _PointPooled2d,
    f"{_POOLED}.GeneralizedPointPooled2d": _GeneralizedPointPooled2d,
    f"{_POOLED}.SpatialTransformerPooled3d": _SpatialTransformerPooled3d,
    "neuralpredictors.layers.readouts.pyramid.PointPyramid2d": _PointPyramid2d,
    "neuralpredictors.layers.readouts.factorized.FullFactorized2d": _FullFactorized2d,
    "neuralpredictors.layers.readouts.attention.AttentionReadout": _AttentionReadout,
    # Not v1fast's PointGaussianReadout, which adds properties that the library's objects have as plain attributes.
    f"{_RETINA}.gaussian.PointGaussianReadout": readouts.FullGaussian2d,
    f"{_RETINA}.factorized.FactorizedReadout": _FactorizedReadout,
    f"{_RETINA}.factorized_gaussian.GaussianMaskReadout": _GaussianMaskReadout,
}
"""What v1fast computes faster: module and name of a class, and the class whose computation takes over."""

_NO_FASTER = "v1fast computes it no faster"
LEFT = {
    f"{_GAUSSIAN}.RemappedGaussian2d": "its forward returns nothing; the one of v1fast.readouts works",
    f"{_GAUSSIAN}.DeterministicGaussian2d": "its means cannot be trained; the one of v1fast.readouts works",
    f"{_GAUSSIAN}.Gaussian3d": _NO_FASTER,
    f"{_GAUSSIAN}.UltraSparse": _NO_FASTER,
}
"""What v1fast.readouts has too and does not replace: module and name of a class, and why."""

# What is taken from v1fast's class, where that has it; everything else stays the library's.
_TAKEN = ("forward", "mu")
# What a subclass may redefine without a change to what forward computes.
_APART_FROM_FORWARD = {
    "_abc_impl",
    "_plot_weight_for_neuron",
    "apply_constraints",  # the library's or the subclass's own version is called
    "apply_reduction",
    "extra_repr",
    "feature_l1",
    "group_sparsity",
    "init_grid_predictor",
    "initialize",
    "initialize_bias",
    "initialize_features",
    "initialize_shared_grid",
    "l1",
    "mask_l1",
    "mu_dispersion",
    "number_of_neurons",
    "plot_weight_for_neuron",
    "regularizer",
    "save_weight_visualizations",
}


@dataclass(frozen=True)
class Outcome:
    """What became of one readout.

    Attributes:
        names: its names in the model; "" is the model itself.
        kind: its class and library.
        why: reason why it was left; "" if it was replaced.
    """

    names: tuple[str, ...]
    kind: str
    why: str = ""

    def __str__(self) -> str:
        names = " = ".join(name or "(the model itself)" for name in self.names)
        return f"{names}: {self.kind}" + (f"; {self.why}" if self.why else "")


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`accelerate` did; ``print`` shows it in words.

    Attributes:
        replaced: readouts that v1fast computes from now on.
        left: readouts that stay as they were, and why.
        unknown: modules that look like readouts but belong to no library that v1fast knows.
        channels_last: names of the cores that compute in channels-last from now on.
    """

    replaced: tuple[Outcome, ...]
    left: tuple[Outcome, ...]
    unknown: tuple[Outcome, ...] = ()
    channels_last: tuple[Outcome, ...] = ()

    def __repr__(self) -> str:
        if not (self.replaced or self.left):
            none = f"no readout of {' or '.join(LIBRARIES)} found"
            seen = ["; of unknown classes, which accelerate(model, also=...) can be told of:"] if self.unknown else []
            return "\n  ".join([none + "".join(seen), *map(str, self.unknown)])
        parts = (("replaced", self.replaced), ("left", self.left), ("in channels-last", self.channels_last))
        return "\n".join(
            "\n  ".join([f"{len(outcomes)} {what}", *map(str, outcomes)]) for what, outcomes in parts if outcomes
        )


class _Accelerated:
    """Marks the classes that this module makes at run time.

    Their first base is the library's class: Python changes an object's class only to one of the same memory layout.
    """

    _v1fast_base: ClassVar[type]
    _v1fast_made_by: ClassVar[tuple[Callable[..., type], tuple[Any, ...]]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = super().__reduce_ex__(max(protocol, 2))
        if not isinstance(made, tuple) or made[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return made
        # pickle cannot find a class made at run time by its name.
        return _new_accelerated, (*self._v1fast_made_by, *made[1][1:]), *made[2:]


def _new_accelerated(make: Callable[..., type], options: tuple[Any, ...], *arguments: Any) -> nn.Module:
    """An object of the class ``make(*options)`` without attributes, for ``pickle`` and ``copy`` to fill."""
    cls: Any = make(*options)
    made: nn.Module = cls.__new__(cls, *arguments)
    return made


def accelerate(
    model: nn.Module,
    *,
    sampler: Sampler = "torch",
    also: Mapping[type, type[readouts.Readout]] | None = None,
    channels_last: bool = False,
) -> Report:
    """Let v1fast compute the readouts of neuralpredictors and openretina in a model.

    The model is changed in place. Its readouts are found wherever they are: in multi-readouts, in compiled models, in
    models wrapped by DistributedDataParallel, or as the model itself. The modules and their parameters stay the same
    objects: optimisers, tied parameters, hooks, ``state_dict`` and checkpoints stay valid. Initialisation, penalties
    and everything else but ``forward`` stay the library's. A compiled model is compiled again at its next call.

    Left as they are: subclasses that change what ``forward`` computes, readouts without a counterpart in v1fast, and
    readouts that v1fast computes differently. The report says which and why. Readouts that are already accelerated
    are left too, unless another sampler is asked for.

    Args:
        model: any module.
        sampler: how readouts that sample positions draw random numbers. "torch" draws those that the library draws, so
            that a run with the same seed gives the same samples. "philox" draws them in the kernel, which is faster.
        also: copies of a library's classes under other names or in other modules, each with the class of
            ``v1fast.readouts`` that replaces it: ``{mylab.Gaussian: v1fast.readouts.FullGaussian2d}``. Of such a copy
            only the names of the methods and the arguments of ``forward`` are checked.
        channels_last: let each module named ``core`` compute in channels-last too, the layout that the readouts read
            fastest. Images [B, C, H, W] are copied into that layout; parameters and videos stay as they are.

    Returns:
        The report.

    Raises:
        TypeError: ``model`` is not a module, or ``also`` holds something other than classes.
        ValueError: an unknown sampler, or no module to compute in channels-last.
    """
    check_sampler(sampler)
    given = dict(also or {})
    _check_also(given)
    modules = list(_modules(model))
    cores = [(module, names) for module, names in modules if channels_last and _is_core(module, names)]
    if channels_last and not cores:
        raise ValueError("channels_last: want a module of the name core in the model, got none")
    replaced: list[Outcome] = []
    left: list[Outcome] = []
    unknown: list[Outcome] = []
    for module, names in modules:
        inner = _inner(type(module))
        base = inner._v1fast_base if issubclass(inner, _Accelerated) else inner
        ours = _ours(base, given) or _made_for(inner)
        if ours is None and not _is_readout(base):
            unknown += [Outcome(names, _path(base))] if _resembles_a_readout(module) else []
            continue
        why = _why_left(module, inner, base, ours, sampler, given)
        (left if why else replaced).append(Outcome(names, _kind(base), why))
        if not why:
            assert ours is not None
            _give_class(module, _rebuilt(type(module), inner, _accelerated(base, sampler, ours)))  # type: ignore[arg-type]
    changed = [Outcome(names, _kind(_inner(type(core)))) for core, names in cores if not _is_accelerated(core)]
    for core, _ in cores:
        _compute_in_channels_last(core)
    return Report(tuple(replaced), tuple(left), tuple(unknown), tuple(changed))


def restore(model: nn.Module) -> tuple[str, ...]:
    """Undo :func:`accelerate`: readouts and cores compute with their library's code again.

    Args:
        model: any module.

    Returns:
        Names of the readouts that were accelerated, and of the cores.

    Raises:
        TypeError: ``model`` is no module.
    """
    restored: list[str] = []
    for module, names in _modules(model):
        inner = _inner(type(module))
        if issubclass(inner, _Accelerated):
            _give_class(module, _rebuilt(type(module), inner, inner._v1fast_base))
            restored += names
    return tuple(restored)


def _modules(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Each module once, with all its names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    for module in list(model.modules()):
        yield module, tuple(names[id(module)])


def _is_accelerated(module: nn.Module) -> bool:
    return issubclass(_inner(type(module)), _Accelerated)


def _library(cls: Any) -> str:
    return str(cls.__module__).partition(".")[0]


def _names(classes: Iterable[type]) -> set[str]:
    """Names that these classes define, without those that Python gives every class."""
    return {name for cls in classes for name in vars(cls) if not name.startswith("__")}


def _is_readout(cls: type) -> bool:
    """Whether the class is a single readout of a library: not a dictionary of readouts, not a part of one."""
    theirs = (c for c in cls.__mro__ if _library(c) in LIBRARIES and "readout" in c.__module__)
    return not issubclass(cls, nn.ModuleDict) and any(hasattr(c, "initialize") for c in theirs)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _known_class(cls: type, also: Mapping[type, Any]) -> type[nn.Module] | None:
    """The first class of the method resolution order that v1fast can replace or that ``also`` names."""
    return next((c for c in cls.__mro__ if c in also or _path(c) in REPLACEABLE), None)


def _check_also(also: Mapping[Any, Any]) -> None:
    for theirs, ours in also.items():
        classes = isinstance(theirs, type) and isinstance(ours, type)
        if not (classes and issubclass(theirs, nn.Module) and issubclass(ours, readouts.Readout)):
            raise TypeError(
                f"also: want {{a class of modules: a class of v1fast.readouts}}, got {{{theirs!r}: {ours!r}}}"
            )


def _resembles_a_readout(module: nn.Module) -> bool:
    """Whether its class name or its attributes are those of a readout; never for modules of torch and v1fast."""
    cls = type(module)
    if _library(cls) in ("torch", "v1fast") or isinstance(module, nn.ModuleDict):
        return False
    known = {path.rpartition(".")[2] for path in (*REPLACEABLE, *LEFT)}
    named = cls.__name__ in known or "readout" in cls.__name__.lower()
    return named or (hasattr(module, "outdims") and (hasattr(module, "features") or hasattr(module, "_features")))


def _kind(base: type) -> str:
    theirs = next((c for c in base.__mro__ if _library(c) in LIBRARIES), base)
    kind = f"{theirs.__name__} of {_library(theirs)}"
    return kind if theirs is base else f"{base.__name__}, a {kind}"


def _inner(cls: type) -> type:
    """The accelerated class in ``cls``; else ``cls`` without the classes that torch adds to parametrise or shard it."""
    accelerated = [c for c in cls.__mro__ if "_v1fast_base" in vars(c)]
    # The __module__ of a class made at run time may be that of its metaclass.
    by_torch = {
        c for c in cls.__mro__ if _library(c) in ("torch", "abc") and c.__name__.startswith(("Parametrized", "FSDP"))
    }
    return accelerated[0] if accelerated else next(c for c in cls.__mro__ if c not in by_torch)


def _give_class(module: nn.Module, cls: type) -> None:
    """Change the class of ``module`` so that torch.compile notices at the next call.

    With ``torch._dynamo.config.use_recursive_dict_tags_for_guards``, which is on in torch 2.9 and 2.10 unless it is
    turned off, compiled code looks at a module's class again only after the module's dictionary has changed.
    """
    module.__class__ = cls
    vars(module)["_v1fast_changed"] = True
    del vars(module)["_v1fast_changed"]


def _rebuilt(cls: type, inner: type, new: type) -> type:
    """``cls`` with its base ``inner`` replaced by ``new``."""
    if cls is inner:
        return new
    bases = tuple(_rebuilt(base, inner, new) if issubclass(base, inner) else base for base in cls.__bases__)
    namespace = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls)(cls.__name__.replace(inner.__name__, new.__name__), bases, namespace)


@functools.cache
def _accelerated(base: type, sampler: Sampler, ours: type[readouts.Readout]) -> type:
    """A subclass of ``base`` with the computation of ``ours``."""
    # What base inherits from nn.Module alone comes after ours in the method resolution order: keep base's.
    methods = {name: getattr_static(base, name) for name in _names(_v1fast(ours)) & set(dir(nn.Module))}
    methods |= {name: getattr_static(ours, name) for name in _TAKEN if hasattr(ours, name)}
    methods |= {"__module__": __name__, "__doc__": base.__doc__, "_v1fast_base": base, "sampler": sampler}
    methods |= {"_v1fast_made_by": (_accelerated, (base, sampler, ours)), "__reduce_ex__": _Accelerated.__reduce_ex__}
    name, bases = f"Accelerated{base.__name__}", (base, _Accelerated, ours)
    return types.new_class(name, bases, exec_body=lambda namespace: namespace.update(methods))


def _is_core(module: nn.Module, names: Iterable[str]) -> bool:
    """Whether the module is named ``core``; the wrapper that torch.compile puts around it has that name too."""
    if isinstance(module, torch._dynamo.OptimizedModule):
        return False
    return any(name.removesuffix("._orig_mod").rpartition(".")[2] == "core" for name in names)


def _compute_in_channels_last(core: nn.Module) -> None:
    if not _is_accelerated(core):
        inner: Any = _inner(type(core))
        _give_class(core, _rebuilt(type(core), inner, _channels_last(inner)))


@functools.cache
def _channels_last(base: type[nn.Module]) -> type:
    """A subclass of ``base`` that hands images [B, C, H, W] to ``forward`` in channels-last.

    Convolutions, norms and nonlinearities keep the layout. Converting the parameters would have the same effect, but an
    optimiser's state would keep the old layout, and a fused optimiser assumes that both have the same.
    """
    forward = base.forward

    @functools.wraps(forward)
    def in_channels_last(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *map(_images_last, args), **{name: _images_last(value) for name, value in kwargs.items()})

    attributes = {"forward": in_channels_last, "__module__": __name__, "__doc__": base.__doc__, "_v1fast_base": base}
    attributes |= {"_v1fast_made_by": (_channels_last, (base,)), "__reduce_ex__": _Accelerated.__reduce_ex__}
    return type(f"ChannelsLast{base.__name__}", (base, _Accelerated), attributes)


def _images_last(value: Any) -> Any:
    return channels_last(value) if isinstance(value, Tensor) and value.dim() == 4 else value


def _ours(base: type, also: Mapping[type, type[readouts.Readout]]) -> type[readouts.Readout] | None:
    """The class whose computation takes over, if there is one."""
    known = _known_class(base, also)
    if known is None or known not in also:
        return None if known is None else REPLACEABLE[_path(known)]
    # REPLACEABLE may hold a variant of ``given`` that imitates the library: use it where the copy's forward matches.
    given = also[known]
    twins = [cls for cls in REPLACEABLE.values() if cls.__base__ is given and _library(cls) == "v1fast"]
    return next((cls for cls in (*twins, given) if _parameters(cls) == _parameters(known)), given)


def _made_for(inner: type) -> type[readouts.Readout] | None:
    """The class of v1fast that ``also`` named when ``inner`` was accelerated."""
    make, options = getattr(inner, "_v1fast_made_by", (None, ()))
    return options[2] if make is _accelerated else None  # type: ignore[misc]


def _parameters(cls: type[nn.Module]) -> list[str]:
    """Arguments of forward. Keyword-only arguments are v1fast's additions, no sign of another version."""
    return [p.name for p in inspect.signature(cls.forward).parameters.values() if p.kind is not p.KEYWORD_ONLY]


def _v1fast(ours: type) -> list[type]:
    return [c for c in ours.__mro__ if _library(c) == "v1fast"]


def _why_left(
    module: nn.Module,
    inner: type,
    base: type,
    ours: type[readouts.Readout] | None,
    sampler: Sampler,
    also: Mapping[type, Any],
) -> str:
    """Why v1fast cannot compute what ``module`` does by ``ours``; "" if it can."""
    if issubclass(inner, _Accelerated):
        return "is accelerated already" if inner.sampler == sampler else ""  # type: ignore[attr-defined]
    known = _known_class(base, also)
    if any(c.__name__ == "ClonedReadout" for c in base.__mro__):
        return "computes little: what became of the readout that it clones counts"
    for cls in base.__mro__ if known not in also else ():
        if _path(cls) in LEFT:
            return LEFT[_path(cls)]
    if known is None or ours is None:
        return "v1fast has no counterpart"
    theirs = [c for c in known.__mro__ if _library(c) not in ("torch", "abc", "builtins", "typing")]
    classes = [*theirs, *_v1fast(ours)]
    # Methods and properties only: plain values may differ between objects.
    used = {name for c in classes for name in _names([c]) if hasattr(vars(c)[name], "__get__")} | {"sampler"}
    subclasses = base.__mro__[: base.__mro__.index(known)]
    if _names(c for c in subclasses if _library(c) in LIBRARIES) & used - _APART_FROM_FORWARD:
        return "v1fast has no counterpart"
    changed = (_names(subclasses) | set(vars(module))) & used - _APART_FROM_FORWARD
    if changed:
        return f"has its own {', '.join(sorted(changed))}"
    takes, wanted = _parameters(known), _parameters(ours)
    if takes != wanted:
        return f"is of another version: its forward takes {', '.join(takes)} instead of {', '.join(wanted)}"
    return _why_this_one_is_left(module)


def _why_this_one_is_left(module: Any) -> str:
    free = {"_features", "bias", "feature_weights", "mask_log_var", "mask_mean", "mask_weights"}
    free |= {"scale_param", "scales", "spatial"}
    if not getattr(module, "positive", False) and not hasattr(module, "mask"):
        free.add("features")
    parametrised = set(module.parametrizations) - free if parametrize.is_parametrized(module) else set()
    if parametrised:
        return f"has a parametrised {', '.join(sorted(parametrised))}, which v1fast would clamp otherwise"
    if hasattr(module, "avg"):
        return _why_poolings_are_left(module)
    return ""


def _why_poolings_are_left(module: Any) -> str:
    if getattr(module, "return_weighted_features", False):
        return "has return_weighted_features, which v1fast returns in another shape"
    avg, kernel = module.avg, getattr(module, "pool_kern", None)
    if type(avg) is not nn.AvgPool2d or avg._forward_hooks or avg._forward_pre_hooks:
        return "has an avg of its own, or hooks on it"
    square = isinstance(avg.kernel_size, int) if kernel is None else avg.kernel_size == (kernel, kernel)
    return "" if square and isinstance(avg.stride, int) else "has poolings that are not square"


class _Callable(types.ModuleType):
    """The class of this module. ``v1fast.accelerate`` is both the module and, when called, the function."""

    def __call__(self, model: nn.Module, **options: Any) -> Report:
        return accelerate(model, **options)

    def __reduce__(self) -> Any:
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Callable
__signature__ = inspect.signature(accelerate)
