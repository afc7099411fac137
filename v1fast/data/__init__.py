"""Recordings: readers and writers of their formats, loaders for training, and simulated ones with known truth."""

from v1fast.data import simulated
from v1fast.data.arrays import read_arrays, write_arrays
from v1fast.data.download import PUBLISHED, get
from v1fast.data.formats import read, read_all, write
from v1fast.data.gratings import Gratings, gratings, simulate_gratings
from v1fast.data.loaders import loaders
from v1fast.data.nwb import read_nwb
from v1fast.data.openretina import read_openretina, write_openretina
from v1fast.data.preparation import Preparation, normalization
from v1fast.data.recording import Recording
from v1fast.data.sensorium import read_sensorium, write_sensorium
from v1fast.data.simulated import *  # noqa: F403 - its list of names is the only one
from v1fast.data.stringer import read_stringer, write_stringer

__all__ = [
    *simulated.__all__,
    "PUBLISHED",
    "Gratings",
    "Preparation",
    "Recording",
    "get",
    "gratings",
    "loaders",
    "normalization",
    "read",
    "read_all",
    "read_arrays",
    "read_nwb",
    "read_openretina",
    "read_sensorium",
    "read_stringer",
    "simulate_gratings",
    "write",
    "write_arrays",
    "write_openretina",
    "write_sensorium",
    "write_stringer",
]
