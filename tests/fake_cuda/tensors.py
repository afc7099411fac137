"""Tensors that claim to be on the device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from . import runtime

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
COPIES = {aten._to_copy.default, aten.copy_.default, aten.lift_fresh.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
HOST_READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.is_nonzero.default}


class OnDevice(torch.Tensor):
    """A tensor on the device, whose values are those of ``inner`` on the CPU."""

    @staticmethod
    def __new__(cls, inner):
        assert not isinstance(inner, OnDevice)
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        self = torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=DEVICE, **layout)
        self.inner = inner
        return self

    def __repr__(self):
        return f"OnDevice({self.inner!r})"

    def numpy(self, **how):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *how, **more):
        self.numpy()

    def tolist(self):
        return self.cpu().tolist()

    def data_ptr(self):
        return self.inner.data_ptr()

    def record_stream(self, stream):
        pass

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """Also catches what has no operand on the device yet, and makes one there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


def unwrap(value):
    return value.inner if isinstance(value, OnDevice) else value


def _call(func, args, kwargs):
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    if any(type(t) not in (torch.Tensor, OnDevice, torch.nn.Parameter) for t in given):
        return func(*args, **kwargs)  # those of a compiler, which traces
    target, here = kwargs.get("device"), any(isinstance(t, OnDevice) for t in given)
    if target is not None:
        target = torch.device(target)
        here = target.type == "cuda"
    elif not here:
        return func(*args, **kwargs)
    if target is not None and target.type == "meta":
        return func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    _refuse(func, given, target)
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        kwargs.pop("pin_memory", None) if func not in COPIES else None
    inner_args, inner_kwargs = tree_map(unwrap, args), tree_map(unwrap, kwargs)
    out = func(*inner_args, **inner_kwargs)
    if func is aten._to_copy.default and out is inner_args[0]:
        out = out.clone()
    runtime.record(func, inner_args, inner_kwargs, out)
    if func._schema.name.endswith("_") and not func._schema.name.endswith("__"):
        return args[0]
    known = {id(t.inner): t for t in given if isinstance(t, OnDevice)}

    def wrap(value):
        if not here or type(value) is not torch.Tensor or value.device.type != "cpu":
            return value
        return known[id(value)] if id(value) in known else OnDevice(value)

    return tree_map(wrap, out)


def _refuse(func, given, target):
    """Raise what a device would."""
    others = [t for t in given if not isinstance(t, OnDevice) and t.device.type == "cpu"]
    device = [t for t in given if isinstance(t, OnDevice)]
    away = func is aten._to_copy.default and target is not None and (others if target.type == "cuda" else device)
    if func in HOST_READS or away or (func is aten.copy_.default and others and device):
        if runtime.is_capturing():
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        if runtime.refuses_waiting():
            raise RuntimeError(f"{func}: called a synchronizing CUDA operation")
    if device and func not in COPIES:
        indices = func in INDEXING
        for t in others:
            if t.dim() > 0 and not (indices and t is not given[0]):
                raise RuntimeError(
                    f"{func}: expected all tensors to be on the same device, got {tuple(t.shape)} on cpu beside cuda:0"
                )


def install():
    _Everywhere().__enter__()
    torch._C._set_only_lift_cpu_tensors(True)  # what torch.tensor makes comes here too
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.Tensor.cuda = lambda self, *a, **k: self.to("cuda")
    _let_triton_see_the_values()


def _let_triton_see_the_values():
    """Triton's kernels run on the emulator."""
    try:
        import ptx_emulator
        from triton.runtime.jit import JITFunction
    except ImportError:
        return
    ptx_emulator.install(80)
    run = JITFunction.run
    JITFunction.run = lambda self, *args, **kwargs: run(self, *map(unwrap, args), **tree_map(unwrap, kwargs))
