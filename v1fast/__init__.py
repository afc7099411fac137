"""Fast kernels for neural encoding models of visual cortex.

``v1fast.functional``  the computations, as functions of tensors
``v1fast.readouts``    the layers, drop-in for those of the same names in neuralpredictors and openretina
``v1fast.accelerate``  lets a model of neuralpredictors or openretina compute its readouts by them, in place
``v1fast.models``      cores, and the multitask LN model
``v1fast.metrics``     how good predicted responses are, neuron by neuron; ``v1fast.losses``
``v1fast.data``        simulated populations
``v1fast.rsa``         representational similarity analysis
``v1fast.ops.loaded``  which kernels this installation runs
``v1fast.release_memory``  gives back the one large block of memory that is kept between calls
"""

from v1fast import functional, ops, readouts
from v1fast._version import __version__
from v1fast.accelerate import accelerate, restore
from v1fast.ops._memory import release_memory

__all__ = ["__version__", "accelerate", "functional", "ops", "readouts", "release_memory", "restore"]
