from __future__ import annotations

import sys

import torch

from v1fast._build import ops_binary


def release_memory() -> None:
    """Return to the system the memory that v1fast keeps for its next call.

    On a CPU, the block of the last large gradient of features (32 MiB or more) is kept when it is freed, because fresh
    memory would cost more time than the gradient itself. It is marked as free. Linux takes it when memory runs short,
    and counts it to the process until then. There is at most one such block. Without one, this does nothing.
    """
    module = sys.modules.get(ops_binary(torch.__version__))
    if module is not None:
        module.release_memory()
