"""Fast kernels for neural encoding models of visual cortex.

``v1fast.functional``  the computations, as functions of tensors
``v1fast.readouts``    the layers, drop-in for those of the same names in neuralpredictors and openretina
``v1fast.accelerate``  lets a model of neuralpredictors or openretina compute its readouts by them, in place
``v1fast.models``      cores, shifters, modulators, and the encoder that joins them with readouts
``v1fast.data``        recordings in all formats, loaders, and simulated animals
``v1fast.training``    the fit of an encoder; readouts on frozen cores
``v1fast.metrics``     how good predicted responses are, neuron by neuron; ``v1fast.losses``
``v1fast.runs``        from recordings to a folder with a model, its metrics and a report
``v1fast.experiments`` transfer of cores, comparison of readouts
``v1fast.insilico``    what excites a model's neurons most, and what they read of images
``v1fast.rsa``         representational similarity analysis
``v1fast.decoding``    stimuli from responses
``v1fast.normative``   networks that learn tasks, beside V1
``v1fast.plots``       figures
``v1fast.ops.loaded``  which kernels this installation runs
``v1fast.release_memory``  gives back the one large block of memory that is kept between calls
"""

import importlib
from typing import TYPE_CHECKING, Any

from v1fast import _source_tree as _source_tree  # first: it finds what the others import
from v1fast import accelerate as accelerate  # a module that is called as its function
from v1fast import functional, ops, readouts
from v1fast._version import __version__
from v1fast.accelerate import restore
from v1fast.ops._memory import release_memory

if TYPE_CHECKING:
    from v1fast import data, doctor, models, plots, rsa
    from v1fast.accelerate import accelerate as accelerate  # type: ignore[no-redef]

_LAZY = ("data", "doctor", "models", "plots", "rsa")

__all__ = [
    "__version__",
    "accelerate",
    "data",
    "doctor",
    "functional",
    "models",
    "ops",
    "plots",
    "readouts",
    "release_memory",
    "restore",
    "rsa",
]


def __getattr__(name: str) -> Any:
    """The parts that are not imported until they are used."""
    if name in _LAZY:
        return importlib.import_module(f"v1fast.{name}")
    raise AttributeError(f"module 'v1fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
