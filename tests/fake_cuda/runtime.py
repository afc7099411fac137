"""torch.cuda: one device, whose streams do all at once and whose graphs call again what was called."""

import contextlib
import functools
import time
import types

import torch
from torch.utils._pytree import tree_leaves

NAME = "a device that is none"
MEMORY = 8 * 2**30
PROPERTIES = types.SimpleNamespace(
    name=NAME, total_memory=MEMORY, major=9, minor=0, multi_processor_count=4, L2_cache_size=64, warp_size=32
)  # fmt: skip
_capturing = []  # graphs
_sync_mode = [0]  # 2: what makes the host wait is an error


def is_capturing():
    return bool(_capturing)


def refuses_waiting():
    return _sync_mode[0] == 2


def set_sync_debug_mode(mode):
    _sync_mode[0] = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)


def record(func, args, kwargs, out):
    """Remember a call, on CPU tensors, if a graph is being captured."""
    if _capturing:
        _capturing[-1].calls.append((func, args, kwargs, out))


class Event:
    def __init__(self, enable_timing=False, blocking=False, interprocess=False):
        self.timed, self.time = enable_timing, None

    def record(self, stream=None):
        self.time = time.perf_counter()

    def synchronize(self):
        pass

    def query(self):
        return True

    def wait(self, stream=None):
        pass

    def elapsed_time(self, end):
        if not (self.timed and end.timed):
            raise ValueError("both events must be made with enable_timing=True")
        return 1e3 * (end.time - self.time)


class Stream:
    device = torch.device("cuda:0")
    cuda_stream = 0

    def __init__(self, device=None, priority=0, **more):
        pass

    def synchronize(self):
        pass

    def query(self):
        return True

    def wait_stream(self, stream):
        assert isinstance(stream, Stream)

    def wait_event(self, event):
        assert isinstance(event, Event)

    def record_event(self, event=None):
        event = event or Event()
        event.record()
        return event


_current = [Stream()]


@contextlib.contextmanager
def stream(chosen):
    _current.append(chosen)
    try:
        yield
    finally:
        _current.pop()


class CUDAGraph:
    def __init__(self, keep_graph=False):
        self.calls = []

    def replay(self):
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.numel() and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def reset(self):
        self.calls = []

    def pool(self):
        return (0, 0)


@contextlib.contextmanager
def graph(captured, pool=None, stream=None, capture_error_mode="global"):
    _capturing.append(captured)
    try:
        yield
    finally:
        _capturing.pop()


def install():
    fakes = {
        "Event": Event, "Stream": Stream, "CUDAGraph": CUDAGraph, "graph": graph, "stream": stream,
        "is_available": lambda: True, "is_initialized": lambda: True, "_lazy_init": lambda: None, "init": lambda: None,
        "device_count": lambda: 1, "current_device": lambda: 0, "set_device": lambda device: None,
        "get_device_name": lambda device=None: NAME, "get_device_properties": lambda device=None: PROPERTIES,
        "get_device_capability": lambda device=None: (9, 0), "current_stream": lambda device=None: _current[-1],
        "default_stream": lambda device=None: _current[0], "synchronize": lambda device=None: None,
        "is_current_stream_capturing": is_capturing, "graph_pool_handle": lambda: (0, 0),
        "memory_allocated": lambda device=None: 0, "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None, "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY), "_sleep": lambda cycles: None,
        "get_sync_debug_mode": lambda: _sync_mode[0], "set_sync_debug_mode": set_sync_debug_mode,
        "device": lambda device: contextlib.nullcontext(), "device_of": lambda tensor: contextlib.nullcontext(),
        "manual_seed_all": lambda seed: None, "manual_seed": lambda seed: None, "is_bf16_supported": lambda: True,
        "get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "set_rng_state": lambda state, device="cuda": torch.set_rng_state(state),
    }  # fmt: skip
    for name, fake in fakes.items():
        setattr(torch.cuda, name, fake)
    torch.backends.cudnn.enabled = False
    torch.compile = _compile
    # What compilers trace with would be one more disguise.
    torch.library.opcheck = functools.partial(
        torch.library.opcheck, test_utils=("test_schema", "test_autograd_registration")
    )


def _compile(model=None, **options):
    """Returns the function as it is: it runs, and nothing is compiled."""
    return _compile if model is None else model
