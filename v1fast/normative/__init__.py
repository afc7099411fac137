"""Normative models: networks that learn a task, and how similar their layers become to V1.

``compare_with_v1``  all tasks and networks against a population; what ``v1fast normative`` runs
``CNN``, ``FC``, ``ConvFC``, ``ConvPoolFC``  networks; ``initial_filters``
``train_on_tilt``, ``train``  stochastic gradient descent with momentum
``make_task``, ``fourier``  other tasks, and an answer without learning
``fit_encoding``     an encoding model that is fitted to the neurons directly
``figures``          pictures of all this
"""

from v1fast.normative.encoding import Encoded, EncodingModel, fit_encoding
from v1fast.normative.experiment import Normative, NormativeSettings, compare_with_v1, v1_of
from v1fast.normative.networks import CNN, FC, ConvFC, ConvPoolFC, OrientationNet, initial_filters
from v1fast.normative.tasks import TASKS, Task, fourier, make_task
from v1fast.normative.training import Trained, tilts, train, train_on_tilt

__all__ = [
    "CNN",
    "FC",
    "TASKS",
    "ConvFC",
    "ConvPoolFC",
    "Encoded",
    "EncodingModel",
    "Normative",
    "NormativeSettings",
    "OrientationNet",
    "Task",
    "Trained",
    "compare_with_v1",
    "fit_encoding",
    "fourier",
    "initial_filters",
    "make_task",
    "tilts",
    "train",
    "train_on_tilt",
    "v1_of",
]
